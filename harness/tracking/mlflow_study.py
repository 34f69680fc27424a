"""A study as MLflow has it: its experiment, its parent run, and a run for each spec.

Runs are found by their tags, with one search, and made with their tags in one request, so that no
kill between two requests can leave a run that is not found again.
"""

import hashlib
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from mlflow import MlflowClient
from mlflow.entities import Experiment, Metric, Param, Run, RunTag
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID

from fewscan.experiments.spec import PROTOCOL
from fewscan.harness.plan import Plan
from fewscan.harness.tracking.dataset import dataset_of
from fewscan.harness.tracking.mlflow_run import BEGUN, ERROR, LIVE, RUN_ID, MlflowRun
from fewscan.harness.tracking.models import log_model, logged_models
from fewscan.harness.tracking.saved_views import STUDY, saved_views
from fewscan.storage.atomic import write_bytes
from fewscan.storage.errors import RunError

STUDY_ID = "fewscan.study_id"
PARENT = ""
"""Stands for the id of a spec where the run is the study's own."""
DIGEST = "fewscan.digest"
"""Tag of a run: the digest of the `MlflowRun` that was sent last, set when all had arrived."""
REPORT = "fewscan.report"
"""Tag of the study's run: a hash of the report's files that lie there."""


@dataclass
class Sent:
    """One run as MLflow has it."""

    mlflow_id: str
    status: str
    params: dict[str, str]
    tags: dict[str, str]
    has_metrics: bool
    learning: int = 0
    """How many points of its learning curves this process has sent."""
    usage: int = 0
    """How many points of its usage this process has sent."""
    stamp: tuple[object, ...] = ()
    """Status and files of the folder when it was last sent; empty if not by this process."""

    def contradicts(self, wanted: MlflowRun) -> bool:
        """Whether it shows an earlier life of the folder; points and params cannot be unsaid."""
        begun_anew = self.has_metrics and self.tags.get(BEGUN) != wanted.tags[BEGUN]
        return begun_anew or any(self.params.get(k, v) != v for k, v in wanted.params.items())


class MlflowStudy:
    """What MLflow has of a study, and the means to make it like the run folders."""

    def __init__(self, client: MlflowClient, experiment: Experiment, plan: Plan) -> None:
        self.client = client
        self.experiment_id = str(experiment.experiment_id)
        self.dataset = dataset_of(plan.store)
        self.study_id, begun_ms = study_identity(plan)
        found = self._find()
        self.parent = found.get(PARENT) or self._create(plan.study.name, _tags(plan), begun_ms)
        self.children = {run_id: sent for run_id, sent in found.items() if run_id != PARENT}
        for key, value in (saved.tag for saved in saved_views(plan, self.study_id)):
            if experiment.tags.get(key) != value:
                client.set_experiment_tag(self.experiment_id, key, value)

    def send(self, wanted: MlflowRun) -> Sent:
        """Make MLflow's run look like `wanted`; sends what is missing or has changed.

        Raises `RunError` if its model cannot be read; all else has then arrived.
        """
        sent = self.children.get(wanted.run_id)
        if sent is not None and sent.contradicts(wanted):
            self._remove(sent)
            sent = None
        if sent is None:
            sent = self._create(wanted.name, {RUN_ID: wanted.run_id}, wanted.begun_ms)
            self.children[wanted.run_id] = sent
        tags = {**wanted.tags, MLFLOW_PARENT_RUN_ID: self.parent.mlflow_id}
        new_tags = {k: v for k, v in tags.items() if sent.tags.get(k) != v}
        if new_tags or sent.tags.get(DIGEST) != wanted.digest:
            try:
                self._send_content(sent, wanted, new_tags)
            except RunError:
                self.set_status(sent, wanted.status, wanted.ended_ms)
                raise
        self.set_status(sent, wanted.status, wanted.ended_ms)
        return sent

    def set_status(self, sent: Sent, status: str, ended_ms: int | None = None) -> None:
        """Set the status, and with a final one the time of the end; None: now."""
        if sent.status == status:
            return
        if status in LIVE:
            self.client.update_run(sent.mlflow_id, status)
        else:
            self.client.set_terminated(sent.mlflow_id, status, ended_ms)
        sent.status = status

    def _send_content(self, sent: Sent, wanted: MlflowRun, new_tags: dict[str, str]) -> None:
        points = (*wanted.learning[sent.learning :], *wanted.usage[sent.usage :], *wanted.results)
        self.client.log_batch(  # which splits it into requests of the size that servers take
            sent.mlflow_id,
            metrics=[Metric(*point) for point in points],
            params=[Param(k, v) for k, v in wanted.params.items() if k not in sent.params],
            tags=[RunTag(*tag) for tag in new_tags.items()],
        )
        if ERROR in sent.tags and ERROR not in wanted.tags:
            self.client.delete_tag(sent.mlflow_id, ERROR)
            del sent.tags[ERROR]
        if "data" in wanted.tags and DIGEST not in sent.tags:
            self.client.log_inputs(sent.mlflow_id, [self.dataset])
        for file in wanted.files:
            self.client.log_artifact(sent.mlflow_id, str(file))
        if wanted.model is not None:
            log_model(self.client, self.experiment_id, sent.mlflow_id, wanted, self.dataset.dataset)
        self.client.set_tag(sent.mlflow_id, DIGEST, wanted.digest)
        sent.learning, sent.usage = len(wanted.learning), len(wanted.usage)
        sent.has_metrics = bool(points) or sent.has_metrics
        sent.params = wanted.params
        sent.tags |= {**new_tags, DIGEST: wanted.digest}

    def log_report(self, folder: Path) -> None:
        """Put the files of `folder` under "report/" on the study's run, unless they are there.

        Hidden ones are not of the report: a lock, what a killed writer has left.
        """
        files = sorted(file for file in folder.rglob("[!.]*") if file.is_file())
        content = hashlib.sha256()
        for file in files:
            content.update(str(file.relative_to(folder)).encode() + file.read_bytes())
        if files and self.parent.tags.get(REPORT) != content.hexdigest():
            for file in files:
                place = Path("report") / file.relative_to(folder).parent
                self.client.log_artifact(self.parent.mlflow_id, str(file), place.as_posix())
            self.client.set_tag(self.parent.mlflow_id, REPORT, content.hexdigest())
            self.parent.tags[REPORT] = content.hexdigest()

    def _find(self) -> dict[str, Sent]:
        """The runs of this study, by the id of their spec."""
        found: dict[str, Sent] = {}
        for run in self._search():
            run_id = run.data.tags.get(RUN_ID, PARENT)
            if run_id in found:  # made twice: the first request was taken, its answer was lost
                self.client.delete_run(run.info.run_id)
            else:
                found[run_id] = _as_sent(run)
        return found

    def _search(self) -> Iterator[Run]:
        token = None
        while True:
            page = self.client.search_runs(
                [self.experiment_id],
                f"tags.`{STUDY_ID}` = '{self.study_id}'",
                max_results=1000,
                order_by=["attributes.start_time ASC"],
                page_token=token,
            )
            yield from page
            token = page.token
            if not token:
                return

    def _create(self, name: str, tags: dict[str, str], begun_ms: int) -> Sent:
        run = self.client.create_run(
            self.experiment_id,
            begun_ms,
            {**tags, STUDY_ID: self.study_id, STUDY: self.study_id[:8]},
            run_name=name,
        )
        return _as_sent(run)

    def _remove(self, sent: Sent) -> None:
        for model in logged_models(self.client, self.experiment_id, sent.mlflow_id):
            self.client.delete_logged_model(model.model_id)
        self.client.delete_run(sent.mlflow_id)

    def end_others(self, run_ids: set[str]) -> None:
        """Runs that the study no longer asks for do not go on."""
        for run_id, sent in self.children.items():
            if run_id not in run_ids and sent.status in LIVE:
                self.set_status(sent, "KILLED")


def reported_run(client: MlflowClient, experiment: Experiment, study_id: str) -> str | None:
    """The MLflow id of the study's run, if the report lies there."""
    wanted = f"tags.`{STUDY_ID}` = '{study_id}' and tags.`{REPORT}` LIKE '%'"
    found = client.search_runs([experiment.experiment_id], wanted, max_results=1)
    return str(found[0].info.run_id) if found else None


def _as_sent(run: Run) -> Sent:
    data = run.data
    return Sent(
        run.info.run_id, run.info.status, dict(data.params), dict(data.tags), bool(data.metrics)
    )


def _tags(plan: Plan) -> dict[str, str]:
    """What the parent run says of the study."""
    return {
        "mlflow.note.content": "A study, with its runs below it. What can be concluded: "
        "*Artifacts*, `report/report.html`. Comparisons: *Views*, on the page of the experiment.",
        "fewscan.study_folder": str(plan.folder.path),
        "store": str(plan.store.path),
        "data": plan.store.fingerprint,
        "protocol": str(PROTOCOL),
    }


def study_identity(plan: Plan) -> tuple[str, int]:
    """What tells this study's runs from those of others in the same experiment; when it was made.

    It lies in the study's folder, so a copy of the folder, or another path to it, is the same
    study, and a folder begun anew is not.
    """
    file = plan.folder.identity
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(file, uuid.uuid4().hex.encode())
    return file.read_text().strip(), round(file.stat().st_mtime * 1000)
