"""The numbers of one test patient: a row of `cases.csv`.

The rule for a class (or the whole lesion) that is empty in a patient: in neither prediction nor
truth, it does not count for the patient and the field is empty. Only predicted, or only true: Dice
and NSD are 0 and HD95 is infinite ("inf"). Nothing is put in the place of either.

Letters in names: K classes, Z slices of a scan, H and W rows and columns of a slice.
"""

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fewscan.experiments.metrics import PixelScores, class_dice
from fewscan.experiments.surfaces import surface_scores

LESION = "lesion"
"""All classes together, in the names of columns: of the mask at the validation threshold."""
DICE_AT_THRESHOLD = "dice_at_validation_threshold"

Row = dict[str, float | str]
"""Column → number; nan is one that is not defined."""


@dataclass(frozen=True)
class Segmentation:
    """A patient's predicted and true labels in 3D: uint8, 0 no lesion, k the k-th of `names`."""

    names: tuple[str, ...]
    predicted_ZHW: np.ndarray
    truth_ZHW: np.ndarray
    spacing_mm_ZHW: tuple[float, float, float]

    def dice_K(self) -> np.ndarray:
        """Dice of each class, by the rule for empty ones."""
        return class_dice(self.predicted_ZHW, self.truth_ZHW, range(1, len(self.names) + 1))

    def numbers(self, nsd_tolerance_mm: float | None) -> dict[str, float]:
        """Volumes, and with a tolerance the surfaces' agreement, by column."""
        found: dict[str, float] = {}
        voxel_mm3 = math.prod(self.spacing_mm_ZHW)
        for label, name in enumerate(self.names, start=1):
            predicted, truth = self.predicted_ZHW == label, self.truth_ZHW == label
            found[f"volume_mm3_{name}"] = float(predicted.sum() * voxel_mm3)
            found[f"true_volume_mm3_{name}"] = float(truth.sum() * voxel_mm3)
            if nsd_tolerance_mm is not None:
                nsd, hd95 = surface_scores(predicted, truth, self.spacing_mm_ZHW, nsd_tolerance_mm)
                found |= {f"nsd_{name}": nsd, f"hd95_mm_{name}": hd95}
        return found


def case_row(
    subject: str,
    pixels: PixelScores,
    lesion: Segmentation | None,
    classes: Segmentation | None,
    nsd_tolerance_mm: float | None,
) -> Row:
    """The row of one patient.

    `lesion` is the mask at the threshold that validation chose, None if it could choose none.
    `classes` are those of a model that knows classes; then volumes and surfaces are of them.
    """
    row: Row = {
        "subject": subject,
        "pixels": pixels.pixels,
        "lesion_pixels": pixels.positives,
        "ap": pixels.average_precision(),
        DICE_AT_THRESHOLD: math.nan if lesion is None else float(lesion.dice_K()[0]),
    }
    if classes is not None:
        dice_K = classes.dice_K()
        row |= {f"dice_{name}": float(dice_K[k]) for k, name in enumerate(classes.names)}
    measured = classes or lesion
    return row | (measured.numbers(nsd_tolerance_mm) if measured else {})


def to_csv(rows: Sequence[Row]) -> bytes:
    """One row a patient; an empty field is a number that is not defined for that patient."""
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows({k: "" if v != v else v for k, v in row.items()} for row in rows)
    return text.getvalue().encode()


def column(rows: Sequence[Row], name: str) -> np.ndarray:
    """One number of every patient."""
    return np.array([row[name] for row in rows], dtype=float)


def mean_defined(values: np.ndarray) -> float:
    """Mean over the patients for whom it is defined; nan if there are none."""
    return float(np.nanmean(values)) if not np.isnan(values).all() else math.nan
