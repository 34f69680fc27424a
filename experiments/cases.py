"""The numbers of one test scan: a row of `cases.csv`. Which they are says `experiments.catalogue`.

Letters in names: Z slices of a scan, H and W rows and columns of a slice.
"""

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fewscan.experiments import surface_distance  # noqa: F401 (its measures register themselves)
from fewscan.experiments.catalogue import computed, structures
from fewscan.experiments.measures import MEASURES, Masks
from fewscan.experiments.metrics import PixelScores
from fewscan.experiments.spec import Evaluation, Target
from fewscan.storage.labels import LabelMeaning, Region, where_one_of

Row = dict[str, float | str]
"""Column → number; nan is one that is not defined."""


@dataclass(frozen=True)
class Case:
    """One test scan with what was found in it."""

    subject: str
    patient: str
    pixels: PixelScores
    """Of all its kept slices."""
    found_ZHW: np.ndarray | None
    """uint8: the classes, or 1 above the threshold; None where validation could choose none."""
    truth_ZHW: np.ndarray
    """uint8: the classes."""
    true_lesion_ZHW: np.ndarray
    """bool: those of them that are lesions."""
    lesion_ZHW: np.ndarray | None
    """bool: what scores above the threshold."""
    spacing_mm_ZHW: tuple[float, float, float]
    """Of the slices."""
    scan: "OnScan | None" = None
    """None: the store keeps no labels on the scan's own grid."""


@dataclass(frozen=True)
class OnScan:
    """The same on the scan's own grid, all slices of it."""

    found_ZHW: np.ndarray | None
    """uint8, as of the case."""
    truth_ZHW: np.ndarray
    """uint8: the classes."""
    true_lesion_ZHW: np.ndarray
    """bool: those of them that are lesions."""
    spacing_mm_ZHW: tuple[float, float, float]


def case_row(
    case: Case,
    target: Target,
    meaning: LabelMeaning,
    evaluation: Evaluation,
    regions: Sequence[Region] = (),
) -> Row:
    """The row of one scan."""
    row: Row = {
        "subject": case.subject,
        "patient": case.patient,
        "pixels": case.pixels.pixels,
        "lesion_pixels": case.pixels.positives,
    }
    for metric in computed(evaluation, target, case.scan is not None):
        if metric.scope == "patient":
            row[metric.column()] = PATIENT[metric.key](case)
        elif metric.scope == "structure" and case.found_ZHW is not None:
            grid = case.scan if case.scan is not None and metric.grid == "scan" else case
            members = dict(regions)
            row |= {
                metric.column(name): MEASURES[metric.key](
                    _masks(grid, target, meaning.values_of(members.get(name, (name,)))), evaluation
                )
                for name in structures(target, meaning.classes, regions)
            }
    return row


def _masks(grid: Case | OnScan, target: Target, labels: Sequence[int]) -> Masks:
    assert grid.found_ZHW is not None
    if target == "binary":
        return Masks(grid.found_ZHW == 1, grid.true_lesion_ZHW, grid.spacing_mm_ZHW)
    found_ZHW, truth_ZHW = (where_one_of(it, labels) for it in (grid.found_ZHW, grid.truth_ZHW))
    return Masks(found_ZHW, truth_ZHW, grid.spacing_mm_ZHW)


def _dice_at_threshold(case: Case) -> float:
    if case.lesion_ZHW is None:
        return math.nan
    masks = Masks(case.lesion_ZHW, case.true_lesion_ZHW, case.spacing_mm_ZHW)
    return MEASURES["dice"](masks, Evaluation())


PATIENT = {
    "ap": lambda case: case.pixels.average_precision(),
    "dice_at_chosen_threshold": _dice_at_threshold,
}
"""Metric of patients → its computation."""


def means(
    rows: Sequence[Row],
    target: Target,
    classes: Sequence[str],
    evaluation: Evaluation,
    regions: Sequence[Region] = (),
    scan_labels: bool = False,
) -> dict[str, float]:
    """Means over patients, each the mean over its scans; of classes also the mean over them.

    `scan_labels`: whether the rows have numbers at the scans' own resolution.
    A number that is not defined for a scan is left out; nan if that leaves none.
    """
    found: dict[str, float] = {}
    for metric in computed(evaluation, target, scan_labels):
        if metric.compared != "difference" or metric.scope == "pooled":
            continue
        of_structures = metric.scope == "structure"
        names = structures(target, classes, regions) if of_structures else ("",)
        each = {n: mean_over_patients(rows, metric.column(n)) for n in names}
        if of_structures and target == "multiclass":
            found[metric.result_key()] = mean_defined(np.array([each[name] for name in classes]))
        found |= {metric.result_key(name): value for name, value in each.items()}
    return found


def mean_over_patients(rows: Sequence[Row], column: str) -> float:
    """Of the means over each patient's scans; nan if it is defined for none."""
    scans: dict[str, list[float]] = {}
    for row in rows:
        scans.setdefault(str(row["patient"]), []).append(float(row.get(column, math.nan)))
    return mean_defined(np.array([mean_defined(np.array(values)) for values in scans.values()]))


def mean_defined(values: np.ndarray) -> float:
    """Mean over what is defined; nan if nothing is."""
    return float(np.nanmean(values)) if not np.isnan(values).all() else math.nan


def to_csv(rows: Sequence[Row]) -> bytes:
    """One row a scan; an empty field is a number that is not defined for it."""
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows({k: "" if v != v else v for k, v in row.items()} for row in rows)
    return text.getvalue().encode()
