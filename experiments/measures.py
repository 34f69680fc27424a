"""Numbers of one structure in one scan, by the key of their row in `experiments.catalogue`.

The rule for a structure that is empty in a scan: the truth alone decides whether it counts, so
that it does for every arm or for none. Not in the truth: the number is nan, whatever is predicted,
and how much is predicted there is a number of its own (`false_positive_mm3`), which is nan where
the structure is in the truth. In the truth alone: Dice and NSD are 0 and distances are infinite.

Letters in names: Z slices of a scan, H and W rows and columns of a slice.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fewscan.experiments.spec import Evaluation


@dataclass(frozen=True)
class Masks:
    """Where a structure is predicted, and where it is, on one grid."""

    predicted_ZHW: np.ndarray
    """bool"""
    truth_ZHW: np.ndarray
    """bool"""
    spacing_mm_ZHW: tuple[float, float, float]
    lesions: dict[Any, Any] = field(default_factory=dict, repr=False, compare=False)
    """What `experiments.lesions` has found in them, for all its numbers."""

    @property
    def counts(self) -> bool:
        """Whether the structure is there: a scan without it is in no number but false positives."""
        return bool(self.truth_ZHW.any())


Measure = Callable[[Masks, Evaluation], float]
MEASURES: dict[str, Measure] = {}
"""Metric of structures → its computation."""


def measures(key: str) -> Callable[[Measure], Measure]:
    """Say that a function computes the metric `key` of the catalogue."""

    def register(function: Measure) -> Measure:
        MEASURES[key] = function
        return function

    return register


@measures("dice_before_postprocessing")
@measures("dice_scan")
@measures("dice")
def dice(masks: Masks, evaluation: Evaluation) -> float:
    """Twice the common voxels over the sum of both."""
    both = int(masks.predicted_ZHW.sum()) + int(masks.truth_ZHW.sum())
    hits = int((masks.predicted_ZHW & masks.truth_ZHW).sum())
    return 2 * hits / both if masks.counts else math.nan


@measures("false_positive_mm3")
def false_positive_volume(masks: Masks, evaluation: Evaluation) -> float:
    """What is predicted of a structure that is not there, in mm³."""
    return math.nan if masks.counts else predicted_volume(masks, evaluation)


@measures("volume_mm3")
def predicted_volume(masks: Masks, evaluation: Evaluation) -> float:
    """In mm³."""
    return float(masks.predicted_ZHW.sum() * math.prod(masks.spacing_mm_ZHW))


@measures("true_volume_mm3")
def true_volume(masks: Masks, evaluation: Evaluation) -> float:
    """In mm³."""
    return float(masks.truth_ZHW.sum() * math.prod(masks.spacing_mm_ZHW))
