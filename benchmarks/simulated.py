"""Studies with a known truth: cells of scores as finished runs leave them, drawn from a model.

The score of a run is what its curve says at its label count, and effects that add up: of the
patient, the same in all runs; of the patient for the arm; of the labelled scans, which arms share;
of the pre-training, at all label counts; of the run; and a residual. All have mean 0, so the curve
is the truth, but for runs that collapse.

Letters in names: S seeds, P patients.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from fewscan.harness.report.cells import Cell

SCRATCH = "scratch"
"""The arm that starts from no pre-training."""
COUNTS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 938)
COLLAPSED = 0.005
"""The mean score of a run that has collapsed."""


@dataclass(frozen=True)
class Design:
    """A study that could be run, and what is true of it; deviations are standard deviations."""

    curves: Mapping[str, Mapping[int, float]]
    """Arm → label count → true mean score of runs that do not collapse."""
    seeds: int = 5
    patients: int = 251
    pretrainings: int | None = None
    """Fine-tuning seed s starts from pre-training s modulo this; None: each from one of its own."""
    patient_sd: float = 0.2
    """Of a patient, in all runs alike."""
    gain_sd: float = 0.05
    """Of a patient for an arm, at all label counts alike."""
    subset_sd: float = 0.04
    """Of the labelled scans: a seed at a label count, in all arms alike."""
    run_sd: float = 0.026
    """Of a run: an arm, a label count, a seed."""
    pretraining_sd: float = 0.0
    """Of a pre-training, at all label counts alike."""
    residual_sd: float = 0.1
    """Of a patient in a run."""
    skewed: bool = False
    """Whether patients and residuals have a long tail towards low scores (exponential)."""
    collapse: Mapping[str, float] = field(default_factory=dict)
    """Arm → the probability that a run collapses: all its patients score nearly 0."""
    missing: float = 0.0
    """The probability that a run is not finished."""
    empty: float = 0.0
    """The probability that a patient has no such structure: nan in all runs."""
    folds: int = 1
    """Of a cross-validation: what is said of labelled scans, runs and pre-trainings is drawn for
    each fold, and patients are tested in one of them."""

    def truth(self, arm: str, count: int) -> float:
        """The mean over all seeds, pre-trainings and patients that there might be."""
        share = self.collapse.get(arm, 0.0)
        return (1 - share) * self.curves[arm][count] + share * COLLAPSED

    def true_difference(self, arm: str, count: int) -> float:
        """That of an arm minus that of scratch."""
        return self.truth(arm, count) - self.truth(SCRATCH, count)


def simulate_study(design: Design, rng: np.random.Generator) -> dict[str, dict[int, Cell]]:
    """The cells of one study, by arm and label count; those without a finished run are missing."""
    seeds, patients = design.seeds, design.patients
    patient_P = _effects(rng, design.patient_sd, patients, design.skewed)
    patient_P[rng.random(patients) < design.empty] = np.nan
    counts = sorted({count for curve in design.curves.values() for count in curve})
    fold_P = np.arange(patients) % design.folds

    def drawn_SP(deviation: float) -> np.ndarray:
        """An effect of each seed and fold, for the patients of the fold."""
        return rng.normal(0, deviation, (seeds, design.folds))[:, fold_P]

    subset_SP = {count: drawn_SP(design.subset_sd) for count in counts}
    from_S = np.arange(seeds) % (design.pretrainings or seeds)
    study: dict[str, dict[int, Cell]] = {}
    for arm, curve in design.curves.items():
        gain_P = np.zeros(patients)
        pretraining_SP = np.zeros((seeds, patients))
        if arm != SCRATCH:
            gain_P = rng.normal(0, design.gain_sd, patients)
            pretraining_SP = drawn_SP(design.pretraining_sd)[from_S]
        study[arm] = {}
        for count, mean in curve.items():
            residual_SP = _effects(rng, design.residual_sd, (seeds, patients), design.skewed)
            run_SP = drawn_SP(design.run_sd)
            scores_SP = mean + patient_P + gain_P + subset_SP[count] + pretraining_SP + run_SP
            scores_SP = scores_SP + residual_SP
            share = design.collapse.get(arm, 0.0)
            fallen_SP = (rng.random((seeds, design.folds)) < share)[:, fold_P]
            near_0_SP = rng.uniform(0, 2 * COLLAPSED, (seeds, patients)) + 0 * patient_P
            scores_SP[fallen_SP] = near_0_SP[fallen_SP]
            there = np.flatnonzero(rng.random(seeds) >= design.missing)
            if there.size:
                study[arm][count] = Cell(
                    f"{arm}, {count} scans",
                    seeds=tuple(there.tolist()),
                    patients=tuple(f"P{number:03d}" for number in range(patients)),
                    subsets=tuple((f"T{seed}",) for seed in there),
                    scores_SP=scores_SP[there],
                    pretrainings=()
                    if arm == SCRATCH
                    else tuple(frozenset({(arm, int(from_S[seed]))}) for seed in there),
                )
    return study


def _effects(
    rng: np.random.Generator, deviation: float, shape: int | tuple[int, ...], skewed: bool
) -> np.ndarray:
    """Effects with mean 0 and this standard deviation."""
    if skewed:
        return deviation * (1 - rng.exponential(1.0, shape))
    return rng.normal(0, deviation, shape)


def falling_gain(gain: float, counts: tuple[int, ...] = COUNTS) -> dict[str, dict[int, float]]:
    """Scratch that rises from 0.3 to 0.8, and an arm whose gain at the fewest falls to 0."""
    share = np.log(np.array(counts) / counts[0]) / np.log(counts[-1] / counts[0])
    scratch = dict(zip(counts, (0.3 + 0.5 * share).tolist(), strict=True))
    return {SCRATCH: scratch, "denoise": _plus(scratch, (gain * (1 - share)).tolist())}


def _plus(curve: Mapping[int, float], gains: list[float]) -> dict[int, float]:
    return {count: mean + gain for (count, mean), gain in zip(curve.items(), gains, strict=True)}
