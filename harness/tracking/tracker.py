"""MLflow as a view of the run folders: written by one process, rebuilt from them at any time.

A pass compares every folder with what was sent of it and sends the difference. Nothing is
remembered outside MLflow and the folders: a new process, here or elsewhere, finds the runs of a
study by their tags and goes on. So a pass that is killed anywhere is completed by the next one, and
one that meets a dead server raises `TrackingError` and is made up for later.

One experiment a study; in it a parent run for the study, and below it one run for each spec.
"""

import logging
import os
import re
import sqlite3
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from importlib.metadata import version
from pathlib import Path

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # read when mlflow is imported

from mlflow import MlflowClient
from mlflow.exceptions import MlflowException, RestException
from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore
from sqlalchemy.exc import SQLAlchemyError

from experiments.spec import from_json
from harness.plan import Plan, PlannedRun
from harness.tracking.run_view import (
    AFTER_THE_SWEEP,
    FROM_OUTSIDE,
    WHILE_SWEEPING,
    Statuses,
    view_of,
)
from harness.tracking.ui import runs_page, serve
from harness.tracking.view import StudyView, now_ms
from storage.atomic import TEMPORARY_SUFFIX, replacing
from storage.errors import FewscanError, RunError, TrackingError
from storage.runs import OVER, RunFolder

EXPERIMENT_TAGS = {
    "mlflow.experimentKind": "custom_model_development",  # else the UI asks, or guesses
    "mlflow.note.content": "Written by fewscan from the run folders; `fewscan sync` rebuilds it.",
}
DEFAULTS = {
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_ARTIFACT_UPLOAD_DOWNLOAD_TIMEOUT": "60",
}
"""Unless set otherwise: a server that hangs holds up a sweep for 20 s, not for 20 minutes."""
SQLITE = "sqlite:///"
DATABASES = ("sqlite:", "postgresql", "mysql", "mssql")


class Tracker:
    """The one writer of a study's MLflow view.

    Making one reaches nothing; the first `update` connects. `uri` is where to write: the argument,
    else MLFLOW_TRACKING_URI, else a SQLite file in the study's folder.
    """

    def __init__(self, plan: Plan, uri: str | None = None) -> None:
        self.plan = plan
        self.uri = tracking_uri(plan, uri)
        self._view: StudyView | None = None
        self._changing: set[str] = set()

    def update(self, begun: Iterable[str] | None = None) -> None:
        """Make MLflow look like the folders. An unchanged run costs a few `stat`s and no request.

        `begun` are the ids of the runs that have begun since the last update: then only they and
        those that were not over are looked at. Without it, and after an error, all are.

        Raises `TrackingError` if MLflow cannot be reached or refuses, or if a folder is damaged;
        all other runs are then up to date. Calling it again catches up.
        """
        if begun is None:
            self._pass(WHILE_SWEEPING, "RUNNING")
        else:
            self._changing.update(begun)
            self._pass(WHILE_SWEEPING, "RUNNING", only=self._changing)

    def log_report(self, files: Sequence[Path]) -> None:
        """Put files under "report/" on the study's parent run, in place of older ones."""
        with self._connected() as view:
            for file in files:
                view.client.log_artifact(view.parent.mlflow_id, str(file), "report")

    def close(self, finished: bool) -> None:
        """A last pass, after the sweep: what is neither finished nor failed is KILLED."""
        self._pass(AFTER_THE_SWEEP, "FINISHED" if finished else "KILLED")

    def show(self) -> None:
        """A pass for those who only look: a sweep may be running the study somewhere."""
        states = {folder.state() for _, folder in _runs(self.plan)}
        unfinished = "RUNNING" if "running" in states else "KILLED"
        self._pass(FROM_OUTSIDE, "FINISHED" if states == {"finished"} else unfinished)

    def _pass(self, statuses: Statuses, parent_status: str, only: set[str] | None = None) -> None:
        looked_before = self._view is not None
        with self._connected() as view:
            problems = list(self._send_changes(view, statuses, only if looked_before else None))
            ended_ms = None if parent_status == "RUNNING" else now_ms()
            view.set_status(view.parent, parent_status, ended_ms)
        if problems:
            raise TrackingError(
                "some runs could not be shown:\n" + "\n".join(f"    {p}" for p in problems),
                where=without_password(self.uri),
                expected="run folders as fewscan writes them, and an MLflow that takes them",
                remedy="mend what each line says; all other runs are up to date",
            )

    def _send_changes(
        self, view: StudyView, statuses: Statuses, only: set[str] | None
    ) -> Iterator[str]:
        """Send every run that changed; yields what was wrong with single ones."""
        for run, folder in _runs(self.plan, only):
            state = folder.state()
            if state == "missing":
                continue
            stamp = (statuses[state], *_stamps(folder))
            sent = view.children.get(run.run_id)
            if sent is not None and sent.stamp == stamp:
                continue
            self._changing.add(run.run_id)
            try:
                view.send(view_of(self.plan, run, state, statuses[state])).stamp = stamp
                if state in OVER:
                    self._changing.discard(run.run_id)
            except (RunError, RestException) as error:
                yield f"{run.name}: {' '.join(str(error).split())}"

    @contextmanager
    def _connected(self) -> Iterator[StudyView]:
        """The study in MLflow; after an error, or a kill, the next pass looks at it anew."""
        try:
            with explained(self.uri):
                if self._view is None:
                    self._view = _study_view(self.plan, self.uri)
                    self._view.end_others({run.run_id for run, _ in _runs(self.plan)})
                yield self._view
        except BaseException:
            self._view = None
            raise


def sync(plan: Plan, uri: str | None = None) -> None:
    """Bring MLflow up to date from the folders. Raises `TrackingError` as `Tracker.update` does."""
    Tracker(plan, uri).show()


def serve_ui(plan: Plan, host: str = "127.0.0.1", port: int | None = None) -> None:
    """Serve the study's store in MLflow's UI until Ctrl-C; if a server has it, say where.

    Raises `TrackingError` if nothing has been tracked yet or the server does not start.
    """
    uri = tracking_uri(plan)
    with explained(uri):
        page = runs_page(tracked_experiment(plan, uri))
    if uri.startswith("http"):
        print(f"{without_password(uri)}{page}")
    else:
        serve(uri, page, host, port)


def tracking_uri(plan: Plan, uri: str | None = None) -> str:
    """The argument, else MLFLOW_TRACKING_URI, else a SQLite file in the study's folder."""
    default = f"{SQLITE}{plan.folder.mlflow_database.absolute()}"
    return (uri or os.environ.get("MLFLOW_TRACKING_URI") or default).rstrip("/")


def _runs(
    plan: Plan, only: Collection[str] | None = None
) -> Iterator[tuple[PlannedRun, RunFolder]]:
    """The runs of the plan, after the imported checkpoints that they may start from.

    With `only`, those of the plan's runs alone that it names.
    """
    if only is not None:
        yield from [(run, plan.folder_of(run)) for run in plan.runs if run.run_id in only]
        return
    for run_id in plan.folder.read_imports().values():
        folder = plan.folder.run(run_id)
        record = folder.read_spec()
        yield PlannedRun(from_json(record["spec"]), record["init"], record["name"], 0.0), folder
    for run in plan.runs:
        yield run, plan.folder_of(run)


def _stamps(folder: RunFolder) -> Iterator[tuple[int, int] | None]:
    """What changes whenever one of the files that a view is made from is written."""
    for file in (folder.spec, folder.events, folder.error, folder.result, folder.model):
        try:
            status = file.stat()
        except FileNotFoundError:
            yield None
        else:
            yield status.st_size, status.st_mtime_ns


def _study_view(plan: Plan, uri: str) -> StudyView:
    client = _client(uri)
    experiment_id = _find_experiment(client, plan) or client.create_experiment(
        plan.study.name, _artifact_location(plan, uri), EXPERIMENT_TAGS
    )
    return StudyView(client, str(experiment_id), plan)


def tracked_experiment(plan: Plan, uri: str) -> str:
    """The id of the study's experiment. Raises `TrackingError` if there is none."""
    missing = uri.startswith(SQLITE) and not _sqlite_file(uri).exists()
    found = None if missing else _find_experiment(_client(uri), plan)
    if found is None:
        raise TrackingError(
            f"nothing of the study {plan.study.name!r} is in MLflow",
            where=without_password(uri),
            expected="the experiment that a sweep makes",
            remedy="sweep the study, or run `fewscan sync STUDY` if that is done",
        )
    return found


def _client(uri: str) -> MlflowClient:
    for name, value in DEFAULTS.items():
        os.environ.setdefault(name, value)
    logging.getLogger("mlflow").setLevel(logging.ERROR)
    if uri.startswith(SQLITE):
        _create_database(_sqlite_file(uri))
    return MlflowClient(uri)


def _find_experiment(client: MlflowClient, plan: Plan) -> str | None:
    """Raises `TrackingError` if the experiment is in MLflow's bin."""
    experiment = client.get_experiment_by_name(plan.study.name)
    if experiment is None:
        return None
    if experiment.lifecycle_stage == "deleted":
        raise TrackingError(
            "the experiment of this study has been deleted in MLflow",
            where=f"experiment {plan.study.name!r} (id {experiment.experiment_id})",
            expected="an experiment in use, or none",
            remedy=f"`mlflow experiments restore -x {experiment.experiment_id}`, or give the study "
            "another name",
        )
    return str(experiment.experiment_id)


def _artifact_location(plan: Plan, uri: str) -> str | None:
    """A server knows where its artifacts go; beside a database they need an absolute place."""
    if not uri.startswith(DATABASES):
        return None
    artifacts = plan.folder.mlflow_artifacts
    if uri.startswith(SQLITE):
        artifacts = _sqlite_file(uri).with_name(artifacts.name)
    return artifacts.as_uri()


def _sqlite_file(uri: str) -> Path:
    return Path(uri.removeprefix(SQLITE)).absolute()


def _create_database(path: Path) -> None:
    """Make and migrate a SQLite file in one go: killed halfway, migrations could never go on."""
    if path.exists():
        with closing(sqlite3.connect(path)) as connection:
            connection.execute("PRAGMA schema_version")  # MLflow would try for 100 s to open it
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    for leftover in path.parent.glob(f".{path.name}.*{TEMPORARY_SUFFIX}*"):
        leftover.unlink()
    with replacing(path) as temporary:
        store = SqlAlchemyStore(f"{SQLITE}{temporary}", path.parent.as_uri())
        store.engine.dispose()


@contextmanager
def explained(uri: str) -> Iterator[None]:
    """Turn what MLflow raises when it cannot be reached, or will not, into `TrackingError`."""
    try:
        yield
    except TrackingError:
        raise
    except FewscanError as error:  # a sweep survives this one
        raise TrackingError(
            error.found, where=error.where, expected=error.expected, remedy=error.remedy
        ) from error
    except (MlflowException, SQLAlchemyError, sqlite3.Error, OSError, ValueError) as error:
        raise TrackingError(
            f"MLflow cannot be reached or refuses: {without_password(str(error))}",
            where=without_password(uri),
            expected=f"an MLflow that answers, of a version that goes with {version('mlflow')}",
            remedy="nothing is lost, the run folders hold everything: see that MLflow is there and "
            "takes what it is sent (address, password, version, disk); the next update, or "
            "`fewscan sync STUDY`, makes up for it",
        ) from error


def without_password(text: str) -> str:
    """The text with the passwords of its URLs starred out."""
    return re.sub(r"(//[^/@:\s]*):[^/@\s]*@", r"\1:***@", text)
