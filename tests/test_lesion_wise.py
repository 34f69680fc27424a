"""Lesion by lesion: cases made by hand, the challenge's own code, and the plain definition."""

import math
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from fewscan.experiments import lesions as module
from fewscan.experiments.cases import Case, case_row, means
from fewscan.experiments.catalogue import computed
from fewscan.experiments.lesions import lesions_of, surroundings
from fewscan.experiments.measures import MEASURES, Masks
from fewscan.experiments.metrics import PixelScores
from fewscan.experiments.spec import Evaluation
from fewscan.storage.labels import LabelMeaning

SHAPE_ZHW = (30, 40, 36)
ONE_MM = (1.0, 1.0, 1.0)
UNEVEN_MM = (3.0, 1.5, 0.5)
GLIOMA = Evaluation(lesion_wise=True)
EVERY = np.ones((3, 3, 3), bool)
COUNTS = ("lesions_true", "lesions_found", "lesions_false")


def box(first_ZHW: tuple[int, int, int], size_ZHW: tuple[int, int, int]) -> np.ndarray:
    mask = np.zeros(SHAPE_ZHW, bool)
    mask[tuple(slice(a, a + n) for a, n in zip(first_ZHW, size_ZHW, strict=True))] = True
    return mask


NOTHING = np.zeros(SHAPE_ZHW, bool)
LARGE = box((4, 4, 4), (6, 6, 6))
NEAR = box((4, 4, 15), (4, 4, 4))  # five voxels beside it
FAR = box((4, 24, 4), (5, 5, 5))
SMALL = box((24, 34, 4), (3, 3, 3))  # 27 mm³
HALF = box((4, 4, 4), (6, 6, 3))
SPECK = box((24, 4, 30), (2, 2, 2))
BESIDE = box((4, 4, 12), (6, 6, 2))  # two voxels beside the large one
BOTH = box((4, 4, 4), (6, 25, 6))  # the large one, the far one and what is between

BY_HAND: dict[str, tuple[np.ndarray, np.ndarray, float, tuple[int, int, int]]] = {
    "all found": (LARGE | FAR, LARGE | FAR, 1.0, (2, 2, 0)),
    "near ones are one": (LARGE, LARGE | NEAR, 2 * 216 / (216 + 280), (1, 1, 0)),
    "one is missed": (LARGE, LARGE | FAR, 0.5, (2, 1, 0)),
    "half of it, and a false one": (HALF | SPECK, LARGE, (2 * 108 / 324 + 0) / 2, (1, 1, 1)),
    "a small one and its prediction": (LARGE | SMALL, LARGE | SMALL, 1.0, (1, 1, 0)),
    "what is beside it is not false": (BESIDE, LARGE, 0.0, (1, 0, 0)),
    "one for two": (BOTH, LARGE | FAR, (2 * 216 / 1116 + 2 * 125 / 1025) / 2, (2, 2, 0)),
    "a touched one is not found": (box((9, 9, 9), (4, 4, 4)), LARGE, 2 / 280, (1, 0, 0)),
}
"""Prediction, truth, lesion-wise Dice, and lesions: true, found, false.

Dice, and the number of true and false ones, are also what the code of the challenge says with its
dilation factor 3 and its threshold 50 (github.com/rachitsaluja/BraTS-2023-Metrics, commit
0c603fcc070c; with connected-components-3d 3.29.0 and scipy 1.17.1).
"""


@pytest.mark.parametrize("name", BY_HAND)
def test_a_case_made_by_hand(name: str) -> None:
    predicted, truth, dice, counts = BY_HAND[name]
    masks = Masks(predicted, truth, ONE_MM)
    assert MEASURES["lesion_dice"](masks, GLIOMA) == pytest.approx(dice, rel=1e-12)
    assert tuple(MEASURES[key](masks, GLIOMA) for key in COUNTS) == counts
    true, found, false = counts
    f1 = 2 * found / (2 * found + (true - found) + false)
    assert MEASURES["lesion_f1"](masks, GLIOMA) == pytest.approx(f1)


def test_f1_is_recognition_quality_where_lesions_are_apart() -> None:
    """panoptica 2.1.7 says 2, 1, 1 and 0.6667 of this, 1, 0, 0 and 1 of that, of the third 0:
    components by cc3d, matched many to one by an intersection over union of 0.1."""
    plain = Evaluation(lesion_wise=True, lesion_reach_mm=0.0, smallest_lesion_mm3=0.0)

    def numbers(predicted: np.ndarray, truth: np.ndarray) -> tuple[float, ...]:
        masks = Masks(predicted, truth, ONE_MM)
        return tuple(MEASURES[key](masks, plain) for key in (*COUNTS, "lesion_f1"))

    first, second = box((1, 1, 1), (4, 4, 4)), box((1, 10, 1), (4, 4, 4))
    missed, false = box((8, 1, 1), (3, 3, 3)), box((8, 15, 15), (3, 3, 3))
    half = box((1, 10, 1), (4, 4, 2))
    assert numbers(first | half | false, first | second | missed) == (3, 2, 1, pytest.approx(2 / 3))
    pieces = box((1, 1, 1), (4, 4, 1)) | box((1, 1, 3), (4, 4, 2))
    assert numbers(pieces, first) == (1, 1, 0, 1)
    assert numbers(first, box((4, 4, 4), (5, 5, 5)))[3] == 0


def test_an_overlap_of_exactly_the_share_is_enough() -> None:
    """3 of 30 voxels are 0.1, and 30 times 0.1 is more than 3."""
    truth, predicted = box((1, 1, 1), (1, 1, 30)), box((1, 1, 1), (1, 1, 3))
    evaluation = Evaluation(lesion_wise=True, smallest_lesion_mm3=0.0)
    assert MEASURES["lesions_found"](Masks(predicted, truth, ONE_MM), evaluation) == 1
    stricter = Evaluation(lesion_wise=True, smallest_lesion_mm3=0.0, lesion_iou=0.11)
    assert MEASURES["lesions_found"](Masks(predicted, truth, ONE_MM), stricter) == 0


def test_without_a_lesion_that_counts_a_scan_is_in_no_number_but_false_ones() -> None:
    """The truth alone decides, as for every metric."""
    keys = ("lesion_dice", "lesion_nsd", "lesion_f1", "lesions_found")
    for predicted, truth, false in ((SPECK, NOTHING, 1), (NOTHING, NOTHING, 0), (SPECK, SMALL, 1)):
        masks = Masks(predicted, truth, ONE_MM)
        assert all(math.isnan(MEASURES[key](masks, GLIOMA)) for key in keys)
        assert MEASURES["lesions_true"](masks, GLIOMA) == 0
        assert MEASURES["lesions_false"](masks, GLIOMA) == false
    missed = Masks(NOTHING, LARGE, ONE_MM)
    assert [MEASURES[key](missed, GLIOMA) for key in keys] == [0, 0, 0, 0]


def test_nsd_is_that_of_each_lesion_and_what_belongs_to_it() -> None:
    """In the box around both as in the whole scan."""
    shifted = np.roll(LARGE, 1, 2)
    masks = Masks(shifted | FAR | SPECK, LARGE | FAR, UNEVEN_MM)
    evaluation = Evaluation(nsd_tolerance_mm=0.4, lesion_wise=True, smallest_lesion_mm3=10.0)
    nsd = MEASURES["nsd"](Masks(shifted, LARGE, UNEVEN_MM), evaluation)
    assert 0 < nsd < 1
    assert MEASURES["lesion_nsd"](masks, evaluation) == pytest.approx((nsd + 1 + 0) / 3, rel=1e-6)


def test_all_numbers_share_what_was_found(monkeypatch: pytest.MonkeyPatch) -> None:
    find, asked = module._find, []
    monkeypatch.setattr(module, "_find", lambda *a: asked.append(a) or find(*a))
    case = Case("S", "P", PixelScores(), 1 * LARGE, 1 * LARGE, LARGE, LARGE, ONE_MM)
    row = case_row(case, "binary", LabelMeaning(("a",)), GLIOMA)
    keys = [it.key for it in computed(GLIOMA, "binary", False) if it.of_lesions]
    assert keys == [key for key in keys if f"{key}_lesion" in row]
    assert len(keys) == 6
    assert len(asked) == 1


@pytest.mark.parametrize("reach", [0, 1, 3])
def test_on_voxels_of_a_millimetre_surroundings_are_dilations(reach: int) -> None:
    """By the 18 neighbours, as often as the reach has millimetres."""
    mask = np.random.default_rng(reach).random((12, 13, 11)) < 0.004
    plain = mask.copy()
    if reach:
        by = ndimage.generate_binary_structure(3, 2)
        plain = ndimage.binary_dilation(mask, by, iterations=reach)
    assert (surroundings(mask, float(reach), ONE_MM) == plain).all()


def test_on_other_voxels_surroundings_are_as_wide_in_millimetres() -> None:
    mask = np.zeros((9, 11, 25), bool)
    mask[4, 5, 12] = True
    found = surroundings(mask, 3.0, UNEVEN_MM)
    for offset in product(range(-4, 5), range(-5, 6), range(-12, 13)):
        mm = [abs(n) * size for n, size in zip(offset, UNEVEN_MM, strict=True)]
        inside = max(mm) <= 3 and sum(mm) <= 6
        assert found[tuple(n + k for n, k in zip((4, 5, 12), offset, strict=True))] == inside


@settings(deadline=None, max_examples=40)
@given(
    st.integers(0, 2**31),
    st.floats(0.0, 0.2),
    st.sampled_from([0, 1, 2]),
    st.sampled_from([0.0, 3.0, 8.0]),
)
def test_dice_is_the_plain_definition(seed: int, share: float, reach: int, small: float) -> None:
    rng = np.random.default_rng(seed)
    truth, predicted = rng.random((2, 7, 9, 8)) < share
    evaluation = Evaluation(
        lesion_wise=True, lesion_reach_mm=float(reach), smallest_lesion_mm3=small
    )
    masks = Masks(predicted, truth, ONE_MM)
    dice, lesions, false = plain_definition(predicted, truth, reach, small)
    found = lesions_of(masks, evaluation)
    assert (len(found.sizes_L), found.false) == (lesions, false)
    own = MEASURES["lesion_dice"](masks, evaluation)
    assert own == pytest.approx(dice) if lesions else math.isnan(own)


def plain_definition(
    predicted: np.ndarray, truth: np.ndarray, reach: int, small: float
) -> tuple[float, int, int]:
    """Lesion by lesion in whole arrays, which is slow: Dice, lesions that count, false ones."""

    def dilated(mask: np.ndarray) -> np.ndarray:
        by = ndimage.generate_binary_structure(3, 2)
        wide = np.pad(mask, reach)
        return ndimage.binary_dilation(wide, by, iterations=reach) if reach else wide

    truth_, predicted_ = np.pad(truth, reach), np.pad(predicted, reach)
    groups, lesions = ndimage.label(dilated(truth), EVERY)
    components, parts = ndimage.label(predicted_, EVERY)
    dice, owned = [], set[int]()
    for number in range(1, lesions + 1):
        lesion = truth_ & (groups == number)
        inner = lesion[tuple(slice(reach, n - reach) for n in lesion.shape)] if reach else lesion
        mine = {*np.unique(components[dilated(inner)]).tolist()} - {0}
        owned |= mine
        if lesion.sum() > small:
            found = np.isin(components, [*mine])
            dice.append(2 * (found & lesion).sum() / (found.sum() + lesion.sum()))
    false = parts - len(owned)
    return (sum(dice) / (len(dice) + false) if dice else math.nan), len(dice), false


def test_organs_have_no_lesions_and_those_of_all_classes_are_one_more_structure() -> None:
    """The mean is over the classes that are lesions."""
    meaning = LabelMeaning(("liver", "core", "rim"), lesion=("core", "rim"))
    regions = (("tumour", ("core", "rim")), ("everything", ("liver", "core")))
    truth = (1 * SMALL + 2 * LARGE + 3 * FAR).astype(np.uint8)
    found = (1 * SMALL + 3 * LARGE + 3 * FAR).astype(np.uint8)
    case = Case("S", "P", PixelScores(), found, truth, truth > 1, found > 1, ONE_MM)
    row = case_row(case, "multiclass", meaning, GLIOMA, regions)
    said = {name: row[name] for name in row if name.startswith("lesion_dice_")}
    assert said == {
        "lesion_dice_core": 0,
        "lesion_dice_rim": 0.5,
        "lesion_dice_tumour": 1,
        "lesion_dice_lesion": 1,
    }
    found_means = means([row], "multiclass", meaning, GLIOMA, regions)
    assert found_means["class_lesion_dice_mean"] == 0.25
    assert found_means["patient_lesion_dice_lesion"] == 1
    assert "dice_liver" in row


def test_unless_they_are_asked_for_nothing_of_them_is_computed() -> None:
    case = Case("S", "P", PixelScores(), 1 * LARGE, 1 * LARGE, LARGE, LARGE, ONE_MM)
    row = case_row(case, "binary", LabelMeaning(("a",)), Evaluation())
    assert not [name for name in row if name.startswith(("lesion_d", "lesions_", "lesion_f"))]
    without = Evaluation(nsd_tolerance_mm=None, lesion_wise=True)
    assert "lesion_nsd_lesion" not in case_row(case, "binary", LabelMeaning(("a",)), without)
