"""The figures of the report, drawn with matplotlib. The same numbers give the same bytes."""

import base64
import io
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import cycle
from pathlib import Path
from string import ascii_lowercase
from typing import Any, Literal

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import fontManager
from matplotlib.ticker import NullFormatter, ScalarFormatter

from fewscan.experiments.catalogue import Metric, panels
from fewscan.harness.arms import Arm
from fewscan.harness.report.bootstrap import Estimate
from fewscan.harness.report.evidence import Evidence, Outcome
from fewscan.harness.report.labels_saved import LabelsSaved
from fewscan.harness.report.results import PanelPoint, cell_name
from fewscan.harness.report.run_log import RunLog
from fewscan.harness.report.tables import ABREAST
from fewscan.harness.study import Published
from fewscan.storage.atomic import replacing

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MORE_COLOURS = ("#332288", "#882255", "#117733", "#999933", "#AA4499", "#44AA99")
"""Okabe and Ito's, then Tol's, which colour-blind people can tell apart."""

SUPERVISED = "supervised"
"""The baseline: scratch on all labels."""

BAND = "95 % interval over seeds and patients"
"""What a shaded band is."""
SHADE: dict[str, Any] = {"alpha": 0.18, "linewidth": 0}

MARGIN = 0.02
"""Of a metric's range, so that an axis cuts no marker."""
UNSUPERVISED_STYLES = (":", "-.")
LONG_STYLE = (0, (8, 2))
REFERENCE_STYLES = ((0, (1, 2)), (0, (6, 2)), (0, (6, 2, 1, 2)))

LabelAxis = Literal["learnt", "all"]
LABEL_AXES: Mapping[LabelAxis, str] = {
    "learnt": "labelled scans",
    "all": "scans whose labels count: learnt from, choosing, telling what is healthy",
}

Colours = Mapping[Arm, str]
"""Arm → colour, the same in every figure."""


WIDTH = 183 / 25.4
"""Inches: two columns of a journal, 183 mm (Nature's and Elsevier's are 180 to 190)."""
TITLE, SMALL = 8, 6.5
"""Points; journals want no less than 5 to 7."""
FALLBACKS = (
    "Noto Sans",
    "Noto Sans CJK SC",
    "Noto Sans CJK JP",
    "WenQuanYi Zen Hei",
    "Arial Unicode MS",
)
"""Fonts for letters that matplotlib's own does not have, where they are installed."""


def style() -> dict[str, Any]:
    """Settings of matplotlib, for drawing and saving: type as journals want it, as TrueType."""
    there = set(fontManager.get_font_names())
    return {
        "font.family": ["DejaVu Sans", *(name for name in FALLBACKS if name in there)],
        "font.size": TITLE,
        "axes.titlesize": TITLE,
        "axes.labelsize": TITLE,
        "xtick.labelsize": 7,
        "ytick.labelsize": 7,
        "legend.fontsize": 7,
        "axes.linewidth": 0.6,
        "lines.linewidth": 1.2,
        "lines.markersize": 3,
        "pdf.fonttype": 42,
        "svg.hashsalt": "fewscan",
    }


OTHERS, SCRATCH = "0.82", "0.45"
"""Greys of arms that are not the panel's own: a scratch arm stands out, for it is the reference."""


def colours_of(arms: Sequence[Arm]) -> Colours:
    """A colour for each arm, in this order."""
    return dict(zip(arms, cycle((*COLOURS, *MORE_COLOURS)), strict=False))


Lit = Collection[Arm]
"""The arms of a panel that have their colours; the others are grey behind them."""


def rows_of(arms: Sequence[Arm]) -> list[Lit]:
    """One row of panels for a few arms; of more than `ABREAST` each has a row of its own, in which
    the others are grey."""
    return [arms] if len(arms) <= ABREAST else [(arm,) for arm in arms]


def save_figure(figure: Figure, path: Path) -> None:
    """Write PNG or PDF, by the name's suffix, without a date."""
    metadata = {"CreationDate": None} if path.suffix == ".pdf" else None
    with replacing(path) as temporary, rc_context(style()):
        figure.savefig(temporary, format=path.suffix[1:], dpi=300, metadata=metadata)


def as_data_uri(figure: Figure) -> str:
    """The figure as SVG inside an address, to stand in a page that needs no other file."""
    data = io.BytesIO()
    with rc_context(style()):
        figure.savefig(data, format="svg", metadata={"Date": None})
    return "data:image/svg+xml;base64," + base64.b64encode(data.getvalue()).decode()


def draw_published(
    points: Sequence[PanelPoint],
    colours: Colours,
    published: Sequence[Published] = (),
    axis: LabelAxis = "learnt",
) -> Figure:
    """The panels of Holzschuh et al.'s Figure 1, with the figures that others published."""
    there = {it.quantity.key for it in points}
    shown = [it for it in panels() if not there or it[1].overall_key(it[0]) in there]
    dots = [arm for arm in colours if _is_dot(arm, {it.labels for it in points if it.arm == arm})]
    rows = rows_of([arm for arm in colours if arm.schedule != "long" and arm not in dots])
    figure, grid, below = _grid(rows, len(shown), 2.6, dots)
    for lit, all_axes in zip(rows, grid, strict=True):
        for (target, metric), axes in zip(shown, all_axes, strict=True):
            key = metric.overall_key(target)
            here = [it for it in points if it.quantity.key == key]
            curves = {arm: colour for arm, colour in colours.items() if arm not in dots}
            _draw_panel(axes, [it for it in here if it.arm not in dots], curves, axis, lit)
            _draw_references(axes, [it for it in published if it.metric == key])
            _limit(axes, metric)
    for (target, metric), axes in zip(shown, below, strict=False):
        key = metric.overall_key(target)
        here = [it for it in points if it.arm in dots and it.quantity.key == key and it.values]
        _draw_dots(axes, [(it.arm, it.labels, it.mean, it.interval) for it in here], colours)
        if axes is not below[0]:
            axes.set_yticklabels([])
        _limit_dots(axes, metric)
    titles = [metric.panel_title for _, metric in shown]
    _say_what_is_where(rows, grid, [f"({k}) {it}" for k, it in zip(ascii_lowercase, titles)])  # noqa: B905
    _legend(figure, figure.axes)
    return figure


def _is_dot(arm: Arm, counts: Collection[int | None]) -> bool:
    """Whether it is a probe at one label count, which makes no curve."""
    return arm.schedule == "probe" and len(counts) == 1


def _grid(
    rows: Sequence[Lit], columns: int, height: float, dots: Sequence[Arm]
) -> tuple[Figure, Any, Sequence[Axes]]:
    """A figure with a row of panels of this height in inches, or several lower ones; and a last row
    for the arms that are dots, if there are any."""
    heights = [height] if len(rows) == 1 else [1.5] * len(rows)
    if dots:
        heights.append(0.16 * len(dots) + 0.6)
    figure = new_figure(WIDTH, sum(heights) + 0.6 * (len(heights) > 1))
    grid = figure.subplots(len(heights), columns, squeeze=False, height_ratios=heights)
    return figure, grid[: len(rows)], grid[-1] if dots else ()


def _draw_dots(
    axes: Axes,
    dots: Sequence[tuple[Arm, int | None, float | None, tuple[float, float] | None]],
    colours: Colours,
) -> None:
    """A line for each of the arms, with its mean and interval, from the top in their order."""
    if not dots:
        axes.set_axis_off()
        return
    for place, (arm, _, mean, interval) in enumerate(dots):
        if mean is not None:
            axes.plot(mean, -place, "o", color=colours[arm])
        if interval is not None:
            axes.hlines(-place, *interval, color=colours[arm], linewidth=1.4, alpha=0.7)
    counts = {labels for _, labels, _, _ in dots}
    names = [_plain(arm.key if len(counts) == 1 else cell_name(arm, n)) for arm, n, _, _ in dots]
    axes.set_yticks([-place for place in range(len(dots))], names, fontsize=SMALL)
    axes.set_ylim(0.6 - len(dots), 0.6)
    axes.grid(alpha=0.3)
    scans = f", {counts.pop()} labelled scans" if len(counts) == 1 else ""
    axes.set_title(f"a new head on frozen features{scans}")


def _limit_dots(axes: Axes, metric: Metric) -> None:
    """As `_limit`, of the other axis."""
    if math.isfinite(metric.most):
        margin = MARGIN * (metric.most - metric.least)
        axes.set_xlim(metric.least - margin, metric.most + margin)


def _say_what_is_where(rows: Sequence[Lit], grid: Any, titles: Sequence[str]) -> None:
    """What the columns show; of several rows whose they are, and the axis below the last alone."""
    for axes, title in zip(grid[0], titles, strict=True):
        axes.set_title(_plain(title).replace(" (", "\n("))
    if len(rows) > 1:
        for (arm,), all_axes in zip(rows, grid, strict=True):
            all_axes[0].set_ylabel(_broken(_plain(arm.title)))
        for axes in grid[:-1].ravel():
            axes.set_xlabel("")


def _broken(title: str) -> str:
    """In lines that fit beside a low panel."""
    return title.replace(", ", ",\n").replace(": ", ":\n").replace(" (", "\n(")


def _limit(axes: Axes, metric: Metric) -> None:
    """The whole range of a metric that has one, so that studies can be compared by eye."""
    if math.isfinite(metric.most):
        margin = MARGIN * (metric.most - metric.least)
        axes.set_ylim(metric.least - margin, metric.most + margin)


def _labels_of(it: PanelPoint | Outcome, axis: LabelAxis) -> int:
    """Where it stands on the axis."""
    count = it.labels if axis == "learnt" else it.in_all
    assert count is not None
    return count


def _draw_panel(
    axes: Axes, points: Sequence[PanelPoint], colours: Colours, axis: LabelAxis, lit: Lit
) -> None:
    labelled = [it for it in points if it.labels is not None]
    counts = sorted({_labels_of(it, axis) for it in labelled})
    for arm, colour in colours.items():
        mine = [it for it in labelled if it.arm == arm and it.values]
        if arm.schedule == "long":  # of all labels alone
            _draw_levels(axes, [(arm.title, it.mean) for it in mine], [LONG_STYLE])
            continue
        line = {_labels_of(it, axis): it for it in mine}
        x, mean = [*line], np.array([it.mean for it in line.values()], dtype=float)
        if arm not in lit:
            _draw_grey(axes, x, mean, arm)
            continue
        _draw_line(axes, x, mean, arm, colour)
        known = [(n, it.interval) for n, it in line.items() if it.interval is not None]
        if known:
            low, high = zip(*(ends for _, ends in known), strict=True)
            axes.fill_between([n for n, _ in known], low, high, color=colour, **SHADE)
            axes.fill_between([], [], color="0.35", label=BAND, **SHADE)
    most_labels = max((it.labels or 0 for it in labelled), default=0)
    most = [it for it in labelled if it.arm.is_scratch and it.labels == most_labels][:1]
    supervised = [(f"{SUPERVISED}: {cell_name(it.arm, it.labels)}", it.mean) for it in most]
    _draw_levels(axes, supervised, ["--"])
    unlabelled = [(it.arm.title, it.mean) for it in points if it.labels is None]
    _draw_levels(axes, unlabelled, UNSUPERVISED_STYLES)
    _label_counts_on(axes, counts, axis)


def _draw_line(axes: Axes, x: Sequence[Any], y: Any, arm: Arm, colour: str) -> None:
    axes.plot(x, y, "o-", color=colour, label=_plain(arm.title))


def _draw_grey(axes: Axes, x: Sequence[Any], y: Any, arm: Arm) -> None:
    """Behind what the panel is about."""
    stands_out = arm.is_scratch and not arm.is_ensemble
    grey, label = (SCRATCH, arm.title) if stands_out else (OTHERS, "other arms")
    axes.plot(x, y, "-", color=grey, label=_plain(label), linewidth=1.1, zorder=1.5)


def _draw_levels(
    axes: Axes, levels: Iterable[tuple[str, float | None]], styles: Iterable[Any]
) -> None:
    """A horizontal line for each score that stands at all label counts, with its label."""
    known = [(label, value) for label, value in levels if value is not None]
    for (label, value), style in zip(known, cycle(styles), strict=False):
        axes.axhline(value, color="0.35", linestyle=style, linewidth=1.2, label=_plain(label))


def _draw_references(axes: Axes, published: Sequence[Published]) -> None:
    """Thin black lines and crosses: not computed here."""
    for it, style in zip(published, cycle(REFERENCE_STYLES), strict=False):
        label = _plain(f"published: {it.label}")
        if it.value is not None:
            axes.axhline(it.value, color="black", linestyle=style, linewidth=0.8, label=label)
        else:
            x, y = zip(*sorted(it.points), strict=True)
            axes.plot(x, y, "x", color="black", linestyle=style, linewidth=0.6, label=label)


def draw_evidence(evidence: Evidence, colours: Colours) -> Figure:
    """Means, differences and labels saved of one metric, each with 95 % intervals."""
    there = [arm for arm in colours if evidence.of_arm(arm) and arm.schedule != "long"]
    dots = [arm for arm in there if _is_dot(arm, evidence.of_arm(arm))]
    arms = [arm for arm in there if arm not in dots]
    rows = rows_of(arms)
    figure, grid, below = _grid(rows, 3, 2.5, dots)
    for lit, all_axes in zip(rows, grid, strict=True):
        _draw_evidence(all_axes, evidence, colours, arms, lit)
    _share_y([all_axes[1] for all_axes in grid])
    for axes in below:
        found = [(arm, n, it.mean) for arm in dots for n, it in evidence.of_arm(arm).items()]
        known = [(arm, n, it.value, it.interval) for arm, n, it in found if it is not None]
        _draw_dots(axes, known if axes is below[0] else [], colours)
        _limit_dots(axes, evidence.quantity.metric)
    reference = evidence.reference
    titles = [
        evidence.quantity.title,
        f"difference from {reference}",
        f"labelled scans\nthat {reference} needs",
    ]
    _say_what_is_where(rows, grid, titles)
    _legend(figure, [all_axes[0] for all_axes in grid])
    return figure


def _share_y(column: Sequence[Axes]) -> None:
    """The widest of their ranges for all, so that they can be compared by eye."""
    lows, highs = zip(*(axes.get_ylim() for axes in column), strict=True)
    for axes in column:
        axes.set_ylim(min(lows), max(highs))


def _draw_evidence(
    all_axes: Sequence[Axes], evidence: Evidence, colours: Colours, arms: Sequence[Arm], lit: Lit
) -> None:
    """A row of three panels."""
    means, differences, saved = all_axes
    counts = sorted({n for arm in arms for n in evidence.of_arm(arm)})
    long = [it for it in evidence.outcomes if it.arm.schedule == "long"]
    levels_of_long = [(it.arm.title, it.mean.value) for it in long if it.mean is not None]
    _draw_levels(means, levels_of_long, [LONG_STYLE])
    for place, arm in enumerate(arms):
        # Side by side, so that none hides another.
        shift = 1.04 ** (place - (len(arms) - 1) / 2) if len(lit) > 1 else 1.0
        outcomes = [(n * shift, it) for n, it in evidence.of_arm(arm).items()]
        drawn = [(x, it.mean) for x, it in outcomes if it.mean is not None]
        compared = [
            (x, it.comparison.difference) for x, it in outcomes if it.comparison is not None
        ]
        if arm not in lit:
            for axes, known in ((means, drawn), (differences, compared)):
                _draw_grey(axes, [x for x, _ in known], [it.value for _, it in known], arm)
            continue
        _draw_estimates(means, drawn, arm, colours[arm])
        _draw_estimates(differences, compared, arm, colours[arm])
        for x, it in outcomes:
            if it.saved is not None:
                _draw_saved(saved, x, it.saved, colours[arm])
    unlabelled = [it for it in evidence.outcomes if it.labels is None]
    levels = [(it.arm.title, it.mean.value) for it in unlabelled if it.mean is not None]
    _draw_levels(means, levels, UNSUPERVISED_STYLES)
    differences.axhline(0, color="0.35", linewidth=1)
    saved.plot(counts, counts, color="0.35", linewidth=1)
    for axes in all_axes:
        _label_counts_on(axes, counts)
    _limit(means, evidence.quantity.metric)
    _draw_beyond(means, evidence, {arm: colours[arm] for arm in arms if arm in lit})
    saved.set_yscale("log")
    _tick_counts(saved.yaxis, counts)
    saved.minorticks_off()
    saved.set_ylim(counts[0] / 1.3, counts[-1] * 1.6)


def _draw_beyond(axes: Axes, evidence: Evidence, colours: Colours) -> None:
    """The power laws that say how many labels are needed, and for which score if it is named."""
    for arm, colour in colours.items():
        found = evidence.needed.get(arm)
        if found is not None and found.curve is not None:
            curve = found.curve
            axes.plot(curve.counts, curve.scores, "--", color=colour, linewidth=1.2)
            axes.fill_between(curve.counts, curve.low, curve.high, color=colour, **SHADE)
            axes.set_xlim(right=max(axes.get_xlim()[1], curve.counts[-1]))
    if evidence.is_named:
        for score in {it.score for it in evidence.needed.values()}:
            _draw_levels(axes, [(f"asked for: {score:g}", score)], [(0, (1, 4))])


def _draw_estimates(
    axes: Axes, placed: Sequence[tuple[float, Estimate]], arm: Arm, colour: str
) -> None:
    known = [(x, it) for x, it in placed if it.value is not None]
    _draw_line(axes, [x for x, _ in known], [it.value for _, it in known], arm, colour)
    for x, it in known:
        if it.interval is not None:
            axes.vlines(x, *it.interval, color=colour, linewidth=1.4, alpha=0.7)


def _draw_saved(axes: Axes, x: float, it: LabelsSaved, colour: str) -> None:
    """An arrow head at the top: not reached with the most labels that were run."""
    top = it.searched[1] * 1.35
    if it.needed.interval is not None:
        low, high = (min(end, top) for end in it.needed.interval)
        axes.vlines(x, low, high, color=colour, linewidth=1.4, alpha=0.7)
    if it.needed.value is None or math.isinf(it.needed.value):
        axes.plot(x, top, "^", color=colour)
    else:
        axes.plot(x, it.needed.value, "o", color=colour)


def draw_training(curves: Mapping[str, Sequence[RunLog]], colours: Colours) -> Figure:
    """Small multiples of the losses: a line a run, solid on validation, faint on training."""
    columns = min(4, len(curves))
    rows = math.ceil(len(curves) / columns)
    figure = new_figure(WIDTH, 1.3 * rows + 0.4)
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes, (title, logs) in zip(grid, curves.items(), strict=False):
        for it in logs:
            arm = it.run.place.arm
            colour, label = colours.get(arm, "0.3"), _plain(arm.title)
            axes.plot(*zip(*it.validation, strict=True), color=colour, linewidth=1.1, label=label)
            if it.train:
                axes.plot(*zip(*it.train, strict=True), color=colour, linewidth=0.8, alpha=0.35)
        axes.set_title(_plain(title), fontsize=SMALL)
        axes.tick_params(labelsize=SMALL)
        axes.grid(alpha=0.3)
    for axes in grid[len(curves) :]:
        axes.set_axis_off()
    _legend(figure, list(grid[: len(curves)]))
    return figure


def new_figure(width: float, height: float) -> Figure:
    """A figure of this size in inches, drawn without a screen."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _legend(figure: Figure, all_axes: Sequence[Axes]) -> None:
    """One legend for all panels, below them, each label once."""
    found: dict[str, Any] = {}
    for axes in all_axes:
        handles, labels = axes.get_legend_handles_labels()
        found |= dict(zip(labels, handles, strict=True))
    if found:
        figure.legend(
            list(found.values()), list(found), loc="outside lower center", ncols=3, frameon=False
        )


def _label_counts_on(axes: Axes, counts: Sequence[int], axis: LabelAxis = "learnt") -> None:
    axes.set_xscale("log")
    _tick_counts(axes.xaxis, counts)
    axes.minorticks_off()
    if counts:
        axes.set_xlim(counts[0] / 1.2, counts[-1] * 1.2)
    if not axes.has_data():
        axes.text(0.5, 0.5, "no finished run", color="0.45", ha="center", transform=axes.transAxes)
    axes.set_xlabel(LABEL_AXES[axis])
    axes.grid(alpha=0.3)


def _tick_counts(axis: Axis, counts: Sequence[int]) -> None:
    axis.set_ticks(_apart(counts))
    axis.set_major_formatter(ScalarFormatter())
    axis.set_minor_formatter(NullFormatter())


def _apart(counts: Sequence[int]) -> list[int]:
    """The counts whose labels do not run into each other on a log axis; the last one is kept."""
    kept: list[int] = []
    for count in reversed(counts):
        if not kept or kept[-1] / count > 1.25:
            kept.append(count)
    return kept[::-1]


def _plain(text: str) -> str:
    """Text that matplotlib does not take for a formula."""
    return text.replace("$", r"\$")
