"""All that the statistics say about a study: metric by metric, arm by arm.

What cannot be compared stands in `Evidence.objections` with its reason; the rest goes on.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from fewscan.harness.plan import Plan
from fewscan.harness.report.cases import (
    CaseMetric,
    Cases,
    Cells,
    case_metrics,
    collect,
    place_of,
)
from fewscan.harness.report.comparison import Comparison, compare
from fewscan.harness.report.labels_saved import LabelsSaved, labels_saved
from fewscan.harness.report.pair import Pair
from fewscan.harness.report.pairing import Scores
from fewscan.harness.report.statistics import Estimate, estimate
from fewscan.harness.study import SCRATCH
from fewscan.storage.errors import StudyError


@dataclass(frozen=True)
class Evidence:
    """One metric of the whole study. Dictionaries go from arm to label count."""

    metric: CaseMetric
    planned: dict[str, dict[int, int]]
    """Runs that the study asks for; the unsupervised baselines have 0 labels."""
    cells: Cells
    estimates: dict[str, dict[int, Estimate]]
    """The mean of each cell."""
    comparisons: dict[str, dict[int, Comparison]]
    """Each arm of `references` against its reference."""
    saved: dict[str, dict[int, LabelsSaved]]
    """What its reference needs for the scores of each arm of `references`."""
    objections: dict[str, str]
    """Why an arm could not be compared."""
    references: dict[str, str]
    """Arm → what it is compared with: scratch, or in a pair of studies the other's same arm."""
    reference: str
    """In words: "scratch", or the name of the other study."""

    @property
    def rivals(self) -> list[str]:
        """The arms that are compared with a reference."""
        return [
            arm for arm, counts in self.planned.items() if arm in self.references and any(counts)
        ]

    def counts(self, arm: str) -> list[int]:
        """Label counts that both an arm and its reference are to be run with."""
        return sorted(self.planned[arm].keys() & self.planned.get(self.references[arm], {}))


def gather(plan: Plan, cases: dict[str, Cases]) -> list[Evidence]:
    """The evidence for each metric of `case_metrics`, from the cases of what is finished."""
    return [_evidence(plan, cases, metric) for metric in case_metrics(plan)]


def _evidence(plan: Plan, cases: dict[str, Cases], metric: CaseMetric) -> Evidence:
    planned = _planned(plan, metric)
    against = _references(plan)
    try:
        cells = collect(plan, cases, metric)
    except StudyError as error:
        objections = dict.fromkeys(planned, str(error))
        return Evidence(metric, planned, {}, {}, {}, {}, objections, *against)
    estimates = {
        arm: {count: within(estimate(cell), 0.0, 1.0) for count, cell in sorted(counts.items())}
        for arm, counts in cells.items()
    }
    evidence = Evidence(metric, planned, cells, estimates, {}, {}, {}, *against)
    for arm in evidence.rivals:
        _compare(evidence, arm)
    return evidence


def _references(plan: Plan) -> tuple[dict[str, str], str]:
    if isinstance(plan, Pair):
        return plan.references(), plan.names[0]
    return {arm: SCRATCH for arm in plan.study.finetune.inits if arm != SCRATCH}, SCRATCH


def _planned(plan: Plan, metric: CaseMetric) -> dict[str, dict[int, int]]:
    planned: dict[str, dict[int, int]] = {}
    for run in plan.runs:
        if (place := place_of(run, metric)) is not None:
            counts = planned.setdefault(place[0], {})
            counts[place[1]] = counts.get(place[1], 0) + 1
    return planned


def _compare(evidence: Evidence, arm: str) -> None:
    first, second = (_labelled(evidence.cells, each) for each in (arm, evidence.references[arm]))
    if not first or not second:
        return
    try:
        evidence.comparisons[arm] = {
            count: replace(it, difference=within(it.difference, -1.0, 1.0))
            for count, it in compare(first, second).items()
        }
        evidence.saved[arm] = labels_saved(first, second)
    except StudyError as error:
        evidence.objections[arm] = str(error)


def within(estimate: Estimate, least: float, most: float) -> Estimate:
    """The interval without values that the number cannot take; it holds the truth as often."""
    if estimate.interval is None:
        return estimate
    low, high = (None if end is None else min(max(end, least), most) for end in estimate.interval)
    return Estimate(estimate.value, (low, high))


def _labelled(cells: Cells, arm: str) -> Mapping[int, Scores]:
    return {count: cell for count, cell in sorted(cells.get(arm, {}).items()) if count}
