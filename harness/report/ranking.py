"""Which of many arms is best, how surely, and each against each other.

The ranking is by the area under the label-efficiency curve. How stable it is says the bootstrap:
each resample of seeds and patients, one for all arms together, ranks them anew (Hall and Miller,
Ann. Stat. 37(6B), 2009; for challenges in medical imaging Wiesenfarth et al., Sci. Rep. 11, 2021).
Of each pair stands how likely one does better than the other (`Pair.improvement`), beside the
paired difference of areas that is tested.

Letters in names: A arms, B resamples.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np
from scipy.stats import rankdata

from fewscan.harness.arms import Arm
from fewscan.harness.report.bootstrap import (
    RESAMPLES,
    Estimate,
    draw_resamples,
    mean,
    p_value,
    percentiles,
)
from fewscan.harness.report.cells import Cell, difference, require_same_patients
from fewscan.harness.report.collapses import Collapses, collapses
from fewscan.harness.report.comparison import weighted

FEWEST = 3
"""Arms that are ranked; two have a comparison and need no ranking."""
MOST_TESTED = 12
"""Arms whose pairs are tested. The smallest p that 10,000 resamples can show is 0.0002, and of 12
arms and two targets 132 pairs share the 5 %: more could show nothing, and are described."""


@dataclass(frozen=True)
class Ranked:
    """An arm in its place."""

    arm: Arm
    rank: int
    """By the mean area, from 1, the best; equal ones share the better rank."""
    area: Estimate
    """Over the label counts that all ranked arms have, in the units of the metric."""
    best: float | None
    """In what share of the resamples it is the best one. None: it takes two seeds and patients."""
    ranks: tuple[int, int] | None
    """The middle 95 % of its ranks in the resamples."""


@dataclass(frozen=True)
class Pair:
    """Two ranked arms, the better one first."""

    first: Arm
    second: Arm
    difference: Estimate
    """Of the areas, first minus second, paired."""
    improvement: Estimate
    """Probability that the first does better than the second on a random patient and seed, at a
    label count that is random on the logarithmic axis; ties are shared. It is the probability of
    improvement of Agarwal et al. (NeurIPS 2021), of runs that are paired by their seed (ours)."""
    p: float | None
    """Two-sided, of the difference."""
    p_corrected: float | None = None
    """For all that the report tests (`comparison.corrected`); None: it is not among that."""


@dataclass(frozen=True)
class Ranking:
    """Arms from best to worst, by one quantity."""

    counts: tuple[int, ...]
    """The label counts that all of them have."""
    ranked: tuple[Ranked, ...]
    pairs: tuple[Pair, ...]
    left_out: tuple[Arm, ...] = ()
    """Those without a finished run."""

    @property
    def is_tested(self) -> bool:
        """Whether pairs are tested, or described alone."""
        return len(self.ranked) <= MOST_TESTED


def other_pairs(arms: Sequence[Arm], references: Mapping[Arm, Arm]) -> list[frozenset[Arm]]:
    """The pairs of ranked arms that are tested beside arms and their references: a part of the
    family that p-values are corrected for. None where arms are not ranked, or too many."""
    if not FEWEST <= len(arms) <= MOST_TESTED:
        return []
    known = {frozenset(it) for it in references.items()}
    return [pair for it in combinations(arms, 2) if (pair := frozenset(it)) not in known]


def rank(
    arms: Mapping[Arm, Mapping[int, Cell]],
    *,
    higher_is_better: bool = True,
    may_collapse: bool = False,
    resamples: int = RESAMPLES,
    random_seed: int = 0,
) -> Ranking | None:
    """Rank arms by label count → cell, over the label counts at which all have a score.

    None for fewer than three arms with a score, or without a label count that they share. Raises
    `StudyError` if they were tested on different patients, or cannot be paired.
    """
    scored = {
        arm: known
        for arm, cells in arms.items()
        if (known := {n: it for n, it in sorted(cells.items()) if mean(it) is not None})
    }
    if len(scored) < FEWEST:
        return None
    shared = set.intersection(*({*cells} for cells in scored.values()))
    every = [cells[n] for cells in scored.values() for n in sorted(shared)]
    if not every:
        return None
    for cell in every:
        require_same_patients(every[0], cell)
    resampling = draw_resamples(every, resamples, random_seed)
    vary = [n for n in sorted(shared) if all(resampling.can_vary(it[n]) for it in scored.values())]
    counts = tuple(vary or sorted(shared))
    fallen = {arm: collapses(arms[arm]) for arm in scored} if may_collapse else {}
    areas: dict[Arm, Estimate] = {}
    draws_AB = np.empty((len(scored), resamples))
    for number, (arm, cells) in enumerate(scored.items()):
        there = {n: cells[n] for n in counts}
        own = [it for name, it in fallen.items() if name == arm]
        areas[arm], draws_AB[number] = weighted(there, resampling, own, first_stream=3 + number)
    sign = 1 if higher_is_better else -1
    values_A = sign * np.array([areas[arm].value for arm in scored], dtype=float)
    rank_A = rankdata(-values_A, method="min").astype(int).tolist()
    ranks_AB = None
    if not np.isnan(draws_AB).any():
        ranks_AB = rankdata(-sign * draws_AB, method="min", axis=0).astype(int)
    ranked = [
        Ranked(arm, rank_A[number], areas[arm], *_stability(ranks_AB, number))
        for number, arm in enumerate(scored)
    ]
    ranked.sort(key=lambda it: it.rank)
    pairs = [
        _pair(first.arm, second.arm, arms, counts, sign, fallen, resamples, random_seed)
        for first, second in combinations(ranked, 2)
    ]
    left_out = tuple(arm for arm in arms if arm not in scored)
    return Ranking(counts, tuple(ranked), tuple(pairs), left_out)


def _stability(
    ranks_AB: np.ndarray | None, number: int
) -> tuple[float | None, tuple[int, int] | None]:
    if ranks_AB is None:
        return None, None
    low, high = percentiles(ranks_AB[number])
    return float(np.mean(ranks_AB[number] == 1)), (round(low), round(high))


def _pair(
    first: Arm,
    second: Arm,
    arms: Mapping[Arm, Mapping[int, Cell]],
    counts: Sequence[int],
    sign: int,
    fallen: Mapping[Arm, Collapses],
    resamples: int,
    random_seed: int,
) -> Pair:
    paired = {n: difference(arms[first][n], arms[second][n]) for n in counts}
    resampling = draw_resamples([*paired.values()], resamples, random_seed)
    both = [fallen[arm] for arm in (first, second) if arm in fallen]
    found, draws_B = weighted(paired, resampling, both)
    better = {n: _better(cell, sign) for n, cell in paired.items()}
    improvement, _ = weighted(better, resampling, [])
    p = None if found.interval is None else p_value(draws_B)
    return Pair(first, second, found, improvement.within(0, 1), p)


def _better(paired: Cell, sign: int) -> Cell:
    """1 where the first does better, ½ where they are equal, 0 where the second does."""
    scores_SP = (np.sign(sign * paired.scores_SP) + 1) / 2
    return replace(paired, scores_SP=scores_SP)
