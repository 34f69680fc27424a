"""Trained networks with what must be known to use them: from a run folder or from MLflow."""

import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fewscan.experiments.catalogue import LESION
from fewscan.experiments.postprocess import Rule, rules_of
from fewscan.experiments.predictor import Predictor, load_predictor, predictor_of_score
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
    rules: tuple[Rule, ...] = ()
    """that change its mask, as its score fitted them at that threshold"""

    @property
    def mask_names(self) -> tuple[str, ...]:
        """what its labels 1, 2, … mean"""
        return self.slices.classes if self.predictor.has_classes else (LESION,)

    @property
    def map_names(self) -> tuple[str, ...]:
        """of its maps without the background's"""
        return ("anomaly",) if self.predictor.target is None else self.mask_names

    def rules_at(self, given: float | None) -> tuple[Rule, ...]:
        """Those that change a mask; none where another threshold is given: they were not fitted at
        it."""
        return self.rules if given is None or given == self.threshold else ()

    def threshold_or(self, given: float | None) -> float | None:
        """The one to use, a given one first: None for classes, and for a map alone.

        Raises `RunError` if one is given for classes, or missing.
        """
        if self.predictor.has_classes:
            if given is not None:
                found, expected = "a threshold for a model of classes", "no threshold"
                raise RunError(found, where=self.run_id, expected=expected)
            return None
        if given is None and self.threshold is None and self.wants_threshold:
            raise RunError(
                "the run has no threshold: it has not been scored, or its validation scans had no "
                "lesion",
                where=self.run_id,
                expected="a threshold that validation chose",
                remedy="give one: --threshold 0.5",
            )
        return self.threshold if given is None else given


def load_trained(run: str | Path) -> Trained:
    """The networks of a finished run: a score's, or one training's.

    `run` is its folder or the MLflow URI of its model, such as "models:/m-0123" (MLflow is then
    where MLFLOW_TRACKING_URI says). A score has its post-processing; a fine-tuning has the
    threshold of its score and no post-processing, as its scores may differ in that. Raises
    `RunError` or `TrackingError` if it is not there, is not finished or does not say what it was
    trained on.
    """
    if _URI.fullmatch(str(run)):
        from fewscan.harness.tracking.models import load_logged

        return _from_mlflow(*load_logged(str(run)), where=str(run))
    folder = RunFolder(Path(run).absolute())
    require_finished(folder)
    record = RunRecord.read(folder)
    score = None
    match record.spec:
        case Score(parents=parents):
            trained, score = [folder.sibling(run_id) for run_id in parents], folder
            predictor = predictor_of_score(record.spec, trained, record.slices.channels)
        case spec:
            predictor = load_predictor([folder])
            if isinstance(spec, Finetune) and spec.target == "binary":
                score = _score_of(folder)
    result = None if score is None else Result.read(score)
    own = result if isinstance(record.spec, Score) else None
    return Trained(
        predictor,
        record.run_id,
        threshold=None if result is None else result.threshold,
        wants_threshold=isinstance(record.spec, (Score, Finetune)),
        slices=record.slices,
        rules=() if own is None else rules_of(own.postprocess),
    )


def _score_of(folder: RunFolder) -> RunFolder | None:
    """A finished score of this run alone; whichever, as all choose the same threshold."""
    for path in sorted(folder.path.parent.iterdir()):
        other = RunFolder(path)
        if other.result.exists():
            with suppress(RunError):  # a damaged run stops no other
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
    rules = rules_of(facts.get("postprocess", {}))
    return Trained(predictor, facts["run_id"], threshold, target is not None, slices, rules)


def require_finished(folder: RunFolder) -> None:
    """Raise `RunError` that says what the folder is instead."""
    state = folder.state()
    if state == "finished":
        return
    if (runs := folder.path / "runs").is_dir():
        finished = (p for p in sorted(runs.iterdir()) if RunFolder(p).state() == "finished")
        found = "a study, not a run"
        remedy = "`fewscan plan STUDY` tells which run is which; for example "
        remedy += str(next(finished, runs / "ID"))
    elif state == "missing":
        found = "no run" if folder.path.exists() else "no such folder"
        remedy = "check the path; `fewscan plan STUDY` lists the ids of the runs"
    else:
        found = f"the run is not finished: it is {state}"
        remedy = "`fewscan sweep STUDY` goes on with it"
    raise RunError(
        found,
        where=folder.path,
        expected="the folder of a finished run (STUDY/runs/ID), or an MLflow model's URI",
        remedy=remedy,
    )
