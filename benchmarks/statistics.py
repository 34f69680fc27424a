"""What the report's statistics are worth: intervals and findings in studies with a known truth.

No time is measured: `python -m benchmarks --only statistics` writes docs/statistics.md's table.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, NamedTuple

import click
import numpy as np

from benchmarks import answers, results
from benchmarks.simulated import COUNTS, SCRATCH, Design, falling_gain, simulate_study
from fewscan.harness.report.bootstrap import Estimate
from fewscan.harness.report.cells import Cell
from fewscan.harness.report.comparison import (
    Branch,
    area,
    compare,
    corrected,
    estimates,
    holm,
    log_weights,
)
from fewscan.harness.report.findings import is_shown
from fewscan.harness.report.labels_saved import crossings, labels_saved

PAGE = Path(__file__).parents[1] / "docs" / "statistics.md"
RESULTS = results.FOLDER / "statistics.json"
RESAMPLES = 1000
NOTHING = falling_gain(0.0)
GAIN = falling_gain(0.06)


@dataclass
class Tally:
    """How often something was so."""

    hits: int = 0
    of: int = 0

    def add(self, hit: bool) -> None:
        self.hits += hit
        self.of += 1

    @property
    def share(self) -> float | None:
        return self.hits / self.of if self.of else None


@dataclass
class Rates:
    """Over simulated studies of one design."""

    area: Tally = field(default_factory=Tally)
    """The interval of the area's difference holds the truth."""
    counts: Tally = field(default_factory=Tally)
    """Those of the differences at each label count."""
    means: Tally = field(default_factory=Tally)
    """Those of the arm's means."""
    saved: Tally = field(default_factory=Tally)
    """Those of the labels that the reference needs."""
    false: Tally = field(default_factory=Tally)
    """Studies in which anything is called shown that is not true."""
    area_shown: Tally = field(default_factory=Tally)
    """Studies in which the area of the first arm is."""
    count_shown: Tally = field(default_factory=Tally)
    """And any of its label counts."""
    holm_shown: Tally = field(default_factory=Tally)
    """What Holm's correction over label counts alone would show at any."""
    area_widths: list[float] = field(default_factory=list)
    count_widths: list[float] = field(default_factory=list)


def simulate(
    design: Design,
    studies: int,
    *,
    may_collapse: bool = True,
    with_saved: bool = True,
    resamples: int = RESAMPLES,
) -> Rates:
    """Simulate studies and put each through what the report computes."""
    rates = Rates()
    for number in range(studies):
        study = simulate_study(design, np.random.default_rng(number))
        branches: dict[str, Branch] = {}
        for arm in (arm for arm in design.curves if arm != SCRATCH):
            options = Options(may_collapse, resamples, number)
            branch = _compared(rates, design, arm, study, options)
            if branch is not None:
                branches[arm] = branch
            if with_saved:
                _saved(rates, design, arm, study, options)
        _judge(rates, design, branches)
    return rates


class Options(NamedTuple):
    """Of a study's analysis."""

    may_collapse: bool
    resamples: int
    random_seed: int


Study = Mapping[str, Mapping[int, Cell]]


def _compared(
    rates: Rates, design: Design, arm: str, study: Study, options: Options
) -> Branch | None:
    """Whether the intervals of an arm hold; its p-values."""
    first, second, keywords = study[arm], study[SCRATCH], options._asdict()
    for n, mean in estimates(first, **keywords).items():
        _hold(rates.means, mean, design.truth(arm, n))
    whole, found = area(first, second, **keywords), compare(first, second, **keywords)
    if whole is None or whole.difference is None or whole.p is None:
        return None
    gains = [design.true_difference(arm, n) for n in whole.counts]
    truth = float(log_weights(whole.counts) @ gains)
    _hold(rates.area, whole.difference, truth, rates.area_widths)
    for n, it in found.items():
        _hold(rates.counts, it.difference, design.true_difference(arm, n), rates.count_widths)
    return Branch(whole.p, {n: it.p for n, it in found.items() if it.p is not None})


def _saved(rates: Rates, design: Design, arm: str, study: Study, options: Options) -> None:
    """Whether the intervals of the labels needed hold the true number."""
    counts_K = np.array(sorted(design.curves[SCRATCH]))
    curve_1K = np.array([[design.truth(SCRATCH, n) for n in counts_K.tolist()]])
    for n, it in labels_saved(study[arm], study[SCRATCH], **options._asdict()).items():
        fewest_1, most_1 = crossings(np.array([design.truth(arm, n)]), curve_1K, counts_K)
        _hold(rates.saved, it.needed, float(np.clip(n, fewest_1[0], most_1[0])))


def _hold(tally: Tally, found: Estimate, truth: float, widths: list[float] | None = None) -> None:
    """Count whether an interval, if there is one, holds the truth to within rounding."""
    if found.interval is None:
        return
    low, high = found.interval
    slack = 1e-9 * max(1.0, abs(truth)) if np.isfinite(truth) else 0.0
    tally.add(low - slack <= truth <= high + slack)
    if widths is not None:
        widths.append(high - low)


def _judge(rates: Rates, design: Design, branches: Mapping[str, Branch]) -> None:
    """What is called shown, and whether it is so; the first arm's is the power."""
    p_values = corrected(branches)
    false = False
    for arm, branch in p_values.items():
        gains = [design.true_difference(arm, n) for n in design.curves[arm]]
        nothing = max(map(abs, gains)) < TRUE_ZERO
        false = false or (nothing and is_shown(branch.area))
        for n, p in branch.counts.items():
            zero = abs(design.true_difference(arm, n)) < TRUE_ZERO
            false = false or (zero and is_shown(p))
    rates.false.add(false)
    first = next(arm for arm in design.curves if arm != SCRATCH)
    if (found := p_values.get(first)) is not None:
        rates.area_shown.add(is_shown(found.area))
        rates.count_shown.add(any(map(is_shown, found.counts.values())))
        alone = holm(branches[first].counts).values()
        rates.holm_shown.add(any(map(is_shown, alone)))


TRUE_ZERO = 1e-9


def _arms(*gains: float) -> dict[str, dict[int, float]]:
    """Scratch, and an arm for each gain."""
    found = {SCRATCH: NOTHING[SCRATCH]}
    return found | {f"arm {k}": falling_gain(gain)["denoise"] for k, gain in enumerate(gains)}


_RISING = {n: 0.3 + 0.1 * min(float(np.log2(n)), 4.0) for n in COUNTS}
PLATEAU = {SCRATCH: _RISING, "denoise": _RISING}
"""Two equal arms that stop rising at 16 labelled scans."""

ONE, BOTH = {"denoise": 0.2}, {"denoise": 0.2, SCRATCH: 0.2}
COLLAPSING = Design(NOTHING, collapse=BOTH)
DESIGNS: dict[str, Design] = {
    "no gain": Design(NOTHING),
    "no gain, 2 seeds": Design(NOTHING, seeds=2),
    "no gain, 3 seeds": Design(NOTHING, seeds=3),
    "no gain, 10 seeds": Design(NOTHING, seeds=10),
    "no gain, three arms": Design(_arms(0, 0, 0)),
    "gain 0.06 in one arm of three": Design(_arms(0.06, 0, 0)),
    "gain 0.06, 2 seeds": Design(GAIN, seeds=2),
    "gain 0.06, 3 seeds": Design(GAIN, seeds=3),
    "gain 0.06": Design(GAIN),
    "gain 0.06, 10 seeds": Design(GAIN, seeds=10),
    "gain 0.06, 2 patients": Design(GAIN, patients=2),
    "gain 0.06, 8 patients": Design(GAIN, patients=8),
    "gain 0.06, 30 patients": Design(GAIN, patients=30),
    "gain 0.06, 12 of 60 patients tested, 3 seeds": Design(GAIN, patients=12, seeds=3),
    "the same, 15 seeds": Design(GAIN, patients=12, seeds=15),
    "the same in 5 folds, 3 seeds": Design(GAIN, patients=60, seeds=3, folds=5),
    "no gain in 5 folds, 60 patients, 3 seeds": Design(NOTHING, patients=60, seeds=3, folds=5),
    "equal arms on a plateau": Design(PLATEAU),
    "pre-trainings ± 0.02: one": Design(NOTHING, pretraining_sd=0.02, pretrainings=1),
    "pre-trainings ± 0.02: three": Design(NOTHING, pretraining_sd=0.02, pretrainings=3),
    "pre-trainings ± 0.02: five": Design(NOTHING, pretraining_sd=0.02),
    "skewed scores": Design(GAIN, skewed=True),
    "skewed scores, 8 patients": Design(GAIN, skewed=True, patients=8),
    "30 % of the runs missing": Design(GAIN, missing=0.3),
    "30 % of the patients without the class": Design(GAIN, empty=0.3),
    "a fifth of the runs of one arm collapse": Design(NOTHING, collapse=ONE),
    "a fifth of the runs of both arms collapse": COLLAPSING,
    "the same, 3 seeds": replace(COLLAPSING, seeds=3),
    "gain 0.06, a fifth of both collapse": Design(GAIN, collapse=BOTH),
    "one in twenty of both collapses": Design(NOTHING, collapse=dict.fromkeys(BOTH, 0.05)),
}
"""5 seeds, each with a pre-training of its own, 251 patients, 11 label counts, where not said."""
PLAIN = ("a fifth of the runs of one arm collapse", "a fifth of the runs of both arms collapse")
"""Also with intervals that do not allow for collapses."""


def measure(studies: int, designs: Mapping[str, Design] = DESIGNS) -> list[dict[str, Any]]:
    """A row of the table for each design."""
    rows = []
    for name, design in designs.items():
        # No p-value is below 2 / draws, and with more comparisons it has to be smaller to count.
        draws = RESAMPLES * (len(design.curves) - 1)
        rows.append(_row(name, studies, simulate(design, studies, resamples=draws)))
        if name in PLAIN:
            plain = simulate(design, studies, may_collapse=False, with_saved=False)
            rows.append(_row(f"{name}; not allowed for", studies, plain))
    return rows


def _row(name: str, studies: int, rates: Rates) -> dict[str, Any]:
    tallies = {it.name: getattr(rates, it.name) for it in fields(rates)}
    shares = {key: it.share for key, it in tallies.items() if isinstance(it, Tally)}
    widths = {key: float(np.median(it)) for key, it in tallies.items() if isinstance(it, list)}
    click.echo(f"  {name}: {shares}")
    return {"design": name, "studies": studies, **shares, **widths}


def run(studies: int, designs: Mapping[str, Design] = DESIGNS, **more: Any) -> None:
    """Simulate studies of each design, and write the results, and `more` of `answers.measure`."""
    results.write("statistics", [], path=RESULTS, rows=measure(studies, designs), **more)


def table() -> str:
    """The results as a table in Markdown."""
    found = json.loads(RESULTS.read_text())
    lines = [
        "| studies in which | area | counts | means | labels needed | false finding | area shown "
        "| a count shown | Holm over counts alone | width: area | width: count |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in found["rows"]:
        shares = [row[key] for key in ("area", "counts", "means", "saved", "false")]
        shares += [row[key] for key in ("area_shown", "count_shown", "holm_shown")]
        texts = ["–" if it is None else f"{100 * it:.1f}" for it in shares]
        widths = [f"{row[key]:.3f}" for key in ("area_widths", "count_widths")]
        lines.append("| " + " | ".join([row["design"], *texts, *widths]) + " |")
    studies = found["rows"][0]["studies"]
    lines += ["", answers.tables(found), f"{studies} studies each. {results.measured_on(found)}"]
    return "\n".join(lines) + "\n"
