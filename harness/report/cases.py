"""The test patients one by one: from `cases.csv` of finished runs to cells to compare.

A run that is not finished, or has no `cases.csv`, is not there; nothing is imputed.
"""

import csv
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from experiments.spec import Anomaly, Segment
from harness.plan import UNSUPERVISED, Plan, PlannedRun
from harness.report.pairing import Scores
from storage.errors import StudyError
from storage.runs import RunFolder

Cases = dict[str, dict[str, float]]
"""Patient → column of `cases.csv` → number; nan: not defined for that patient."""

Cells = dict[str, dict[int, Scores]]
"""Arm → label count → scores of the finished runs. No label: the unsupervised baselines."""


@dataclass(frozen=True)
class CaseMetric:
    """A number that each test patient has."""

    target: str
    key: str
    """Its name in tables."""
    title: str
    """For people."""
    columns: tuple[str, ...]
    """Of `cases.csv`; several are averaged over those that are defined for the patient."""
    leads: bool = False
    """Whether the target's verdict is about it."""


def case_metrics(plan: Plan) -> list[CaseMetric]:
    """What is compared, target by target, the leading metric first."""
    classes = plan.store.classes
    columns = tuple(f"dice_{name}" for name in classes)
    each = [
        CaseMetric("multiclass", column, f"Dice of {name.replace('_', ' ')}", (column,))
        for name, column in zip(classes, columns, strict=True)
    ]
    threshold = "dice_at_validation_threshold"
    metrics = [
        CaseMetric("binary", threshold, "Dice at the validation threshold", (threshold,), True),
        CaseMetric("binary", "ap", "AP of each patient", ("ap",)),
        CaseMetric("multiclass", "dice_class_mean", "class-mean Dice", columns, True),
        *each,
    ]
    return [metric for metric in metrics if metric.target in plan.study.finetune.targets]


def read_cases(plan: Plan) -> dict[str, Cases]:
    """Run id → the patients of each finished run that has a `cases.csv`."""
    folders = [plan.folder_of(run) for run in plan.runs]
    return {f.run_id: _read(f) for f in folders if f.result.exists() and f.cases.exists()}


def _read(folder: RunFolder) -> Cases:
    with folder.cases.open(newline="") as file:
        return {
            row.pop("subject"): {name: float(text or "nan") for name, text in row.items()}
            for row in csv.DictReader(file)
        }


def collect(plan: Plan, cases: dict[str, Cases], metric: CaseMetric) -> Cells:
    """The cells of a metric: each seed is a finished run, each column a test patient.

    Raises `StudyError` if the runs of one cell were tested on different patients.
    """
    runs: dict[tuple[str, int], list[PlannedRun]] = {}
    for run in plan.runs:
        if run.run_id in cases and (place := place_of(run, metric)) is not None:
            runs.setdefault(place, []).append(run)
    cells: Cells = {}
    for (arm, count), found in runs.items():
        cells.setdefault(arm, {})[count] = _cell(plan, cases, metric, cell_name(arm, count), found)
    return cells


def cell_name(arm: str, count: int) -> str:
    """For errors and captions: "scratch, 4 scans"."""
    return f"{arm}, {count} scan{'' if count == 1 else 's'}" if count else arm


def place_of(run: PlannedRun, metric: CaseMetric) -> tuple[str, int] | None:
    """Arm and label count of a run that has the metric; None for one that has not."""
    if isinstance(run.spec, Segment) and run.spec.target == metric.target:
        return run.arm, run.spec.label_count
    if isinstance(run.spec, Anomaly) and metric.target == "binary":
        return f"{UNSUPERVISED}: {run.init}", 0
    return None


def _cell(
    plan: Plan, cases: dict[str, Cases], metric: CaseMetric, name: str, runs: Iterable[PlannedRun]
) -> Scores:
    runs = sorted(runs, key=_seed)
    patients = sorted(cases[runs[0].run_id])
    for run in runs:
        if sorted(cases[run.run_id]) != patients:
            raise StudyError(
                f"the seeds of {name} were tested on different patients",
                where=plan.folder_of(run).cases,
                expected=f"the {len(patients)} patients of run {runs[0].run_id}",
                remedy="delete the run folder that was changed, and sweep again",
            )
    scores = [[_score(cases[r.run_id][p], metric.columns) for p in patients] for r in runs]
    subsets = tuple(tuple(plan.folder_of(r).read_result().get("labelled", ())) for r in runs)
    return Scores(name, tuple(map(_seed, runs)), tuple(patients), subsets, np.array(scores))


def _seed(run: PlannedRun) -> int:
    return run.spec.seed if isinstance(run.spec, Segment) else 0


def _score(row: dict[str, float], columns: Iterable[str]) -> float:
    defined = [row[c] for c in columns if not np.isnan(row[c])]
    return float(np.mean(defined)) if defined else float("nan")
