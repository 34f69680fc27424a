"""MLflow as a view of the run folders: written by one process, rebuilt from them at any time.

A pass compares every folder with what was sent of it and sends the difference. Nothing is
remembered outside MLflow and the folders: a new process, here or elsewhere, finds the runs of a
study by their tags and goes on. So a pass that is killed anywhere is completed by the next one, and
one that meets a dead or slow server raises `TrackingError` and is made up for later.

One experiment a study; in it a parent run for the study, and below it one run for each spec.
"""

import math
import sys
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import unquote, urlparse

from mlflow.exceptions import RestException

from fewscan.experiments.results import RunRecord
from fewscan.harness.arms import Arm, Place
from fewscan.harness.plan import Plan, PlannedRun
from fewscan.harness.tracking.mlflow_errors import explained, its_version, without_password
from fewscan.harness.tracking.mlflow_run import (
    AFTER_THE_SWEEP,
    FROM_OUTSIDE,
    WHILE_SWEEPING,
    Statuses,
    view_of,
)
from fewscan.harness.tracking.mlflow_study import MlflowStudy, reported_run, study_identity
from fewscan.harness.tracking.registry import Registered, register_best
from fewscan.harness.tracking.saved_views import report_page, saved_views
from fewscan.harness.tracking.stores import (
    forget_connections,
    make_client,
    study_experiment,
    tracked_experiment,
    tracking_uri,
)
from fewscan.harness.tracking.ui import serve
from fewscan.storage.errors import RunError, StudyError, TrackingError
from fewscan.storage.locks import exclusive
from fewscan.storage.runs import OVER, RunFolder

UPDATE_WITHIN_S = 60.0
"""A pass of a sweep leaves the rest to the next one after this time."""
CLOSE_WITHIN_S = 600.0
"""The last one may have more to catch up with."""

Progress = Callable[[int, int], None]
"""Receives how many runs of how many have been looked at."""


class Tracker:
    """The one writer of a study's MLflow view.

    Making one reaches nothing; the first `update` connects. `uri` is where to write: the argument,
    else MLFLOW_TRACKING_URI, else a SQLite file in the study's folder.
    """

    def __init__(
        self, plan: Plan, uri: str | None = None, progress: Progress | None = None
    ) -> None:
        self.plan = plan
        self.uri = tracking_uri(plan, uri)
        self._progress = progress or (lambda done, total: None)
        self._study: MlflowStudy | None = None
        self._changing: set[str] = set()

    def update(self, begun: Iterable[str] | None = None) -> None:
        """Make MLflow look like the folders. An unchanged run costs a few `stat`s and no request.

        `begun` are the ids of the runs that have begun since the last update: then only they and
        those that were not over are looked at. Without it, and after an error, all are.

        Raises `TrackingError` if MLflow cannot be reached, refuses or is slow, or if a folder is
        damaged; calling it again goes on.
        """
        only = None
        if begun is not None:
            self._changing.update(begun)
            only = self._changing
        self._pass(WHILE_SWEEPING, "RUNNING", UPDATE_WITHIN_S, only)

    def log_report(self) -> None:
        """Put the study's report on its parent run, in place of an older one."""
        with self._connected() as study:
            study.log_report(self.plan.folder.report)

    def close(self, finished: bool) -> None:
        """A last pass, after the sweep: what is neither finished nor failed is KILLED."""
        self._pass(AFTER_THE_SWEEP, "FINISHED" if finished else "KILLED", CLOSE_WITHIN_S)

    def show(self) -> None:
        """A pass for those who only look: a sweep may be running the study somewhere."""
        states = {folder.state() for _, folder in _runs(self.plan)}
        unfinished = "RUNNING" if "running" in states else "KILLED"
        self._pass(FROM_OUTSIDE, "FINISHED" if states == {"finished"} else unfinished)

    def register_best(self, name: str) -> dict[str, Registered]:
        """Register the best model of each target; see `harness.tracking.registry`."""
        with self._connected() as study:
            return register_best(study, self.plan, name)

    def _pass(
        self,
        statuses: Statuses,
        parent_status: str,
        within_s: float = math.inf,
        only: set[str] | None = None,
    ) -> None:
        looked_before = self._study is not None
        with self._connected() as study:
            runs = list(_runs(self.plan, only if looked_before else None))
            problems = list(self._send_changes(study, runs, statuses, time.monotonic() + within_s))
            study.set_status(study.parent, parent_status)
        if problems:
            raise TrackingError(
                "some runs could not be shown:\n" + "\n".join(f"    {p}" for p in problems),
                where=without_password(self.uri),
                expected="run folders as fewscan writes them, and an MLflow that takes them in time"
                + its_version(self.uri),
                remedy="fix what each line says; all other runs are up to date",
            )

    def _send_changes(
        self,
        study: MlflowStudy,
        runs: Sequence[tuple[PlannedRun, RunFolder]],
        statuses: Statuses,
        deadline: float,
    ) -> Iterator[str]:
        """Send every run that changed; yields what was wrong."""
        for done, (run, folder) in enumerate(runs, start=1):
            state = folder.state()
            stamp = (statuses.get(state), *_stamps(folder))
            sent = study.children.get(run.run_id)
            if state != "missing" and (sent is None or sent.stamp != stamp):
                self._changing.add(run.run_id)
                try:
                    study.send(view_of(self.plan, run, state, statuses[state])).stamp = stamp
                    if state in OVER:
                        self._changing.discard(run.run_id)
                except (RunError, RestException) as error:
                    yield f"{run.name}: {' '.join(str(error).split())}"
                if time.monotonic() > deadline and done < len(runs):
                    self._changing.update(later.run_id for later, _ in runs[done:])
                    yield f"MLflow is slow: {len(runs) - done} runs are left to the next update"
                    return
            self._progress(done, len(runs))

    @contextmanager
    def _connected(self) -> Iterator[MlflowStudy]:
        """The study in MLflow; after an error, or a kill, the next pass looks at it anew."""
        try:
            with explained(self.uri):
                if self._study is None:
                    client = make_client(self.uri)
                    experiment = study_experiment(client, self.plan, self.uri)
                    self._study = MlflowStudy(client, experiment, self.plan)
                    self._study.end_others({run.run_id for run, _ in _runs(self.plan)})
                yield self._study
        except BaseException:
            self._study = None
            forget_connections(self.uri)
            raise


def sync(
    plan: Plan,
    uri: str | None = None,
    register: str | None = None,
    progress: Progress | None = None,
) -> dict[str, Registered]:
    """Bring MLflow up to date from the folders, report included.

    With `register`, also register the best models under that name; returns where each lies. Raises
    `TrackingError` as `Tracker.update` does.
    """
    tracker = Tracker(plan, uri, progress)
    tracker.show()
    tracker.log_report()
    return tracker.register_best(register) if register else {}


def serve_ui(plan: Plan, port: int | None = None) -> None:
    """Serve the study's store in MLflow's UI until Ctrl-C; if a server has it, say where.

    Raises `TrackingError` if nothing has been tracked yet or the port is taken.
    """
    uri = tracking_uri(plan)
    with explained(uri):
        experiment = tracked_experiment(plan, uri)
        _catch_up(plan, uri)
        study_id, _ = study_identity(plan)
        parent = reported_run(make_client(uri), experiment, study_id)
    page_id = str(experiment.experiment_id)
    pages = {saved.name: saved.page(page_id) for saved in saved_views(plan, study_id)}
    if parent:
        pages[f"{plan.study.name}: report"] = report_page(page_id, parent)
    if uri.startswith("http"):
        for name, page in pages.items():
            print(f"{name}\n    {without_password(uri)}{page}")
    else:
        artifacts = Path(unquote(urlparse(experiment.artifact_location).path))
        serve(uri, artifacts, pages, port)


def _catch_up(plan: Plan, uri: str) -> None:
    """What a killed sweep left behind; a sweep that is under way does this itself."""
    under_way = StudyError("a sweep of the study is under way", where=plan.folder.path)
    try:
        with suppress(StudyError), exclusive(plan.folder.lock, under_way):
            Tracker(plan, uri).show()
    except (TrackingError, OSError) as error:  # somebody else's folder, or a damaged run
        print(f"not all that follows is up to date: {error}", file=sys.stderr)


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
        record = RunRecord.read(folder)
        place = Place(Arm("pre-training"), None, None, 0)
        yield PlannedRun(record.spec, place, record.name, 0.0), folder
    for run in plan.runs:
        yield run, plan.folder_of(run)


def _stamps(folder: RunFolder) -> Iterator[tuple[str, int, int]]:
    """What changes whenever one of the files that an `MlflowRun` is made from is written."""
    files = (folder.spec, folder.events, folder.usage, folder.error, folder.result, folder.model)
    for file in files:
        with suppress(FileNotFoundError):
            status = file.stat()
            yield file.name, status.st_size, status.st_mtime_ns
