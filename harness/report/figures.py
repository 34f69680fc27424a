"""The figures of the report, drawn with matplotlib. The same numbers give the same bytes."""

import base64
import io
import math
from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter, ScalarFormatter

from fewscan.harness.report.evidence import Evidence
from fewscan.harness.report.pooled import PANELS, Cell
from fewscan.harness.report.record import RunRecord
from fewscan.harness.report.statistics import Estimate
from fewscan.harness.report.words import arm_name, is_scratch
from fewscan.harness.study import Published
from fewscan.storage.atomic import replacing

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
"""Okabe and Ito's, which colour-blind people can tell apart."""

SUPERVISED = "supervised"
"""The baseline: scratch on all labels."""

UNIT = (-0.02, 1.02)
"""Limits of an axis from 0 to 1 that cut no marker."""
UNSUPERVISED_STYLES = (":", "-.")
REFERENCE_STYLES = ((0, (1, 2)), (0, (6, 2)), (0, (6, 2, 1, 2)))

Colours = Mapping[str, str]
"""Arm → colour, the same in every figure."""


def colours_of(arms: Sequence[str]) -> Colours:
    """A colour for each arm, in this order."""
    return dict(zip(arms, COLOURS * len(arms), strict=False))


def save_figure(figure: Figure, path: Path) -> None:
    """Write PNG or PDF, by the name's suffix, without a date."""
    metadata = {"CreationDate": None} if path.suffix == ".pdf" else None
    with replacing(path) as temporary:
        figure.savefig(temporary, format=path.suffix[1:], dpi=150, metadata=metadata)


def as_data_uri(figure: Figure) -> str:
    """The figure as SVG inside an address, to stand in a page that needs no other file."""
    data = io.BytesIO()
    with rc_context({"svg.hashsalt": "fewscan"}):
        figure.savefig(data, format="svg", metadata={"Date": None})
    return "data:image/svg+xml;base64," + base64.b64encode(data.getvalue()).decode()


def draw_published(
    cells: Sequence[Cell], colours: Colours, published: Sequence[Published] = ()
) -> Figure:
    """The three panels of Holzschuh et al.'s Figure 1, with the figures that others published."""
    figure = new_figure(13, 4.2)
    for letter, panel, axes in zip("abc", PANELS, figure.subplots(1, 3), strict=True):
        here = [c for c in cells if (c.target, c.metric) == (panel.target, panel.metric)]
        _draw_panel(axes, here, colours)
        _draw_references(axes, [it for it in published if it.metric == panel.metric])
        axes.set_title(f"({letter}) {panel.title}", fontsize=10)
    _legend(figure, figure.axes)
    return figure


def _draw_panel(axes: Axes, cells: Sequence[Cell], colours: Colours) -> None:
    counts = sorted({cell.label_count for cell in cells if cell.label_count})
    for arm, colour in colours.items():
        line = sorted(
            (c for c in cells if c.arm == arm and c.mean is not None), key=lambda c: c.label_count
        )
        x = [c.label_count for c in line]
        mean = [c.mean for c in line if c.mean is not None]
        spread = [c.std or 0.0 for c in line]
        low = [m - s for m, s in zip(mean, spread, strict=True)]
        high = [m + s for m, s in zip(mean, spread, strict=True)]
        axes.plot(x, mean, "o-", color=colour, label=_plain(arm_name(arm)), markersize=4)
        axes.fill_between(x, low, high, color=colour, alpha=0.18, linewidth=0)
    for label, value, style in _baselines(cells, counts):
        axes.axhline(value, color="0.35", linestyle=style, linewidth=1.2, label=_plain(label))
    _label_counts_on(axes, counts)
    axes.set_ylim(*UNIT)


def _draw_references(axes: Axes, published: Sequence[Published]) -> None:
    """Thin black lines and crosses: not computed here."""
    for it, style in zip(published, cycle(REFERENCE_STYLES), strict=False):
        label = _plain(f"published: {it.label}")
        if it.value is not None:
            axes.axhline(it.value, color="black", linestyle=style, linewidth=0.8, label=label)
        else:
            x, y = zip(*sorted(it.points), strict=True)
            axes.plot(x, y, "x", color="black", linestyle=style, linewidth=0.6, label=label)


def _baselines(cells: Sequence[Cell], counts: Sequence[int]) -> list[tuple[str, float, str]]:
    """The horizontal lines: scratch on the most labels, and each unsupervised score."""
    lines = [
        (f"{SUPERVISED}: {c.arm}, {c.label_count} scans", c.mean, "--")
        for c in cells
        if is_scratch(c.arm) and c.label_count == counts[-1]
    ]
    unsupervised = [c for c in cells if c.label_count == 0]
    lines += [
        (c.arm, c.mean, s) for c, s in zip(unsupervised, cycle(UNSUPERVISED_STYLES), strict=False)
    ]
    return [(label, mean, style) for label, mean, style in lines if mean is not None]


def draw_evidence(evidence: Evidence, colours: Colours) -> Figure:
    """Means, differences and labels saved of one metric, each with 95 % intervals."""
    figure = new_figure(13, 4.0)
    means, differences, saved = figure.subplots(1, 3)
    counts = sorted({n for counts in evidence.planned.values() for n in counts if n})
    arms = [arm for arm in colours if arm in evidence.planned]
    for place, arm in enumerate(arms):
        shift = 1.04 ** (place - (len(arms) - 1) / 2)  # side by side, so that none hides another
        drawn = {n: e for n, e in evidence.estimates.get(arm, {}).items() if n}
        _draw_estimates(means, drawn, shift, colours[arm], arm_name(arm))
        compared = {n: it.difference for n, it in evidence.comparisons.get(arm, {}).items()}
        _draw_estimates(differences, compared, shift, colours[arm], arm_name(arm))
        _draw_saved(saved, evidence, arm, shift, colours[arm])
    unsupervised = {arm: it[0].value for arm, it in evidence.estimates.items() if 0 in it}
    for (arm, value), style in zip(unsupervised.items(), cycle(UNSUPERVISED_STYLES), strict=False):
        if value is not None:
            means.axhline(value, color="0.35", linestyle=style, linewidth=1.2, label=_plain(arm))
    differences.axhline(0, color="0.35", linewidth=1)
    saved.plot(counts, counts, color="0.35", linewidth=1)
    for axes, title in (
        (means, evidence.metric.title),
        (differences, f"difference from {evidence.reference}"),
        (saved, f"labelled scans that {evidence.reference} needs"),
    ):
        axes.set_title(_plain(title), fontsize=10)
        _label_counts_on(axes, counts)
    means.set_ylim(*UNIT)
    saved.set_yscale("log")
    saved.set_yticks(_apart(counts))
    saved.yaxis.set_major_formatter(ScalarFormatter())
    saved.yaxis.set_minor_formatter(NullFormatter())
    saved.minorticks_off()
    saved.set_ylim(counts[0] / 1.3, counts[-1] * 1.6)
    _legend(figure, [means])
    return figure


def _draw_estimates(
    axes: Axes, estimates: Mapping[int, Estimate], shift: float, colour: str, label: str
) -> None:
    values = {n: e.value for n, e in sorted(estimates.items()) if e.value is not None}
    x = [n * shift for n in values]
    axes.plot(x, list(values.values()), "o-", color=colour, label=_plain(label), markersize=4)
    for n, estimate in estimates.items():
        low, high = estimate.interval or (None, None)
        if low is not None and high is not None:
            axes.vlines(n * shift, low, high, color=colour, linewidth=1.4, alpha=0.7)


def _draw_saved(axes: Axes, evidence: Evidence, arm: str, shift: float, colour: str) -> None:
    """An arrow head at the top: not reached with the most labels that were run."""
    for n, it in evidence.saved.get(arm, {}).items():
        top = it.searched[1] * 1.35
        at = n * shift
        if it.needed.interval is not None:
            low, high = (top if end is None else end for end in it.needed.interval)
            axes.vlines(at, low, high, color=colour, linewidth=1.4, alpha=0.7)
        if it.needed.value is None:
            axes.plot(at, top, "^", color=colour)
        else:
            axes.plot(at, it.needed.value, "o", color=colour, markersize=4)


def draw_training(panels: Mapping[str, Sequence[RunRecord]], colours: Colours) -> Figure:
    """Small multiples of the losses: a line a run, solid on validation, faint on training."""
    columns = min(4, len(panels))
    rows = math.ceil(len(panels) / columns)
    figure = new_figure(13, 2.2 * rows + 0.4)
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes, (title, records) in zip(grid, panels.items(), strict=False):
        for it in records:
            colour = colours.get(it.run.arm, "0.3")
            label = _plain(arm_name(it.run.arm)) if it.run.arm in colours else it.run.arm
            axes.plot(*zip(*it.validation, strict=True), color=colour, linewidth=1.1, label=label)
            if it.train:
                axes.plot(*zip(*it.train, strict=True), color=colour, linewidth=0.8, alpha=0.35)
        axes.set_title(_plain(title), fontsize=9)
        axes.tick_params(labelsize=8)
        axes.grid(alpha=0.3)
    for axes in grid[len(panels) :]:
        axes.set_axis_off()
    _legend(figure, list(grid[: len(panels)]))
    return figure


def new_figure(width: float, height: float) -> Figure:
    """A figure of this size in inches, drawn without a screen."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _legend(figure: Figure, panels: Sequence[Axes]) -> None:
    """One legend for all panels, below them, each label once."""
    found: dict[str, Any] = {}
    for axes in panels:
        handles, labels = axes.get_legend_handles_labels()
        found |= dict(zip(labels, handles, strict=True))
    if found:
        figure.legend(
            list(found.values()), list(found), loc="outside lower center", ncols=4, frameon=False
        )


def _label_counts_on(axes: Axes, counts: Sequence[int]) -> None:
    axes.set_xscale("log")
    axes.set_xticks(_apart(counts))
    axes.xaxis.set_major_formatter(ScalarFormatter())
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.minorticks_off()
    if counts:
        axes.set_xlim(counts[0] / 1.2, counts[-1] * 1.2)
    if not axes.has_data():
        axes.text(0.5, 0.5, "no finished run", color="0.45", ha="center", transform=axes.transAxes)
    axes.set_xlabel("labelled scans")
    axes.grid(alpha=0.3)


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
