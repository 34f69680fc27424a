"""Intervals hold the truth as often as they say; both seeds and patients are in them."""

import numpy as np
import pytest
from fake_scores import cell
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from fewscan.harness.report.bootstrap import Estimate, estimate, mean, p_value, percentiles

NAN = float("nan")
PATIENTS, TRUTH = 251, 0.6
PATIENT_SD, RESIDUAL_SD = 0.25, 0.1
STUDIES = 600
COVERAGE = {
    (0.04, 2): 0.972,
    (0.04, 3): 0.978,
    (0.04, 5): 0.966,
    (0.04, 10): 0.959,
    (0.015, 2): 0.985,
    (0.015, 3): 0.979,
    (0.015, 5): 0.965,
    (0.015, 10): 0.961,
}
"""By standard deviation and number of seeds, as the docstring of `estimate` says."""


def simulate(rng: np.random.Generator, seeds: int, seed_sd: float) -> np.ndarray:
    """Scores of a cell whose true mean is TRUTH: seed + patient + residual."""
    by_seed_S1 = rng.normal(0, seed_sd, (seeds, 1))
    by_patient_P = rng.normal(0, PATIENT_SD, PATIENTS)
    return TRUTH + by_seed_S1 + by_patient_P + rng.normal(0, RESIDUAL_SD, (seeds, PATIENTS))


def holds(interval: tuple[float, float] | None, truth: float) -> bool:
    assert interval is not None
    return interval[0] <= truth <= interval[1]


def band(coverage: float) -> tuple[float, float]:
    """Hits in STUDIES that a right figure stays within, but for one time in a thousand."""
    return stats.binom.interval(0.999, STUDIES, coverage)


@pytest.mark.parametrize(("seed_sd", "seeds"), COVERAGE)
def test_coverage_is_as_documented(seed_sd: float, seeds: int) -> None:
    rng = np.random.default_rng(seeds)
    hits = sum(
        holds(estimate(cell(simulate(rng, seeds, seed_sd)), resamples=1000).interval, TRUTH)
        for _ in range(STUDIES)
    )
    low, high = band(COVERAGE[seed_sd, seeds])
    assert low <= hits <= high


def nested_interval(rng: np.random.Generator, scores_SP: np.ndarray) -> tuple[float, float]:
    """The bootstrap that is not used: seeds, and then other patients for each seed drawn."""
    seeds, patients = scores_SP.shape
    rows = rng.integers(seeds, size=(400, seeds))
    columns = rng.integers(patients, size=(400, seeds, patients))
    return percentiles(scores_SP[rows[:, :, None], columns].mean(axis=(1, 2)))


def test_the_simulation_finds_an_interval_that_is_too_short() -> None:
    """Patients nested in seeds: with ten seeds it misses the truth every other time."""
    rng = np.random.default_rng(0)
    hits = sum(
        holds(nested_interval(rng, simulate(rng, 10, 0.015)), TRUTH) for _ in range(STUDIES // 12)
    )
    assert hits * 12 < band(COVERAGE[0.015, 10])[0]


def test_more_seeds_do_not_make_more_patients() -> None:
    """Seeds that agree in all: the interval is Student's over patients, however many there are."""
    scores_P = np.random.default_rng(0).normal(0.6, 0.2, 60)
    expected = stats.t.interval(0.95, 59, scores_P.mean(), scores_P.std(ddof=1) / np.sqrt(60))
    for seeds in (2, 10):
        found = estimate(cell(np.tile(scores_P, (seeds, 1)))).interval
        assert found == pytest.approx(expected, rel=0.01)


def test_more_patients_do_not_make_more_seeds() -> None:
    """Patients who agree in all: the interval is nearly Student's over seeds."""
    scores_S = np.random.default_rng(0).normal(0.6, 0.05, 40)
    expected = stats.t.interval(0.95, 39, scores_S.mean(), scores_S.std(ddof=1) / np.sqrt(40))
    found = estimate(cell(np.tile(scores_S[:, None], (1, 251)))).interval
    assert found == pytest.approx(expected, rel=0.01)


def test_the_mean_is_over_defined_patients_and_then_over_seeds() -> None:
    scores = cell([[0.2, 0.4, NAN], [0.6, NAN, NAN], [NAN, NAN, NAN]])
    assert mean(scores) == pytest.approx((0.3 + 0.6) / 2)


def test_patients_and_seeds_without_any_score_add_no_certainty() -> None:
    scores_SP = np.tile(np.random.default_rng(0).normal(0.6, 0.2, 5), (2, 1))
    padded_SP = np.full((4, 65), NAN)
    padded_SP[:2, :5] = scores_SP
    low, high = estimate(cell(scores_SP)).interval or (0, 0)
    assert estimate(cell(padded_SP)).interval == pytest.approx((low, high), abs=(high - low) / 20)


@pytest.mark.parametrize("scores_SP", [[[0.5, 0.7]], [[0.5], [0.7]], [[0.5, 0.7], [NAN, NAN]]])
def test_one_seed_or_one_patient_has_no_interval(scores_SP: list[list[float]]) -> None:
    assert estimate(cell(scores_SP)) == Estimate(pytest.approx(0.6), None)


def test_without_any_score_there_is_no_value() -> None:
    assert estimate(cell([[NAN, NAN], [NAN, NAN]])) == Estimate(None, None)


def test_the_same_arguments_give_the_same_interval() -> None:
    scores = cell(np.random.default_rng(0).random((3, 20)))
    assert estimate(scores) == estimate(scores)
    assert estimate(scores) != estimate(scores, random_seed=1)


@settings(deadline=None, max_examples=20)
@given(st.floats(0.1, 10), st.floats(-5, 5), st.integers(0, 1000))
def test_scale_and_shift_go_through(scale: float, shift: float, random_seed: int) -> None:
    scores_SP = np.random.default_rng(random_seed).random((3, 10))
    scores_SP[0, random_seed % 10] = NAN
    low, high = estimate(cell(scores_SP), resamples=200).interval or (0, 0)
    changed = estimate(cell(scale * scores_SP + shift), resamples=200)
    assert changed.interval == pytest.approx((scale * low + shift, scale * high + shift))


def test_p_values_count_the_draws_on_the_rarer_side() -> None:
    assert p_value(np.array([-1.0] + [1.0] * 98)) == pytest.approx(2 * 2 / 100)
    assert p_value(np.ones(99)) == pytest.approx(2 / 100)
    assert p_value(np.zeros(99)) == 1


def test_percentiles_bear_infinite_draws() -> None:
    draws_B = np.array([1.0, 2.0, np.inf, np.inf] * 10)
    assert percentiles(draws_B) == (1, np.inf)
