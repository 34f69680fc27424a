"""Collapsed runs are found by a rule, and intervals allow for those that were not seen."""

import numpy as np
import pytest
from fake_scores import cell

from fewscan.harness.report.cells import Cell
from fewscan.harness.report.collapses import collapses
from fewscan.harness.report.comparison import area, compare, estimates


def runs(*scores: float) -> Cell:
    """A seed of each score, the same for all of 20 patients."""
    return cell(np.repeat(np.array(scores)[:, None], 20, axis=1))


def test_a_run_far_below_the_others_has_collapsed() -> None:
    found = collapses({1: runs(0.5, 0.049, 0.6), 4: runs(0.7, 0.071, 0.7)})
    assert found.seeds == {1: (1,), 4: ()}
    assert (found.count, found.runs, found.score) == (1, 6, pytest.approx(0.049))


def test_an_arm_that_learns_nothing_from_a_few_scans_has_not_collapsed_there() -> None:
    assert collapses({1: runs(0.01, 0.02, 0.01), 4: runs(0.7, 0.8, 0.7)}).count == 0


def test_most_runs_of_a_cell_may_have_collapsed() -> None:
    """The level is what the arm reaches with as many labels or fewer."""
    found = collapses({1: runs(0.5, 0.5, 0.5), 4: runs(0.01, 0.6, 0.01), 2: runs(0.0, 0.0, 0.0)})
    assert found.seeds == {1: (), 2: (0, 1, 2), 4: (0, 2)}
    assert found.levels == {1: 0.5, 2: 0.5, 4: 0.5}


def test_cells_without_a_score_are_stepped_over() -> None:
    nan = float("nan")
    found = collapses({1: runs(nan, nan), 2: runs(0.5, nan, 0.01)})
    assert (found.seeds, found.runs) == ({2: (2,)}, 2)
    assert collapses({}).count == 0


ARM = {1: runs(0.5, 0.52, 0.54), 4: runs(0.6, 0.0, 0.64), 16: runs(0.7, 0.72, 0.74)}
SCRATCH = {n: runs(0.5, 0.5, 0.5) for n in ARM}


def width(interval: tuple[float, float] | None) -> float:
    assert interval is not None
    return interval[1] - interval[0]


def test_intervals_are_wider_where_no_run_of_a_cell_has_collapsed_and_others_have() -> None:
    plain, aware = estimates(ARM), estimates(ARM, may_collapse=True)
    assert [it.value for it in plain.values()] == [it.value for it in aware.values()]
    for count in (1, 16):
        assert width(aware[count].interval) > 2 * width(plain[count].interval)
    assert width(aware[4].interval) == pytest.approx(width(plain[4].interval), rel=0.05)
    compared, alone = (compare(ARM, SCRATCH, may_collapse=it)[1] for it in (True, False))
    assert width(compared.difference.interval) > 2 * width(alone.difference.interval)
    swapped = compare(SCRATCH, ARM, may_collapse=True)[1]
    assert width(swapped.difference.interval) == pytest.approx(
        width(compared.difference.interval), rel=0.05
    )


def test_the_area_has_seen_most_of_them() -> None:
    """Five cells with one collapsed run of five each: as many as expected, and nothing to add."""
    curve = {2**n: runs(*np.roll([0.0, 0.6, 0.6, 0.6, 0.6], n)) for n in range(5)}
    plain, aware = area(curve), area(curve, may_collapse=True)
    assert plain is not None
    assert aware is not None
    assert 0.1 < width(plain.mean.interval) < width(aware.mean.interval) < 0.11


def test_without_a_collapsed_run_nothing_changes() -> None:
    curve = {1: runs(0.5, 0.52, 0.54), 4: runs(0.6, 0.5, 0.64)}
    assert estimates(curve, may_collapse=True) == estimates(curve)
    assert compare(curve, curve, may_collapse=True) == compare(curve, curve)
    assert area(curve, may_collapse=True) == area(curve)
