"""Example slices as a figure, chosen by a rule, never by hand.

The rule. The target is multi-class where all arms have finished something of it, else binary. Of
the label counts that all arms have finished with a common seed the middle one (the smaller of two),
with the first such seed. The test patients are ordered by their Dice, averaged over the arms; shown
are those at the lower quartile, the median and the upper quartile, each patient once, by the slice
with the most lesion, cropped to the heads. Probes are left out.

The predictions are computed on the CPU from the kept models and cached, so that a later report with
the same runs is quick.
"""

import io
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from fewscan.experiments.catalogue import structures
from fewscan.experiments.spec import Target
from fewscan.harness.arms import Arm
from fewscan.harness.plan import Plan
from fewscan.harness.report.figures import SMALL, WIDTH, new_figure
from fewscan.harness.report.results import RunResults, cell_name, quantities
from fewscan.harness.report.studies import one_study
from fewscan.harness.report.tables import ABREAST
from fewscan.storage.atomic import write_bytes
from fewscan.storage.labels import LabelMeaning

if TYPE_CHECKING:
    from torch import Tensor

    from fewscan.experiments.predictor import Predictor

MARGIN = 0.03
"""Of a slice, around the head."""
CLASS_COLOURS = ("#D55E00", "#56B4E9", "#F0E442", "#009E73", "#CC79A7", "#0072B2", "#E69F00")
"""Okabe and Ito's, without black."""
QUARTILES = {"lower quartile": 0.25, "median": 0.5, "upper quartile": 0.75}


@dataclass(frozen=True)
class Choice:
    """Which runs and slices are shown; what follows from it is cached under it."""

    target: Target
    labels: int
    seed: int
    arms: tuple[Arm, ...]
    run_ids: tuple[str, ...]
    """Of the runs whose scores these are, an arm after the other."""
    anomaly: tuple[str, str] | None
    """Name of the pre-training whose anomaly map is shown, and id of its score."""
    patients: dict[str, str]
    """Place in the order → patient."""
    dice: dict[str, list[float]]
    """Place → Dice of the patient in 3D, an arm after the other."""


@dataclass(frozen=True, eq=False)
class Examples:
    """A row a patient; letters N patients, A arms, H and W rows and columns."""

    choice: Choice
    positions: np.ndarray
    """Of the slices, along the scan."""
    images_NHW: np.ndarray
    """The first channel."""
    truth_NHW: np.ndarray
    labels_ANHW: np.ndarray
    anomaly_NHW: np.ndarray | None = None


def read_examples(plan: Plan, results: Sequence[RunResults]) -> Examples | None:
    """The examples of what is finished; None if no label count has all arms.

    Raises `RunError` or `StoreError` if a model or the slices cannot be read.
    """
    choice = choose(plan, results)
    if choice is None:
        return None
    found = _load(plan.folder.examples, choice)
    if found is None:
        found = _compute(plan, choice)
        _save(plan.folder.examples, found)
    return found


def choose(plan: Plan, results: Sequence[RunResults]) -> Choice | None:
    """Apply the rule of this module; None where nothing is finished that it could choose.

    Of a cross-validation it is applied to the first fold.
    """
    results = [it.runs[0] for it in results]
    targets: tuple[Target, ...] = ("multiclass", "binary")
    choices = (_choose(plan, results, it) for it in targets if it in plan.study.finetune.targets)
    return next(filter(None, choices), None)


def _choose(plan: Plan, results: Sequence[RunResults], target: Target) -> Choice | None:
    cells: dict[tuple[int, int], dict[Arm, RunResults]] = {}
    for it in results:
        place = it.place
        if place.target == target and place.arm.is_ranked and place.labels and it.patients:
            cells.setdefault((place.labels, place.seed), {})[place.arm] = it
    arms = {run.place.arm for run in plan.grid if run.place.arm.is_ranked}
    complete = sorted(place for place, found in cells.items() if found.keys() == arms)
    counts = sorted({labels for labels, _ in complete})
    if not counts:
        return None
    labels, seed = next(it for it in complete if it[0] == counts[(len(counts) - 1) // 2])
    shown = cells[labels, seed]
    leading = [it for it in quantities(one_study(plan)) if it.leads and it.target == target]
    columns = leading[0].columns
    shared = set.intersection(*({*it.patients} for it in shown.values()))
    dice = {patient: [it.value(patient, columns) for it in shown.values()] for patient in shared}
    ranked = sorted((np.nanmean(v), p) for p, v in dice.items() if not np.isnan(v).all())
    if not ranked:
        return None
    places: dict[str, list[str]] = {}
    for name, quartile in QUARTILES.items():
        places.setdefault(ranked[math.floor((len(ranked) - 1) * quartile)][1], []).append(name)
    patients = {" and ".join(names): patient for patient, names in places.items()}
    return Choice(
        target,
        labels,
        seed,
        arms=tuple(shown),
        run_ids=tuple(it.folder.run_id for it in shown.values()),
        anomaly=_anomaly(results),
        patients=patients,
        dice={name: dice[patient] for name, patient in patients.items()},
    )


def _anomaly(results: Sequence[RunResults]) -> tuple[str, str] | None:
    for it in results:
        if it.place.arm.kind == "unsupervised" and it.place.arm.init is not None and it.patients:
            return it.place.arm.init, it.folder.run_id
    return None


def _compute(plan: Plan, choice: Choice) -> Examples:
    import torch  # which a cached report can spare

    from fewscan.harness.trained import load_trained

    shown, spacings_mm, scans = [], [], []
    for patient in choice.patients.values():
        scan = _scan_of(plan, patient)
        slices = plan.store.read_subject(scan)
        spacings_mm.append(plan.store.spacing_mm_ZHW(scan))
        lesion_NHW = plan.store.meaning.is_lesion(slices.labels_NHW)
        largest = int(lesion_NHW.sum(axis=(1, 2)).argmax())
        parts = (slices.positions_N, slices.images_NCHW, slices.labels_NHW)
        shown.append([part[largest] for part in parts])
        scans.append((torch.from_numpy(slices.images_NCHW), largest))
    positions, images_NCHW, truth_NHW = (np.stack(part) for part in zip(*shown, strict=True))
    images = torch.from_numpy(images_NCHW).float()
    labels = []
    for run_id in choice.run_ids:
        trained = load_trained(plan.folder.run(run_id).path)
        threshold = math.inf if trained.threshold is None else trained.threshold
        maps = _maps(trained.predictor, images, scans, spacings_mm)
        found_NHW = trained.predictor.labels(maps, threshold)
        assert found_NHW is not None
        labels.append(found_NHW.numpy())
    anomaly_NHW = None
    if choice.anomaly is not None:
        trained = load_trained(plan.folder.run(choice.anomaly[1]).path)
        each = zip(images.split(1), scans, spacings_mm, strict=True)
        views = [_maps(trained.predictor, image, [scan], [mm]) for image, scan, mm in each]
        anomaly_NHW = torch.cat(views)[:, 0].numpy()
    images_NHW = images_NCHW[:, 0].astype(np.float32)
    return Examples(choice, positions, images_NHW, truth_NHW, np.stack(labels), anomaly_NHW)


def _maps(
    predictor: "Predictor",
    images_NCHW: "Tensor",
    scans: Sequence[tuple["Tensor", int]],
    spacings_mm: Sequence[tuple[float, float, float]],
) -> "Tensor":
    """Of the slices that are shown; a 3D network has to see the whole scan of each.

    `scans` are all slices of each scan, and which of them is shown.
    """
    import torch

    if not predictor.needs_whole_scans:
        return predictor.maps(images_NCHW, spacings_mm[0])
    found = []
    for (slices_NCHW, shown), spacing_mm in zip(scans, spacings_mm, strict=True):
        maps_NKHW = torch.cat([*predictor.in_batches(slices_NCHW, spacing_mm)])
        found.append(maps_NKHW[shown])
    return torch.stack(found)


def _scan_of(plan: Plan, patient: str) -> str:
    """A test patient's first scan; one that the store does not know is for it to refuse."""
    scans = (it for it in plan.store.split.test if plan.store.patient(it) == patient)
    return next(scans, patient)


def _save(path: Path, examples: Examples) -> None:
    data = io.BytesIO()
    arrays = {name: it for name, it in vars(examples).items() if isinstance(it, np.ndarray)}
    np.savez_compressed(data, **arrays | {"key": np.array(_key(examples.choice))})
    write_bytes(path, data.getvalue())


def _load(path: Path, choice: Choice) -> Examples | None:
    """What is cached for this choice; a file that cannot be read is no cache."""
    try:
        with np.load(path) as found:
            arrays = {name: found[name] for name in found.files}
            if str(arrays.pop("key")) != _key(choice):
                return None
            return Examples(choice, **arrays)
    except Exception:  # whatever its zip, its arrays or their headers make of a changed byte
        return None


def _key(choice: Choice) -> str:
    return json.dumps(asdict(choice))


def draw_examples(examples: Examples, channel: str, meaning: LabelMeaning) -> Figure:
    """Masks lie on the input's first channel, whose name is `channel`."""
    choice = examples.choice
    names = structures(choice.target, meaning.classes)
    heads = [f"input ({channel})", "truth"]
    heads += [cell_name(arm, choice.labels) for arm in choice.arms]
    heads += [f"anomaly map ({choice.anomaly[0]})"] if choice.anomaly else []
    people = [
        f"{place}\n{patient}\nslice {position}"
        for (place, patient), position in zip(
            choice.patients.items(), examples.positions, strict=True
        )
    ]
    # A patient a row, what is shown of it beside each other; of many arms turned round.
    turned = len(heads) > ABREAST + 3
    rows, columns = (heads, people) if turned else (people, heads)
    side = min(WIDTH / len(columns), 1.3)
    figure = new_figure(side * len(columns), (side + 0.25) * len(rows) + 0.6)
    grid = figure.subplots(len(rows), len(columns), squeeze=False)
    for ax, text in zip(grid[:, 0], rows, strict=True):
        ax.set_ylabel(_head(text), fontsize=SMALL)
    for ax, text in zip(grid[0], columns, strict=True):
        ax.set_title(_head(text), fontsize=SMALL)
    examples = cropped(examples)
    for n, place in enumerate(choice.patients):
        image_HW, axes = examples.images_NHW[n], list(grid[:, n] if turned else grid[n])
        _show(axes[0], image_HW)
        truth_HW = examples.truth_NHW[n]
        lesion_HW, known_HW = meaning.is_lesion(truth_HW), meaning.is_known(truth_HW)
        is_binary = choice.target == "binary"
        _mask(axes[1], image_HW, lesion_HW if is_binary else truth_HW * known_HW)
        for ax, labels_NHW, dice in zip(
            axes[2:], examples.labels_ANHW, choice.dice[place], strict=False
        ):
            _mask(ax, image_HW, labels_NHW[n])
            text = "no Dice" if math.isnan(dice) else f"Dice {dice:.2f}"
            ax.set_xlabel(text, fontsize=SMALL)
        if examples.anomaly_NHW is not None:
            _show(axes[-1], examples.anomaly_NHW[n], "inferno")
    patches = [
        Patch(color=CLASS_COLOURS[k % len(CLASS_COLOURS)], label=name.replace("_", " "))
        for k, name in enumerate(names)
    ]
    figure.legend(handles=patches, loc="outside lower center", ncols=len(patches), frameon=False)
    return figure


def _head(text: str) -> str:
    """In few letters a line, and no formula."""
    return text.replace("$", r"\$").replace(" (", "\n(").replace(", ", "\n")


def cropped(examples: Examples) -> Examples:
    """Without the rows and columns beyond the head in every slice, but for a margin.

    What is no head has the lowest value of its slice, as `prepare` leaves it.
    """
    lowest_N11 = examples.images_NHW.min(axis=(1, 2), keepdims=True)
    head_HW = (examples.images_NHW > lowest_N11).any(axis=0) | (examples.truth_NHW > 0).any(axis=0)
    rows, columns = (
        _window(np.flatnonzero(head_HW.any(axis=1 - axis)), head_HW.shape[axis]) for axis in (0, 1)
    )
    anomaly_NHW = examples.anomaly_NHW
    return replace(
        examples,
        images_NHW=examples.images_NHW[:, rows, columns],
        truth_NHW=examples.truth_NHW[:, rows, columns],
        labels_ANHW=examples.labels_ANHW[:, :, rows, columns],
        anomaly_NHW=None if anomaly_NHW is None else anomaly_NHW[:, rows, columns],
    )


def _window(inside: np.ndarray, size: int) -> slice:
    """From the first to the last, `MARGIN` of the size more on both sides."""
    if not inside.size:
        return slice(0, size)
    margin = round(MARGIN * size)
    return slice(max(0, int(inside[0]) - margin), min(size, int(inside[-1]) + 1 + margin))


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
