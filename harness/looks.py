"""When an adaptive sweep looks at its results, and what each look may err with.

The looks are fixed before the first one, by the seeds that a sweep begins with and the most that it
may have. At each of them the whole family is tested as in any report, but at a smaller error
probability: the k-th look may err with αₖ, and the αₖ add up to 5 %. By Bonferroni's inequality a
false finding at any look has at most 5 %, however looks depend on each other, whatever made the
sweep go on or stop, and whichever cells it added. An interval of level 1 − αₖ at look k holds at
all looks together with 95 % (repeated intervals: Jennison and Turnbull, J. R. Stat. Soc. B 51(3),
1989). That spends more than a boundary made for the correlation of the looks would (Lan and DeMets,
Biometrika 70(3), 1983), and needs neither normal scores nor known variances.
"""

import math
from dataclasses import dataclass

ERROR = 0.05
"""Probability of a false finding that all looks together may make."""
GROWTH = 1.5
"""Of the seeds from look to look, about."""


@dataclass(frozen=True)
class Look:
    """One of the looks of a sweep."""

    number: int
    """From 1."""
    of: int
    """How many there are at most."""
    seeds: int
    """By now each comparison may have cost as much as so many whole curves."""
    error: float
    """Probability of a false finding that may be made at it."""

    @property
    def is_last(self) -> bool:
        return self.number == self.of


def planned_looks(first: int, most: int) -> tuple[Look, ...]:
    """All looks of a sweep that begins with `first` seeds and has at most `most`.

    αₖ is proportional to the square of the seeds: late looks, which know most, may err most, and
    what was shown at one look is shown at the later ones.
    """
    steps = max(1, round(math.log(most / first) / math.log(GROWTH)))
    sizes = sorted({round(first * (most / first) ** (step / steps)) for step in range(steps + 1)})
    squares = sum(size**2 for size in sizes)
    return tuple(
        Look(number, len(sizes), size, ERROR * size**2 / squares)
        for number, size in enumerate(sizes, start=1)
    )
