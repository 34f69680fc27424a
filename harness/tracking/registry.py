"""The best models of a study in MLflow's model registry.

"Best" is the lowest validation loss among the finished fine-tunings of one target: the number that
chose each checkpoint, on the same validation slices for all of them. The test split has no say.
"""

import math

from mlflow.entities import LoggedModelStatus
from mlflow.entities.model_registry import ModelVersion

from fewscan.experiments.results import Result
from fewscan.harness.plan import Plan, PlannedRun
from fewscan.harness.tracking.mlflow_run import RUN_ID
from fewscan.harness.tracking.mlflow_study import MlflowStudy
from fewscan.harness.tracking.models import logged_models
from fewscan.storage.errors import TrackingError

ALIAS = "best"


def register_best(study: MlflowStudy, plan: Plan, name: str) -> dict[str, str]:
    """Give the best model of each target a version of NAME-TARGET, and that version the alias.

    A model that is registered already gets no second version. Returns target → model URI. Raises
    `TrackingError` if no fine-tuning is finished and scored.
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
    return {target: _register(study, f"{name}-{target}", run, plan) for target, run in best.items()}


def best_runs(plan: Plan) -> dict[str, PlannedRun]:
    """Target → the score of the finished fine-tuning with the lowest validation loss."""
    single = [run for run in plan.grid if len(run.parents) == 1]  # of several there is no one model
    finished = [run for run in single if plan.folder_of(run).result.exists()]
    best: dict[str, PlannedRun] = {}
    for run in sorted(finished, key=lambda run: validation_loss(plan, run)):
        best.setdefault(str(run.place.target), run)
    return best


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
