"""Trained networks with what must be known to use them: from a run folder or from MLflow."""

import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fewscan.experiments.catalogue import LESION
from fewscan.experiments.postprocess import Rule, rules_of
from fewscan.experiments.predictor import (
    Predictor,
    load_predictor,
    predictor_of_score,
    taught_different_things,
)
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
    """of several with commas"""
    threshold: float | None
    """of the lesion mask, as validation chose it"""
    wants_threshold: bool
    """whether it was scored with one, or could be; a pre-training gives a map alone"""
    slices: SliceFormat
    networks: tuple[str, ...] = ()
    """ids of the trainings whose networks these are"""
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
            found = (
                "the runs have no threshold: they have not been scored together"
                if "," in self.run_id
                else "the run has no threshold: it has not been scored"
            )
            raise RunError(
                f"{found}, or the validation scans had no lesion",
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
    scored: tuple[str, ...] = ()
    rules: tuple[Rule, ...] = ()
    match record.spec:
        case Score(parents=scored) as spec:
            trained = [folder.sibling(run_id) for run_id in scored]
            predictor = predictor_of_score(spec, trained, record.slices.channels)
            result = Result.read(folder)
            threshold, rules = result.threshold, rules_of(result.postprocess)
        case spec:
            predictor, threshold = load_predictor([folder]), None
            if isinstance(spec, Finetune) and spec.target == "binary":
                predictor, threshold = _as_scored(predictor, [folder.run_id], folder.path.parent)
    return Trained(
        predictor,
        record.run_id,
        threshold,
        wants_threshold=isinstance(record.spec, (Score, Finetune)),
        slices=record.slices,
        networks=scored or (record.run_id,),
        rules=rules,
    )


def load_together(runs: Sequence[str | Path]) -> Trained:
    """The networks of finished runs as one predictor, each of them with the same weight.

    They may differ in shape, labelled scans and study, not in what they were taught nor in what
    they see. The threshold is that of a score of just these networks, in the folder of the first.
    Raises `RunError` otherwise, and as `load_trained` does for each.
    """
    each = [load_trained(run) for run in runs]
    if len(each) == 1:
        return each[0]
    first, where = each[0], ", ".join(map(str, runs))
    networks = [id_ for it in each for id_ in it.networks]
    if twice := [id_ for id_, times in Counter(networks).items() if times > 1]:
        raise RunError(
            f"the network of run {', '.join(twice)} comes twice",
            where=where,
            expected="each network once; that of a score is its parents'",
            remedy="leave one out",
        )
    for it in each[1:]:
        if (it.predictor.target, it.predictor.scheme) != (
            first.predictor.target,
            first.predictor.scheme,
        ):
            raise taught_different_things(where)
        if replace(it.slices, orientations=first.slices.orientations) != first.slices:
            raise RunError(
                "networks that see different slices cannot be averaged: "
                f"{it.slices} and {first.slices}",
                where=where,
                expected="runs on stores of the same channels, classes, size and normalisation",
                remedy="predict with them one by one",
            )
    together = replace(
        first.predictor,
        networks=tuple(network for it in each for network in it.predictor.networks),
        mirror=any(it.predictor.mirror for it in each),
    )
    threshold = None
    if first.predictor.target == "binary":
        place = Path(runs[0]).absolute().parent
        if place.is_dir():
            together, threshold = _as_scored(together, networks, place)
    return Trained(
        together,
        ",".join(it.run_id for it in each),
        threshold,
        wants_threshold=any(it.wants_threshold for it in each),
        slices=first.slices,
        networks=tuple(networks),
    )


def _as_scored(
    predictor: Predictor, networks: Collection[str], runs: Path
) -> tuple[Predictor, float | None]:
    """Mirrored as these networks were scored together, and the threshold that was chosen then;
    without a finished score as it is, and none.

    Scores differ in evaluation, which chooses no threshold, and in whether they are mirrored: the
    plain one comes first.
    """
    found: dict[bool, RunFolder] = {}
    for path in sorted(runs.iterdir()):
        other = RunFolder(path)
        if other.result.exists():
            with suppress(RunError):  # a damaged run stops no other
                match RunRecord.read(other).spec:
                    case Score(parents=parents, mirror=mirror) if {*parents} == {*networks}:
                        found.setdefault(mirror, other)
    if not found:
        return predictor, None
    mirror = min(found)
    mirrored = replace(predictor, mirror=mirror or predictor.mirror)
    return mirrored, Result.read(found[mirror]).threshold


def _from_mlflow(network: UNet, facts: Mapping[str, Any], where: str) -> Trained:
    slices = SliceFormat.from_json(facts, where)
    target, scheme = facts.get("target"), facts.get("scheme")
    known = None if scheme is None else scheme_from_json(scheme)
    mirror = bool(facts.get("mirror"))
    predictor = Predictor((network,), target, known, mirror).to("cpu")
    run_id, threshold = facts["run_id"], facts.get("threshold")
    rules = rules_of(facts.get("postprocess", {}))
    return Trained(predictor, run_id, threshold, target is not None, slices, (run_id,), rules)


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
