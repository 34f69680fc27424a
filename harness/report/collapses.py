"""Runs that have collapsed: which they are, and what those that might have add to an interval.

A network that finds nothing scores nearly 0, and whether a run ends so is a matter of luck. It is a
finished run like any other: it counts in every mean. But a cell of five runs of which none has
collapsed shows no sign of what the next five would do. So the probability is taken from all runs of
the arm.

Letters in names: S seeds, B resamples.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from fewscan.harness.report.cells import Cell

SHARE = 0.1
"""A run has collapsed if its mean is below this share of what the arm's runs usually reach."""


@dataclass(frozen=True)
class Collapses:
    """Of an arm, at all of its label counts."""

    seeds: Mapping[int, tuple[int, ...]]
    """Label count → the seeds whose runs have collapsed."""
    levels: Mapping[int, float]
    """Label count → what runs usually reach there: the highest median of the runs with as many
    labels or fewer."""
    runs: int
    score: float
    """Mean of those that have collapsed; 0 if there are none."""

    @property
    def count(self) -> int:
        """Runs that have collapsed."""
        return sum(map(len, self.seeds.values()))

    def unseen_B(
        self,
        cells: Mapping[int, Cell],
        weights: Mapping[int, float],
        resamples: int,
        random_seed: tuple[int, ...],
    ) -> np.ndarray:
        """What to add to the draws of a weighted sum of cell means, for collapses not seen in them.

        The variance of S runs that collapse with probability q at a level is level² q (1 − q) / S.
        q is drawn from its posterior under Jeffreys' prior, Beta(count + ½, runs − count + ½); the
        variance that the cells' own runs show is taken off, and what is left is added as a normal
        number. 0 where the arm has no collapsed run, so intervals without any are as before.

        How often the 95 % interval held the truth in 500 simulated studies in which a fifth of one
        arm's runs collapsed (100 patients), and its median width: of the difference at one of 11
        label counts, and of the areas over 3 and 11 counts.

        =================  =============  =============  =============  =============
        draws              5 seeds        3 seeds        area of 3      area of 11
        =================  =============  =============  =============  =============
        as they are        .688 (0.583)   .684 (1.286)   .886 (0.314)   .940 (0.146)
        with this          .990 (0.586)   .992 (1.286)   .942 (0.327)   .957 (0.152)
        =================  =============  =============  =============  =============

        At a single count it is cautious because Student's interval is, once a run of the cell has
        collapsed. Tried and left: moving draws down alone where a cell shows none (an area of 11
        counts, one run in twenty collapsing: .898); a collapsed pseudo-run in every cell (.995, at
        3 seeds twice as wide); the posterior beside the whole variance of an area (a fifth wider).
        """
        if not self.count:
            return np.zeros(resamples)
        rng = np.random.default_rng(random_seed)
        q_B = rng.beta(self.count + 0.5, self.runs - self.count + 0.5, resamples)
        expected, seen = 0.0, 0.0
        for count, cell in cells.items():
            runs, share = len(cell.seeds), _share(self.seeds.get(count, ()), cell)
            scale = (weights[count] * (self.levels[count] - self.score)) ** 2
            expected += scale / runs
            seen += scale * share * (1 - share) / max(1, runs - 1)
        missing_B = np.maximum(0, expected * q_B * (1 - q_B) - seen)
        unseen_B: np.ndarray = rng.standard_normal(resamples) * np.sqrt(missing_B)
        return unseen_B


def _share(collapsed: tuple[int, ...], cell: Cell) -> float:
    return len({*collapsed} & {*cell.seeds}) / len(cell.seeds)


def collapses(arm: Mapping[int, Cell]) -> Collapses:
    """Find the collapsed runs of an arm, for a score from 0 to 1 of which 1 is best.

    A run has collapsed if its mean over patients is below a tenth of the highest median of the
    arm's runs with as many labels or fewer: so an arm that learns nothing from one scan has not
    collapsed there, and one that did better with fewer labels has.
    """
    seeds: dict[int, tuple[int, ...]] = {}
    levels: dict[int, float] = {}
    level, runs, fallen = 0.0, 0, list[float]()
    for count, cell in sorted(arm.items()):
        cell = cell.defined()
        if not cell.seeds:
            continue
        means_S = np.nanmean(cell.scores_SP, axis=1)
        level = max(level, float(np.median(means_S)))
        low_S = means_S < SHARE * level
        seeds[count] = tuple(seed for seed, low in zip(cell.seeds, low_S, strict=True) if low)
        levels[count], runs = level, runs + len(means_S)
        fallen += means_S[low_S].tolist()
    return Collapses(seeds, levels, runs, float(np.mean(fallen)) if fallen else 0.0)
