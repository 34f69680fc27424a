"""Differences are paired, tested and corrected; missing cells stay missing."""

import numpy as np
import pytest
from fake_scores import cell
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from fewscan.harness.report.bootstrap import estimate
from fewscan.harness.report.comparison import (
    compare,
    holm,
    rank_biserial,
    signed_rank,
    standardised,
)
from fewscan.storage.errors import StudyError

NAN = float("nan")


def arms(
    rng: np.random.Generator, *, seeds: int = 5, gain: float = 0.0, seed_sd: float = 0.02
) -> tuple[np.ndarray, np.ndarray]:
    """Scores of two arms that share hard patients and lucky subsets; `gain` is the true one."""
    shared_SP = 0.5 + rng.normal(0, 0.05, (seeds, 1)) + rng.normal(0, 0.25, 251)
    gain_SP = gain + rng.normal(0, seed_sd, (seeds, 1)) + rng.normal(0, 0.05, 251)
    noise_SP = rng.normal(0, 0.1, (seeds, 251))
    return shared_SP + gain_SP + noise_SP, shared_SP


def test_pairing_takes_out_what_the_arms_share() -> None:
    first_SP, second_SP = arms(np.random.default_rng(0), gain=0.05, seed_sd=0.005)
    found = compare({8: cell(first_SP)}, {8: cell(second_SP)})[8]
    assert found.difference.value == pytest.approx((first_SP - second_SP).mean())
    low, high = found.difference.interval or (0, 0)
    low_alone, high_alone = estimate(cell(first_SP)).interval or (0, 0)
    assert high - low < 0.6 * (high_alone - low_alone)
    assert (found.seeds, found.patients) == (5, 251)


def test_the_tests_and_effect_sizes_are_over_patients() -> None:
    first_SP, second_SP = arms(np.random.default_rng(1), gain=0.01)
    found = compare({8: cell(first_SP)}, {8: cell(second_SP)})[8]
    differences_P = (first_SP - second_SP).mean(axis=0)
    assert found.p_wilcoxon == pytest.approx(stats.wilcoxon(differences_P).pvalue)
    assert found.standardised == pytest.approx(differences_P.mean() / differences_P.std(ddof=1))
    assert found.rank_biserial == rank_biserial(differences_P)


def test_only_the_bootstrap_tests_the_method_and_not_these_networks() -> None:
    """No true gain, but lucky seeds: the figures that `compare` documents."""
    rng = np.random.default_rng(0)
    pairs = [arms(rng) for _ in range(200)]
    found = [compare({1: cell(a)}, {1: cell(b)}, resamples=1000)[1] for a, b in pairs]
    fewest, most = stats.binom.interval(0.999, 200, [0.032, 0.375])
    assert fewest[0] <= sum((it.p_bootstrap or 0) < 0.05 for it in found) <= most[0]
    assert fewest[1] <= sum(it.p_wilcoxon < 0.05 for it in found) <= most[1]
    covered = [(it.difference.interval or (1, 1)) for it in found]
    assert sum(low <= 0 <= high for low, high in covered) >= stats.binom.ppf(0.001, 200, 0.95)


def test_the_p_value_agrees_with_the_interval() -> None:
    rng = np.random.default_rng(2)
    for gain in (0.0, 0.02, 0.04, 0.06):
        first_SP, second_SP = arms(rng, gain=gain)
        found = compare({8: cell(first_SP)}, {8: cell(second_SP)})[8]
        low, high = found.difference.interval or (0, 0)
        assert found.p_bootstrap is not None
        assert (found.p_bootstrap < 0.05) == (not low <= 0 <= high)


def test_holm_runs_over_the_label_counts_that_there_are() -> None:
    rng = np.random.default_rng(3)
    scores = {count: arms(rng, gain=0.03 / count) for count in (1, 2, 4, 8)}
    first = {count: cell(a) for count, (a, _) in scores.items() if count != 4}
    second = {count: cell(b) for count, (_, b) in scores.items()}
    found = compare(first, second)
    assert [*found] == [1, 2, 8]
    wilcoxon = holm({count: it.p_wilcoxon for count, it in found.items()})
    bootstrap = holm({count: it.p_bootstrap or 0 for count, it in found.items()})
    assert {count: it.p_wilcoxon_holm for count, it in found.items()} == wilcoxon
    assert {count: it.p_bootstrap_holm for count, it in found.items()} == bootstrap


def test_what_is_not_there_has_no_result() -> None:
    scores = cell([[0.5, 0.6, 0.8]])
    assert compare({}, {8: scores}) == {}
    assert compare({4: scores}, {8: scores}) == {}
    assert compare({8: scores}, {8: cell([[NAN, NAN, NAN]])}) == {}


def test_one_seed_has_a_difference_but_no_interval() -> None:
    found = compare({8: cell([[0.5, 0.7, 0.9]])}, {8: cell([[0.25, 0.5, 0.5]])})[8]
    assert found.difference.value == pytest.approx((0.25 + 0.2 + 0.4) / 3)
    assert found.difference.interval is None
    assert found.p_bootstrap is found.p_bootstrap_holm is None
    assert found.p_wilcoxon == found.p_wilcoxon_holm == 0.25


def test_a_count_waits_until_both_arms_have_one_seed_in_common() -> None:
    scores_SP = [[0.5, 0.6], [0.7, 0.8]]
    first = {1: cell(scores_SP), 2: cell(scores_SP)}
    second = {1: cell(scores_SP), 2: cell(scores_SP, seeds=(7, 8))}
    assert [*compare(first, second)] == [1]
    with pytest.raises(StudyError, match="no seed in common"):
        compare({2: first[2]}, {2: second[2]})


def test_arms_given_other_labelled_scans_are_refused() -> None:
    with pytest.raises(StudyError, match="different labelled scans for seed 0"):
        compare({8: cell([[0.5]])}, {8: cell([[0.5]], subsets=(("T9",),))})


def test_arms_that_are_the_same_differ_by_nothing() -> None:
    scores = {8: cell(np.random.default_rng(0).random((3, 9)))}
    found = compare(scores, scores)[8]
    assert (found.difference.value, found.difference.interval) == (0, (0, 0))
    assert found.p_bootstrap == found.p_wilcoxon == 1
    assert (found.rank_biserial, found.standardised) == (0, None)


def test_effect_sizes_by_hand() -> None:
    differences_P = np.array([1.0, 2.0, -3.0, 4.0, 0.0])
    assert rank_biserial(differences_P) == pytest.approx((1 + 2 - 3 + 4) / 10)
    assert rank_biserial(-np.abs(differences_P)) == -1
    assert standardised(np.array([1.0, 3.0])) == pytest.approx(2 / np.sqrt(2))
    assert standardised(np.array([1.0])) is None
    assert signed_rank(np.array([1.0, 2.0, 3.0, 4.0, 5.0, 0.0])) == pytest.approx(2 / 2**5)


def test_holm_by_hand() -> None:
    corrected = holm({1: 0.01, 2: 0.04, 4: 0.03, 8: 0.005})
    assert corrected == pytest.approx({1: 0.03, 2: 0.06, 4: 0.06, 8: 0.02})
    assert holm({1: 0.6, 2: 0.7}) == {1: 1, 2: 1}
    assert holm({}) == {}


@settings(deadline=None, max_examples=50)
@given(st.dictionaries(st.integers(1, 999), st.floats(0, 1), min_size=1, max_size=12))
def test_holm_lies_between_nothing_and_bonferroni_and_keeps_the_order(
    p_values: dict[int, float],
) -> None:
    corrected = holm(p_values)
    for count, p in p_values.items():
        assert p <= corrected[count] <= min(1, len(p_values) * p)
    ordered = sorted(p_values, key=lambda count: p_values[count])
    assert [corrected[count] for count in ordered] == sorted(corrected.values())
