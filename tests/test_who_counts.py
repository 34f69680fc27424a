"""Whose scores are compared: the truth decides, so that it is the same patients for every arm."""

from pathlib import Path

import numpy as np
import pytest

from fewscan.experiments.cases import Case, case_row, means, to_csv
from fewscan.experiments.metrics import PixelScores
from fewscan.experiments.spec import Evaluation
from fewscan.harness.report.bootstrap import mean
from fewscan.harness.report.cells import Cell, difference
from fewscan.harness.report.comparison import compare
from fewscan.harness.report.evidence import quartiles
from fewscan.harness.report.results import read_patients
from fewscan.storage.labels import LabelMeaning

EVALUATION = Evaluation(nsd_tolerance_mm=None)
CLASSES = ("a", "b")
WITH, WITHOUT = 16, 4
"""Patients who have class b, and who do not."""
VOXELS = 1000
SPACING_MM = (2.0, 1.0, 1.0)


def predicted(patient: int, inventive: bool) -> np.ndarray:
    """Where b is found: in a growing part of where it is, and where it is not if inventive.

    The inventive arm finds 20 voxels more of what is there.
    """
    found = np.zeros(VOXELS, np.uint8)
    if patient < WITH:
        found[: 400 + 10 * patient + 20 * inventive] = 2
    elif inventive:
        found[:50] = 2
    return found.reshape(1, 25, 40)


def patients_of(folder: Path, inventive: bool) -> dict[str, dict[str, float]]:
    """As the report reads them from the cases that scoring writes."""
    rows = []
    for patient in range(WITH + WITHOUT):
        found_ZHW = predicted(patient, inventive)
        truth = np.ones(VOXELS, np.uint8)
        truth[: 800 if patient < WITH else 0] = 2
        truth_ZHW = truth.reshape(found_ZHW.shape)
        case = Case(
            f"S{patient:02d}",
            f"P{patient:02d}",
            PixelScores(),
            found_ZHW,
            truth_ZHW,
            truth_ZHW > 0,
            None,
            SPACING_MM,
        )
        rows.append(case_row(case, "multiclass", LabelMeaning(CLASSES), EVALUATION))
    path = folder / f"{inventive}.csv"
    path.write_bytes(to_csv(rows))
    found = read_patients(path)
    whole = means(rows, "multiclass", LabelMeaning(CLASSES), EVALUATION)["class_dice/b"]
    assert whole == pytest.approx(np.nanmean([it["dice_b"] for it in found.values()]))
    return found


def cell_of(patients: dict[str, dict[str, float]], column: str) -> Cell:
    scores_SP = np.array([[it[column] for it in patients.values()]] * 2)
    subsets = (("T0",), ("T1",))
    return Cell(column, (0, 1), tuple(patients), subsets, scores_SP)


def test_inventing_a_class_takes_no_patient_out_of_the_comparison(tmp_path: Path) -> None:
    """One arm finds more of class b, and invents it where it is not; both count who has it.

    Once the inventions were 0 for their own arm and undefined for the other, so that the inventive
    arm had the lower mean (0.579 against 0.704) and the higher paired difference.
    """
    inventive, sober = (patients_of(tmp_path, it) for it in (True, False))
    first, second = cell_of(inventive, "dice_b"), cell_of(sober, "dice_b")
    there = [f"P{n:02d}" for n in range(WITH)]
    for cell in (first, second, difference(first, second)):
        assert list(cell.defined().patients) == there
    found = compare({4: first}, {4: second})[4]
    of_means = (mean(first) or 0) - (mean(second) or 0)
    assert found.patients == WITH
    assert found.difference.value == pytest.approx(of_means, abs=1e-12)
    assert found.difference.value is not None
    assert found.difference.value > 0


def test_what_is_invented_is_a_number_of_its_own(tmp_path: Path) -> None:
    for inventive, expected_mm3 in ((True, 100.0), (False, 0.0)):
        cell = cell_of(patients_of(tmp_path, inventive), "false_positive_mm3_b").defined()
        assert len(cell.patients) == WITHOUT
        found = quartiles(cell.scores_SP)
        assert (found.lower, found.median, found.upper) == (expected_mm3,) * 3
        nobody = cell_of(patients_of(tmp_path, inventive), "false_positive_mm3_a").defined()
        assert len(nobody.patients) == 0, "all have some of class a"
