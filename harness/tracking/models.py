"""The kept model of a run as an MLflow model that loads where this repository is not.

`mlflow.pytorch.load_model("models:/m-…")` gives the network back: its weights lie in the model
together with the code of its class alone: a study has hundreds of models, and files are what a
cluster's disk runs out of. What must be known to use it on a new scan
(channels, classes, slice size, target, threshold, protocols) is its metadata:
`mlflow.models.get_model_info(uri).metadata`. The requirements are stated, because finding them out,
as MLflow would, takes a process and many seconds a model.
"""

import re
import shutil
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import mlflow.pytorch
import numpy as np
from mlflow import MlflowClient
from mlflow.entities import Dataset, LoggedModel, LoggedModelOutput, LoggedModelStatus, Metric
from mlflow.exceptions import MlflowException
from mlflow.models import Model, infer_signature

from fewscan.experiments.checkpoint import load_model
from fewscan.experiments.unet import UNet
from fewscan.harness.tracking.mlflow_run import RUN_ID, MlflowRun
from fewscan.storage.errors import TrackingError

NAME = "model"
"""Of its folder while it is written."""
MODEL_TYPE = "U-Net"
MODULES = (
    "fewscan",
    "fewscan.experiments",
    "fewscan.experiments.settings",
    "fewscan.experiments.unet",
    "fewscan.storage",
    "fewscan.storage.errors",
)
"""The modules that the network's class needs: `experiments.unet`, and what that imports."""
REQUIREMENTS = [
    f"{name}=={version(name).partition('+')[0]}" for name in ("mlflow", "numpy", "torch")
]
GREY = 0.5
"""The value of the input example's pixels; a real slice would be a patient's."""


def log_model(
    client: MlflowClient, experiment_id: str, mlflow_id: str, run: MlflowRun, dataset: Dataset
) -> None:
    """Log the run's model once: if it is there and complete, nothing happens.

    Its results are shown as those on `dataset`. Raises `RunError` if the weights cannot be read.
    """
    assert run.model is not None
    found = logged_models(client, experiment_id, mlflow_id)
    if any(model.status == LoggedModelStatus.READY for model in found):
        return
    network = load_model(run.model)
    logged = next(iter(found), None) or client.create_logged_model(
        experiment_id,
        name=model_name(run.name),
        source_run_id=mlflow_id,
        tags={RUN_ID: run.run_id},
        params=run.params,
        model_type=MODEL_TYPE,
    )
    with TemporaryDirectory() as temporary:
        folder = Path(temporary) / NAME
        _save(folder, network, logged, run.model_facts)
        client.log_model_artifacts(logged.model_id, str(folder))
    _link(client, logged, run, dataset)
    client.finalize_logged_model(logged.model_id, LoggedModelStatus.READY)


def load_logged(uri: str) -> tuple[UNet, dict[str, Any]]:
    """The network of a logged or registered model, on the CPU, and its metadata.

    Raises `TrackingError` if MLflow does not find it there.
    """
    try:
        facts = mlflow.models.get_model_info(uri).metadata or {}
        network = mlflow.pytorch.load_model(uri, map_location="cpu")
    except (MlflowException, OSError) as error:
        raise TrackingError(
            f"MLflow finds no such model: {error}",
            where=f"{uri} in {mlflow.get_tracking_uri()}",
            expected="the URI of a model that a sweep has logged, such as models:/m-0123",
            remedy="set MLFLOW_TRACKING_URI to the study's MLflow (of a study folder: "
            "sqlite:///STUDY/mlflow.db); the model's page shows its URI",
        ) from error
    return network.eval(), facts


def model_name(run: str) -> str:
    """A run's name in the letters that MLflow allows: "binary-denoise-4-scans-seed-0"."""
    return re.sub(r"\W+", "-", run).strip("-")


def logged_models(client: MlflowClient, experiment_id: str, mlflow_id: str) -> list[LoggedModel]:
    """The models of one MLflow run, complete or not."""
    return list(client.search_logged_models([experiment_id], f"source_run_id = '{mlflow_id}'"))


def _copy_code(folder: Path) -> str:
    """A package `fewscan` of these modules alone."""
    for name in MODULES:
        source = Path(str(import_module(name).__file__))
        *packages, module = name.split(".")
        place = folder.joinpath(*packages, *([module] if source.stem == "__init__" else []))
        place.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, place)
    return str(folder / "fewscan")


def _save(folder: Path, network: UNet, logged: LoggedModel, facts: dict[str, Any]) -> None:
    shape, size = network.shape, facts["slice_size"]
    plane = shape.patch or (size, size)
    images_NCHW = np.full((1, shape.in_channels, *plane), GREY, np.float32)
    maps_NKHW = np.zeros((1, shape.out_channels, *plane), np.float32)
    mlflow.pytorch.save_model(
        network.float(),
        folder,
        mlflow_model=Model(
            artifact_path=logged.artifact_location,
            model_uuid=logged.model_id,
            model_id=logged.model_id,
            run_id=logged.source_run_id,
            metadata=facts,
        ),
        signature=infer_signature(images_NCHW, maps_NKHW),
        input_example=images_NCHW,
        code_paths=[_copy_code(folder.parent)],
        pip_requirements=REQUIREMENTS,
        serialization_format="pickle",  # a traced graph could not be trained further, nor moved
    )


def _link(client: MlflowClient, logged: LoggedModel, run: MlflowRun, dataset: Dataset) -> None:
    """Show the model on the run's page, and the run's results on the model's."""
    mlflow_id = logged.source_run_id
    outputs = client.get_run(mlflow_id).outputs
    if logged.model_id not in [o.model_id for o in (outputs.model_outputs if outputs else [])]:
        step = run.model_facts.get("best_step") or 0
        client.log_outputs(mlflow_id, [LoggedModelOutput(logged.model_id, step)])
    about = {
        "model_id": logged.model_id,
        "dataset_name": dataset.name,
        "dataset_digest": dataset.digest,
    }
    client.log_batch(mlflow_id, metrics=[Metric(*point, **about) for point in run.results])
