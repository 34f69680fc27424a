"""The test patients one by one: from `cases.csv` of finished runs to cells to compare.

A run that is not finished, or has no `cases.csv`, is not there; nothing is imputed.
"""

import csv
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from fewscan.experiments.cases import DICE_AT_THRESHOLD, LESION
from fewscan.experiments.spec import Anomaly, Segment
from fewscan.harness.plan import UNSUPERVISED, Plan, PlannedRun
from fewscan.harness.report.pairing import Scores
from fewscan.storage.errors import StudyError
from fewscan.storage.runs import RunFolder

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
    metrics = [*_binary(plan), *_multiclass(plan)]
    return [metric for metric in metrics if metric.target in plan.study.finetune.targets]


def leading_metric(plan: Plan, target: str) -> CaseMetric:
    """The metric that the target's verdict is about."""
    return next(it for it in case_metrics(plan) if it.target == target and it.leads)


def distances(plan: Plan) -> list[CaseMetric]:
    """HD95, which may be infinite: described by `harness.report.distances`, not compared."""
    if plan.study.evaluation.nsd_tolerance_mm is None:
        return []
    found = [CaseMetric("binary", "hd95_mm", "lesion", (f"hd95_mm_{LESION}",))] + [
        CaseMetric("multiclass", f"hd95_mm_{name}", _words(name), (f"hd95_mm_{name}",))
        for name in plan.store.classes
    ]
    return [metric for metric in found if metric.target in plan.study.finetune.targets]


def _binary(plan: Plan) -> list[CaseMetric]:
    threshold = DICE_AT_THRESHOLD
    metrics = [
        CaseMetric("binary", threshold, "Dice at the validation threshold", (threshold,), True),
        CaseMetric("binary", "patient_ap", "AP of each patient", ("ap",)),
    ]
    if (tolerance_mm := plan.study.evaluation.nsd_tolerance_mm) is not None:
        title = f"NSD at {tolerance_mm:g} mm"
        metrics.append(CaseMetric("binary", "nsd", title, (f"nsd_{LESION}",)))
    return metrics


def _multiclass(plan: Plan) -> list[CaseMetric]:
    metrics = _by_class(plan, "dice", "Dice", leads=True)
    if (tolerance_mm := plan.study.evaluation.nsd_tolerance_mm) is not None:
        metrics += _by_class(plan, "nsd", f"NSD at {tolerance_mm:g} mm", leads=False)
    return metrics


def _by_class(plan: Plan, kind: str, title: str, leads: bool) -> list[CaseMetric]:
    columns = tuple(f"{kind}_{name}" for name in plan.store.classes)
    each = [
        CaseMetric("multiclass", column, f"{title}, {_words(name)}", (column,))
        for name, column in zip(plan.store.classes, columns, strict=True)
    ]
    mean = CaseMetric("multiclass", f"{kind}_class_mean", f"class-mean {title}", columns, leads)
    return [mean, *each]


def _words(name: str) -> str:
    return name.replace("_", " ")


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
    scores = [[score(cases[r.run_id][p], metric.columns) for p in patients] for r in runs]
    subsets = tuple(tuple(plan.folder_of(r).read_result().get("labelled", ())) for r in runs)
    return Scores(name, tuple(map(_seed, runs)), tuple(patients), subsets, np.array(scores))


def _seed(run: PlannedRun) -> int:
    return run.spec.seed if isinstance(run.spec, Segment) else 0


def score(row: dict[str, float], columns: Iterable[str]) -> float:
    """Mean over the columns that are defined for a patient; nan if none is."""
    defined = [row[c] for c in columns if not np.isnan(row.get(c, np.nan))]
    return float(np.mean(defined)) if defined else float("nan")
