"""AP and ⌈Dice⌉ over pooled pixels, exactly, in one pass.

Everything is counted, never collected: pixels are not kept, counts of parts can be added, and the
results are exact. A half-precision score is one of 32,768 non-negative numbers, so a count per
number and per class of pixel says all that AP and ⌈Dice⌉ ask.

How far a pooled number is known over patients says the jackknife: what it would be without each of
them (`PooledScores`, `pseudo_values`).

Letter in names: V the non-negative half-precision numbers in ascending order.
"""

import math
from collections.abc import Callable, Hashable, Mapping
from typing import TypeVar

import numpy as np
import torch

Array = torch.Tensor | np.ndarray

HALF_VALUES = 2**15
"""Non-negative bit patterns of a half-precision number; as integers they are ordered like it."""

LARGEST_HALF = float(np.finfo(np.float16).max)
_INFINITY_BITS = int(np.float16(np.inf).view(np.int16))

THRESHOLDS = np.arange(1000) / 1000
"""Where ⌈Dice⌉ looks for its best; compared with the scores in half precision."""


class PixelScores:
    """Anomaly scores of pixels with their truth, as counts: exact AP and ⌈Dice⌉ in one pass.

    Equal to pooling all pixels, rounding their scores to half precision, and computing
    scikit-learn's average precision and the Dice at each of 1000 thresholds (as Kascenas et al.,
    MIDL 2022, do). `a + b` holds the pixels of both. Where no pixel is positive neither metric is
    defined, and both are nan.
    """

    def __init__(self, counts_2V: np.ndarray | None = None) -> None:
        """Start empty, or from `counts_2V`: int64 pixels per score, without and with lesion."""
        self.counts_2V = np.zeros((2, HALF_VALUES), np.int64) if counts_2V is None else counts_2V

    def update(self, scores: Array, mask: Array) -> None:
        """Count the pixels of `scores`, which have a lesion where `mask` is not zero.

        Both are of one shape, whichever, and on any device. It takes 2 bytes a pixel, and 10 more
        for one with a lesion, until it returns.
        Raises ValueError if the shapes differ or if, in half precision, a score is negative, NaN
        or infinite (then nothing is counted). −0 counts as 0.
        """
        scores, mask = _tensor(scores), _tensor(mask)
        if scores.shape != mask.shape:
            raise ValueError(f"scores are {tuple(scores.shape)}, the mask is {tuple(mask.shape)}")
        bits = _half_bits(scores)
        lesion = mask.to(scores.device, torch.bool).flatten()
        pixels_V = torch.bincount(bits, minlength=HALF_VALUES).cpu().numpy()
        positives_V = torch.bincount(bits[lesion], minlength=HALF_VALUES).cpu().numpy()
        self.counts_2V[0] += pixels_V - positives_V
        self.counts_2V[1] += positives_V

    def __add__(self, other: "PixelScores") -> "PixelScores":
        return PixelScores(self.counts_2V + other.counts_2V)

    @property
    def pixels(self) -> int:
        """Pixels counted."""
        return int(self.counts_2V.sum())

    @property
    def positives(self) -> int:
        """Pixels counted that have a lesion."""
        return int(self.counts_2V[1].sum())

    def average_precision(self) -> float:
        """Σ (Rₙ − Rₙ₋₁) Pₙ over the scores that occur, descending; nan without a positive pixel."""
        if self.positives == 0:
            return float("nan")
        occurring = self.counts_2V.any(axis=0)
        hits_V, detected_V = self._detections()
        precision = hits_V[occurring] / detected_V[occurring]
        recall = np.append(hits_V[occurring] / self.positives, 0.0)
        # The terms and their order are scikit-learn's, so that the sum has the same last bit.
        return float(-np.sum(np.diff(recall) * precision))

    def best_dice(self) -> tuple[float, float]:
        """⌈Dice⌉ and its threshold, the first of the best; (nan, nan) without a positive pixel.

        Tried are 0, 0.001 … 0.999. To apply the threshold to other scores compare as was done here,
        in half precision: `scores.half() > threshold`.
        """
        if self.positives == 0:
            return float("nan"), float("nan")
        dice = self._dice(THRESHOLDS)
        best = int(np.argmax(dice))
        return float(dice[best]), float(THRESHOLDS[best])

    def dice_at(self, threshold: float) -> float:
        """Dice of score > threshold, both in half precision; nan without a positive pixel.

        Raises ValueError unless 0 ≤ threshold ≤ 65504.
        """
        if not 0 <= threshold <= LARGEST_HALF:
            raise ValueError(f"threshold {threshold} is not between 0 and {LARGEST_HALF:.0f}")
        return float("nan") if self.positives == 0 else float(self._dice(np.array([threshold]))[0])

    def _detections(self) -> tuple[np.ndarray, np.ndarray]:
        """Positive pixels, and all pixels, that score at least each half-precision number."""
        negatives_V, positives_V = self.counts_2V[:, ::-1].cumsum(axis=1)[:, ::-1]
        return positives_V, negatives_V + positives_V

    def _dice(self, thresholds: np.ndarray) -> np.ndarray:
        next_above = thresholds.astype(np.float16).view(np.int16) + 1
        hits_V, detected_V = self._detections()
        dice: np.ndarray = 2 * hits_V[next_above] / (detected_V[next_above] + self.positives)
        return dice


class PooledScores:
    """The scores of all patients in one pool, of which each patient's share is remembered.

    It keeps 10 bytes for each half-precision number that occurs in a patient, so at most 320 KiB a
    patient (half of it for scores up to 1), and the counts of the pool.
    """

    def __init__(self) -> None:
        self.whole = PixelScores()
        self._occurring: dict[str, np.ndarray] = {}
        """Patient → the numbers that occur, as indices into V, uint16."""
        self._counts: dict[str, np.ndarray] = {}
        """Patient → how often, uint32, without and with lesion."""

    def add(self, patient: str, pixels: PixelScores) -> None:
        """Take in a scan of a patient, who may have several."""
        self.whole += pixels
        mine = pixels + self.of(patient)
        occurring = np.flatnonzero(mine.counts_2V.any(axis=0))
        self._occurring[patient] = occurring.astype(np.uint16)
        self._counts[patient] = mine.counts_2V[:, occurring].astype(np.uint32)

    def of(self, patient: str) -> PixelScores:
        """A patient's share; empty for one that is not in the pool."""
        counts_2V = np.zeros((2, HALF_VALUES), np.int64)
        if patient in self._counts:
            counts_2V[:, self._occurring[patient]] = self._counts[patient]
        return PixelScores(counts_2V)

    def pseudo_values(self, statistic: Callable[[PixelScores], float]) -> dict[str, float]:
        """Patient → the pseudo-value of a number of the pool; see the function of that name."""
        without = {
            it: statistic(PixelScores(self.whole.counts_2V - self.of(it).counts_2V))
            for it in self._counts
        }
        return pseudo_values(statistic(self.whole), without)


Part = TypeVar("Part", bound=Hashable)


def pseudo_values(whole: float, without: Mapping[Part, float]) -> dict[Part, float]:
    """What each of n parts contributes to a number of them all, so that it is their mean.

    The jackknife's pseudo-values (Tukey, Ann. Math. Stat. 29, 1958), whole + (n − 1) (m − wᵢ):
    wᵢ is the number without part i and m the mean of those. Centred at m, they have the number
    itself as their mean, not the one that is corrected for bias, and the same spread. They may
    lie outside the number's range. nan for all where the whole or one wᵢ is not defined.
    """
    values = np.array([*without.values()], dtype=float)
    others = len(values) - 1
    if others < 1 or math.isnan(whole) or np.isnan(values).any():
        return dict.fromkeys(without, math.nan)
    pseudo = whole + others * (values.mean() - values)
    return dict(zip(without, pseudo.tolist(), strict=True))


def _tensor(values: Array) -> torch.Tensor:
    # torch.tensor copies, so it takes the read-only arrays that stores give.
    return values.detach() if isinstance(values, torch.Tensor) else torch.tensor(values)


def _half_bits(scores: torch.Tensor) -> torch.Tensor:
    """The int16 bit patterns of the scores in half precision, flat; ValueError as in `update`."""
    half = scores.to(torch.float16, copy=True).flatten()
    half += 0.0  # −0 + 0 is 0
    bits = half.view(torch.int16)
    if bits.numel() and (bits.min() < 0 or bits.max() >= _INFINITY_BITS):
        faults = {"NaN": half.isnan(), "infinite": half.isinf(), "negative": half < 0}
        found = ", ".join(f"{int(fault.sum())} {name}" for name, fault in faults.items())
        raise ValueError(
            f"scores must lie between 0 and {LARGEST_HALF:.0f}; of {half.numel()}, {found}"
        )
    return bits
