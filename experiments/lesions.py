"""Numbers of single lesions: Dice and NSD lesion by lesion, and which of them are found.

Lesions, and which predicted components belong to them, are those of BraTS 2023 (Saluja et al.,
"BraTS 2023 lesion-wise performance metrics", the challenge's own code): voxels are connected to
their 26 neighbours; true lesions whose surroundings touch are one; a predicted component belongs to
each lesion whose surroundings it enters, and is false if it enters none. A lesion has the Dice of
itself and all that belongs to it, so 0 if nothing does. The number of a scan is the mean over its
lesions and its false components, which count as 0. Small true lesions are left out, and what enters
their surroundings is not false.

The surroundings are three dilations by the 18 neighbours there, at 1 mm a voxel. Here they are the
same shape in millimetres: the points no further than the reach along each axis, and no further than
twice the reach along all three together; equal on that grid.

Letters in names: Z slices of a scan, H and W rows and columns of a slice, L lesions.
"""

import math
from dataclasses import dataclass
from itertools import product

import numpy as np

from fewscan.experiments.anomaly import voxels_in
from fewscan.experiments.components import box_of, components_of
from fewscan.experiments.measures import Masks, measures
from fewscan.experiments.spec import Evaluation
from fewscan.experiments.surface_distance import surface_dice

_OF_A_REACH = 1 + 1e-6
"""Spacings are in single precision in a header."""

Box = tuple[slice, slice, slice]


@dataclass(frozen=True)
class Lesions:
    """The true lesions of a structure in one scan that are counted, and what is predicted of each.

    Sizes are in voxels.
    """

    sizes_L: np.ndarray
    predicted_L: np.ndarray
    """Of the components that belong to it."""
    hits_L: np.ndarray
    """Voxels that are predicted and true."""
    false: int
    """Predicted components that belong to no lesion, a small one included."""
    parts: tuple[Masks, ...]
    """Of each lesion: what belongs to it, and itself, in a box around both."""

    @property
    def dice_L(self) -> np.ndarray:
        """Dice of each lesion."""
        dice_L: np.ndarray = 2 * self.hits_L / (self.sizes_L + self.predicted_L)
        return dice_L

    def found(self, iou: float) -> int:
        """Lesions whose intersection over union with what belongs to them is at least this."""
        union_L = self.sizes_L + self.predicted_L - self.hits_L
        return int((self.hits_L / union_L >= iou).sum())

    def mean(self, of_lesions_L: np.ndarray) -> float:
        """Over lesions and false components, which have 0; nan without a lesion."""
        lesions = len(self.sizes_L)
        return float(of_lesions_L.sum()) / (lesions + self.false) if lesions else math.nan


def lesions_of(masks: Masks, evaluation: Evaluation) -> Lesions:
    """The lesions of a structure, found once for all the numbers that are about them."""
    key = (evaluation.lesion_reach_mm, evaluation.smallest_lesion_mm3)
    if key not in masks.lesions:
        masks.lesions[key] = _find(masks, *key)
    found: Lesions = masks.lesions[key]
    return found


def _find(masks: Masks, reach_mm: float, smallest_mm3: float) -> Lesions:
    from scipy import ndimage

    masks = _cropped(masks, margin_ZHW=_extent(reach_mm, masks.spacing_mm_ZHW))
    truth_ZHW, predicted_ZHW = masks.truth_ZHW, masks.predicted_ZHW
    reached_ZHW = surroundings(truth_ZHW, reach_mm, masks.spacing_mm_ZHW)
    lesion_ZHW, lesions = components_of(reached_ZHW)
    component_ZHW, components = components_of(predicted_ZHW)
    both_ZHW = reached_ZHW & predicted_ZHW
    number = lesion_ZHW[both_ZHW].astype(np.int64) * (components + 1) + component_ZHW[both_ZHW]
    owner, owned = np.divmod(np.unique(number), components + 1)
    voxels = np.bincount(component_ZHW.ravel(), minlength=components + 1)
    lesion_ZHW *= truth_ZHW
    sizes = np.bincount(lesion_ZHW.ravel(), minlength=lesions + 1)
    predicted = np.bincount(owner, voxels[owned], minlength=lesions + 1)
    hits = np.bincount(lesion_ZHW[predicted_ZHW], minlength=lesions + 1)
    large = sizes > voxels_in(smallest_mm3, masks.spacing_mm_ZHW)
    counted = np.flatnonzero(large[1:]) + 1
    boxes = ndimage.find_objects(lesion_ZHW), ndimage.find_objects(component_ZHW)
    parts = []
    for lesion in counted:
        mine = owned[owner == lesion]
        box = _around([boxes[0][lesion - 1], *(boxes[1][it - 1] for it in mine)])
        parts.append(
            Masks(
                np.isin(component_ZHW[box], mine),
                lesion_ZHW[box] == lesion,
                masks.spacing_mm_ZHW,
            )
        )
    false = components - len(np.unique(owned))
    return Lesions(sizes[counted], predicted[counted], hits[counted], false, tuple(parts))


def _cropped(masks: Masks, margin_ZHW: tuple[int, int, int]) -> Masks:
    """The part of both masks in which there is anything, and a margin of nothing."""
    box = box_of(masks.predicted_ZHW | masks.truth_ZHW) or (slice(1), slice(1), slice(1))
    margins = [(n, n) for n in margin_ZHW]
    return Masks(
        np.pad(masks.predicted_ZHW[box], margins),
        np.pad(masks.truth_ZHW[box], margins),
        masks.spacing_mm_ZHW,
    )


def _around(boxes: list[Box]) -> Box:
    """The smallest box that holds them all."""
    depth, height, width = (
        slice(min(it.start for it in axis), max(it.stop for it in axis))
        for axis in zip(*boxes, strict=True)
    )
    return depth, height, width


def _extent(reach_mm: float, spacing_mm_ZHW: tuple[float, float, float]) -> tuple[int, int, int]:
    depth, height, width = (int(reach_mm * _OF_A_REACH / mm) for mm in spacing_mm_ZHW)
    return depth, height, width


def surroundings(
    mask_ZHW: np.ndarray, reach_mm: float, spacing_mm_ZHW: tuple[float, float, float]
) -> np.ndarray:
    """The bool mask dilated by the shape of this module; what leaves the array is lost.

    Runs along the rows are dilated once for each length, and shifted: as many steps as the shape
    has rows, and not as it has voxels.
    """
    mm_Z, mm_H, mm_W = spacing_mm_ZHW
    depth, height, width = _extent(reach_mm, spacing_mm_ZHW)
    runs = [mask_ZHW]
    for step in range(1, width + 1):
        longer_ZHW = runs[-1].copy()
        longer_ZHW[:, :, step:] |= mask_ZHW[:, :, :-step]
        longer_ZHW[:, :, :-step] |= mask_ZHW[:, :, step:]
        runs.append(longer_ZHW)
    reached_ZHW = np.zeros_like(mask_ZHW)
    for z, y in product(range(-depth, depth + 1), range(-height, height + 1)):
        left_mm = 2 * reach_mm * _OF_A_REACH - abs(z) * mm_Z - abs(y) * mm_H
        if left_mm >= 0:
            run_ZHW = runs[min(width, int(left_mm / mm_W))]
            to, from_ = zip(_shift(z), _shift(y), strict=True)
            reached_ZHW[to] |= run_ZHW[from_]
    return reached_ZHW


def _shift(by: int) -> tuple[slice, slice]:
    """Where a shifted axis is written, and where it is read."""
    there, here = slice(max(by, 0), min(by, 0) or None), slice(max(-by, 0), min(-by, 0) or None)
    return there, here


@measures("lesion_dice_scan")
@measures("lesion_dice")
def lesion_dice(masks: Masks, evaluation: Evaluation) -> float:
    """Mean Dice over lesions and false components."""
    found = lesions_of(masks, evaluation)
    return found.mean(found.dice_L)


@measures("lesion_nsd")
def lesion_nsd(masks: Masks, evaluation: Evaluation) -> float:
    """Mean NSD over lesions and false components: as the Dice, at the tolerance of `nsd`."""
    found = lesions_of(masks, evaluation)
    return found.mean(np.array([surface_dice(part, evaluation) for part in found.parts]))


@measures("lesion_f1")
def lesion_f1(masks: Masks, evaluation: Evaluation) -> float:
    """2 found / (2 found + missed + false)."""
    lesions = lesions_of(masks, evaluation)
    count, found = len(lesions.sizes_L), lesions.found(evaluation.lesion_iou)
    return 2 * found / (found + count + lesions.false) if count else math.nan


@measures("lesions_true")
def lesions_true(masks: Masks, evaluation: Evaluation) -> float:
    """How many true lesions are counted."""
    return float(len(lesions_of(masks, evaluation).sizes_L))


@measures("lesions_found")
def lesions_found(masks: Masks, evaluation: Evaluation) -> float:
    """How many of them are found; nan where there is none to find."""
    lesions = lesions_of(masks, evaluation)
    return float(lesions.found(evaluation.lesion_iou)) if len(lesions.sizes_L) else math.nan


@measures("lesions_false")
def lesions_false(masks: Masks, evaluation: Evaluation) -> float:
    """How many predicted components belong to no lesion."""
    return float(lesions_of(masks, evaluation).false)
