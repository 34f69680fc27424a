"""The example slices as a figure: a row a patient; input, truth, each arm's mask, anomaly map."""

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from fewscan.harness.report.cases import cell_name
from fewscan.harness.report.examples import Examples
from fewscan.harness.report.figures import new_figure

CLASS_COLOURS = ("#D55E00", "#56B4E9", "#F0E442", "#009E73", "#CC79A7", "#0072B2", "#E69F00")
"""Okabe and Ito's, without black."""


def draw_examples(examples: Examples, channel: str, classes: Sequence[str]) -> Figure:
    """Masks lie on the input's first channel, whose name is `channel`."""
    choice = examples.choice
    names = classes if choice.target == "multiclass" else ["lesion"]
    heads = [f"input ({channel})", "truth"]
    heads += [cell_name(arm, choice.label_count) for arm in choice.runs]
    heads += [f"anomaly map ({choice.anomaly[0]})"] if choice.anomaly else []
    rows = len(choice.patients)
    figure = new_figure(min(13.0, 2.3 * len(heads)), 2.3 * rows + 0.8)
    grid = figure.subplots(rows, len(heads), squeeze=False)
    for n, (place, patient) in enumerate(choice.patients.items()):
        image_HW, axes = examples.images_NHW[n], list(grid[n])
        _show(axes[0], image_HW)
        axes[0].set_ylabel(f"{place}\n{patient}\nslice {examples.positions[n]}", fontsize=7)
        truth_HW = examples.truth_NHW[n]
        _mask(axes[1], image_HW, truth_HW if choice.target == "multiclass" else truth_HW > 0)
        for ax, labels_NHW, dice in zip(
            axes[2:], examples.labels_ANHW, choice.dice[place], strict=False
        ):
            _mask(ax, image_HW, labels_NHW[n])
            text = "no Dice" if math.isnan(dice) else f"Dice of the scan {dice:.2f}"
            ax.set_xlabel(text, fontsize=8)
        if examples.anomaly_NHW is not None:
            _show(axes[-1], examples.anomaly_NHW[n], "inferno")
    for ax, head in zip(grid[0], heads, strict=True):
        ax.set_title(head.replace("$", r"\$"), fontsize=9)
    patches = [
        Patch(color=CLASS_COLOURS[k % len(CLASS_COLOURS)], label=name.replace("_", " "))
        for k, name in enumerate(names)
    ]
    figure.legend(handles=patches, loc="outside lower center", ncols=len(patches), frameon=False)
    return figure


def _show(axes: Axes, image_HW: np.ndarray, colours: str = "gray") -> None:
    """The scan's first axis to the right and its second downwards, as radiologists see BraTS."""
    axes.imshow(image_HW.T, cmap=colours, vmin=0, interpolation="nearest")
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(False)


def _mask(axes: Axes, image_HW: np.ndarray, labels_HW: np.ndarray) -> None:
    _show(axes, image_HW)
    shown_HW = np.ma.masked_equal(labels_HW.astype(int), 0)
    axes.imshow(
        (shown_HW.T - 1) % len(CLASS_COLOURS),
        cmap=ListedColormap(CLASS_COLOURS),
        vmin=0,
        vmax=len(CLASS_COLOURS) - 1,
        alpha=0.75,
        interpolation="nearest",
    )
