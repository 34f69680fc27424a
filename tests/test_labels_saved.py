"""Labels saved: interpolated where the curve was run, "not reached" where it was not."""

import numpy as np
import pytest
from fake_scores import cell
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize, stats

from fewscan.harness.report.bootstrap import Estimate
from fewscan.harness.report.cells import Cell
from fewscan.harness.report.labels_saved import (
    ROUNDING,
    LabelsSaved,
    crossings,
    isotonic,
    labels_saved,
)
from fewscan.storage.errors import StudyError

CURVES = st.lists(st.floats(0, 1), min_size=1, max_size=11)


def flat(score: float, seeds: int = 3) -> Cell:
    """A cell in which every seed gives every patient the same score."""
    return cell(np.full((seeds, 20), score))


def exactly(value: float) -> Estimate:
    return Estimate(pytest.approx(value), pytest.approx((value, value)))


SCRATCH = {1: flat(0.2), 2: flat(0.3), 8: flat(0.5), 16: flat(0.6)}


def test_the_labels_needed_lie_between_neighbours_on_a_logarithmic_axis() -> None:
    found = labels_saved({1: flat(0.4), 2: flat(0.55), 4: flat(0.3)}, SCRATCH)
    assert found[1] == LabelsSaved(
        labels=1,
        score=pytest.approx(0.4),
        needed=exactly(4),
        saved=exactly(3),
        ratio=exactly(4),
        searched=(1, 16),
    )
    assert found[2].needed == exactly(8 * np.sqrt(2))
    assert found[2].ratio == exactly(4 * np.sqrt(2))
    assert found[4].saved == exactly(-2)  # pre-training does harm there


def test_beyond_the_counts_that_were_run_nothing_is_extrapolated() -> None:
    found = labels_saved({4: flat(0.7), 8: flat(0.1)}, SCRATCH)
    assert found[4].needed == found[4].ratio == found[4].saved == Estimate(np.inf, (np.inf, np.inf))
    assert found[8].needed == exactly(1)
    assert found[8].searched[0] == 1


def test_an_arm_needs_as_many_labels_as_itself() -> None:
    rng = np.random.default_rng(0)
    scratch = {count: cell(rng.random((3, 20)) / 8 + rise) for rise, count in enumerate((1, 3, 7))}
    found = labels_saved(scratch, scratch)
    assert [*found] == [1, 3, 7]
    for count, it in found.items():
        assert it.needed.value == pytest.approx(count)
        assert it.needed.interval is not None
        assert it.needed.interval[1] == pytest.approx(count)  # reached in every resample


def test_a_dip_is_averaged_with_its_neighbours() -> None:
    scratch = {1: flat(0.2), 2: flat(0.5), 4: flat(0.3), 8: flat(0.6)}
    found = labels_saved({1: flat(0.45), 2: flat(0.3)}, scratch)
    assert found[1].needed == exactly(4 * 2**0.25)
    assert found[2].needed == exactly(2**0.5)


PLATEAU = {1: flat(0.3), 4: flat(0.7), 8: flat(0.7), 16: flat(0.7), 64: flat(0.8)}


def test_on_a_plateau_any_count_of_it_is_an_answer() -> None:
    """Equal arms need as many as they have, and it is said how far that is not known."""
    found = labels_saved(PLATEAU, PLATEAU)
    assert [it.needed.value for it in found.values()] == pytest.approx([1, 4, 8, 16, 64])
    for labels in (4, 8, 16):
        assert found[labels].needed.interval == pytest.approx((4, 16))
        assert found[labels].saved.interval == pytest.approx((4 - labels, 16 - labels))
        assert found[labels].ratio.interval == pytest.approx((4 / labels, 16 / labels))
    other = labels_saved({1: flat(0.7), 32: flat(0.7), 2: flat(0.8)}, PLATEAU)
    assert [other[n].needed.value for n in (1, 32, 2)] == pytest.approx([4, 16, 64])


def test_a_plateau_at_either_end_of_the_curve() -> None:
    ends = {2: flat(0.5), 4: flat(0.5), 8: flat(0.6), 16: flat(0.6)}
    found = labels_saved({1: flat(0.5), 3: flat(0.5), 32: flat(0.6), 5: flat(0.4)}, ends)
    assert found[1].needed == Estimate(2, pytest.approx((2, 4)))
    assert found[3].needed == Estimate(pytest.approx(3), pytest.approx((2, 4)))
    assert found[32].needed == Estimate(pytest.approx(16), pytest.approx((8, 16)))
    assert found[5].needed == exactly(2)


def test_a_missing_cell_is_stepped_over() -> None:
    without = {count: scores for count, scores in SCRATCH.items() if count != 2}
    with_nan = {**SCRATCH, 2: flat(float("nan"))}
    expected = labels_saved({1: flat(0.4)}, without)
    assert expected[1].needed == exactly(8 ** (2 / 3))
    assert labels_saved({1: flat(0.4), 2: flat(float("nan"))}, with_nan) == expected


def test_without_cells_there_are_no_results() -> None:
    assert labels_saved({}, SCRATCH) == {}
    assert labels_saved(SCRATCH, {}) == {}


def test_with_a_single_seed_there_is_no_interval() -> None:
    found = labels_saved({1: flat(0.4, seeds=1), 2: flat(0.4)}, SCRATCH)
    assert found[1].needed == Estimate(pytest.approx(4), None)
    assert found[2].needed == exactly(4)


def test_an_end_of_the_interval_may_be_not_reached() -> None:
    rng = np.random.default_rng(0)
    scratch = {
        count: cell(score + rng.normal(0, 0.05, (4, 1)) + np.zeros(20))
        for count, score in ((1, 0.2), (4, 0.5), (16, 0.62))
    }
    found = labels_saved({1: flat(0.6, seeds=4)}, scratch)[1]
    assert found.needed.interval is not None
    low, high = found.needed.interval
    assert 1 <= low < 16
    assert high == np.inf


def test_other_patients_or_other_labelled_scans_are_refused() -> None:
    with pytest.raises(StudyError, match="different test patients"):
        labels_saved({1: cell(np.zeros((3, 21)))}, SCRATCH)
    other = cell(np.zeros((3, 20)), subsets=(("T0",), ("T1",), ("T9",)))
    with pytest.raises(StudyError, match="different labelled scans for seed 2"):
        labels_saved({1: other}, SCRATCH)
    assert labels_saved({4: other}, SCRATCH)


@settings(deadline=None, max_examples=50)
@given(CURVES)
def test_isotonic_is_scipys(curve: list[float]) -> None:
    expected = optimize.isotonic_regression(curve).x
    np.testing.assert_allclose(isotonic(np.array([curve, curve[::-1]]))[0], expected, atol=1e-12)


@settings(deadline=None, max_examples=50)
@given(CURVES, st.integers(0, 10), st.integers(0, 10))
def test_the_stretch_is_all_of_the_counts_at_which_the_curve_equals_a_score(
    curve: list[float], start: int, end: int
) -> None:
    """Against a fine grid; part of the curve is made flat."""
    curve_K = np.sort(curve)
    curve_K[start : end + 1] = (
        curve_K[start : end + 1].mean() if curve_K[start : end + 1].size else 0
    )
    counts_K = 2.0 ** np.arange(len(curve))
    for score in curve_K:
        (fewest,), (most,) = crossings(np.array([score]), curve_K[None], counts_K)
        same_K = np.abs(curve_K - score) <= ROUNDING
        assert fewest <= counts_K[same_K][0] * (1 + 1e-9)
        assert most >= counts_K[same_K][-1] * (1 - 1e-9)
        there = np.interp(np.log([fewest, most]), np.log(counts_K), curve_K)
        assert there == pytest.approx(score, abs=1e-9)


@settings(deadline=None, max_examples=50)
@given(CURVES, st.floats(-0.2, 1.2))
def test_the_crossing_is_the_first(curve: list[float], score: float) -> None:
    counts_K = 2.0 ** np.arange(len(curve))
    curve_K = np.sort(curve)
    (needed,), _ = crossings(np.array([score]), curve_K[None], counts_K)
    if needed == np.inf:
        assert curve_K[-1] < score
    elif needed == counts_K[0]:
        assert curve_K[0] >= score - 1e-9
    else:
        there = np.interp(np.log([needed, 0.999 * needed]), np.log(counts_K), curve_K)
        assert there[0] == pytest.approx(score, abs=1e-9)
        assert there[1] < score


COUNTS = np.array([1, 4, 16, 64])
SCRATCH_TRUTH, PRETRAINED_TRUTH = (
    np.array([0.3, 0.5, 0.65, 0.7]),
    np.array([0.45, 0.58, 0.68, 0.72]),
)


def simulate(rng: np.random.Generator, means: np.ndarray, patients: np.ndarray) -> dict[int, Cell]:
    return {
        int(count): cell(
            mean + patients + rng.normal(0, 0.02, (3, 1)) + rng.normal(0, 0.1, (3, len(patients)))
        )
        for count, mean in zip(COUNTS, means, strict=True)
    }


def test_the_interval_holds_the_true_labels_as_often_as_it_says() -> None:
    """At 1, 4 and 16 labels; the last two lie where the curve is nearly flat."""
    truth_K, _ = crossings(PRETRAINED_TRUTH, np.tile(SCRATCH_TRUTH, (4, 1)), COUNTS)
    rng = np.random.default_rng(0)
    hits, studies = np.zeros(3), 150
    for _ in range(studies):
        patients = rng.normal(0, 0.2, 100)
        scratch, pretrained = (
            simulate(rng, means, patients) for means in (SCRATCH_TRUTH, PRETRAINED_TRUTH)
        )
        found = [*labels_saved(pretrained, scratch, resamples=500).values()][:3]
        for index, it in enumerate(found):
            low, high = it.needed.interval or ()
            hits[index] += low <= truth_K[index] <= high
    assert (hits >= stats.binom.ppf(0.001, studies, 0.95)).all()
