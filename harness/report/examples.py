"""Example slices, chosen by a rule, never by hand.

The rule. The target is multi-class where all arms have finished something of it, else binary. Of
the label counts that all arms have finished with a common seed the middle one (the smaller of two),
with the first such seed. The test patients are ordered by their Dice, averaged over the arms; shown
are those at the lower quartile, the median and the upper quartile, each by the slice with the most
lesion.

The predictions are computed on the CPU from the kept models and cached, so that a later report with
the same runs is quick.
"""

import io
import json
import math
import zipfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fewscan.experiments.spec import Anomaly, Segment, Target
from fewscan.harness.plan import Plan, PlannedRun
from fewscan.harness.report.cases import Cases, leading_metric, score
from fewscan.storage.atomic import write_bytes

QUARTILES = {"lower quartile": 0.25, "median": 0.5, "upper quartile": 0.75}


@dataclass(frozen=True)
class Choice:
    """Which runs and slices are shown; what follows from it is cached under it."""

    target: Target
    label_count: int
    seed: int
    runs: dict[str, str]
    """Arm → run id."""
    anomaly: tuple[str, str] | None
    """Name and run id of the pre-training whose anomaly map is shown."""
    patients: dict[str, str]
    """Place in the order → patient."""
    dice: dict[str, list[float]]
    """Place → Dice of the patient in 3D, an arm after the other."""


@dataclass(frozen=True, eq=False)
class Examples:
    """A row a patient; letters N patients, A arms, H and W rows and columns."""

    choice: Choice
    positions: list[int]
    """Of the slices, along the scan."""
    images_NHW: np.ndarray
    """The first channel."""
    truth_NHW: np.ndarray
    labels_ANHW: np.ndarray
    anomaly_NHW: np.ndarray | None


def read_examples(plan: Plan, cases: dict[str, Cases]) -> Examples | None:
    """The examples of what is finished; None if no label count has all arms.

    Raises `RunError` or `StoreError` if a model or the slices cannot be read.
    """
    choice = choose(plan, cases)
    if choice is None:
        return None
    cache = plan.folder.examples
    found = _load(cache, choice)
    if found is None:
        found = _compute(plan, choice)
        _save(cache, found)
    return found


def choose(plan: Plan, cases: dict[str, Cases]) -> Choice | None:
    """Apply the rule of this module; None where nothing is finished that it could choose."""
    targets: tuple[Target, ...] = ("multiclass", "binary")
    choices = (_choose(plan, cases, it) for it in targets if it in plan.study.finetune.targets)
    return next(filter(None, choices), None)


def _choose(plan: Plan, cases: dict[str, Cases], target: Target) -> Choice | None:
    cells: dict[tuple[int, int], dict[str, PlannedRun]] = {}
    for run in plan.runs:
        spec = run.spec
        if isinstance(spec, Segment) and spec.target == target and run.run_id in cases:
            cells.setdefault((spec.label_count, spec.seed), {})[run.arm] = run
    arms = {run.arm for run in plan.runs if isinstance(run.spec, Segment)}
    complete = sorted(place for place, runs in cells.items() if runs.keys() == arms)
    counts = sorted({count for count, _ in complete})
    if not counts:
        return None
    place = next(it for it in complete if it[0] == counts[(len(counts) - 1) // 2])
    runs = cells[place]
    columns = leading_metric(plan, target).columns
    shared = set.intersection(*({*cases[run.run_id]} for run in runs.values()))
    dice = {
        patient: [score(cases[run.run_id][patient], columns) for run in runs.values()]
        for patient in shared
    }
    ranked = sorted((np.nanmean(v), p) for p, v in dice.items() if not np.isnan(v).all())
    if not ranked:
        return None
    at = {name: math.floor((len(ranked) - 1) * q) for name, q in QUARTILES.items()}
    patients = {name: ranked[k][1] for name, k in at.items()}
    return Choice(
        target,
        *place,
        runs={arm: run.run_id for arm, run in runs.items()},
        anomaly=_anomaly(plan, cases),
        patients=patients,
        dice={name: dice[patient] for name, patient in patients.items()},
    )


def _anomaly(plan: Plan, cases: dict[str, Cases]) -> tuple[str, str] | None:
    for run in plan.runs:
        if isinstance(run.spec, Anomaly) and run.run_id in cases:
            return run.init, run.spec.init
    return None


def _compute(plan: Plan, choice: Choice) -> Examples:
    from fewscan.experiments.examples import (
        anomalies,
        segmented,
    )  # torch, which a cached report can spare

    slices = [plan.store.read_subject(patient) for patient in choice.patients.values()]
    largest = [int((it.labels_NHW > 0).sum(axis=(1, 2)).argmax()) for it in slices]
    images_NCHW = np.stack([it.images_NCHW[n] for it, n in zip(slices, largest, strict=True)])
    labels = []
    for run_id in choice.runs.values():
        folder = plan.folder.run(run_id)
        threshold = folder.read_result()["validation"]["threshold"]
        threshold = math.inf if threshold is None else threshold
        labels.append(segmented(folder, choice.target, threshold, images_NCHW))
    return Examples(
        choice,
        [int(it.positions_N[n]) for it, n in zip(slices, largest, strict=True)],
        images_NCHW[:, 0].astype(np.float32),
        np.stack([it.labels_NHW[n] for it, n in zip(slices, largest, strict=True)]),
        np.stack(labels),
        anomalies(plan.folder.run(choice.anomaly[1]), images_NCHW) if choice.anomaly else None,
    )


ARRAYS = ("images_NHW", "truth_NHW", "labels_ANHW", "anomaly_NHW")


def _save(path: Path, examples: Examples) -> None:
    data = io.BytesIO()
    arrays = {name: getattr(examples, name) for name in ARRAYS}
    arrays = {name: array for name, array in arrays.items() if array is not None}
    np.savez_compressed(
        data, key=_key(examples.choice), positions=np.array(examples.positions), **arrays
    )
    write_bytes(path, data.getvalue())


def _load(path: Path, choice: Choice) -> Examples | None:
    """What is cached for this choice; a file that cannot be read is no cache."""
    try:
        with np.load(path) as found:
            if str(found["key"]) != _key(choice):
                return None
            arrays: list[Any] = [found.get(name) for name in ARRAYS]
            return Examples(choice, found["positions"].tolist(), *arrays)
    except (OSError, ValueError, KeyError, zipfile.BadZipFile):
        return None


def _key(choice: Choice) -> str:
    return json.dumps(asdict(choice))
