"""Intervals hold the truth as often as they say; both seeds and patients are in them."""

from dataclasses import replace

import numpy as np
import pytest
from fake_scores import cell
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from fewscan.harness.report.bootstrap import (
    Estimate,
    _student,
    draw_resamples,
    estimate,
    mean,
    p_value,
    percentiles,
)

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


def test_seeds_that_are_missing_in_some_cells_are_counted_once_in_their_sum() -> None:
    """Half of the seeds at one label count, half at another: Student's t of all of them."""
    scores_S = np.random.default_rng(0).normal(0.6, 0.05, 40)
    halves = [
        cell(np.tile(scores_S[rows, None], (1, 30)), seeds=tuple(range(40))[rows])
        for rows in (slice(20), slice(20, 40))
    ]
    draws_B = draw_resamples(halves).sums_B(halves, np.array([0.5, 0.5]))
    variances = [it.scores_SP[:, 0].var(ddof=1) / 20 / 4 for it in halves]
    expected = stats.t.interval(0.95, 39, scores_S.mean(), np.sqrt(sum(variances)))
    assert percentiles(draws_B) == pytest.approx(expected, rel=0.01)


def test_seeds_that_are_in_most_cells_count_for_more_than_those_in_few() -> None:
    """Two seeds have nine tenths of the weight: hardly more degrees of freedom than theirs."""
    lucky = np.array([[0.5], [0.6]]) + np.zeros(30)
    others = np.repeat([[0.55]], 8, axis=0) + np.zeros(30)
    cells = [cell(lucky), cell(others, seeds=tuple(range(2, 10)))]
    draws_B = draw_resamples(cells).sums_B(cells, np.array([0.9, 0.1]))
    low, high = percentiles(draws_B)
    (alone,) = [estimate(cells[0]).interval]
    assert alone is not None
    assert high - low > 0.5 * 0.9 * (alone[1] - alone[0])


def test_a_sum_of_cells_of_the_same_seeds_is_the_sum_of_their_draws() -> None:
    rng = np.random.default_rng(0)
    cells = [cell(rng.random((4, 20))) for _ in range(3)]
    weights_K = np.array([0.5, 0.3, 0.2])
    resampling = draw_resamples(cells)
    each = np.stack([resampling.means_B(it) for it in cells])
    np.testing.assert_allclose(resampling.sums_B(cells, weights_K), weights_K @ each)


def test_units_of_several_sizes_spread_as_much_as_their_mean_does() -> None:
    """Pre-trainings of 4, 2 and 1 of seven seeds: the variance of the mean over seeds, unbiased."""
    rng = np.random.default_rng(0)
    unit_S, shares = np.array([0, 0, 0, 0, 1, 1, 2]), np.array([4, 2, 1]) / 7
    start = tuple(frozenset({("denoise", int(unit))}) for unit in unit_S)
    found = []
    for _ in range(300):
        luck_S1 = rng.normal(0, 1, 3)[unit_S][:, None]
        luck = replace(cell(luck_S1 + np.zeros(20)), pretrainings=start)
        resampling = draw_resamples([luck], 400)
        # Without Student's widening, whose variance is infinite for two degrees of freedom.
        widening_B = _student(2.0, 400, (0, 1))
        found.append(np.var((resampling.means_B(luck) - luck_S1.mean()) / widening_B))
    assert np.mean(found) == pytest.approx(np.sum(shares**2), rel=0.15)


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
