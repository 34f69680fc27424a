"""The published, pooled numbers: mean and spread over seeds of each test metric.

AP and ⌈Dice⌉ are over all pixels of all test patients at once, one number a run; the per-patient
numbers are in `harness.report.cases`. A missing cell is missing, nothing is imputed.
"""

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from fewscan.experiments.spec import Anomaly, Segment
from fewscan.harness.plan import UNSUPERVISED, Plan


@dataclass(frozen=True)
class Panel:
    """One panel of the figure."""

    target: str
    metric: str
    """Key of the test metrics in a run's result."""
    title: str


PANELS = (
    Panel("binary", "pooled_ap", "pooled average precision"),
    Panel("binary", "pooled_best_dice", "pooled ⌈Dice⌉ (best threshold on the test split)"),
    Panel("multiclass", "class_dice_mean", "multi-class Dice (patients, then classes)"),
)


@dataclass(frozen=True)
class Row:
    """One test metric of one finished run: a line of `numbers.csv`."""

    run_id: str
    arm: str
    target: str
    label_count: int
    seed: int
    metric: str
    value: float | None
    """None: not defined on this test split."""


@dataclass(frozen=True)
class Cell:
    """One point of the figure: a line of `figure.csv`."""

    target: str
    metric: str
    arm: str
    label_count: int
    runs: int
    """Runs that are finished; the mean and the spread are over these."""
    planned: int
    mean: float | None
    std: float | None
    """Standard deviation over seeds (n − 1); None for fewer than two runs."""
    lowest: float | None
    highest: float | None


def collect_rows(plan: Plan) -> list[Row]:
    """Every test metric of every finished run of the plan."""
    rows: list[Row] = []
    for run in plan.runs:
        folder = plan.folder_of(run)
        if not isinstance(run.spec, Segment | Anomaly) or not folder.result.exists():
            continue
        spec = run.spec
        place = (
            (spec.target, spec.label_count, spec.seed) if isinstance(spec, Segment) else ("", 0, 0)
        )
        arm = run.arm if isinstance(spec, Segment) else f"{UNSUPERVISED}: {run.init}"
        test = folder.read_result()["test"]
        rows += [Row(run.run_id, arm, *place, metric, value) for metric, value in test.items()]
    return rows


def collect_cells(plan: Plan, rows: Sequence[Row]) -> list[Cell]:
    """Mean and spread over seeds for each panel, arm and label count; the missing ones too."""
    planned: dict[tuple[str, str, int], int] = {}
    for run in plan.runs:
        if isinstance(run.spec, Segment):
            key = (run.spec.target, run.arm, run.spec.label_count)
            planned[key] = planned.get(key, 0) + 1
    cells = []
    for panel in PANELS:
        for (target, arm, count), seeds in planned.items():
            if target == panel.target:
                values = _values(rows, panel.metric, target, arm, count)
                cells.append(_cell(panel, arm, count, seeds, values))
        for arm in dict.fromkeys(r.arm for r in rows if r.label_count == 0):
            values = _values(rows, panel.metric, "", arm, 0)
            if values:
                cells.append(_cell(panel, arm, 0, len(values), values))
    return cells


def _values(rows: Iterable[Row], metric: str, target: str, arm: str, count: int) -> list[float]:
    wanted = (metric, target, arm, count)
    return [
        row.value
        for row in rows
        if (row.metric, row.target, row.arm, row.label_count) == wanted and row.value is not None
    ]


def _cell(panel: Panel, arm: str, count: int, planned: int, values: Sequence[float]) -> Cell:
    return Cell(
        panel.target,
        panel.metric,
        arm,
        count,
        len(values),
        planned,
        statistics.fmean(values) if values else None,
        statistics.stdev(values) if len(values) > 1 else None,
        min(values, default=None),
        max(values, default=None),
    )
