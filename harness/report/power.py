"""The power of a planned study: the smallest gain that it would find, before anything runs.

Of what the verdict is about, the paired difference in the area under the label-efficiency curve
(`comparison.Area`). Its deviations are stated, or estimated from a pilot: those of paired
differences at a label count. With label counts of weights wₖ in the area, S seeds, U units (the
pre-trainings, or the seeds where each has its own or all share one), and P patients, the variance
of the area is

    units' part      σ²(pre-trainings) Σ shareᵤ² + Σ wₖ² (σ²(seeds) + σ²(residual) / P) / S
    patients' part   (σ²(patients) + Σ wₖ² σ²(residual) / S) / P

but for the residual, which the interval counts in both (`bootstrap.estimate`) and nature in one.
The interval is that of the sum of two Student's t, with U − 1 and P − 1 degrees of freedom, each
times its part's estimated deviation (Behrens and Fisher's distribution: Fisher, Ann. Eugen. 6,
1935). Power is the mean over what the two estimates may come out at, which are χ² of these degrees.

Letters in names: S seeds, P patients, K label counts, U units.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy import optimize, stats

from fewscan.experiments.spec import Target
from fewscan.harness.arms import Arm
from fewscan.harness.plan import Plan
from fewscan.harness.report.cells import Cell
from fewscan.harness.report.comparison import differences, log_weights
from fewscan.harness.report.ranking import other_pairs
from fewscan.harness.report.results import collect_cells, quantities, read_results
from fewscan.harness.report.studies import one_study
from fewscan.harness.study import Power
from fewscan.storage.errors import StudyError

SIGNIFICANT = 0.05
WANTED = 0.8
"""The power for which the smallest gain is said."""
ESTIMATES, QUANTILES, SHARES = 128, 500, 33
"""Points to compute with: of each estimated variance, of a Student's t, of the units' share."""
NAMES = ("seeds", "patients", "residual", "pretrainings")


@dataclass(frozen=True)
class Deviations:
    """Standard deviations of paired differences at one label count, as `study.Power` has them."""

    seeds: float
    patients: float
    residual: float
    pretrainings: float


@dataclass(frozen=True)
class PlannedComparison:
    """How an arm is to be compared with its reference."""

    target: Target
    arm: Arm
    reference: Arm
    counts: tuple[int, ...]
    """Label counts that both are to be run with."""
    units: tuple[int, ...]
    """Seeds of each unit: of each pre-training, or 1 for each seed."""
    patients: int
    one_pretraining: bool
    """Whether all seeds start from the same one: its luck is in no interval."""

    @property
    def is_of_pretrained(self) -> bool:
        """Else it is what an ensemble from scratch is worth, and no pre-training has a part."""
        return self.arm.init is not None

    @property
    def seeds(self) -> int:
        return sum(self.units)

    def parts(self, it: Deviations) -> tuple[float, float, float]:
        """The variance of the area's difference: of units, of patients, and in truth of both."""
        squares = float(np.sum(log_weights(self.counts) ** 2))
        shares = float(np.sum((np.array(self.units) / self.seeds) ** 2))
        residual = squares * it.residual**2 / self.seeds / self.patients
        # A single pre-training is the same in all runs: the difference is about it, and no less.
        has_luck = self.is_of_pretrained and not self.one_pretraining
        luck = it.pretrainings**2 * shares if has_luck else 0.0
        units = luck + squares * it.seeds**2 / self.seeds
        patients = it.patients**2 / self.patients
        return units + residual, patients + residual, units + patients + residual

    def power(self, gain: float, it: Deviations, error: float = SIGNIFICANT) -> float:
        """The probability that this true gain is found, at this two-sided error probability.

        0 where there is no interval: fewer than two units or two patients.
        """
        ends = (len(self.units) - 1, self.patients - 1)
        if min(ends) < 1:
            return 0.0
        *parts, truth = self.parts(it)
        if truth == 0:
            return float(gain != 0)
        half_N = _half_widths(parts, ends, error)
        beyond_N = stats.norm.sf((half_N - gain) / truth**0.5)
        return float(np.mean(beyond_N + stats.norm.cdf((-half_N - gain) / truth**0.5)))

    def smallest_gain(self, it: Deviations, error: float = SIGNIFICANT) -> float | None:
        """The gain that is found with `WANTED`; None where none is."""
        *_, truth = self.parts(it)
        if min(len(self.units), self.patients) < 2:
            return None
        if truth == 0:
            return 0.0
        most = truth**0.5
        while self.power(most, it, error) < WANTED:
            most *= 2
        found = optimize.brentq(lambda gain: self.power(gain, it, error) - WANTED, 0, most)
        return float(found)


def _half_widths(parts: Sequence[float], ends: tuple[int, int], error: float) -> np.ndarray:
    """Of the intervals that are to be expected, each as probable as the others.

    `parts` are variances that are estimated with `ends` degrees of freedom.
    """
    first_N, second_N = (
        part * stats.chi2.ppf(_middles(ESTIMATES), freedom) / freedom
        for part, freedom in zip(parts, ends, strict=True)
    )
    total_NN = first_N[:, None] + second_N
    shares, widths = _behrens_fisher(ends, error)
    return np.ravel(np.interp(first_N[:, None] / total_NN, shares, widths) * np.sqrt(total_NN))


@lru_cache(maxsize=32)
def _behrens_fisher(ends: tuple[int, int], error: float) -> tuple[np.ndarray, np.ndarray]:
    """Shares w, and for each the half width of the interval of √w t + √(1 − w) t.

    How often the sum stays below x is a mean, over quantiles of the first t, of the distribution
    function of the second.
    """
    first, second = (stats.t(freedom) for freedom in ends)
    values = first.ppf(_middles(QUANTILES))

    def too_little(x: float, share: float) -> float:
        rest = (x - share**0.5 * values) / (1 - share) ** 0.5
        return float(second.cdf(rest).mean()) - 1 + error / 2

    shares = np.linspace(0, 1, SHARES)
    most = 2 * (first.ppf(1 - error / 4) + second.ppf(1 - error / 4))
    between = [optimize.brentq(too_little, 0, most, args=(share,)) for share in shares[1:-1]]
    tails = [float(it.ppf(1 - error / 2)) for it in (second, first)]
    return shares, np.array([tails[0], *between, tails[1]])


def _middles(n: int) -> np.ndarray:
    """Of n parts of equal probability."""
    return (np.arange(n) + 0.5) / n


def planned_comparisons(plan: Plan) -> list[PlannedComparison]:
    """Each arm that the plan compares, for each target."""
    references = one_study(plan).references()
    patients = len({plan.store.patient(subject) for subject in plan.tested})
    found = []
    for target in plan.study.finetune.targets:
        runs = [run.place for run in plan.grid if run.place.target == target]
        counts = {arm: {it.labels for it in runs if it.arm == arm} for arm in references}
        for arm, reference in references.items():
            theirs = {it.labels for it in runs if it.arm == reference}
            shared = sorted(n for n in counts[arm] & theirs if n is not None)
            starts = {it.seed: it.pretraining for it in runs if it.arm == arm}
            if not shared:
                continue
            each = Counter(starts.values())
            alike = len(each) == 1
            units = (1,) * len(starts) if alike else tuple(each.values())
            one = alike and arm.init is not None
            found.append(
                PlannedComparison(target, arm, reference, tuple(shared), units, patients, one)
            )
    return found


def deviations(cells: Mapping[int, Cell]) -> Deviations | None:
    """Of the paired differences at each label count; None unless one has two seeds and patients.

    By mean squares: of each count a table of seeds × patients without replication; what seeds have
    in common at several counts is taken for their pre-training's. A component that comes out
    negative is 0.
    """
    seeds, patients, residual = [], [], []
    means: dict[int, dict[int, float]] = {}
    for count, cell in cells.items():
        known = ~np.isnan(cell.scores_SP).any(axis=0)
        scores_SP = cell.scores_SP[:, known]
        if min(scores_SP.shape) < 2:
            continue
        means_S, means_P = scores_SP.mean(axis=1), scores_SP.mean(axis=0)
        rest_SP = scores_SP - means_S[:, None] - means_P + scores_SP.mean()
        noise = float(np.sum(rest_SP**2)) / (len(means_S) - 1) / (len(means_P) - 1)
        residual.append(noise)
        seeds.append(float(means_S.var(ddof=1)) - noise / len(means_P))
        patients.append(float(means_P.var(ddof=1)) - noise / len(means_S))
        means[count] = dict(zip(cell.seeds, means_S.tolist(), strict=True))
    if not residual:
        return None
    shared = []
    for place, first in enumerate(means):
        for second in [*means][place + 1 :]:
            both = [seed for seed in means[first] if seed in means[second]]
            if len(both) > 1:
                pairs = [[means[n][seed] for seed in both] for n in (first, second)]
                shared.append(float(np.cov(pairs)[0, 1]))
    common = max(0.0, float(np.mean(shared))) if shared else 0.0
    variances = (float(np.mean(seeds)) - common, np.mean(patients), np.mean(residual), common)
    return Deviations(*(max(0.0, float(it)) ** 0.5 for it in variances))


def pilot(plan: Plan) -> dict[Target, Deviations]:
    """Estimated from the finished cells of a study: target → the mean over its arms' variances."""
    studies = one_study(plan)
    results = read_results(studies)
    found: dict[Target, Deviations] = {}
    for quantity in quantities(studies):
        if not quantity.leads:
            continue
        each = []
        try:
            cells = collect_cells(results, quantity)
            for arm, reference in studies.references().items():
                first, second = (
                    {n: it for (other, n), it in cells.items() if other == wanted and n}
                    for wanted in (arm, reference)
                )
                each.append(deviations(differences(first, second)))
        except StudyError:  # cells that cannot be paired say nothing; the report names them
            continue
        known = [it for it in each if it is not None]
        if known:
            means = (np.mean([getattr(it, name) ** 2 for it in known]) ** 0.5 for name in NAMES)
            found[quantity.target] = Deviations(*map(float, means))
    return found


HOW = (
    "power: not known; state deviations (`power: {seeds: …, patients: …, residual: …, "
    "pretrainings: …}`), or name a study with finished runs (`fewscan plan STUDY --pilot OTHER`)"
)


def power_lines(plan: Plan, other: Plan | None = None) -> list[str]:
    """What the plan would find, in words: arm by arm, target by target.

    Deviations that the study states come first, then those of the pilot, then those of its own
    finished runs.
    """
    stated, every = plan.study.power, planned_comparisons(plan)
    if not every:
        return []
    known: dict[Target, Deviations] = {}
    source = "stated"
    if any(getattr(stated, name) is None for name in NAMES):
        known, source = pilot(other or plan), f"of {(other or plan).study.name}'s finished runs"
        if any(getattr(stated, name) is not None for name in NAMES):
            source = f"stated, and {source}"
    lines: dict[str, list[str]] = {}
    tests = len(every) + _other_pairs(plan, every)
    error = SIGNIFICANT / tests
    for grid in every:
        it = _deviations(stated, known.get(grid.target))
        what = f"{grid.target} · {grid.arm.key}"
        lines.setdefault(HOW if it is None else _line(grid, it, stated.gain, error), []).append(
            what
        )
    texts = [
        text if text == HOW else f"power, {', '.join(arms)}: {text}" for text, arms in lines.items()
    ]
    if [*lines] == [HOW]:
        return [HOW]
    tested = f"; α = {SIGNIFICANT:g} / {tests} comparisons" if tests > 1 else ""
    return [
        *texts,
        f"of the area under the curve, paired, from scratch; deviations {source}{tested}",
    ]


def _other_pairs(plan: Plan, every: Sequence[PlannedComparison]) -> int:
    """Pairs of arms that the report tests beside arms and their references."""
    studies = one_study(plan)
    targets = dict.fromkeys(it.target for it in every)
    pairs = [other_pairs(studies.ranked(it), studies.references()) for it in targets]
    return sum(map(len, pairs))


def _deviations(stated: Power, estimated: Deviations | None) -> Deviations | None:
    """Each as stated, else as estimated; None if one is neither."""
    values = []
    for name in NAMES:
        value = getattr(stated, name)
        if value is None and estimated is not None:
            value = getattr(estimated, name)
        if value is None:
            return None
        values.append(value)
    return Deviations(*values)


def _line(grid: PlannedComparison, it: Deviations, gain: float | None, error: float) -> str:
    smallest = grid.smallest_gain(it, error)
    several = f"{len(grid.units)} pre-trainings" if grid.is_of_pretrained else "no pre-training"
    pretrainings = "one pre-training" if grid.one_pretraining else several
    design = (
        f"{len(grid.counts)} label counts, {grid.seeds} seeds, {pretrainings}, "
        f"{grid.patients} patients"
    )
    if smallest is None:
        return f"none: it takes two seeds and two patients ({design})"
    text = f"a gain of {smallest:.3f} is found with {WANTED:.0%}"
    if gain is not None:
        text += f", one of {gain:g} with {grid.power(gain, it, error):.0%}"
    deviation = ", ".join(f"{name} {getattr(it, name):.3f}" for name in NAMES)
    caution = (
        " Another pre-training may differ; it is about this one." if grid.one_pretraining else ""
    )
    return f"{text} ({design}; standard deviations: {deviation}).{caution}"
