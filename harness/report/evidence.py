"""All that the statistics say about a study: quantity by quantity, arm by arm.

What cannot be compared stands in `Evidence.objections` with its reason; the rest goes on.
"""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace

import numpy as np

from fewscan.experiments.catalogue import Metric
from fewscan.harness.arms import Arm
from fewscan.harness.report.bootstrap import ERROR, Estimate, estimate, mean
from fewscan.harness.report.cells import Cell
from fewscan.harness.report.collapses import collapses
from fewscan.harness.report.comparison import (
    Area,
    Branch,
    Comparison,
    area,
    compare,
    corrected,
    estimates,
)
from fewscan.harness.report.labels_needed import LabelsNeeded, labels_needed
from fewscan.harness.report.labels_saved import LabelsSaved, labels_saved
from fewscan.harness.report.ranking import Pair, Ranking, other_pairs, rank
from fewscan.harness.report.results import Quantity, RunResults, collect_cells, quantities
from fewscan.harness.report.studies import Labelled, Studies
from fewscan.storage.errors import StudyError


@dataclass(frozen=True)
class Quartiles:
    """Of a cell over its patients and seeds, for a quantity that is described by them.

    In the order of the patients infinity is the largest, so quartiles are exact whatever a finite
    stand-in would have been. There is no mean, hence no difference of means and no interval.
    """

    values: int
    """Patients times seeds, without those for which it is not defined."""
    lower: float | None = None
    """Lower quartile; inf is infinite."""
    median: float | None = None
    upper: float | None = None
    infinite_share: float | None = None


def quartiles(scores: np.ndarray) -> Quartiles:
    """Values that occur: no interpolation, which infinity would not survive."""
    values = scores[~np.isnan(scores)]
    if not values.size:
        return Quartiles(0)
    low, middle, high = np.quantile(values, [0.25, 0.5, 0.75], method="inverted_cdf").tolist()
    return Quartiles(values.size, low, middle, high, float(np.isinf(values).mean()))


@dataclass(frozen=True)
class Outcome:
    """What is known of a quantity for an arm at a label count; None: it is not known."""

    quantity: Quantity
    arm: Arm
    labels: int | None
    planned: int
    """Runs that the studies ask for."""
    reference: Arm | None = None
    """What the arm is compared with: scratch, or the same arm of the first of two studies."""
    cell: Cell | None = None
    mean: Estimate | None = None
    """Over seeds and patients; of what cannot be infinite."""
    collapsed: tuple[int, ...] = ()
    """The seeds whose runs have collapsed (`collapses`)."""
    comparison: Comparison | None = None
    """With the reference."""
    saved: LabelsSaved | None = None
    """What the reference needs for the score."""
    in_all: int | None = None
    """Scans whose labels it depends on (`label_budget`)."""

    @property
    def seeds(self) -> int:
        """Finished runs."""
        return 0 if self.cell is None else len(self.cell.seeds)

    @property
    def is_incomplete(self) -> bool:
        """Whether some of its runs are finished, but not all."""
        return 0 < self.seeds < self.planned

    @property
    def scored(self) -> tuple[int, int]:
        """Seeds and patients that have a score."""
        seeds, patients = (0, 0) if self.cell is None else self.cell.defined().scores_SP.shape
        return seeds, patients

    @property
    def quartiles(self) -> Quartiles | None:
        return None if self.cell is None else quartiles(self.cell.scores_SP)


@dataclass(frozen=True)
class Evidence:
    """One quantity of the whole study."""

    quantity: Quantity
    reference: str
    """What arms are compared with, in words: "scratch", or the name of the first study."""
    outcomes: Sequence[Outcome]
    """All that is planned: arm by arm, by label count, unlabelled arms last."""
    objections: Mapping[Arm, str]
    """Why an arm could not be compared."""
    areas: Mapping[Arm, Area] = field(default_factory=dict)
    """The area under the curve of each fine-tuned arm, and its difference from the reference."""
    tested: int = 0
    """Comparisons of arms in the whole report that p-values are corrected for."""
    needed: Mapping[Arm, LabelsNeeded] = field(default_factory=dict)
    """Arm → the labelled scans that it needs, of a leading quantity."""
    ranking: Ranking | None = None
    """Of three arms or more of one study, by a leading quantity."""
    is_named: bool = False
    """Whether a study file names the score that they are needed for."""

    @property
    def is_compared(self) -> bool:
        """Whether by means; otherwise it is described by quartiles."""
        return self.quantity.metric.compared == "difference"

    def of_arm(self, arm: Arm) -> dict[int, Outcome]:
        """Labelled scans → outcome of a fine-tuned arm."""
        return {it.labels: it for it in self.outcomes if it.arm == arm and it.labels is not None}

    @property
    def pairs_tested(self) -> list[Pair]:
        """The pairs of ranked arms that are tested beside arms and their references."""
        if self.ranking is None:
            return []
        wanted = other_pairs([it.arm for it in self.ranking.ranked], self.references)
        pairs = [it for it in self.ranking.pairs if it.p is not None]
        return [it for it in pairs if frozenset((it.first, it.second)) in wanted]

    @property
    def references(self) -> dict[Arm, Arm]:
        """Each arm that is compared → its reference."""
        return {it.arm: it.reference for it in self.outcomes if it.reference is not None}

    @property
    def compared(self) -> list[Outcome]:
        """Those of arms that have a reference."""
        return [it for it in self.outcomes if it.reference is not None]

    @property
    def paired(self) -> list[Outcome]:
        """Those whose reference is to be run with the same label count."""
        planned = {(it.arm, it.labels) for it in self.outcomes}
        return [it for it in self.compared if (it.reference, it.labels) in planned]


def gather(
    studies: Studies, results: Sequence[RunResults], *, leading: bool = False
) -> list[Evidence]:
    """The evidence for each quantity that is compared, and for each described one with a patient;
    or for the leading ones alone.

    Where every patient has a structure nobody is left whom its false positives are about.
    """
    wanted = [it for it in quantities(studies) if it.leads or not leading]
    found = [_evidence(studies, results, quantity) for quantity in wanted]
    found = [it for it in found if it.is_compared or any(all(o.scored) for o in it.outcomes)]
    return correct(found, studies.error)


def correct(found: Sequence[Evidence], error: float = ERROR) -> list[Evidence]:
    """With p-values corrected for all that is tested: arms and pairs of arms, times targets, of
    what leads.

    Other quantities describe: their p-values stay uncorrected, and nothing is claimed by them.
    `error`: probability of a false finding of all that is tested. p-values come out in parts of it,
    so that "below 0.05" is the one rule, whatever it is.
    """
    branches: dict[tuple[Quantity, Arm | frozenset[Arm]], Branch] = {
        (evidence.quantity, arm): Branch(area.p, _p_values(evidence.of_arm(arm)))
        for evidence in found
        if evidence.quantity.leads
        for arm, area in evidence.areas.items()
        if area.p is not None
    }
    for evidence in found:
        for pair in evidence.pairs_tested:
            assert pair.p is not None
            branches[evidence.quantity, frozenset((pair.first, pair.second))] = Branch(pair.p, {})
    p_values = corrected(branches, scale=ERROR / error)

    def area_of(evidence: Evidence, arm: Arm) -> Area:
        branch = p_values.get((evidence.quantity, arm))
        return replace(evidence.areas[arm], p_corrected=None if branch is None else branch.area)

    def outcome_of(it: Outcome) -> Outcome:
        branch = p_values.get((it.quantity, it.arm))
        if branch is None or it.comparison is None or it.labels is None:
            return it
        p = branch.counts.get(it.labels)
        return replace(it, comparison=replace(it.comparison, p_corrected=p))

    def ranking_of(evidence: Evidence) -> Ranking | None:
        """Of a pair that is an arm and its reference the p is that of their area."""
        if evidence.ranking is None:
            return None
        pairs = []
        for pair in evidence.ranking.pairs:
            both = frozenset((pair.first, pair.second))
            owners = [arm for arm, it in evidence.references.items() if {arm, it} == both]
            branch = p_values.get((evidence.quantity, owners[0] if owners else both))
            pairs.append(replace(pair, p_corrected=None if branch is None else branch.area))
        return replace(evidence.ranking, pairs=tuple(pairs))

    return [
        replace(
            evidence,
            ranking=ranking_of(evidence),
            areas={arm: area_of(evidence, arm) for arm in evidence.areas},
            outcomes=tuple(map(outcome_of, evidence.outcomes)),
            tested=len(branches),
        )
        for evidence in found
    ]


def _p_values(outcomes: Mapping[int, Outcome]) -> dict[int, float]:
    compared = {n: it.comparison for n, it in outcomes.items() if it.comparison is not None}
    return {n: it.p for n, it in compared.items() if it.p is not None}


def _evidence(studies: Studies, results: Sequence[RunResults], quantity: Quantity) -> Evidence:
    planned, metric = studies.planned(quantity.target), quantity.metric
    span = metric.most - metric.least
    cells: dict[Labelled, Cell] = {}
    objections: dict[Arm, str] = {}
    try:
        cells = collect_cells(results, quantity)
    except StudyError as error:
        objections = {arm: str(error) for arm, _ in planned}
    by_means = metric.compared == "difference"
    references = studies.references() if by_means else {}
    outcomes = {
        (arm, n): Outcome(
            quantity,
            arm,
            n,
            count,
            references.get(arm),
            cells.get((arm, n)),
            in_all=studies.in_all(quantity.target, arm, n),
        )
        for (arm, n), count in planned.items()
    }
    areas: dict[Arm, Area] = {}
    may_collapse = metric.higher_is_better and (metric.least, metric.most) == (0, 1)
    for arm in dict.fromkeys(arm for arm, _ in planned if by_means):
        mine = _labelled(cells, arm)
        found = estimates(mine, may_collapse=may_collapse)
        means = dict[int | None, Estimate](found.items())
        if (arm, None) in cells:
            means[None] = estimate(cells[arm, None])
        fallen = collapses(mine).seeds if may_collapse else {}
        for place, it in means.items():
            outcomes[arm, place] = replace(
                outcomes[arm, place],
                mean=it.within(metric.least, metric.most),
                collapsed=fallen.get(place or 0, ()),
            )
        if alone := area(mine, may_collapse=may_collapse):
            areas[arm] = _within(alone, metric)
    for arm, reference in references.items():
        first, second = _labelled(cells, arm), _labelled(cells, reference)
        try:
            for n, compared in compare(
                first, second, may_collapse=may_collapse, error=studies.error
            ).items():
                clipped = compared.difference.within(-span, span)
                compared = replace(compared, difference=clipped)
                outcomes[arm, n] = replace(outcomes[arm, n], comparison=compared)
            if paired := area(first, second, may_collapse=may_collapse, error=studies.error):
                areas[arm] = _within(paired, metric)
            saved = labels_saved(
                first,
                second,
                higher_is_better=metric.higher_is_better,
                may_collapse=may_collapse,
            )
            for n, needs in saved.items():
                outcomes[arm, n] = replace(outcomes[arm, n], saved=needs)
        except StudyError as error:
            objections[arm] = str(error)
    ranking = None
    if quantity.leads and by_means:
        each = {arm: _labelled(cells, arm) for arm in studies.ranked(quantity.target)}
        with suppress(StudyError):  # what cannot be compared is among the objections
            ranking = rank(
                each, higher_is_better=metric.higher_is_better, may_collapse=may_collapse
            )
    return Evidence(
        quantity,
        studies.reference,
        tuple(outcomes.values()),
        objections,
        areas,
        needed=_needed(studies, quantity, cells, may_collapse) if quantity.leads else {},
        ranking=ranking,
        is_named=quantity.target in studies.reach,
    )


REACH = 0.9
"""Of what the reference reaches with its most labels: asked for where a study names no score."""


def _needed(
    studies: Studies, quantity: Quantity, cells: Mapping[Labelled, Cell], may_collapse: bool
) -> dict[Arm, LabelsNeeded]:
    """For the score that a study names, or that the first reference nearly reaches."""
    score, references = studies.reach.get(quantity.target), studies.references()
    arms = list(dict.fromkeys([*references.values(), *references]))
    if score is None and arms:
        means = {n: mean(cell) for n, cell in _labelled(cells, arms[0]).items()}
        known = [means[n] for n in sorted(means) if means[n] is not None]
        score = REACH * known[-1] if known and known[-1] is not None else None
    if score is None:
        return {}
    found: dict[Arm, LabelsNeeded] = {}
    for arm in arms:
        with suppress(StudyError):  # other patients: among the objections
            mine, most = _labelled(cells, arm), quantity.metric.most
            needed = labels_needed(mine, score, most=most, may_collapse=may_collapse)
            found |= {} if needed is None else {arm: needed}
    return found


def _within(area: Area, metric: Metric) -> Area:
    """Without values that the metric cannot take."""
    span = metric.most - metric.least
    return replace(
        area,
        mean=area.mean.within(metric.least, metric.most),
        reference=area.reference and area.reference.within(metric.least, metric.most),
        difference=area.difference and area.difference.within(-span, span),
    )


def _labelled(cells: Mapping[Labelled, Cell], wanted: Arm) -> dict[int, Cell]:
    """The cells of an arm, by label count."""
    return {n: cell for (arm, n), cell in cells.items() if arm == wanted and n is not None}
