"""When an adaptive sweep looks, what it may err with, and where its seeds go."""

from collections.abc import Mapping

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fewscan.harness.looks import planned_looks
from fewscan.harness.report.comparison import log_weights
from fewscan.harness.seed_allocation import grown

COUNTS = (1, 2, 4, 8, 16)


@given(st.integers(2, 40), st.integers(1, 200))
def test_looks_spend_five_per_cent_and_late_ones_most(first: int, more: int) -> None:
    looks = planned_looks(first, first + more)
    seeds, errors = [it.seeds for it in looks], [it.error for it in looks]
    assert (seeds[0], seeds[-1]) == (first, first + more)
    assert seeds == sorted(set(seeds))
    assert sum(errors) == pytest.approx(0.05)
    assert errors == sorted(errors)
    assert [it.number for it in looks] == [*range(1, looks[-1].of + 1)]
    assert [it.is_last for it in looks] == [False] * (len(looks) - 1) + [True]


def test_seeds_grow_by_about_a_half_from_look_to_look() -> None:
    assert [it.seeds for it in planned_looks(3, 10)] == [3, 4, 7, 10]
    assert [it.seeds for it in planned_looks(5, 20)] == [5, 8, 13, 20]


def one_each(found: Mapping[int, int], count: int) -> float:
    return 1.0


def test_the_ends_of_the_curve_weigh_half_and_get_their_seeds_later() -> None:
    found = grown(dict.fromkeys(COUNTS, 2), 3, one_each, most=9)
    assert found == {1: 2, 2: 3, 4: 3, 8: 3, 16: 2}


@pytest.mark.parametrize("budget", [7, 18, 40])
def test_the_variance_is_the_least_that_the_budget_buys(budget: int) -> None:
    """Of all single exchanges none makes it smaller."""
    weights = log_weights([*COUNTS])
    found = grown(dict.fromkeys(COUNTS, 2), budget, one_each, most=100)
    n = np.array([found[count] for count in COUNTS], dtype=float)
    assert n.sum() == budget + 2 * len(COUNTS)
    least = np.sum(weights**2 / n)
    for giver in np.flatnonzero(n > 2):
        for taker in range(len(n)):
            other = n.copy()
            other[giver] -= 1
            other[taker] += 1
            assert np.sum(weights**2 / other) >= least - 1e-12


def test_a_seed_that_needs_a_pretraining_is_used_at_all_label_counts_before_the_next() -> None:
    def price(found: Mapping[int, int], count: int) -> float:
        return 1.0 + 20.0 * (found[count] == max(found.values()))

    assert set(grown(dict.fromkeys(COUNTS, 3), 25, price, most=9).values()) == {4}


def test_nothing_is_bought_beyond_the_budget_or_the_most() -> None:
    start = dict.fromkeys(COUNTS, 3)
    assert grown(start, 0.9, one_each, most=9) == start
    assert grown(start, 1e9, one_each, most=5) == dict.fromkeys(COUNTS, 5)


def test_what_is_there_already_is_taken_for_nothing() -> None:
    found = grown({1: 3, 2: 3}, 0.0, lambda found, count: float(count == 1), most=4)
    assert found == {1: 3, 2: 4}
