"""NSD and HD95 against shapes whose surfaces are known, and what an empty mask gets."""

import importlib.util
import math

import numpy as np
import pytest

from fewscan.experiments.measures import MEASURES, Masks
from fewscan.experiments.spec import Evaluation
from fewscan.experiments.surface_distance import require_surface_distances
from fewscan.storage.errors import RunError

SHAPE_ZHW = (24, 32, 28)
UNEVEN_MM = (3.0, 1.5, 0.5)
EMPTY = np.zeros(SHAPE_ZHW, bool)


def box(first_ZHW: tuple[int, int, int], size_ZHW: tuple[int, int, int]) -> np.ndarray:
    mask = EMPTY.copy()
    mask[tuple(slice(a, a + n) for a, n in zip(first_ZHW, size_ZHW, strict=True))] = True
    return mask


BOX = box((6, 8, 6), (8, 12, 10))


def surface_scores(
    predicted: np.ndarray,
    truth: np.ndarray,
    spacing_mm: tuple[float, float, float],
    tolerance_mm: float,
) -> tuple[float, float]:
    """NSD and HD95, as scoring asks for them."""
    masks, evaluation = Masks(predicted, truth, spacing_mm), Evaluation(0, tolerance_mm)
    return MEASURES["nsd"](masks, evaluation), MEASURES["hd95_mm"](masks, evaluation)


@pytest.mark.parametrize("axis", range(3))
def test_a_shift_is_measured_in_millimetres_of_its_axis(axis: int) -> None:
    """Two voxels along one axis: the two faces across it are that far apart, and none farther."""
    shifted = np.roll(BOX, 2, axis)
    shift_mm = 2 * UNEVEN_MM[axis]
    nsd, hd95 = surface_scores(shifted, BOX, UNEVEN_MM, tolerance_mm=shift_mm)
    assert nsd == 1
    assert hd95 == pytest.approx(shift_mm)
    nsd, _ = surface_scores(shifted, BOX, UNEVEN_MM, tolerance_mm=shift_mm * 0.9)
    assert 0 < nsd < 1


def test_nsd_is_the_share_of_the_area_within_the_tolerance() -> None:
    """Thin plates with one face in common; the other faces, half of the area, are 0.6 mm apart."""
    thin, thick = box((4, 1, 1), (2, 30, 26)), box((4, 1, 1), (4, 30, 26))
    spacing_mm = (0.3, 1.5, 1.5)
    nsd, hd95 = surface_scores(thick, thin, spacing_mm, tolerance_mm=0.4)
    assert nsd == pytest.approx(0.5, abs=0.04)  # the rims have some area too
    assert hd95 == pytest.approx(0.6)
    assert surface_scores(thick, thin, spacing_mm, tolerance_mm=0.61)[0] == 1


def test_equal_masks_agree_also_at_the_border_of_the_grid_and_in_a_single_slice() -> None:
    for mask in (BOX, box((0, 0, 0), (3, 32, 28)), BOX[8:9], box((5, 5, 5), (1, 1, 1))):
        assert surface_scores(mask, mask, UNEVEN_MM, tolerance_mm=0.0) == (1, 0)


def test_the_order_of_the_masks_does_not_matter() -> None:
    other = box((4, 10, 3), (9, 7, 12))
    there = surface_scores(other, BOX, UNEVEN_MM, 2.0)
    assert surface_scores(BOX, other, UNEVEN_MM, 2.0) == pytest.approx(there, rel=1e-6)


def test_empty_masks_follow_the_rule() -> None:
    """Not there: does not count, whatever is predicted. Missed: 0, and infinitely far."""
    assert all(map(math.isnan, surface_scores(EMPTY, EMPTY, UNEVEN_MM, 2.0)))
    assert all(map(math.isnan, surface_scores(BOX, EMPTY, UNEVEN_MM, 2.0)))
    assert surface_scores(EMPTY, BOX, UNEVEN_MM, 2.0) == (0, math.inf)


def test_a_machine_without_monai_says_so_before_it_trains(monkeypatch: pytest.MonkeyPatch) -> None:
    require_surface_distances(Evaluation())
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(RunError, match="pip install monai"):
        require_surface_distances(Evaluation())
    require_surface_distances(Evaluation(nsd_tolerance_mm=None))
