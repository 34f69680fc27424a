"""The numbers of one test scan: a row of `cases.csv`. Which they are says `experiments.catalogue`.

Letters in names: Z slices of a scan, H and W rows and columns of a slice.
"""

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from fewscan.experiments import lesions, surface_distance  # noqa: F401 (they register measures)
from fewscan.experiments.catalogue import LESION, Metric, computed
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
    before_ZHW: np.ndarray | None = None
    """uint8: what was found before post-processing; None: there is none."""


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
    wanted = computed(evaluation, target, case.scan is not None)
    numbers = _of_structures(case, wanted, target, meaning, evaluation, regions)
    for metric in wanted:
        if metric.scope == "patient":
            row[metric.column()] = PATIENT[metric.key](case)
        else:
            row |= numbers.get(metric.key, {})
    return row


def _of_structures(
    case: Case,
    wanted: Sequence[Metric],
    target: Target,
    meaning: LabelMeaning,
    evaluation: Evaluation,
    regions: Sequence[Region],
) -> dict[str, Row]:
    """Metric → column → number. Structure by structure, so that all metrics share its masks."""
    if case.found_ZHW is None:
        return {}
    each = {it: it.structures(target, meaning, regions) for it in wanted if it.scope == "structure"}
    found: dict[str, Row] = {
        metric.key: {metric.column(name): math.nan for name in names}
        for metric, names in each.items()
    }
    for name in dict.fromkeys(name for names in each.values() for name in names):
        labels, masks = _labels_of(name, meaning, regions), dict[str, Masks]()
        for metric in (it for it, names in each.items() if name in names):
            where = "before" if metric.before_postprocessing else metric.grid
            if where not in masks:
                masks[where] = _masks(_grid(case, where), target, labels)
            value = MEASURES[metric.key](masks[where], evaluation)
            found[metric.key][metric.column(name)] = value
    return found


def _labels_of(name: str, meaning: LabelMeaning, regions: Sequence[Region]) -> tuple[int, ...]:
    if name == LESION and name not in (*meaning.classes, *dict(regions)):
        return meaning.lesion_values
    return meaning.values_of(dict(regions).get(name, (name,)))


def _grid(case: Case, where: str) -> "Case | OnScan":
    if where == "before":
        return replace(case, found_ZHW=case.before_ZHW)
    return case.scan if case.scan is not None and where == "scan" else case


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
    meaning: LabelMeaning,
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
        names = metric.structures(target, meaning, regions) if of_structures else ("",)
        each = {n: mean_over_patients(rows, metric.column(n)) for n in names}
        if of_structures and target == "multiclass":
            classes = np.array([each[name] for name in metric.averaged(meaning)])
            found[metric.result_key()] = mean_defined(classes)
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
