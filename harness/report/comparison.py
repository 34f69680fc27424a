"""Two arms against each other: by the area under their curves, and label count by label count.

The area is the primary endpoint: one number for all label counts, with the power that none of them
has alone. A label count is looked at only if the area is decided (`corrected`), so that in the
whole report the probability of a single false finding stays below 5 %.

Letters in names: P patients, K label counts, B resamples.
"""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np

from fewscan.harness.report.bootstrap import (
    ERROR,
    RESAMPLES,
    Estimate,
    Resampling,
    draw_resamples,
    mean,
    p_value,
    with_interval,
)
from fewscan.harness.report.cells import Cell, difference
from fewscan.harness.report.collapses import Collapses, collapses

Key = TypeVar("Key", bound=Hashable)

CONSTANT = 1e-9
"""Differences whose standard deviation is below this share of the largest are all the same."""


@dataclass(frozen=True)
class Comparison:
    """Two arms at one label count: the same seeds, labelled scans and patients."""

    seeds: int
    patients: int
    """With a score from both arms for at least one seed."""
    difference: Estimate
    """First arm minus second where both are defined: with undefined patients not quite the
    difference of the arms' means."""
    p: float | None
    """Two-sided, from the resamples of the interval: about other seeds and other patients. Nothing
    is decided by it alone."""
    standardised: float | None
    """Mean over patients / standard deviation over patients (Cohen's d_z); None if that is 0."""
    p_corrected: float | None = None
    """For all that the report tests (`corrected`); None: it is not among that."""


@dataclass(frozen=True)
class Area:
    """The area under the label-efficiency curve, in the units of the metric.

    It is the mean over the logarithmic axis of the curve that joins the means at the label counts
    by straight lines: a sum of means with the weights of the trapezoid rule (`log_weights`).
    """

    counts: tuple[int, ...]
    """The label counts that it is over: those at which enough runs are finished."""
    seeds: int
    units: int
    """Of the seeds, those that may be drawn independently: pre-trainings, or the seeds."""
    one_pretraining: bool
    """Whether all seeds start from the same one: it is about that one alone."""
    patients: int
    mean: Estimate
    """Of the arm."""
    reference: Estimate | None = None
    """Of the arm that it is compared with, over the same label counts."""
    difference: Estimate | None = None
    """The arm's minus the reference's, paired as in `compare`."""
    p: float | None = None
    """Two-sided, of the difference."""
    p_corrected: float | None = None
    """For all areas and label counts that the report tests."""


def compare(
    first: Mapping[int, Cell],
    second: Mapping[int, Cell],
    *,
    may_collapse: bool = False,
    error: float = ERROR,
    resamples: int = RESAMPLES,
    random_seed: int = 0,
) -> dict[int, Comparison]:
    """Compare two arms at each label count at which both have a score for one seed.

    `may_collapse`: the scores are from 0 to 1 with 1 best, so that runs near 0 have collapsed and
    intervals take it into account (`collapses`). `error`: of the intervals.

    In 4,000 simulated studies without a true difference (251 patients; standard deviations of the
    differences: patients 0.05, residual 0.1, seeds 0.02) p fell below 0.05 in 4, 3, 3 and 4 % for
    2, 3, 5 and 10 seeds; with 0.005 for the seeds in 1, 1, 2 and 2 %.

    Raises `StudyError` if the arms cannot be paired (`cells.difference`), which for lack of a
    common seed is raised only if there is none at any label count.
    """
    cells = differences(first, second)
    if not cells:
        return {}
    resampling = draw_resamples([*cells.values()], resamples, random_seed)
    arms = [collapses(arm) for arm in (first, second)] if may_collapse else []
    return {n: _comparison({n: cell}, resampling, arms, error) for n, cell in cells.items()}


def _comparison(
    cells: Mapping[int, Cell], resampling: Resampling, arms: Sequence[Collapses], error: float
) -> Comparison:
    found, draws_B = weighted(cells, resampling, arms, error=error)
    (scores_SP,) = [cell.defined().scores_SP for cell in cells.values()]
    p = None if found.interval is None else p_value(draws_B)
    seeds, patients = scores_SP.shape
    return Comparison(seeds, patients, found, p, standardised(np.nanmean(scores_SP, axis=0)))


def differences(first: Mapping[int, Cell], second: Mapping[int, Cell]) -> dict[int, Cell]:
    """The paired difference at each label count at which both have a score for one seed.

    Raises `StudyError` as `compare` does.
    """
    counts = sorted({*first} & {*second})
    shared = [count for count in counts if {*first[count].seeds} & {*second[count].seeds}]
    # With no seed in common at any count there is nothing to wait for: let `difference` say so.
    cells = {count: difference(first[count], second[count]) for count in shared or counts}
    return {count: cell for count, cell in cells.items() if mean(cell) is not None}


def area(
    first: Mapping[int, Cell],
    second: Mapping[int, Cell] | None = None,
    *,
    may_collapse: bool = False,
    error: float = ERROR,
    resamples: int = RESAMPLES,
    random_seed: int = 0,
) -> Area | None:
    """The area of an arm, and its paired difference from another; None without a label count.

    Only label counts at which both have a score for one seed are in it, and where any has an
    interval only those: two units and two patients. Nothing is imputed. One set of resamples moves
    all of them together, so it is a draw of seeds and patients for the curve and not for a point.
    `error`: of the interval of the difference, or of an area without one.

    Raises `StudyError` as `compare` does.
    """
    paired = {count: it for count, it in sorted(first.items()) if mean(it) is not None}
    if second is not None:
        paired = differences(first, second)
    if not paired:
        return None
    resampling = draw_resamples([*paired.values()], resamples, random_seed)
    known = [n for n, cell in paired.items() if resampling.can_vary(cell)]
    paired = {n: paired[n] for n in known or paired}
    arms = [first] if second is None else [first, second]
    fallen = [collapses(arm) for arm in arms] if may_collapse else []
    found, draws_B = weighted(paired, resampling, fallen, error=error)
    cells = [cell.defined() for cell in paired.values()]
    seeds = {seed for cell in cells for seed in cell.seeds}
    whole = Area(
        tuple(paired),
        seeds=len(seeds),
        units=len({resampling.units.of_seed[seed] for seed in seeds}),
        one_pretraining=resampling.units.one_pretraining,
        patients=len({patient for cell in cells for patient in cell.patients}),
        mean=found,
    )
    if second is None:
        return whole
    each = []
    for number, arm in enumerate(arms):
        there = {n: arm[n] for n in paired}
        own = draw_resamples([*there.values()], resamples, random_seed)
        each.append(weighted(there, own, fallen[number : number + 1])[0])
    p = None if found.interval is None else p_value(draws_B)
    return replace(whole, mean=each[0], reference=each[1], difference=found, p=p)


def weighted(
    cells: Mapping[int, Cell],
    resampling: Resampling,
    arms: Sequence[Collapses],
    first_stream: int = 3,
    error: float = ERROR,
) -> tuple[Estimate, np.ndarray]:
    """The area under the means of some cells, and its draws; a single cell's is its mean.

    `arms`: whose runs the cells are of, where they may collapse; each has random numbers of its
    own, from those of `first_stream` on.
    """
    weights_K, draws = log_weights([*cells]), len(resampling.unit_counts_BU)
    value = float(weights_K @ np.array([mean(cell) for cell in cells.values()], dtype=float))
    draws_B = resampling.sums_B([*cells.values()], weights_K)
    weights = dict(zip(cells, weights_K.tolist(), strict=True))
    for stream, arm in enumerate(arms, start=first_stream):
        draws_B = draws_B + arm.unseen_B(cells, weights, draws, (resampling.random_seed, stream))
    return with_interval(value, draws_B, error), draws_B


def estimates(
    arm: Mapping[int, Cell],
    *,
    may_collapse: bool = False,
    resamples: int = RESAMPLES,
    random_seed: int = 0,
) -> dict[int, Estimate]:
    """The mean of each cell of an arm with its interval (`bootstrap.estimate`)."""
    fallen = [collapses(arm)] if may_collapse else []
    found = {}
    for count, cell in arm.items():
        if mean(cell) is None:
            found[count] = Estimate(None, None)
        else:
            resampling = draw_resamples([cell], resamples, random_seed)
            found[count], _ = weighted({count: cell}, resampling, fallen)
    return found


def log_weights(counts: Sequence[int]) -> np.ndarray:
    """What each count weighs in the mean over the logarithmic axis (trapezoid rule); they sum to 1.

    `counts` ascend; a single one weighs 1.
    """
    if len(counts) == 1:
        return np.ones(1)
    steps_K = np.diff(np.log(counts))
    sums_K = np.append(steps_K, 0) + np.insert(steps_K, 0, 0)
    weights_K: np.ndarray = sums_K / sums_K.sum()
    return weights_K


def standardised(differences_P: np.ndarray) -> float | None:
    """Mean / standard deviation (n − 1); None for a single patient or no spread."""
    spread = differences_P.std(ddof=1) if len(differences_P) > 1 else 0.0
    return (
        float(differences_P.mean() / spread)
        if spread > CONSTANT * np.abs(differences_P).max()
        else None
    )


@dataclass(frozen=True)
class Branch:
    """A comparison with all that is tested about it: its area first, then its label counts."""

    area: float
    """p-values, not corrected."""
    counts: Mapping[int, float]


def corrected(branches: Mapping[Key, Branch], scale: float = 1.0) -> dict[Key, Branch]:
    """Correct the p-values of a whole report, so that "below 0.05" is the one rule.

    A comparison is of an arm with its reference or, where arms are ranked, of any two of them,
    whose area alone is tested (`ranking`). Each of the m comparisons has a share 1/m of the error
    probability. It is spent on the area, and if that is rejected handed on to the label counts,
    which share it by Holm's procedure (Scand. J. Stat. 6(2), 1979). Once all of a comparison is
    rejected, its share goes to the comparisons that are left. That is a graphical procedure of
    Bretz et al. (Stat. Med. 28(4), 2009), the error of the family is kept whatever the dependence;
    without label counts it is Holm's over areas. What is returned is the smallest error
    probability of the family at which each is rejected, times `scale`.
    """
    local = {
        key: Branch(it.area, {n: max(it.area, p) for n, p in holm(it.counts).items()})
        for key, it in branches.items()
    }
    whole = {key: max([it.area, *it.counts.values()]) for key, it in local.items()}
    order = sorted(whole, key=lambda key: whole[key])
    reached = [0.0]
    """The error probability at which so many comparisons are rejected as a whole."""
    for done, key in enumerate(order):
        reached.append(max(reached[-1], (len(order) - done) * whole[key]))

    def correct(p: float, rank: int) -> float:
        stages = range(rank + 1)
        least = min(max(reached[done], (len(order) - done) * p) for done in stages)
        return min(1.0, scale * least)

    return {
        key: Branch(
            correct(local[key].area, rank),
            {n: correct(p, rank) for n, p in local[key].counts.items()},
        )
        for rank, key in enumerate(order)
    }


def holm(p_values: Mapping[Key, float]) -> dict[Key, float]:
    """Correct p-values for there being several (Holm, Scand. J. Stat. 6(2), 1979)."""
    corrected: dict[Key, float] = {}
    largest = 0.0
    for rank, key in enumerate(sorted(p_values, key=lambda key: p_values[key])):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[key]))
        corrected[key] = largest
    return corrected
