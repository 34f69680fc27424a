"""HD95 in numbers that bear infinity: quartiles over patients.

A class that is only predicted, or only true, is infinitely far from what is not there; one that is
in neither is left out. In the order of the patients infinity is the largest, so quartiles are exact
whatever a finite stand-in would have been. There is no mean, hence no difference of means and no
interval: the boundary metric that is compared is NSD.
"""

from dataclasses import dataclass

import numpy as np

from fewscan.harness.plan import Plan
from fewscan.harness.report.cases import Cases, collect, distances


@dataclass(frozen=True)
class DistanceRow:
    """HD95 of one cell, over its patients and seeds: a line of `distances.csv`."""

    target: str
    name: str
    """The class, or the lesion of a binary run."""
    arm: str
    label_count: int
    seeds: int
    values: int
    """Patients times seeds, without those that have the class in neither prediction nor truth."""
    lower_mm: float | None
    """Lower quartile; inf is infinite."""
    median_mm: float | None
    upper_mm: float | None
    infinite_share: float | None


def distance_rows(plan: Plan, cases: dict[str, Cases]) -> list[DistanceRow]:
    """A row for each cell that has a finished run. Raises `StudyError` as `collect` does."""
    rows = []
    for metric in distances(plan):
        for arm, counts in collect(plan, cases, metric).items():
            for count, cell in sorted(counts.items()):
                values = cell.scores_SP[~np.isnan(cell.scores_SP)]
                place = (metric.target, metric.title, arm, count, len(cell.seeds), values.size)
                rows.append(DistanceRow(*place, *quartiles(values), _infinite_share(values)))
    return rows


def quartiles(values: np.ndarray) -> tuple[float | None, float | None, float | None]:
    """Values that occur: no interpolation, which infinity would not survive."""
    if not values.size:
        return None, None, None
    low, middle, high = np.quantile(values, [0.25, 0.5, 0.75], method="inverted_cdf").tolist()
    return low, middle, high


def _infinite_share(values: np.ndarray) -> float | None:
    return float(np.isinf(values).mean()) if values.size else None
