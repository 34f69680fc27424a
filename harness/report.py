"""From results to the figure: AP, ⌈Dice⌉ and multi-class Dice against the number of labelled scans.

Works on an unfinished study: a missing cell is missing, nothing is imputed. Every number of the
figure stands in a CSV beside it.
"""

import csv
import io
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter, ScalarFormatter
from rich.table import Table

from experiments.spec import Anomaly, Segment
from harness.plan import UNSUPERVISED, Plan
from harness.study import SCRATCH
from storage.atomic import replacing, write_bytes
from storage.errors import StudyError

SUPERVISED = "supervised"
"""The baseline: scratch on all labels."""


@dataclass(frozen=True)
class Panel:
    """One panel of the figure."""

    target: str
    metric: str
    """Key of the test metrics in a run's result."""
    title: str


PANELS = (
    Panel("binary", "ap", "average precision"),
    Panel("binary", "best_dice", "⌈Dice⌉ (best threshold on the test split)"),
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


def write_report(plan: Plan) -> list[Path]:
    """Write figure and tables into the study's report folder; returns the files, figure first.

    Raises `StudyError` if no run has a test result yet.
    """
    rows = collect_rows(plan)
    if not rows:
        raise StudyError(
            "no run of the study has a test result yet",
            where=plan.folder.path,
            expected="at least one finished fine-tuning or unsupervised run",
            remedy="`fewscan sweep` runs the study, `fewscan status` shows where it stands",
        )
    cells = collect_cells(plan, rows)
    folder = plan.folder.report
    folder.mkdir(parents=True, exist_ok=True)
    figure = draw_figure(cells, plan.study.name)
    files = [folder / "figure.png", folder / "figure.pdf"]
    for path in files:
        # Without the date the same numbers give the same file.
        metadata = {"CreationDate": None} if path.suffix == ".pdf" else None
        with replacing(path) as temporary:
            figure.savefig(temporary, format=path.suffix[1:], dpi=150, metadata=metadata)
    for name, table in (("figure.csv", cells), ("numbers.csv", rows)):
        write_bytes(folder / name, _csv(table))
        files.append(folder / name)
    return files


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


def _csv(rows: Sequence[Any]) -> bytes:
    text = io.StringIO()
    names = [f.name for f in fields(rows[0])]
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(row) for row in rows)
    return text.getvalue().encode()


COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
"""Okabe and Ito's, which colour-blind people can tell apart."""


def draw_figure(cells: Sequence[Cell], title: str) -> Figure:
    """The three panels of Holzschuh et al.'s Figure 1."""
    figure = Figure(figsize=(13, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title)
    arms = dict.fromkeys(cell.arm for cell in cells if cell.label_count)
    colours = dict(zip(arms, COLOURS * len(arms), strict=False))
    for letter, panel, axes in zip("abc", PANELS, figure.subplots(1, 3), strict=True):
        here = [c for c in cells if (c.target, c.metric) == (panel.target, panel.metric)]
        _draw_panel(axes, here, colours)
        axes.set_title(f"({letter}) {panel.title}", fontsize=10)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False)
    return figure


def _draw_panel(axes: Axes, cells: Sequence[Cell], colours: dict[str, str]) -> None:
    counts = sorted({cell.label_count for cell in cells if cell.label_count})
    for arm, colour in colours.items():
        line = sorted(
            (c for c in cells if c.arm == arm and c.mean is not None), key=lambda c: c.label_count
        )
        x = [c.label_count for c in line]
        mean = [c.mean for c in line if c.mean is not None]
        spread = [c.std or 0.0 for c in line]
        axes.plot(x, mean, "o-", color=colour, label=_arm_label(arm), markersize=4)
        axes.fill_between(
            x,
            [m - s for m, s in zip(mean, spread, strict=True)],
            [m + s for m, s in zip(mean, spread, strict=True)],
            color=colour,
            alpha=0.18,
            linewidth=0,
        )
    for style, (label, value) in zip((":", "-.", "--"), _baselines(cells, counts), strict=False):
        axes.axhline(value, color="0.35", linestyle=style, linewidth=1.2, label=label)
    axes.set_xscale("log")
    axes.set_xticks(counts)
    axes.xaxis.set_major_formatter(ScalarFormatter())
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.minorticks_off()
    axes.set_xlabel("labelled scans")
    axes.set_ylim(0, 1)
    axes.grid(alpha=0.3)


def _baselines(cells: Sequence[Cell], counts: Sequence[int]) -> list[tuple[str, float]]:
    """The horizontal lines: each unsupervised score, and scratch on the most labels."""
    lines = [(c.arm, c.mean) for c in cells if c.label_count == 0]
    lines += [
        (f"{SUPERVISED}: scratch, {c.label_count} scans", c.mean)
        for c in cells
        if c.arm == SCRATCH and counts and c.label_count == counts[-1]
    ]
    return [(label, mean) for label, mean in lines if mean is not None]


def _arm_label(arm: str) -> str:
    return "from scratch" if arm == SCRATCH else f"pre-trained: {arm}"


def render_report(plan: Plan) -> Table:
    """Mean ± standard deviation over seeds, for the terminal."""
    cells = collect_cells(plan, collect_rows(plan))
    counts = sorted({cell.label_count for cell in cells if cell.label_count})
    table = Table(title="test split, mean ± standard deviation over seeds", title_justify="left")
    for column in ("metric", "arm", *map(str, counts)):
        table.add_column(column)
    for panel in PANELS:
        here = [c for c in cells if (c.target, c.metric) == (panel.target, panel.metric)]
        for arm in dict.fromkeys(c.arm for c in here):
            by_count = {c.label_count: c for c in here if c.arm == arm}
            if 0 in by_count:
                table.add_row(panel.metric, arm, _text(by_count[0]), *[""] * (len(counts) - 1))
            else:
                texts = [_text(by_count[n]) if n in by_count else "" for n in counts]
                table.add_row(panel.metric, arm, *texts)
    return table


def _text(cell: Cell) -> str:
    if cell.mean is None:
        return "missing"
    spread = "" if cell.std is None else f" ± {cell.std:.3f}"
    missing = "" if cell.runs == cell.planned else f" ({cell.runs}/{cell.planned})"
    return f"{cell.mean:.3f}{spread}{missing}"
