"""All that the statistics say about a study: quantity by quantity, arm by arm.

What cannot be compared stands in `Evidence.objections` with its reason; the rest goes on.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from fewscan.harness.arms import Arm
from fewscan.harness.report.bootstrap import Estimate, estimate
from fewscan.harness.report.cells import Cell
from fewscan.harness.report.comparison import Comparison, compare
from fewscan.harness.report.labels_saved import LabelsSaved, labels_saved
from fewscan.harness.report.results import Cells, Quantity, RunResults, collect_cells, quantities
from fewscan.harness.report.studies import Studies
from fewscan.storage.errors import StudyError


@dataclass(frozen=True)
class Evidence:
    """One quantity of the whole study. Dictionaries go from arm to labelled scans."""

    quantity: Quantity
    planned: dict[Arm, dict[int | None, int]]
    """Runs that the study asks for; the unsupervised scores have no label."""
    references: dict[Arm, Arm]
    """Arm → what it is compared with: scratch, or the same arm of the first of two studies."""
    reference: str
    """In words: "scratch", or the name of the first study."""
    cells: Cells = field(default_factory=dict)
    estimates: dict[Arm, dict[int | None, Estimate]] = field(default_factory=dict)
    """The mean of each cell."""
    comparisons: dict[Arm, dict[int, Comparison]] = field(default_factory=dict)
    """Each arm of `references` against its reference."""
    saved: dict[Arm, dict[int, LabelsSaved]] = field(default_factory=dict)
    """What its reference needs for the scores of each arm of `references`."""
    objections: dict[Arm, str] = field(default_factory=dict)
    """Why an arm could not be compared."""

    @property
    def compared_arms(self) -> list[Arm]:
        """The arms that have a reference."""
        return [arm for arm in self.planned if arm in self.references]

    def counts(self, arm: Arm) -> list[int]:
        """Label counts that an arm is to be run with."""
        return sorted(count for count in self.planned.get(arm, {}) if count is not None)

    def shared_counts(self, arm: Arm) -> list[int]:
        """Label counts that both an arm and its reference are to be run with."""
        return [n for n in self.counts(arm) if n in self.planned.get(self.references[arm], {})]


def gather(studies: Studies, results: Sequence[RunResults]) -> list[Evidence]:
    """The evidence for each quantity that is compared, from what is finished."""
    found = quantities(studies, "difference")
    return [_evidence(studies, results, quantity) for quantity in found]


def _evidence(studies: Studies, results: Sequence[RunResults], quantity: Quantity) -> Evidence:
    planned = studies.planned(quantity.target)
    evidence = Evidence(quantity, planned, studies.references(), studies.reference)
    try:
        evidence.cells.update(collect_cells(results, quantity))
    except StudyError as error:
        return replace(evidence, objections=dict.fromkeys(planned, str(error)))
    least, most = quantity.metric.least, quantity.metric.most
    for arm, cells in evidence.cells.items():
        evidence.estimates[arm] = {n: within(estimate(it), least, most) for n, it in cells.items()}
    for arm in evidence.compared_arms:
        _compare(evidence, arm, most - least)
    return evidence


def _compare(evidence: Evidence, arm: Arm, most: float) -> None:
    """`most`: how far apart two values of the metric can be."""
    first, second = (_labelled(evidence.cells, it) for it in (arm, evidence.references[arm]))
    if not first or not second:
        return
    better = evidence.quantity.metric.higher_is_better
    try:
        evidence.comparisons[arm] = {
            count: replace(it, difference=within(it.difference, -most, most))
            for count, it in compare(first, second).items()
        }
        evidence.saved[arm] = labels_saved(first, second, higher_is_better=better)
    except StudyError as error:
        evidence.objections[arm] = str(error)


def within(estimate: Estimate, least: float, most: float) -> Estimate:
    """The interval without values that the number cannot take; it holds the truth as often."""
    if estimate.interval is None:
        return estimate
    low, high = (None if end is None else min(max(end, least), most) for end in estimate.interval)
    return Estimate(estimate.value, (low, high))


def _labelled(cells: Cells, arm: Arm) -> dict[int, Cell]:
    return {count: cell for count, cell in cells.get(arm, {}).items() if count is not None}
