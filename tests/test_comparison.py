"""Differences are paired, tested and corrected; missing cells stay missing."""

from dataclasses import replace

import numpy as np
import pytest
from fake_scores import cell
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from fewscan.harness.report.bootstrap import estimate
from fewscan.harness.report.comparison import (
    Branch,
    area,
    compare,
    corrected,
    holm,
    log_weights,
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


def test_the_effect_size_is_over_patients() -> None:
    first_SP, second_SP = arms(np.random.default_rng(1), gain=0.01)
    found = compare({8: cell(first_SP)}, {8: cell(second_SP)})[8]
    differences_P = (first_SP - second_SP).mean(axis=0)
    assert found.standardised == pytest.approx(differences_P.mean() / differences_P.std(ddof=1))


def test_p_is_about_the_method_and_not_about_these_networks() -> None:
    """No true gain, but lucky seeds: the figure that `compare` documents."""
    rng = np.random.default_rng(0)
    pairs = [arms(rng) for _ in range(200)]
    found = [compare({1: cell(a)}, {1: cell(b)}, resamples=1000)[1] for a, b in pairs]
    fewest, most = stats.binom.interval(0.999, 200, 0.032)
    assert fewest <= sum((it.p or 0) < 0.05 for it in found) <= most
    covered = [(it.difference.interval or (1, 1)) for it in found]
    assert sum(low <= 0 <= high for low, high in covered) >= stats.binom.ppf(0.001, 200, 0.95)


def test_the_p_value_agrees_with_the_interval() -> None:
    rng = np.random.default_rng(2)
    for gain in (0.0, 0.02, 0.04, 0.06):
        first_SP, second_SP = arms(rng, gain=gain)
        found = compare({8: cell(first_SP)}, {8: cell(second_SP)})[8]
        low, high = found.difference.interval or (0, 0)
        assert found.p is not None
        assert (found.p < 0.05) == (not low <= 0 <= high)


def test_there_is_a_result_for_the_label_counts_that_both_have() -> None:
    rng = np.random.default_rng(3)
    scores = {count: arms(rng, gain=0.03 / count) for count in (1, 2, 4, 8)}
    first = {count: cell(a) for count, (a, _) in scores.items() if count != 4}
    second = {count: cell(b) for count, (_, b) in scores.items()}
    assert [*compare(first, second)] == [1, 2, 8]
    found = area(first, second)
    assert found is not None
    assert found.counts == (1, 2, 8)


def test_what_is_not_there_has_no_result() -> None:
    scores = cell([[0.5, 0.6, 0.8]])
    assert compare({}, {8: scores}) == {}
    assert compare({4: scores}, {8: scores}) == {}
    assert compare({8: scores}, {8: cell([[NAN, NAN, NAN]])}) == {}


def test_one_seed_has_a_difference_but_no_interval() -> None:
    found = compare({8: cell([[0.5, 0.7, 0.9]])}, {8: cell([[0.25, 0.5, 0.5]])})[8]
    assert found.difference.value == pytest.approx((0.25 + 0.2 + 0.4) / 3)
    assert found.difference.interval is None
    assert found.p is found.p_corrected is None


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
    assert found.p == 1
    assert found.standardised is None


def test_the_effect_size_by_hand() -> None:
    assert standardised(np.array([1.0, 3.0])) == pytest.approx(2 / np.sqrt(2))
    assert standardised(np.array([1.0])) is None


def test_a_constant_difference_has_no_effect_size() -> None:
    """Its standard deviation is a matter of rounding: once 10¹⁵ was reported."""
    hard_P = np.random.default_rng(0).random(50)
    differences_P = (hard_P + 0.1) - hard_P
    assert 0 < differences_P.std() < 1e-15
    assert standardised(differences_P) is None
    assert standardised(1e-6 * np.array([1.0, 3.0])) is not None


def test_the_area_is_the_mean_of_the_curve_over_the_logarithmic_axis() -> None:
    """Against an integral on a fine grid; every patient and seed the same."""
    counts, curve = (1, 3, 10, 938), (0.2, 0.5, 0.6, 0.8)
    scratch = {n: cell(np.full((2, 3), y)) for n, y in zip(counts, curve, strict=True)}
    grid = np.linspace(0, np.log(938), 200_001)
    expected = np.interp(grid, np.log(counts), curve)
    found = area(scratch)
    assert found is not None
    assert found.mean.value == pytest.approx(expected.mean(), abs=1e-5)
    assert (found.counts, found.reference, found.difference) == (counts, None, None)
    other = {n: cell(it.scores_SP + (n == 3) / 4) for n, it in scratch.items()}
    compared = area(other, scratch)
    assert compared is not None
    assert compared.reference == found.mean
    assert compared.difference is not None
    gain = log_weights(counts)[1] / 4
    assert compared.difference.value == pytest.approx(gain)
    assert compared.mean.value == pytest.approx(found.mean.value + gain)


@settings(deadline=None, max_examples=30)
@given(st.lists(st.integers(1, 2000), min_size=1, max_size=11, unique=True))
def test_the_weights_of_the_counts_sum_to_1(counts: list[int]) -> None:
    weights_K = log_weights(sorted(counts))
    assert weights_K.sum() == pytest.approx(1)
    assert (weights_K > 0).all()


def test_one_resampling_moves_the_whole_curve() -> None:
    """A seed that is lucky at all counts is one seed: the area is as uncertain as each count."""
    rng = np.random.default_rng(0)
    lucky_S1, hard_P = rng.normal(0, 0.1, (4, 1)), rng.normal(0, 0.2, 30)
    curve = {n: cell(0.5 + lucky_S1 + hard_P) for n in (1, 10, 100)}
    found, one = area(curve), estimate(curve[1])
    assert found is not None
    assert found.mean.interval == pytest.approx(one.interval)


def test_the_area_is_over_the_counts_with_enough_finished_runs() -> None:
    rng = np.random.default_rng(0)
    scores = {n: arms(rng, seeds=3, gain=0.1) for n in (1, 4, 16)}
    first = {n: cell(a) for n, (a, _) in scores.items()}
    second = {n: cell(b) for n, (_, b) in scores.items()}
    first[16] = cell(scores[16][0][:1])
    found = area(first, second)
    assert found is not None
    assert found.counts == (1, 4)
    two = area({n: first[n] for n in (1, 4)}, {n: second[n] for n in (1, 4)})
    assert found == two
    alone = {n: cell(a[:1]) for n, (a, _) in scores.items()}
    found = area(alone, second)
    assert found is not None
    assert found.counts == (1, 4, 16)
    assert found.difference is not None
    assert found.difference.interval is found.p is None
    assert area({}, second) is None


P_VALUES = st.floats(1e-6, 1)
BRANCHES = st.dictionaries(
    st.integers(0, 3),
    st.builds(Branch, P_VALUES, st.dictionaries(st.integers(1, 3), P_VALUES, max_size=3)),
    min_size=1,
    max_size=3,
)


def rejected_by_graph(branches: dict[int, Branch], level: float) -> set[tuple[int, int | None]]:
    """Bretz et al.'s algorithm 1, hypothesis by hypothesis, on a graph written down as a matrix."""
    names: list[tuple[int, int | None]] = []
    for key, it in branches.items():
        names += [(key, None), *((key, n) for n in it.counts)]
    p = {(k, n): branches[k].area if n is None else branches[k].counts[n] for k, n in names}
    weight = {name: (1 / len(branches) if name[1] is None else 0.0) for name in names}
    tiny = 1e-9
    edge = {a: dict.fromkeys(names, 0.0) for a in names}
    for a in names:
        mates = [b for b in names if b[0] == a[0] and b != a and b[1] is not None]
        others = [b for b in names if b[0] != a[0] and b[1] is None]
        for b in mates:
            edge[a][b] = (1 - tiny * bool(others)) / len(mates)
        for b in others:
            edge[a][b] = (tiny if mates else 1.0) / len(others)
    found: set[tuple[int, int | None]] = set()
    while True:
        left = [name for name in names if name not in found]
        hit = next((a for a in left if p[a] <= weight[a] * level * (1 + 1e-6)), None)
        if hit is None:
            return found
        found.add(hit)
        old = {a: dict(edge[a]) for a in names}
        left.remove(hit)
        for a in left:
            weight[a] += weight[hit] * old[hit][a]
            for b in left:
                loop = old[a][hit] * old[hit][a]
                new = (old[a][b] + old[a][hit] * old[hit][b]) / (1 - loop) if loop < 1 else 0.0
                edge[a][b] = new if a != b else 0.0


@settings(deadline=None, max_examples=200)
@given(BRANCHES, st.floats(0.001, 0.9))
def test_the_correction_is_the_graphical_procedure(
    branches: dict[int, Branch], level: float
) -> None:
    """What is below a level is what the published algorithm rejects at that level."""
    found = corrected(branches)
    flat = {(k, n): p for k, it in found.items() for n, p in it.counts.items()}
    flat |= {(k, None): it.area for k, it in found.items()}
    if any(abs(p - level) < 1e-4 * level for p in flat.values()):
        return
    assert {name for name, p in flat.items() if p < level} == rejected_by_graph(branches, level)


def test_the_correction_by_hand() -> None:
    """Two comparisons: the first is wholly decided, and hands its share to the second."""
    branches = {
        "a": Branch(0.001, {1: 0.01, 4: 0.002}),
        "b": Branch(0.03, {1: 0.0001, 4: 0.2}),
    }
    found = corrected(branches)
    assert found["a"].area == pytest.approx(0.002)
    assert found["a"].counts == pytest.approx({1: 0.02, 4: 0.008})
    assert found["b"].area == pytest.approx(0.03)
    assert found["b"].counts == pytest.approx({1: 0.03, 4: 0.2})
    assert corrected({"a": Branch(0.04, {1: 0.001})})["a"].counts == {1: 0.04}
    assert corrected({}) == {}


def test_without_label_counts_the_correction_is_holms() -> None:
    p_values = {1: 0.01, 2: 0.04, 4: 0.03, 8: 0.005}
    found = corrected({key: Branch(p, {}) for key, p in p_values.items()})
    assert {key: it.area for key, it in found.items()} == pytest.approx(holm(p_values))


def test_seeds_of_one_pretraining_are_one_unit_in_a_difference() -> None:
    """Three pre-trainings for six seeds: the interval is Student's with two degrees of freedom."""
    luck_S1 = np.repeat([[0.1], [0.25], [0.35]], 2, axis=0)
    start = tuple(frozenset({("denoise", seed // 2)}) for seed in range(6))
    scratch = cell(np.full((6, 30), 0.5))
    other = replace(cell(0.5 + luck_S1 + np.zeros(30)), pretrainings=start)
    found = compare({1: other}, {1: scratch})[1].difference
    of_three = compare(
        {1: cell(0.5 + luck_S1[::2] + np.zeros(30))}, {1: cell(np.full((3, 30), 0.5))}
    )
    assert found.value == pytest.approx(0.7 / 3)
    assert found.interval == pytest.approx(of_three[1].difference.interval)


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
