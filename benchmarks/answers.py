"""Pooled numbers, labels needed and power in studies with a known truth, for docs/statistics.md.

Letters in names: V scores, S seeds, P patients.
"""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy import stats

from benchmarks.simulated import COUNTS, SCRATCH, Design, simulate_study
from fewscan.experiments.metrics import HALF_VALUES, PixelScores, PooledScores
from fewscan.harness.arms import Arm
from fewscan.harness.report.bootstrap import estimate
from fewscan.harness.report.cells import Cell, difference
from fewscan.harness.report.comparison import area
from fewscan.harness.report.labels_needed import labels_needed
from fewscan.harness.report.power import Deviations, PlannedComparison

RESAMPLES = 1000

BITS_V = np.linspace(0.005, 0.995, 100).astype(np.float16).view(np.int16)
"""The half-precision scores that occur."""
EDGES = np.linspace(-3, 6, len(BITS_V) + 1)
"""Between them, on the scale on which they are drawn."""
POOLED: dict[str, Callable[[PixelScores], float]] = {
    "AP": PixelScores.average_precision,
    "⌈Dice⌉": lambda it: it.best_dice()[0],
}


@dataclass(frozen=True)
class Pixels:
    """Test patients with lesions of very unequal size, scored by runs that differ in luck.

    A patient's lesion is seen more or less well (0.7), better if it is large, and so is its healthy
    tissue (0.25). A twentieth of the patients has no lesion.
    """

    patients: int
    seeds: int = 5
    size_sd: float = 0.8
    """Of the logarithm of a lesion's pixels: 0.8 as for whole tumours; with 1.5 the largest of 30
    lesions holds a quarter of all pixels."""
    seed_sd: float = 0.1

    def study(self, rng: np.random.Generator) -> list[list[np.ndarray]]:
        """Two arms, seeds: the counts of the scores of each patient, P2V. Neither arm is better."""
        lesion_P = np.exp(rng.normal(6, self.size_sd, self.patients))
        lesion_P[rng.random(self.patients) < 0.05] = 0
        healthy_P = np.exp(rng.normal(10, 0.3, self.patients))
        relative_P = (np.log(lesion_P + 1) - 6) / max(self.size_sd, 1)
        seen_P = rng.normal(2, 0.7, self.patients) + 0.2 * relative_P
        noisy_P = rng.normal(0, 0.25, self.patients)

        def run() -> np.ndarray:
            luck_P = rng.normal(0, self.seed_sd) + rng.normal(0, 0.2, self.patients)
            false_P = noisy_P + rng.normal(0, 0.1, self.patients)
            negatives_PV = _shares(false_P) * healthy_P[:, None]
            positives_PV = _shares(seen_P + luck_P) * lesion_P[:, None]
            counts_P2V: np.ndarray = np.rint(np.stack([negatives_PV, positives_PV], axis=1))
            return counts_P2V.astype(np.int64)

        return [[run() for _ in range(self.seeds)] for _ in range(2)]

    def truth(self) -> dict[str, float]:
        """Of many patients, in the mean over many seeds."""
        rng, found = np.random.default_rng(1), []
        for _ in range(40):
            (((counts_P2V,), _)) = replace(self, patients=4000, seeds=1).study(rng)
            pool = scores_of(counts_P2V.sum(axis=0))
            found.append([statistic(pool) for statistic in POOLED.values()])
        return dict(zip(POOLED, np.mean(found, axis=0).tolist(), strict=True))


def _shares(middle_P: np.ndarray) -> np.ndarray:
    below_PV = stats.norm.cdf(EDGES - middle_P[:, None])
    shares_PV = np.diff(below_PV, axis=1)
    return np.asarray(shares_PV / shares_PV.sum(axis=1, keepdims=True))


def scores_of(counts_2V: np.ndarray) -> PixelScores:
    """As they are counted in a run."""
    all_2V = np.zeros((2, HALF_VALUES), np.int64)
    all_2V[:, BITS_V] = counts_2V
    return PixelScores(all_2V)


def pooled_coverage(
    design: Pixels, studies: int, metric: str, truth: float, resamples: int = RESAMPLES
) -> dict[str, float]:
    """How often the intervals of a pooled number, and of a paired difference of two, are true."""
    names = tuple(f"P{number:03d}" for number in range(design.patients))
    held, equal = 0, 0
    for number in range(studies):
        arms = []
        for runs in design.study(np.random.default_rng((7, number))):
            shares_SP = []
            for counts_P2V in runs:
                pooled = PooledScores()
                for name, counts_2V in zip(names, counts_P2V, strict=True):
                    pooled.add(name, scores_of(counts_2V))
                shares = pooled.pseudo_values(POOLED[metric])
                shares_SP.append([shares[name] for name in names])
            seeds = tuple(range(design.seeds))
            arms.append(Cell("", seeds, names, ((),) * design.seeds, np.array(shares_SP)))
        level = estimate(arms[0], resamples=resamples)
        between = estimate(difference(*arms), resamples=resamples)
        assert level.interval is not None
        assert between.interval is not None
        held += level.interval[0] <= truth <= level.interval[1]
        equal += between.interval[0] <= 0 <= between.interval[1]
    return {"level": held / studies, "difference": equal / studies}


CURVES: dict[str, Callable[[float], float]] = {
    "power law 0.55 n^−0.35 + 0.15": lambda n: 1 - (0.55 * n**-0.35 + 0.15),
    "power law 0.6 n^−0.2": lambda n: 1 - 0.6 * n**-0.2,
    "power law 0.5 n^−0.6 + 0.25": lambda n: 1 - (0.5 * n**-0.6 + 0.25),
    "rises with the logarithm": lambda n: 0.3 + 0.07 * math.log(n),
    "sigmoid that levels off at 64": lambda n: 0.75 / (1 + math.exp(-1.5 * (math.log(n) - 1.5))),
}
"""Score by labelled scans, run with 1, 2, 4 … 64."""
ASKED = (20, 50, 90, 150)
"""Labels that are truly needed; the last two lie beyond what was run."""


def needed_coverage(
    curve: Callable[[float], float], labels: int, studies: int, resamples: int = RESAMPLES
) -> dict[str, float]:
    """How often the interval is true, and how often there is a number at all."""
    held, said = 0, 0
    design = Design({SCRATCH: {n: curve(n) for n in COUNTS[:7]}})
    for number in range(studies):
        cells = simulate_study(design, np.random.default_rng((5, number)))[SCRATCH]
        found = labels_needed(cells, curve(labels), resamples=resamples)
        assert found is not None
        assert found.needed.interval is not None
        low, high = found.needed.interval
        held += min(low, found.searched[1]) <= labels * (1 + 1e-9) and labels <= high
        said += found.how != "not reached"
    return {"held": held / studies, "said": said / studies}


EXPECTED = Deviations(seeds=0.03, patients=0.05, residual=0.1, pretrainings=0.02)
PLANS: tuple[tuple[int, int, int, float], ...] = (
    (2, 2, 100, 0.20),
    (3, 3, 100, 0.06),
    (5, 5, 100, 0.03),
    (5, 5, 100, 0.00),
    (6, 3, 100, 0.06),
    (5, 5, 8, 0.06),
    (10, 10, 250, 0.02),
)
"""Seeds, pre-trainings, patients, gain."""


def power_of(
    seeds: int, pretrainings: int, patients: int, gain: float, studies: int, resamples: int
) -> dict[str, float]:
    """What the plan promises, and how often simulated studies find the gain."""
    counts = (1, 4, 16, 64)
    units = tuple(Counter((np.arange(seeds) % pretrainings).tolist()).values())
    arms = Arm("fine-tuning", "denoise"), Arm("fine-tuning")
    plan = PlannedComparison("binary", *arms, counts, units, patients, pretrainings == 1)
    # Deviations are those of differences, in which two runs and two residuals add up.
    design = Design(
        {SCRATCH: dict.fromkeys(counts, 0.3), "denoise": dict.fromkeys(counts, 0.3 + gain)},
        seeds=seeds,
        patients=patients,
        pretrainings=pretrainings,
        gain_sd=EXPECTED.patients,
        run_sd=EXPECTED.seeds / 2**0.5,
        pretraining_sd=EXPECTED.pretrainings,
        residual_sd=EXPECTED.residual / 2**0.5,
    )
    found = 0
    for number in range(studies):
        cells = simulate_study(design, np.random.default_rng((1, number)))
        tested = area(cells["denoise"], cells[SCRATCH], resamples=resamples)
        found += tested is not None and tested.p is not None and tested.p < 0.05
    return {"promised": plan.power(gain, EXPECTED), "found": found / studies}


def measure(studies: int) -> dict[str, list[dict[str, Any]]]:
    """The rows of three tables; of pooled numbers of many patients fewer studies."""
    pooled = []
    for size_sd in (0.8, 1.5):
        truth = Pixels(0, size_sd=size_sd).truth()
        for patients, part in ((8, 1), (30, 2), (250, 8)):
            few = max(1, studies // part)
            for metric in POOLED:
                design = Pixels(patients, size_sd=size_sd)
                found = pooled_coverage(design, few, metric, truth[metric])
                row = {"metric": metric, "size_sd": size_sd, "patients": patients, "studies": few}
                pooled.append(row | found)
    needed = [
        {"curve": name, "labels": labels} | needed_coverage(curve, labels, studies)
        for name, curve in CURVES.items()
        for labels in ASKED
    ]
    power = [
        dict(zip(("seeds", "pretrainings", "patients", "gain"), plan, strict=True))
        | power_of(*plan, studies, RESAMPLES)
        for plan in PLANS
    ]
    return {"pooled": pooled, "needed": needed, "power": power}


TITLES = {
    "pooled": "Pooled numbers: the interval of the number, and of a difference of two arms, holds",
    "needed": "Labels needed: the interval holds, “more than were run” too; a number is said",
    "power": "Power: as `fewscan plan` promises it, and as simulated studies find it",
}


def tables(found: dict[str, Any]) -> str:
    """Of rows as `measure` makes them, in Markdown; those that there are."""
    parts = []
    for key, title in TITLES.items():
        if key not in found:
            continue
        columns = [*found[key][0]]
        lines = [f"**{title}**", "", _line(columns), _line(["---"] * len(columns))]
        lines += [_line([_text(row[name]) for name in columns]) for row in found[key]]
        parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n"


def _line(texts: Sequence[str]) -> str:
    return f"| {' | '.join(texts)} |"


def _text(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
