"""Rows of cases.csv and their means: the rule for what is empty, patients before classes."""

import csv
import io
import math

import numpy as np
import pytest

from fewscan.experiments.cases import PATIENT, Case, Row, case_row, means, to_csv
from fewscan.experiments.catalogue import CATALOGUE
from fewscan.experiments.metrics import PixelScores
from fewscan.experiments.spec import Evaluation, Target
from fewscan.storage.labels import LabelMeaning

SHAPE_ZHW = (24, 32, 28)
UNEVEN_MM = (3.0, 1.5, 0.5)
CLASSES = ("a", "b", "c")
MEANING = LabelMeaning(CLASSES)
NAN = math.nan


def box(first_ZHW: tuple[int, int, int], size_ZHW: tuple[int, int, int]) -> np.ndarray:
    mask = np.zeros(SHAPE_ZHW, np.uint8)
    mask[tuple(slice(a, a + n) for a, n in zip(first_ZHW, size_ZHW, strict=True))] = 1
    return mask


BOX = box((6, 8, 6), (8, 12, 10))


def row_of(
    predicted: np.ndarray | None,
    truth: np.ndarray,
    tolerance_mm: float | None,
    target: Target = "multiclass",
) -> dict[str, str]:
    lesion = None if predicted is None else predicted > 0
    case = Case("S", "P", PixelScores(), predicted, truth, truth > 0, lesion, UNEVEN_MM)
    row = case_row(case, target, MEANING, Evaluation(nsd_tolerance_mm=tolerance_mm))
    (read,) = csv.DictReader(io.StringIO(to_csv([row]).decode()))
    return read


def test_the_rule_in_cases_csv() -> None:
    """Class a in both, b only predicted, c only true."""
    small, other = box((0, 0, 0), (2, 2, 2)), box((20, 0, 0), (2, 2, 2))
    row = row_of(BOX + 2 * small, BOX + 3 * other, 1.0)
    assert [row[f"dice_{k}"] for k in "abc"] == ["1.0", "", "0.0"]
    assert [row[f"nsd_{k}"] for k in "abc"] == ["1.0", "", "0.0"]
    assert [row[f"hd95_mm_{k}"] for k in "abc"] == ["0.0", "", "inf"]
    invented_mm3 = str(8 * math.prod(UNEVEN_MM))
    assert [row[f"false_positive_mm3_{k}"] for k in "abc"] == ["", invented_mm3, ""]


@pytest.mark.parametrize("target", ["binary", "multiclass"])
def test_a_patient_without_any_lesion_is_in_no_number_but_false_positives(target: Target) -> None:
    row = row_of(BOX, np.zeros_like(BOX), 1.0, target)
    said = {name for name, text in row.items() if text not in ("", "0", "0.0")}
    name = "lesion" if target == "binary" else "a"
    assert said == {"subject", "patient", f"volume_mm3_{name}", f"false_positive_mm3_{name}"}


def test_a_region_is_there_if_one_of_its_classes_is() -> None:
    """Its truth decides for it as theirs do for them; what it takes for another class is not it."""
    truth = 2 * BOX
    case = Case("S", "P", PixelScores(), BOX, truth, truth > 0, None, UNEVEN_MM)
    regions = (("both", ("a", "b")), ("rest", ("a", "c")))
    row = case_row(case, "multiclass", MEANING, Evaluation(), regions)
    assert (row["dice_both"], row["dice_b"]) == (1, 0)
    assert all(math.isnan(float(row[f"dice_{name}"])) for name in ("a", "rest"))
    assert row["false_positive_mm3_rest"] == row["volume_mm3_a"] != 0
    assert math.isnan(float(row["false_positive_mm3_both"]))


def test_volumes_are_voxels_in_cubic_millimetres() -> None:
    row = row_of(2 * BOX, BOX, None)
    voxels_mm3 = 8 * 12 * 10 * math.prod(UNEVEN_MM)
    assert [float(row[f"volume_mm3_{k}"]) for k in "abc"] == [0, voxels_mm3, 0]
    assert [float(row[f"true_volume_mm3_{k}"]) for k in "abc"] == [voxels_mm3, 0, 0]


def test_regions_are_scored_beside_classes_and_are_in_no_mean() -> None:
    both = BOX + 2 * box((0, 0, 0), (2, 2, 2))
    swapped = 2 * BOX + box((0, 0, 0), (2, 2, 2))
    case = Case("S", "P", PixelScores(), both, swapped, swapped > 0, None, UNEVEN_MM)
    regions = (("whole", ("a", "b")), ("rest", ("b", "c")))
    row = case_row(case, "multiclass", MEANING, Evaluation(), regions)
    assert (row["dice_a"], row["dice_b"], row["dice_whole"], row["dice_rest"]) == (0, 0, 1, 0)
    found = means([row], "multiclass", MEANING, Evaluation(), regions)
    assert (found["class_dice/whole"], found["class_dice_mean"]) == (1, 0)
    assert "dice_whole" not in case_row(case, "binary", MEANING, Evaluation(), regions)


def test_without_a_tolerance_there_are_no_surfaces() -> None:
    row = row_of(BOX, BOX, None)
    assert not [name for name in row if "nsd" in name or "hd95" in name]


def test_a_tolerance_of_nothing_is_a_tolerance() -> None:
    """0 mm was once taken for none."""
    row = row_of(BOX, BOX, 0.0)
    assert (row["nsd_a"], row["hd95_mm_a"]) == ("1.0", "0.0")


def test_a_binary_run_is_about_any_lesion() -> None:
    """Whatever the class of the truth; and there is no Dice of classes."""
    row = row_of(BOX, 3 * BOX, 1.0, "binary")
    assert (row["dice_at_chosen_threshold"], row["nsd_lesion"]) == ("1.0", "1.0")
    assert not [name for name in row if name.endswith(("_a", "_b", "_c"))]
    assert "dice_lesion" not in row


def test_dice_at_the_threshold_is_of_any_lesion_also_where_classes_are_known() -> None:
    """The wrong class at the right place: Dice of the classes is 0, of the lesion 1."""
    row = row_of(2 * BOX, BOX, None)
    assert (row["dice_a"], row["dice_b"]) == ("0.0", "")
    assert row["dice_at_chosen_threshold"] == "1.0"


def test_where_validation_could_choose_no_threshold_nothing_is_said_of_masks() -> None:
    row = row_of(None, BOX, 1.0, "binary")
    assert row["dice_at_chosen_threshold"] == ""
    assert not [name for name in row if "lesion" in name and name != "lesion_pixels"]


def test_a_row_says_whose_scan_it_is() -> None:
    pixels = PixelScores()
    pixels.update(np.array([0.5, 0.1, 0.2], np.float32), np.array([True, False, True]))
    case = Case("scan", "person", pixels, BOX, BOX, BOX > 0, BOX > 0, UNEVEN_MM)
    row = case_row(case, "multiclass", MEANING, Evaluation())
    assert (row["subject"], row["patient"]) == ("scan", "person")
    assert (row["pixels"], row["lesion_pixels"]) == (3, 2)
    assert row["ap"] == pixels.average_precision()


def rows_of(dice_PK: list[list[float]], patients: str) -> list[Row]:
    rows: list[Row] = []
    for n, (patient, values) in enumerate(zip(patients, dice_PK, strict=True)):
        rows.append({"subject": f"S{n}", "patient": patient, "ap": 0.5})
        rows[-1] |= {f"dice_{k}": value for k, value in zip(CLASSES, values, strict=True)}
    return rows


def means_of(dice_PK: list[list[float]], patients: str) -> dict[str, float]:
    return means(rows_of(dice_PK, patients), "multiclass", MEANING, Evaluation())


def test_mean_is_over_patients_first_and_ignores_what_was_not_there() -> None:
    dice_PK = [[0.2, 0.9, NAN], [0.4, NAN, NAN], [0.6, NAN, NAN]]
    found = means_of(dice_PK, "PQR")
    assert found["class_dice_mean"] == pytest.approx((0.4 + 0.9) / 2)
    assert found["class_dice/a"] == pytest.approx(0.4)
    assert found["class_dice/b"] == 0.9
    assert math.isnan(found["class_dice/c"])
    nowhere = means_of([[NAN] * 3, [NAN] * 3], "PQ")
    assert math.isnan(nowhere["class_dice_mean"])


def test_several_scans_of_a_patient_count_as_one_patient() -> None:
    """P's scans have 0.2 and 0.4 (and one without the class), Q's has 0.9."""
    found = means_of([[0.2, 1, 1], [0.4, 1, 1], [NAN, 1, 1], [0.9, 1, 1]], "PPPQ")
    assert found["class_dice/a"] == pytest.approx((0.3 + 0.9) / 2)


def test_numbers_of_patients_have_means_too_and_pooled_ones_have_none_here() -> None:
    rows = rows_of([[0.2, 0.9, NAN], [0.4, NAN, NAN]], "PQ")
    rows[1]["ap"] = 0.9
    found = means(rows, "multiclass", MEANING, Evaluation())
    assert found["patient_ap"] == pytest.approx(0.7)
    assert not [key for key in found if key.startswith("pooled")]


def test_a_binary_run_has_no_mean_over_classes() -> None:
    row: Row = {"patient": "P", "ap": 0.5, "dice_at_chosen_threshold": 0.4, "nsd_lesion": 0.3}
    found = means([row], "binary", MEANING, Evaluation())
    assert found == {
        "patient_ap": 0.5,
        "patient_dice_at_chosen_threshold": 0.4,
        "patient_nsd_lesion": 0.3,
    }


def test_what_may_be_infinite_has_no_mean() -> None:
    rows = rows_of([[0.2, 0.9, NAN]], "P")
    rows[0] |= {f"hd95_mm_{k}": math.inf for k in CLASSES}
    assert not [k for k in means(rows, "multiclass", MEANING, Evaluation()) if "hd95" in k]


def test_every_metric_of_patients_has_its_computation() -> None:
    assert set(PATIENT) == {metric.key for metric in CATALOGUE if metric.scope == "patient"}
