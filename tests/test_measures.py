"""What is measured of one structure: Dice and volumes, against the plain formulas."""

import math

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from fewscan.experiments import cases  # noqa: F401 (so that all measures are registered)
from fewscan.experiments.catalogue import CATALOGUE
from fewscan.experiments.measures import MEASURES, Masks
from fewscan.experiments.spec import Evaluation

UNEVEN_MM = (3.0, 1.5, 0.5)
EVALUATION = Evaluation()
PAIRS = st.lists(st.tuples(st.booleans(), st.booleans()), min_size=8, max_size=8)


def masks_of(predicted: np.ndarray, truth: np.ndarray) -> Masks:
    return Masks(predicted, truth, UNEVEN_MM)


@settings(deadline=None, max_examples=25)
@given(PAIRS)
def test_dice_is_the_textbook_formula(pairs: list[tuple[bool, bool]]) -> None:
    found, there = np.array(pairs, bool).T.reshape(2, 2, 2, 2)
    dice = MEASURES["dice"](masks_of(found, there), EVALUATION)
    if there.any():
        assert dice == 2 * (found & there).sum() / (found.sum() + there.sum())
    else:
        assert math.isnan(dice)


def test_the_rule_for_empty_structures() -> None:
    """Not there: it does not count, whatever is predicted. Missed: Dice, NSD are 0, HD95 is ∞."""
    one, none = np.zeros((2, 3, 4), bool), np.zeros((2, 3, 4), bool)
    one[0, 1, 2] = True
    for key, missed in (("dice", 0.0), ("nsd", 0.0), ("hd95_mm", math.inf)):
        measure = MEASURES[key]
        assert math.isnan(measure(masks_of(none, none), EVALUATION)), key
        assert math.isnan(measure(masks_of(one, none), EVALUATION)), key
        assert measure(masks_of(none, one), EVALUATION) == missed, key


def test_false_positives_are_about_scans_without_the_structure_alone() -> None:
    one, two, none = (np.zeros((2, 3, 4), bool) for _ in range(3))
    one[0, 1, 2] = two[:, 1, 2] = True
    measure = MEASURES["false_positive_mm3"]
    assert measure(masks_of(two, none), EVALUATION) == 2 * math.prod(UNEVEN_MM)
    assert measure(masks_of(none, none), EVALUATION) == 0
    assert math.isnan(measure(masks_of(two, one), EVALUATION))
    assert math.isnan(measure(masks_of(none, one), EVALUATION))


def test_volumes_are_voxels_in_cubic_millimetres() -> None:
    predicted, truth = np.zeros((24, 32, 28), bool), np.zeros((24, 32, 28), bool)
    predicted[:8, :12, :10] = True
    truth[:2, :3, :5] = True
    masks, voxel_mm3 = masks_of(predicted, truth), math.prod(UNEVEN_MM)
    assert MEASURES["volume_mm3"](masks, EVALUATION) == 8 * 12 * 10 * voxel_mm3
    assert MEASURES["true_volume_mm3"](masks, EVALUATION) == 2 * 3 * 5 * voxel_mm3
    nothing = masks_of(np.zeros_like(predicted), truth)
    assert MEASURES["volume_mm3"](nothing, EVALUATION) == 0


def test_every_metric_of_structures_has_its_measure() -> None:
    wanted = {metric.key for metric in CATALOGUE if metric.scope == "structure"}
    assert set(MEASURES) == wanted
