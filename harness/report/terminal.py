"""The report in a terminal: the answer in a sentence, then a table for each metric.

What has no curve, such as anomaly scores and probes at one label count, is a list below it.
"""

from collections.abc import Sequence
from itertools import groupby

from rich.console import Group, RenderableType
from rich.markup import escape

from fewscan.harness.arms import Arm
from fewscan.harness.by_count import ByCount, plain_table
from fewscan.harness.report.answer import answers
from fewscan.harness.report.evidence import gather
from fewscan.harness.report.next_steps import next_steps
from fewscan.harness.report.results import PanelPoint, panel_points, read_results
from fewscan.harness.report.studies import Studies
from fewscan.harness.report.tables import MISSING, number

WIDTH = len("0.123 (0.12–0.12)")


def render_report(studies: Studies) -> Group:
    """The labels that are needed, in a sentence, and means with their intervals."""
    results = read_results(studies)
    evidence = gather(studies, results, leading=True)
    sentences = answers(evidence) + [f"{it}." for it in next_steps(studies, evidence)]
    parts: list[RenderableType] = [*(escape(sentence) for sentence in sentences), ""]
    for quantity, own in groupby(panel_points(studies, results), key=lambda it: it.quantity):
        parts += [f"[bold]{escape(quantity.title)}[/]", *_means(list(own))]
    return Group(*parts, "mean over seeds (95 % interval over seeds and patients), test split")


def _means(points: Sequence[PanelPoint]) -> list[RenderableType]:
    """Of one metric."""
    there: dict[Arm, set[int]] = {}
    for it in points:
        there.setdefault(it.arm, set()).update([] if it.labels is None else [it.labels])
    curves = [arm for arm, counts in there.items() if len(counts) > 1]
    of_curves = {(it.arm, it.labels): it for it in points if it.arm in curves and it.labels}
    counts = sorted({count for _, count in of_curves if count is not None})

    def cell(arm: Arm, count: int) -> str:
        return _text(of_curves[arm, count]) if (arm, count) in of_curves else ""

    levels = plain_table(show_header=False)
    for it in points:
        if (it.arm, it.labels) not in of_curves:
            where = "" if it.labels is None else f" at {it.labels}"
            levels.add_row(_text(it), escape(f"{it.arm.key}{where}"))
    parts: list[RenderableType] = [ByCount(curves, counts, cell, WIDTH)]
    return [*parts, levels, ""] if levels.row_count else parts


def _text(it: PanelPoint) -> str:
    """ "0.612 (0.55–0.67)", below it "2/5 seeds" if some are not finished."""
    if it.mean is None:
        return MISSING
    text = number(it.mean)
    if it.interval is not None:
        text += f" ({'–'.join(f'{end:.2f}' for end in it.interval)})"
    return text if it.runs == it.planned else f"{text}\n{it.runs}/{it.planned} seeds"
