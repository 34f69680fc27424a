"""Two ways of doing the same work, measured side by side in one process.

A bare time says more about the machine and its other users than about the code. So the two ways
take turns (A B A B …), and what counts is the median of the ratios of neighbours, with their range.
Wall time and core time (of this process and of the children that it has waited for) are both kept:
the second hardly minds a busy machine.

Needs nothing but Python.
"""

import resource
import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Literal

Clock = Literal["wall_s", "core_s"]


@dataclass(frozen=True)
class Cost:
    """What one unit of work took."""

    wall_s: float
    core_s: float


@dataclass(frozen=True)
class SideBySide:
    """The costs of two ways, a pair a round."""

    plain: tuple[Cost, ...]
    fast: tuple[Cost, ...]

    def ratios(self, clock: Clock) -> tuple[float, ...]:
        """How many times as much the plain way took, round by round."""
        pairs = zip(self.plain, self.fast, strict=True)
        return tuple(getattr(plain, clock) / getattr(fast, clock) for plain, fast in pairs)


def side_by_side(
    plain: Callable[[], object],
    fast: Callable[[], object],
    rounds: int,
    *,
    plain_units: float = 1,
    fast_units: float = 1,
    warm_up: bool = True,
) -> SideBySide:
    """Run both ways in turn, `rounds` times each, after a warm-up of each that does not count.

    `…_units` is how much work a call does (slices, subjects): costs are those of one unit.
    """
    if warm_up:
        plain()
        fast()
    pairs = [(cost_of(plain, plain_units), cost_of(fast, fast_units)) for _ in range(rounds)]
    plain_costs, fast_costs = zip(*pairs, strict=True)
    return SideBySide(plain_costs, fast_costs)


def cost_of(work: Callable[[], object], units: float = 1) -> Cost:
    """Wall and core seconds of a unit of `work`, which does `units` of them in one call."""
    core_before, wall_before = core_seconds(), time.perf_counter()
    work()
    wall_s, core_s = time.perf_counter() - wall_before, core_seconds() - core_before
    return Cost(wall_s / units, core_s / units)


def core_seconds() -> float:
    """Core seconds of this process and of all children that have ended, so far."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def typical(costs: tuple[Cost, ...], clock: Clock) -> float:
    """The median cost of a unit, in seconds."""
    seconds: float = median(getattr(cost, clock) for cost in costs)
    return seconds
