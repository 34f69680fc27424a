"""Numbers of one structure in one scan, by the key of their row in `experiments.catalogue`.

The rule for a structure that is empty in a scan: in neither prediction nor truth, it does not count
and the number is nan. Only predicted, or only true: Dice and NSD are 0 and distances are infinite.

Letters in names: Z slices of a scan, H and W rows and columns of a slice.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from fewscan.experiments.spec import Evaluation


@dataclass(frozen=True)
class Masks:
    """Where a structure is predicted, and where it is, on the grid of the slices."""

    predicted_ZHW: np.ndarray
    """bool"""
    truth_ZHW: np.ndarray
    """bool"""
    spacing_mm_ZHW: tuple[float, float, float]

    @property
    def empty(self) -> tuple[bool, bool]:
        """Whether prediction and truth are."""
        return not self.predicted_ZHW.any(), not self.truth_ZHW.any()


Measure = Callable[[Masks, Evaluation], float]
MEASURES: dict[str, Measure] = {}
"""Metric of structures → its computation."""


def measures(key: str) -> Callable[[Measure], Measure]:
    """Say that a function computes the metric `key` of the catalogue."""

    def register(function: Measure) -> Measure:
        MEASURES[key] = function
        return function

    return register


@measures("dice")
def dice(masks: Masks, evaluation: Evaluation) -> float:
    """Twice the common voxels over the sum of both."""
    both = int(masks.predicted_ZHW.sum()) + int(masks.truth_ZHW.sum())
    hits = int((masks.predicted_ZHW & masks.truth_ZHW).sum())
    return 2 * hits / both if both else math.nan


@measures("volume_mm3")
def predicted_volume(masks: Masks, evaluation: Evaluation) -> float:
    """In mm³."""
    return float(masks.predicted_ZHW.sum() * math.prod(masks.spacing_mm_ZHW))


@measures("true_volume_mm3")
def true_volume(masks: Masks, evaluation: Evaluation) -> float:
    """In mm³."""
    return float(masks.truth_ZHW.sum() * math.prod(masks.spacing_mm_ZHW))
