"""A trained network with what must be known to use it: from a run folder or from MLflow."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fewscan.experiments.checkpoint import load_model
from fewscan.experiments.spec import Anomaly
from fewscan.experiments.unet import UNet
from fewscan.storage.errors import RunError
from fewscan.storage.geometry import Axis
from fewscan.storage.intensity import Normalisation
from fewscan.storage.runs import RunFolder

_URI = re.compile(r"[a-z][a-z0-9+.-]*:/.*")


@dataclass(frozen=True)
class Trained:
    """A network, what it was taught, and what its slices were made with."""

    network: UNet
    """in float32, on the CPU"""
    run_id: str
    stage: str
    """segment; or denoise, imported or anomaly, whose network reconstructs"""
    target: str | None
    """binary or multiclass, if it segments"""
    threshold: float | None
    """of the lesion mask, as validation chose it"""
    channels: tuple[str, ...]
    classes: tuple[str, ...]
    slice_size: int
    axis: Axis
    normalisation: Normalisation
    orientations: tuple[str, ...]
    """of the scans it was trained on, the most frequent first"""

    @property
    def has_classes(self) -> bool:
        """Whether it tells the classes apart, so that no threshold is needed."""
        return self.target == "multiclass"


def load_trained(run: str | Path) -> Trained:
    """The model of a finished run.

    `run` is its folder or the MLflow URI of its model, such as "models:/m-0123" (MLflow is then
    where MLFLOW_TRACKING_URI says). Raises `RunError` or `TrackingError` if it is not there, is not
    finished or does not say what it was trained on.
    """
    if _URI.fullmatch(str(run)):
        from fewscan.harness.tracking.models import load_logged

        network, facts = load_logged(str(run))
        return _trained(network, facts, where=str(run))
    folder = RunFolder(Path(run))
    _require_finished(folder)
    record = folder.read_spec()
    spec = record["spec"]
    weights = folder.sibling(spec["init"]) if spec["kind"] == Anomaly.kind else folder
    facts = {
        **record.get("slices", {}),
        "run_id": record["id"],
        "stage": spec["kind"],
        "target": spec.get("target"),
        "threshold": folder.read_result().get("validation", {}).get("threshold"),
    }
    return _trained(load_model(weights.model).float(), facts, where=str(folder.path))


def _trained(network: UNet, facts: Mapping[str, Any], where: str) -> Trained:
    try:
        return Trained(
            network,
            run_id=facts["run_id"],
            stage=facts["stage"],
            target=facts.get("target"),
            threshold=facts.get("threshold"),
            channels=tuple(facts["channels"]),
            classes=tuple(facts["classes"]),
            slice_size=facts["slice_size"],
            axis=facts["axis"],
            normalisation=facts["normalisation"],
            orientations=tuple(facts["orientations"]),
        )
    except KeyError as error:
        raise RunError(
            f"the model does not say its {error.args[0]}",
            where=where,
            expected="a model of this version of fewscan",
            remedy="sweep the study again into another folder",
        ) from error


def _require_finished(folder: RunFolder) -> None:
    state = folder.state()
    if state == "finished":
        return
    runs = folder.path / "runs"
    if runs.is_dir():
        raise RunError(
            "a study, not a run",
            where=folder.path,
            expected="the folder of one run, in its folder runs",
            remedy=f"`fewscan plan STUDY` tells which run is which; for example {_example(runs)}",
        )
    if state == "missing":
        raise RunError(
            "no run" if folder.path.exists() else "no such folder",
            where=folder.path,
            expected="the folder of a finished run (STUDY/runs/ID), or an MLflow model's URI",
            remedy="check the path; `fewscan plan STUDY` lists the ids of the runs",
        )
    raise RunError(
        f"the run is not finished: it is {state}",
        where=folder.path,
        expected="a finished run",
        remedy="`fewscan sweep STUDY` goes on with it",
    )


def _example(runs: Path) -> Path:
    finished = [p for p in sorted(runs.iterdir()) if RunFolder(p).state() == "finished"]
    return finished[0] if finished else runs / "ID"
