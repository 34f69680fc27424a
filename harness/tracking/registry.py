"""The best models of a study in MLflow's model registry.

"Best" is the lowest validation loss among the finished fine-tunings of one target: the number that
chose each checkpoint, on the same validation slices for all of them. The test split has no say.
"""

import math
from dataclasses import dataclass

from mlflow.entities import LoggedModelStatus
from mlflow.entities.model_registry import ModelVersion

from fewscan.experiments.results import Result
from fewscan.harness.plan import Plan, PlannedRun
from fewscan.harness.tracking.mlflow_run import RUN_ID
from fewscan.harness.tracking.mlflow_study import MlflowStudy
from fewscan.harness.tracking.models import logged_models
from fewscan.storage.errors import TrackingError

ALIAS = "best"


FEW_SCANS = 10
"""Validation scans below which the choice of a model is mostly luck (our choice)."""


@dataclass(frozen=True)
class Registered:
    """The best model of a target."""

    uri: str
    """Where it lies: "models:/lesions-binary@best"."""
    run: str
    """The score of its run, in words: "binary · denoise · 36 scans · seed 1"."""
    loss: float
    """On the validation split."""
    scans: int
    """In the validation split."""
    labels: int
    """Labelled scans that it has learnt from."""
    most_labels: int
    """That any finished run of its target has learnt from."""

    @property
    def sentences(self) -> list[str]:
        """Which it is, on what it was chosen, and what speaks against it."""
        scans = f"{self.scans} validation scan{'' if self.scans == 1 else 's'}"
        said = [f"{self.run}: the lowest validation loss, {self.loss:.4g}, on {scans}"]
        if self.scans < FEW_SCANS:
            said.append(f"{scans} are few to choose by: another split may choose another model")
        if self.labels < self.most_labels:
            said.append(
                f"it has learnt from {self.labels} labelled scan{'' if self.labels == 1 else 's'}; "
                f"models of up to {self.most_labels} are there and did worse on validation"
            )
        return said


def register_best(study: MlflowStudy, plan: Plan, name: str) -> dict[str, Registered]:
    """Give the best model of each target a version of NAME-TARGET, and that version the alias.

    A model that is registered already gets no second version. Returns target → what was chosen.
    Raises `TrackingError` if no fine-tuning is finished and scored.
    """
    best = best_runs(plan)
    if not best:
        raise TrackingError(
            "there is no model to register",
            where=plan.folder.path,
            expected="at least one finished fine-tuning that has been scored by itself; of an "
            "ensemble there is no one model",
            remedy="sweep the study first",
        )
    found = {}
    for target, run in best.items():
        labels = [it.place.labels or 0 for it in _finished(plan) if it.place.target == target]
        found[target] = Registered(
            _register(study, f"{name}-{target}", run, plan),
            run.place.cell,
            validation_loss(plan, run),
            len(plan.split.validation),
            run.place.labels or 0,
            max(labels),
        )
    return found


def best_runs(plan: Plan) -> dict[str, PlannedRun]:
    """Target → the score of the finished fine-tuning with the lowest validation loss."""
    best: dict[str, PlannedRun] = {}
    for run in sorted(_finished(plan), key=lambda run: validation_loss(plan, run)):
        best.setdefault(str(run.place.target), run)
    return best


def _finished(plan: Plan) -> list[PlannedRun]:
    """The scores of single networks; of several there is no one model."""
    single = [run for run in plan.grid if len(run.parents) == 1]
    return [run for run in single if plan.folder_of(run).result.exists()]


def validation_loss(plan: Plan, score: PlannedRun) -> float:
    """Of the fine-tuning that was scored."""
    (parent,) = score.parents
    loss = Result.read(plan.folder.run(parent)).validation_loss
    return math.inf if loss is None else loss


def _register(study: MlflowStudy, name: str, run: PlannedRun, plan: Plan) -> str:
    client = study.client
    if not client.search_registered_models(f"name = '{name}'"):
        client.create_registered_model(
            name,
            description=f"The best models of the fewscan study {plan.study.name!r}, chosen by "
            f"their loss on the validation split; the alias `{ALIAS}` is the last choice.",
        )
    versions = client.search_model_versions(f"name = '{name}'")
    known = [version for version in versions if version.tags.get(RUN_ID) == run.run_id]
    version = known[0] if known else _create_version(study, name, run, plan)
    client.set_registered_model_alias(name, ALIAS, version.version)
    return f"models:/{name}@{ALIAS}"


def _create_version(study: MlflowStudy, name: str, run: PlannedRun, plan: Plan) -> ModelVersion:
    sent = study.children[run.run_id]
    models = logged_models(study.client, study.experiment_id, sent.mlflow_id)
    (model,) = [it for it in models if it.status == LoggedModelStatus.READY]
    loss = validation_loss(plan, run)
    return study.client.create_model_version(
        name,
        source=model.artifact_location,
        run_id=sent.mlflow_id,
        tags={RUN_ID: run.run_id, "validation_loss": f"{loss:.6g}"},
        description=f"{run.name}: validation loss {loss:.6g}, the lowest of its target",
        model_id=model.model_id,
    )
