"""Trained networks with what must be known to use them: from a run folder or from MLflow."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fewscan.experiments.predictor import Predictor, load_predictor
from fewscan.experiments.results import Result, RunRecord
from fewscan.experiments.spec import Finetune, Score, scheme_from_json
from fewscan.experiments.unet import UNet
from fewscan.storage.errors import RunError
from fewscan.storage.runs import RunFolder
from fewscan.storage.slice_format import SliceFormat

_URI = re.compile(r"[a-z][a-z0-9+.-]*:/.*")


@dataclass(frozen=True)
class Trained:
    """A predictor, and what its slices were made with."""

    predictor: Predictor
    """on the CPU"""
    run_id: str
    threshold: float | None
    """of the lesion mask, as validation chose it"""
    wants_threshold: bool
    """whether it was scored with one, or could be; a pre-training gives a map alone"""
    slices: SliceFormat


def load_trained(run: str | Path) -> Trained:
    """The networks of a finished run: a score's, or one training's.

    `run` is its folder or the MLflow URI of its model, such as "models:/m-0123" (MLflow is then
    where MLFLOW_TRACKING_URI says). A fine-tuning has the threshold of its score. Raises `RunError`
    or `TrackingError` if it is not there, is not finished or does not say what it was trained on.
    """
    if _URI.fullmatch(str(run)):
        from fewscan.harness.tracking.models import load_logged

        return _from_mlflow(*load_logged(str(run)), where=str(run))
    folder = RunFolder(Path(run).absolute())
    _require_finished(folder)
    record = RunRecord.read(folder)
    trained: tuple[str, ...] = (folder.run_id,)
    score, wants_threshold = None, False
    match record.spec:
        case Score(parents=parents):
            trained, score, wants_threshold = parents, folder, True
        case Finetune(target=target):
            score, wants_threshold = _score_of(folder) if target == "binary" else None, True
    predictor = load_predictor([folder.sibling(run_id) for run_id in trained])
    threshold = None if score is None else Result.read(score).threshold
    return Trained(predictor, record.run_id, threshold, wants_threshold, record.slices)


def _score_of(folder: RunFolder) -> RunFolder | None:
    """A finished score of this run alone; whichever, as all choose the same threshold."""
    for path in sorted(folder.path.parent.iterdir()):
        other = RunFolder(path)
        if other.result.exists():
            match RunRecord.read(other).spec:
                case Score(parents=parents) if parents == (folder.run_id,):
                    return other
    return None


def _from_mlflow(network: UNet, facts: Mapping[str, Any], where: str) -> Trained:
    slices = SliceFormat.from_json(facts, where)
    target, scheme = facts.get("target"), facts.get("scheme")
    known = None if scheme is None else scheme_from_json(scheme)
    predictor = Predictor((network,), target, known).to("cpu")
    threshold = facts.get("threshold")
    return Trained(predictor, facts["run_id"], threshold, target is not None, slices)


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
