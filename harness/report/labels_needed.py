"""How many labelled scans an arm needs for a score that a person names.

Within the label counts that were run it is where the arm's curve first reaches the score, by the
rule of `labels_saved`. Beyond the last count a power law is fitted, error(n) = a n^−b + c with
a, c ≥ 0 (Hestness et al., arXiv 1712.00409, 2017; Figueroa et al., BMC Med. Inform. Decis. Mak.
12:8, 2012, who call it inverse power law), by least squares, all counts alike. c, below which no
number of labels takes the error, is kept and not set to 0, which would promise too much; where the
data do not tell it from 0 the interval says so. All of it is done anew in every resample of
seeds and patients, from which the intervals come.

No power law is used where the data do not carry it: with fewer than `FEWEST_COUNTS` counts, where
the score is not shown to rise, where no power law fits, and where the answer or an end of its
interval lies beyond `FURTHEST` times the last count. Then the answer is "more than were run". In
simulated studies (5 seeds, 251 patients, counts 1 to 64, 200 each) whose curves are power laws or
rise with the logarithm, the 95 % intervals, "more than" among them, held the true 20, 50, 90 or 150
labels in 95 to 100 %. A sigmoid that has levelled off at 64 is no power law: it is noticed in half
of the studies, and at 90 and 150 labels the interval holds in 86 and 79 %.

Letters in names: K label counts, B resamples, N points of a drawn curve.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from fewscan.harness.report.bootstrap import (
    CONFIDENCE,
    RESAMPLES,
    Estimate,
    draw_resamples,
    mean,
    percentiles,
    with_interval,
)
from fewscan.harness.report.cells import Cell, require_same_patients
from fewscan.harness.report.labels_saved import crossings, isotonic, means_by_count

FEWEST_COUNTS = 4
"""That a power law, which has three parameters, is fitted to."""
FURTHEST = 4
"""Times the last label count: as far as it is trusted."""
EXPONENTS = np.geomspace(0.05, 2.0, 48)
"""That are tried for b; published learning curves lie between 0.07 and 1."""
HALVINGS = 4
MISS = 0.001
"""By less a power law misses no score: nobody reports more digits."""
DRAWN = 24
"""Points of the dashed curve."""

How = Literal["interpolated", "extrapolated", "not reached"]


@dataclass(frozen=True, eq=False)
class Law:
    """A power law for each resample; the first is that of the means themselves."""

    a_B: np.ndarray
    b_B: np.ndarray
    c_B: np.ndarray
    fewest: int
    """The label count at which the error is a + c."""

    def errors(self, counts_N: Sequence[float] | np.ndarray) -> np.ndarray:
        """Of these label counts, BN."""
        ratio_N = np.asarray(counts_N, dtype=float) / self.fewest
        errors_BN: np.ndarray = (
            self.a_B[:, None] * ratio_N ** -self.b_B[:, None] + self.c_B[:, None]
        )
        return errors_BN

    def counts(self, error: float) -> np.ndarray:
        """Labelled scans at which the error falls to this; inf if it never does."""
        above_B = error - self.c_B
        falls_B = (above_B > 0) & (self.a_B > 0)
        share_B = np.where(falls_B, self.a_B / np.where(falls_B, above_B, 1.0), 1.0)
        # A flat law would be a number too large to hold, which is no error.
        with np.errstate(over="ignore"):
            counts_B = self.fewest * share_B ** (1 / self.b_B)
        return np.where(falls_B, counts_B, np.inf)


@dataclass(frozen=True)
class Extrapolation:
    """The score beyond the last label count, by the power law."""

    counts: tuple[float, ...]
    scores: tuple[float, ...]
    low: tuple[float, ...]
    """Of the 95 % intervals, count by count."""
    high: tuple[float, ...]


@dataclass(frozen=True)
class LabelsNeeded:
    """What an arm needs for a score."""

    score: float
    needed: Estimate
    """Labelled scans. `searched[0]` stands for "that or fewer", inf for "more than `searched[1]`".
    """
    how: How
    reason: str
    """Why it is not reached, or not known; else empty."""
    searched: tuple[int, int]
    """The fewest labelled scans that the arm was run with; the most, or `FURTHEST` times that where
    the power law is used."""
    curve: Extrapolation | None = None
    """Where the power law is used."""


def labels_needed(
    cells: Mapping[int, Cell],
    score: float,
    *,
    most: float = 1.0,
    may_collapse: bool = False,
    resamples: int = RESAMPLES,
    random_seed: int = 0,
) -> LabelsNeeded | None:
    """The labelled scans with which an arm, by label count, reaches a score; None without cells.

    Higher scores are better, `most` is the best there is, and the error is what is missing to it.
    Where a cell has one seed or one patient there is no interval, and no power law. `may_collapse`
    is that of `comparison.compare`.

    Raises `StudyError` if the cells were tested on different patients.
    """
    cells = {count: cells[count] for count in sorted(cells) if mean(cells[count]) is not None}
    if not cells:
        return None
    each = [*cells.values()]
    for cell in each[1:]:
        require_same_patients(each[0], cell)
    resampling = draw_resamples(each, resamples, random_seed)
    means = means_by_count(cells, resampling, (random_seed, 3), may_collapse)
    means_BK, counts_K = np.stack([*means.values()], axis=1), np.array([*cells])
    curve_BK = isotonic(means_BK)
    crossings_B, _ = crossings(np.full(len(curve_BK), score), curve_BK, counts_K)
    searched = (int(counts_K[0]), int(counts_K[-1]))
    if not np.isinf(crossings_B).any():
        return _without_law(score, crossings_B, "", searched)
    if reason := _lack(means_BK):
        return _without_law(score, crossings_B, reason, searched)
    law = fit(counts_K, most - means_BK)
    if reason := _misfit(means_BK, law, counts_K, most):
        return _without_law(score, crossings_B, reason, searched)
    furthest = FURTHEST * searched[1]
    # The curve that was run does not reach the score, whatever the law says of its last count.
    by_law_B = np.maximum(law.counts(most - score), searched[1])
    needed_B = np.where(np.isinf(crossings_B), by_law_B, crossings_B)
    needed_B[needed_B > furthest] = np.inf
    found = with_interval(float(needed_B[0]), needed_B[1:])
    assert found.value is not None
    assert found.interval is not None
    beyond = f"beyond {furthest}, {FURTHEST} times the most that were run"
    if math.isinf(found.value):
        return _without_law(score, crossings_B, f"by its power law that lies {beyond}", searched)
    if found.value > searched[1] and math.isinf(found.interval[1]):
        return _without_law(score, crossings_B, f"its power law's interval ends {beyond}", searched)
    if found.value <= searched[1]:
        return LabelsNeeded(score, found, "interpolated", "", (searched[0], furthest))
    curve = _curve(law, most, searched[1], furthest)
    return LabelsNeeded(score, found, "extrapolated", "", (searched[0], furthest), curve)


def _without_law(
    score: float, crossings_B: np.ndarray, reason: str, searched: tuple[int, int]
) -> LabelsNeeded:
    found = with_interval(float(crossings_B[0]), crossings_B[1:])
    reached = math.isfinite(crossings_B[0])
    how: How = "interpolated" if reached else "not reached"
    return LabelsNeeded(score, found, how, "" if reached else reason, searched)


def fit(counts_K: np.ndarray, errors_BK: np.ndarray) -> Law:
    """The power laws nearest to each row, by least squares.

    For a given b the law is linear in a and c, so all that is searched is b: over `EXPONENTS`, and
    then between neighbours of the best, halving the steps.
    """
    rows, ratios_K = len(errors_BK), counts_K / counts_K[0]
    best_B4 = np.full((rows, 4), np.inf)

    def attempt(b_B1: np.ndarray) -> None:
        a_B, c_B, squares_B = _given(ratios_K**-b_B1, errors_BK)
        b_B = np.broadcast_to(b_B1[:, 0], rows)
        better_B = squares_B < best_B4[:, 0]
        best_B4[better_B] = np.stack([squares_B, a_B, b_B, c_B], axis=1)[better_B]

    for b in EXPONENTS:
        attempt(np.array([[b]]))
    step = EXPONENTS[1] / EXPONENTS[0]
    for _ in range(HALVINGS):
        step **= 0.5
        middle_B1 = best_B4[:, 2:3].copy()
        attempt(middle_B1 / step)
        attempt(middle_B1 * step)
    _, a_B, b_B, c_B = best_B4.T
    return Law(a_B, b_B, c_B, int(counts_K[0]))


def _given(x_BK: np.ndarray, errors_BK: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The best a, c ≥ 0 of error = a x + c, and the sum of squares that is left; x may be 1K."""
    middle_B, middle_x_B = errors_BK.mean(axis=1), x_BK.mean(axis=1)
    from_middle_BK = x_BK - middle_x_B[:, None]
    a_B = (errors_BK * from_middle_BK).sum(axis=1) / (from_middle_BK**2).sum(axis=1)
    c_B = middle_B - a_B * middle_x_B
    through_0_B = (errors_BK * x_BK).sum(axis=1) / (x_BK**2).sum(axis=1)
    a_B = np.where(c_B < 0, through_0_B, a_B)
    c_B = np.where(a_B < 0, middle_B, np.maximum(c_B, 0))
    a_B = np.maximum(a_B, 0)
    squares_B = ((errors_BK - a_B[:, None] * x_BK - c_B[:, None]) ** 2).sum(axis=1)
    return a_B, c_B, squares_B


def _lack(means_BK: np.ndarray) -> str:
    """Why a power law cannot be fitted, before it is; empty if it can."""
    counts = means_BK.shape[1]
    if counts < FEWEST_COUNTS:
        return f"a power law takes {FEWEST_COUNTS} label counts, and there are {counts}"
    if np.isnan(means_BK).any():
        return "a power law takes two seeds and two patients at each label count"
    half = counts // 2
    rises_B = means_BK[1:, -half:].mean(axis=1) - means_BK[1:, :half].mean(axis=1)
    if percentiles(rises_B)[0] <= 0:
        return "it is not shown to rise with the label count, so no power law is fitted"
    return ""


def _misfit(means_BK: np.ndarray, law: Law, counts_K: np.ndarray, most: float) -> str:
    """Whether a power law misses what was measured, by more than chance; empty if not.

    That of all counts at one of them (Bonferroni over the counts), or that of the others, where
    there are enough, at the last: what it is to do, where it can be checked.
    """
    rest_BK = means_BK - (most - law.errors(counts_K))
    tail = (1 - CONFIDENCE) / 2 / len(counts_K)
    low_K, high_K = np.quantile(rest_BK[1:], [tail, 1 - tail], axis=0)
    if (low_K > MISS).any() or (high_K < -MISS).any():
        return "no power law fits what was measured"
    if len(counts_K) > FEWEST_COUNTS:
        others = fit(counts_K[:-1], most - means_BK[:, :-1])
        missed_B = most - others.errors(counts_K[-1:])[:, 0] - means_BK[:, -1]
        low, high = percentiles(missed_B[1:])
        if low > MISS or high < -MISS:
            return f"the power law of the other counts misses what {counts_K[-1]} reach"
    return ""


def _curve(law: Law, most: float, last: int, furthest: int) -> Extrapolation:
    counts_N = np.geomspace(last, furthest, DRAWN)
    scores_BN = most - law.errors(counts_N)
    bounds = [percentiles(draws_B) for draws_B in scores_BN[1:].T]
    low, high = zip(*bounds, strict=True)
    return Extrapolation(tuple(counts_N.tolist()), tuple(scores_BN[0].tolist()), low, high)
