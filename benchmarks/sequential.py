"""Adaptive sweeps in studies with a known truth: false findings, power, and what they cost.

No time is measured: `python -m benchmarks --only sequential` writes docs/adaptive.md's table.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click
import numpy as np

from benchmarks import results
from benchmarks.simulated import SCRATCH, Design, falling_gain, simulate_study
from fewscan.harness.looks import planned_looks
from fewscan.harness.report.bootstrap import ERROR
from fewscan.harness.report.cells import Cell
from fewscan.harness.report.comparison import Area, Branch, area, corrected, log_weights
from fewscan.harness.report.findings import is_shown
from fewscan.harness.seed_allocation import grown

PAGE = Path(__file__).parents[1] / "docs" / "adaptive.md"
RESULTS = results.FOLDER / "sequential.json"
RESAMPLES = 3000
"""A p-value is no smaller than 2 in so many, and the first look may err with 0.3 %."""
FIRST, MOST = 3, 10
PRETRAINING = 4.0
"""What a pre-training costs, in fine-tunings (our choice: pre-trainings are longer)."""
TRUE_ZERO = 1e-9
Study = Mapping[str, Mapping[int, Cell]]
Seeds = dict[str, dict[int, int]]
"""Arm → label count → seeds that it and scratch have there."""


@dataclass(frozen=True)
class Rule:
    """When an arm is over."""

    decided: bool = True
    half_width: float | None = None

    def is_over(self, found: Area, p: float) -> bool:
        assert found.difference is not None
        assert found.difference.interval is not None
        low, high = found.difference.interval
        narrow = self.half_width is not None and (high - low) / 2 <= self.half_width
        return narrow or (self.decided and is_shown(p))


@dataclass(frozen=True)
class Outcome:
    """Of one adaptive study."""

    shown: frozenset[str]
    """Arms whose difference is called shown."""
    held: bool
    """Whether the intervals of the first arm hold the truth at all looks that were taken."""
    looks: int
    cost: float


def arms_of(design: Design) -> list[str]:
    return [arm for arm in design.curves if arm != SCRATCH]


def counts_of(design: Design) -> list[int]:
    return sorted(design.curves[SCRATCH])


def price(found: Mapping[int, int], count: int) -> float:
    """Of one more seed at a label count: two fine-tunings, and a pre-training if it is new."""
    return 2 + PRETRAINING * (found[count] == max(found.values()))


def cost(seeds: Seeds) -> float:
    """Of all runs, in fine-tunings; arms share those from scratch."""
    counts = next(iter(seeds.values()))
    scratch = sum(max(own[count] for own in seeds.values()) for count in counts)
    return scratch + sum(
        sum(own.values()) + PRETRAINING * max(own.values()) for own in seeds.values()
    )


def areas(study: Study, seeds: Seeds, error: float, number: int) -> dict[str, Area]:
    found = {}
    for arm, own in seeds.items():
        first, second = (
            {n: cell.select(range(own[n]), cell.patients) for n, cell in study[name].items()}
            for name in (arm, SCRATCH)
        )
        how: dict[str, Any] = {"resamples": RESAMPLES, "random_seed": number}
        whole = area(first, second, may_collapse=True, error=error, **how)
        assert whole is not None
        found[arm] = whole
    return found


def p_values(found: Mapping[str, Area], error: float) -> dict[str, float]:
    """Corrected for all arms, in parts of the error probability."""
    branches = {arm: Branch(it.p, {}) for arm, it in found.items() if it.p is not None}
    return {arm: it.area for arm, it in corrected(branches, ERROR / error).items()}


def adaptive(design: Design, study: Study, rule: Rule, number: int) -> Outcome:
    """One study with all its seeds, looked at as a sweep does."""
    looks, counts = planned_looks(FIRST, design.seeds), counts_of(design)
    seeds: Seeds = {arm: dict.fromkeys(counts, FIRST) for arm in arms_of(design)}
    shown: set[str] = set()
    held = True
    for look in looks:
        found = areas(study, seeds, look.error, number)
        p = p_values(found, look.error)
        first = next(iter(found))
        held = held and _holds(design, first, found[first])
        shown |= {arm for arm in p if is_shown(p[arm])}
        still = [arm for arm in seeds if not rule.is_over(found[arm], p[arm])]
        if look.is_last or not still:
            break
        following = looks[look.number]
        for arm in still:
            own = seeds[arm]
            if following.is_last:
                seeds[arm] = dict.fromkeys(counts, design.seeds)
            else:
                more = following.seeds - max(own.values())
                budget = (2 * len(counts) + PRETRAINING) * max(more, 1)
                seeds[arm] = grown(own, budget, price, design.seeds)
    return Outcome(frozenset(shown), held, look.number, cost(seeds))


def _holds(design: Design, arm: str, found: Area) -> bool:
    counts = counts_of(design)
    truth = float(log_weights(counts) @ [design.true_difference(arm, n) for n in counts])
    assert found.difference is not None
    assert found.difference.interval is not None
    low, high = found.difference.interval
    return low <= truth <= high


def _gains(*gains: float) -> dict[str, dict[int, float]]:
    """Scratch, and an arm for each gain."""
    arms = {f"arm {k}": falling_gain(gain)["denoise"] for k, gain in enumerate(gains)}
    return {SCRATCH: falling_gain(0.0)[SCRATCH]} | arms


DECIDED = Rule()
DESIGNS: dict[str, tuple[Design, Rule]] = {
    "no gain": (Design(_gains(0.0)), DECIDED),
    "no gain, three arms": (Design(_gains(0.0, 0.0, 0.0)), DECIDED),
    "no gain, pre-trainings ± 0.02": (Design(_gains(0.0), pretraining_sd=0.02), DECIDED),
    "no gain, a fifth of the runs collapse": (
        Design(_gains(0.0), collapse={SCRATCH: 0.2, "arm 0": 0.2}),
        DECIDED,
    ),
    "no gain, skewed, 30 patients": (Design(_gains(0.0), skewed=True, patients=30), DECIDED),
    "gain 0.03": (Design(_gains(0.03)), DECIDED),
    "gain 0.06": (Design(_gains(0.06)), DECIDED),
    "gain 0.12": (Design(_gains(0.12)), DECIDED),
    "gain 0.06, pre-trainings ± 0.02": (Design(_gains(0.06), pretraining_sd=0.02), DECIDED),
    "gains 0.12, 0.06 and 0": (Design(_gains(0.12, 0.06, 0.0)), DECIDED),
    "no gain, until ± 0.02": (Design(_gains(0.0)), Rule(decided=False, half_width=0.02)),
    "no gain, until decided or ± 0.02": (Design(_gains(0.0)), Rule(half_width=0.02)),
    "gain 0.06, until decided or ± 0.02": (Design(_gains(0.06)), Rule(half_width=0.02)),
}
"""From 3 seeds to at most 10, each with a pre-training of its own; else as in `statistics`."""


def measure(
    studies: int, designs: Mapping[str, tuple[Design, Rule]] = DESIGNS
) -> list[dict[str, Any]]:
    """A row of the table for each design."""
    return [_row(name, studies, *it) for name, it in designs.items()]


def _row(name: str, studies: int, design: Design, rule: Rule) -> dict[str, Any]:
    design = replace(design, seeds=MOST)
    counts = counts_of(design)
    full: Seeds = {arm: dict.fromkeys(counts, MOST) for arm in arms_of(design)}
    first = arms_of(design)[0]
    useless = {
        arm for arm in full if all(abs(design.true_difference(arm, n)) < TRUE_ZERO for n in counts)
    }
    found, fixed = [], []
    for number in range(studies):
        study = simulate_study(design, np.random.default_rng(number))
        found.append(adaptive(design, study, rule, number))
        p = p_values(areas(study, full, ERROR, number), ERROR)
        fixed.append({arm for arm in p if is_shown(p[arm])})
    row = {
        "design": name,
        "studies": studies,
        "false": float(np.mean([bool(it.shown & useless) for it in found])),
        "held": float(np.mean([it.held for it in found])),
        "shown": float(np.mean([first in it.shown for it in found])),
        "full_false": float(np.mean([bool(it & useless) for it in fixed])),
        "full_shown": float(np.mean([first in it for it in fixed])),
        "looks": float(np.mean([it.looks for it in found])),
        "cost": float(np.mean([it.cost for it in found]) / cost(full)),
    }
    click.echo(f"  {row}")
    return row


def run(studies: int, designs: Mapping[str, tuple[Design, Rule]] = DESIGNS) -> None:
    """Simulate studies of each design, and write the results."""
    results.write("sequential", [], path=RESULTS, rows=measure(studies, designs))


def table() -> str:
    """The results as a table in Markdown."""
    found = json.loads(RESULTS.read_text())
    lines = [
        "| studies in which | false finding | intervals hold | found | all seeds: false finding | "
        "all seeds: found | looks | cost |",
        "|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for row in found["rows"]:
        keys = ("false", "held", "shown", "full_false", "full_shown")
        shares = [f"{100 * row[key]:.1f}" for key in keys]
        lines.append(
            f"| {row['design']} | {' | '.join(shares)} | {row['looks']:.1f} | "
            f"{100 * row['cost']:.0f} % |"
        )
    studies = found["rows"][0]["studies"]
    lines += ["", f"{studies} studies each. {results.measured_on(found)}"]
    return "\n".join(lines) + "\n"
