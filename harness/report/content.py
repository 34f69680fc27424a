"""All that a report says, gathered once: its figures, its tables and its page show the same."""

from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.figure import Figure

from fewscan.harness.plan import Plan
from fewscan.harness.report.cases import read_cases
from fewscan.harness.report.distances import DistanceRow, distance_rows
from fewscan.harness.report.evidence import Evidence, gather
from fewscan.harness.report.examples import Examples, read_examples
from fewscan.harness.report.figures import (
    Colours,
    colours_of,
    draw_evidence,
    draw_published,
    draw_training,
)
from fewscan.harness.report.gallery import draw_examples
from fewscan.harness.report.pair import Pair
from fewscan.harness.report.pooled import Cell, Row, collect_cells
from fewscan.harness.report.record import RunRecord, curves, read_records
from fewscan.harness.study import Published
from fewscan.storage.errors import FewscanError, StudyError


@dataclass(frozen=True)
class Content:
    """What is known of a study, or of a pair of studies."""

    plan: Plan
    rows: Sequence[Row]
    cells: Sequence[Cell]
    evidence: Sequence[Evidence]
    distances: Sequence[DistanceRow]
    records: Sequence[RunRecord]
    colours: Colours
    examples: Examples | None
    no_examples: str
    """Why there are none."""

    @property
    def published(self) -> tuple[Published, ...]:
        """The figures of others, from the study file (of both, if it is a pair)."""
        plans = self.plan.plans if isinstance(self.plan, Pair) else (self.plan,)
        return tuple(dict.fromkeys(it for plan in plans for it in plan.study.published))

    @property
    def leading(self) -> list[Evidence]:
        """What the verdicts are about: one for each target."""
        return [it for it in self.evidence if it.metric.leads]


def gather_content(plan: Plan, rows: Sequence[Row]) -> Content:
    """Read the run folders and compute everything."""
    cells, cases = collect_cells(plan, rows), read_cases(plan)
    examples, no_examples = None, "no label count has been finished by all arms yet"
    try:
        examples = None if isinstance(plan, Pair) else read_examples(plan, cases)
    except FewscanError as error:  # a report without pictures is better than none
        no_examples = str(error)
    try:
        distances = distance_rows(plan, cases)
    except StudyError:  # runs of one cell with other patients: among the evidence's objections
        distances = []
    arms = list(dict.fromkeys(cell.arm for cell in cells if cell.label_count))
    return Content(
        plan,
        rows,
        cells,
        gather(plan, cases),
        distances,
        read_records(plan),
        colours_of(arms),
        examples,
        no_examples,
    )


def draw_figures(content: Content) -> dict[str, Figure]:
    """By the name of the file, the published figure first."""
    colours, plan = content.colours, content.plan
    figures = {"figure": draw_published(content.cells, colours, content.published)}
    for it in content.leading:
        figures[it.metric.target] = draw_evidence(it, colours)
    if content.examples is not None:
        figures["examples"] = draw_examples(
            content.examples, plan.store.channels[0], plan.store.classes
        )
    if panels := curves(content.records):
        figures["training"] = draw_training(panels, colours)
    return figures
