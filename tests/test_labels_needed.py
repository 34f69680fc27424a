"""Labels needed for a score: interpolated where the curve was run, else by a power law or not."""

import math
from collections.abc import Callable

import numpy as np
import pytest
from fake_scores import cell

from benchmarks.simulated import SCRATCH, Design, simulate_study
from fewscan.harness.report.cells import Cell
from fewscan.harness.report.labels_needed import (
    FURTHEST,
    LabelsNeeded,
    Law,
    fit,
    labels_needed,
)
from fewscan.storage.errors import StudyError

COUNTS = (1, 2, 4, 8, 16, 32, 64)


def needed(
    curve: Callable[[int], float],
    score: float,
    counts: tuple[int, ...] = COUNTS,
    noise: float = 1e-4,
    seeds: int = 5,
) -> LabelsNeeded:
    """Of a curve that is known but for little noise of seeds and patients."""
    rng = np.random.default_rng(0)
    cells = {n: cell(curve(n) + noise * rng.standard_normal((seeds, 20))) for n in counts}
    found = labels_needed(cells, score, resamples=1000)
    assert found is not None
    return found


def by_law(n: float) -> float:
    return 1 - (0.5 * n**-0.4 + 0.2)


def by_logarithm(n: float) -> float:
    return 0.3 + 0.1 * math.log2(n)


def test_between_the_counts_it_is_the_first_crossing() -> None:
    found = needed(by_logarithm, 0.55)
    assert found.how == "interpolated"
    assert found.needed.value == pytest.approx(2**2.5, rel=1e-2)
    assert found.needed.interval == pytest.approx((2**2.5,) * 2, rel=1e-2)
    assert (found.searched, found.reason, found.curve) == ((1, 64), "", None)
    assert needed(by_logarithm, 0.2).needed.value == 1


@pytest.mark.parametrize("labels", [100, 200])
def test_beyond_the_counts_it_is_the_power_law(labels: int) -> None:
    found = needed(by_law, by_law(labels))
    assert found.how == "extrapolated"
    assert found.needed.value == pytest.approx(labels, rel=0.05)
    low, high = found.needed.interval or (0, 0)
    assert 64 <= low <= labels * 1.01
    assert labels <= high * 1.01 < FURTHEST * 64
    assert found.searched == (1, FURTHEST * 64)
    assert found.curve is not None
    assert (found.curve.counts[0], found.curve.counts[-1]) == pytest.approx((64, 256))
    scores = [by_law(n) for n in found.curve.counts]
    np.testing.assert_allclose(found.curve.scores, scores, atol=2e-3)
    assert np.all(np.array(found.curve.low) <= np.array(found.curve.scores))
    assert np.all(np.array(found.curve.scores) <= np.array(found.curve.high))


@pytest.mark.parametrize(
    ("curve", "score", "counts", "seeds", "reason"),
    [
        (by_law, by_law(100), (1, 8, 64), 5, "takes 4 label counts, and there are 3"),
        (by_law, by_law(100), COUNTS, 1, "takes two seeds and two patients"),
        (lambda n: 0.5, 0.6, COUNTS, 5, "not shown to rise"),
        (lambda n: 0.7 - 0.01 * n, 0.8, COUNTS, 5, "not shown to rise"),
        (by_law, by_law(400), COUNTS, 5, "beyond 256, 4 times the most"),
        (by_law, 0.81, COUNTS, 5, "beyond 256, 4 times the most"),
        (lambda n: 0.3 + 0.4 * (n > 8), 0.75, COUNTS, 5, "no power law fits"),
        (lambda n: by_law(n) - 0.05 * (n == 64), 0.75, COUNTS, 5, "power law"),
    ],
)
def test_what_the_data_do_not_carry_is_refused(
    curve: Callable[[int], float], score: float, counts: tuple[int, ...], seeds: int, reason: str
) -> None:
    found = needed(curve, score, counts, seeds=seeds)
    assert (found.how, found.needed.value, found.curve) == ("not reached", math.inf, None)
    assert reason in found.reason
    assert found.searched == (counts[0], counts[-1])


def test_an_interval_that_has_no_end_is_refused_and_still_says_at_least() -> None:
    found = needed(by_law, by_law(100), noise=0.2)
    assert found.how == "not reached"
    assert "ends beyond 256" in found.reason
    assert found.needed.interval is not None
    assert found.needed.interval[0] < 64
    assert found.needed.interval[1] == math.inf


def test_without_cells_there_is_nothing_and_other_patients_are_refused() -> None:
    assert labels_needed({}, 0.5) is None
    assert labels_needed({1: cell(np.full((2, 3), np.nan))}, 0.5) is None
    with pytest.raises(StudyError, match="different test patients"):
        labels_needed({1: cell(np.zeros((2, 3))), 2: cell(np.zeros((2, 4)))}, 0.5)


def test_the_fit_is_the_best_of_all_power_laws() -> None:
    """No other a ≥ 0, b, c ≥ 0 is nearer, tried on a grid; a law itself is found again."""
    counts_K, rng = np.array(COUNTS), np.random.default_rng(0)
    true_K = 0.5 * counts_K**-0.4 + 0.2
    errors_BK = np.stack([true_K, true_K + rng.normal(0, 0.05, 7), 0.5 - true_K, 0.6 / counts_K])
    found = fit(counts_K, errors_BK)
    fitted_BK = found.errors(counts_K)
    np.testing.assert_allclose(fitted_BK[0], true_K, atol=2e-3)
    assert found.c_B.min() >= 0
    assert found.a_B.min() >= 0
    squares_B = ((fitted_BK - errors_BK) ** 2).sum(axis=1)
    for a in np.linspace(0, 1, 21):
        for b in (0.1, 0.3, 0.5, 0.8, 1.2, 1.9):
            for c in np.linspace(0, 0.5, 11):
                other_K = a * counts_K**-b + c
                assert np.all(squares_B <= ((other_K - errors_BK) ** 2).sum(axis=1) + 1e-3)


def test_a_law_says_at_how_many_labels_its_error_falls_to_a_value() -> None:
    law = Law(np.array([0.5, 0.5, 0.0]), np.array([0.4, 0.4, 1.0]), np.array([0.2, 0.3, 0.1]), 2)
    counts_B = law.counts(0.25)
    assert counts_B[0] == pytest.approx(2 * 10**2.5)
    assert law.errors([counts_B[0]])[0, 0] == pytest.approx(0.25)
    assert counts_B[1] == counts_B[2] == math.inf


def simulated(
    curve: Callable[[int], float], counts: tuple[int, ...], number: int
) -> dict[int, Cell]:
    design = Design({SCRATCH: {n: curve(n) for n in counts}}, patients=60)
    return simulate_study(design, np.random.default_rng((4, number)))[SCRATCH]


def holds(found: LabelsNeeded | None, labels: float) -> bool:
    """Whether the interval does; "more than were run" is one from there on."""
    assert found is not None
    low, high = found.needed.interval or (math.nan, math.nan)
    return min(low, found.searched[1]) <= labels * (1 + 1e-9) and labels <= high


@pytest.mark.parametrize("labels", [20, 90, 150])
def test_the_interval_holds_the_true_labels_as_often_as_it_says(labels: int) -> None:
    """Within the counts and beyond them."""
    held = [
        holds(labels_needed(simulated(by_law, COUNTS, n), by_law(labels), resamples=600), labels)
        for n in range(100)
    ]
    assert np.mean(held) >= 0.91


def test_what_is_said_without_the_last_counts_agrees_with_them() -> None:
    """Scores that the whole curve reaches at 24 and 48, asked of a curve that ends at 16."""
    said, held = 0, []
    for number in range(60):
        cells = simulated(by_law, (1, 2, 4, 8, 16, 32, 64), number)
        short = {n: it for n, it in cells.items() if n <= 16}
        for labels in (24, 48):
            found = labels_needed(short, by_law(labels), resamples=600)
            assert found is not None
            said += found.how == "extrapolated"
            held.append(holds(found, labels))
    assert np.mean(held) >= 0.91
    assert said > 0
