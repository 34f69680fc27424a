"""NSD and HD95 against shapes whose surfaces are known, and what an empty mask gets."""

import importlib.util
import math

import numpy as np
import pytest

from fewscan.experiments.cases import Segmentation, case_row, to_csv
from fewscan.experiments.metrics import PixelScores
from fewscan.experiments.spec import Evaluation
from fewscan.experiments.surfaces import require_surfaces, surface_scores
from fewscan.storage.errors import RunError

SHAPE_ZHW = (24, 32, 28)
UNEVEN_MM = (3.0, 1.5, 0.5)
EMPTY = np.zeros(SHAPE_ZHW, bool)


def box(first_ZHW: tuple[int, int, int], size_ZHW: tuple[int, int, int]) -> np.ndarray:
    mask = EMPTY.copy()
    mask[tuple(slice(a, a + n) for a, n in zip(first_ZHW, size_ZHW, strict=True))] = True
    return mask


BOX = box((6, 8, 6), (8, 12, 10))


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
    """In neither: does not count. In one alone: 0, and infinitely far."""
    assert all(map(math.isnan, surface_scores(EMPTY, EMPTY, UNEVEN_MM, 2.0)))
    assert surface_scores(BOX, EMPTY, UNEVEN_MM, 2.0) == (0, math.inf)
    assert surface_scores(EMPTY, BOX, UNEVEN_MM, 2.0) == (0, math.inf)


def row_of(predicted: np.ndarray, truth: np.ndarray, tolerance_mm: float | None) -> dict[str, str]:
    classes = Segmentation(("a", "b", "c"), predicted, truth, UNEVEN_MM)
    lesion = Segmentation(("lesion",), predicted > 0, truth > 0, UNEVEN_MM)
    text = to_csv([case_row("P", PixelScores(), lesion, classes, tolerance_mm)]).decode()
    head, line = text.splitlines()
    return dict(zip(head.split(","), line.split(","), strict=True))


def test_the_rule_in_cases_csv() -> None:
    """Class a in both, b only predicted, c in neither."""
    truth = BOX.astype(np.uint8)
    predicted = truth + 2 * box((0, 0, 0), (2, 2, 2)).astype(np.uint8)
    row = row_of(predicted, truth, 1.0)
    assert [row[f"dice_{k}"] for k in "abc"] == ["1.0", "0.0", ""]
    assert [row[f"nsd_{k}"] for k in "abc"] == ["1.0", "0.0", ""]
    assert [row[f"hd95_mm_{k}"] for k in "abc"] == ["0.0", "inf", ""]


def test_volumes_are_voxels_in_cubic_millimetres() -> None:
    row = row_of(2 * BOX.astype(np.uint8), BOX.astype(np.uint8), None)
    voxels_mm3 = 8 * 12 * 10 * math.prod(UNEVEN_MM)
    assert [float(row[f"volume_mm3_{k}"]) for k in "abc"] == [0, voxels_mm3, 0]
    assert [float(row[f"true_volume_mm3_{k}"]) for k in "abc"] == [voxels_mm3, 0, 0]


def test_without_a_tolerance_there_are_no_surfaces() -> None:
    row = row_of(BOX.astype(np.uint8), BOX.astype(np.uint8), None)
    assert not [name for name in row if "nsd" in name or "hd95" in name]


def test_a_machine_without_monai_says_so_before_it_trains(monkeypatch: pytest.MonkeyPatch) -> None:
    require_surfaces(Evaluation())
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(RunError, match="pip install monai"):
        require_surfaces(Evaluation())
    require_surfaces(Evaluation(nsd_tolerance_mm=None))
