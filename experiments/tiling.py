"""How patches cover scans: arithmetic alone, for trainings, predictions and what they cost."""

import math
from collections.abc import Sequence

import numpy as np

from fewscan.storage.slices import patch_starts

OVERLAP = 0.5
"""Of two windows of a prediction, at least (nnU-Net's)."""


def tiles(positions: Sequence[int] | np.ndarray, kept: range, depth: int) -> list[int]:
    """Which of these slices of a scan are the middles of patches that lie behind each other.

    As places in `positions`, which are in order. A patch around the last one may lie over the one
    before it.
    """
    found: list[int] = []
    end = kept.start - depth
    starts = patch_starts(np.asarray(positions, np.int64), kept, depth).tolist()
    for place, start in enumerate(starts):
        is_last = place == len(starts) - 1
        if start >= end or (is_last and min(start + depth, kept.stop) > end):
            found.append(place)
            end = start + depth
    return found


def window_starts(length: int, window: int) -> list[int]:
    """Where windows begin on an axis: as few as overlap enough, evenly spaced; one if it is short.

    nnU-Net's (Isensee et al. 2021).
    """
    step = max(1, int(window * (1 - OVERLAP)))
    more = max(0, math.ceil((length - window) / step))
    return [round((length - window) * k / max(more, 1)) * (more > 0) for k in range(more + 1)]
