"""The tables as files: CSV for other programs, LaTeX for the paper.

An empty field is a number that is not there: the cell is missing, or one seed gives no interval.
`inf` among the labels needed is "not reached with the most that were run".
"""

import csv
import io
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from fewscan.harness.report.evidence import Evidence
from fewscan.harness.report.statistics import Estimate
from fewscan.harness.report.words import arm_name, interval, number, p_text

Ends = tuple[float | None, float | None]


def to_csv(names: Sequence[str], rows: Iterable[dict[str, Any]]) -> bytes:
    """A header and a line for each row, with the fields in this order."""
    text = io.StringIO()
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


@dataclass(frozen=True)
class IntervalRow:
    """The mean of a cell over seeds and patients: a line of `intervals.csv`."""

    target: str
    metric: str
    arm: str
    label_count: int
    seeds: int
    """Finished; `planned` are wanted."""
    planned: int
    patients: int
    """With a score."""
    mean: float | None = None
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class DifferenceRow:
    """An arm minus its reference: a line of `differences.csv`. See `comparison.Comparison`."""

    target: str
    metric: str
    arm: str
    reference: str
    label_count: int
    seeds: int = 0
    patients: int = 0
    difference: float | None = None
    low: float | None = None
    high: float | None = None
    p_bootstrap: float | None = None
    p_bootstrap_holm: float | None = None
    p_wilcoxon: float | None = None
    p_wilcoxon_holm: float | None = None
    rank_biserial: float | None = None
    standardised: float | None = None


@dataclass(frozen=True)
class SavedRow:
    """What its reference needs for an arm's score: a line of `labels_saved.csv`."""

    target: str
    metric: str
    arm: str
    reference: str
    label_count: int
    score: float
    needed: float
    needed_low: float | None
    needed_high: float | None
    saved: float
    saved_low: float | None
    saved_high: float | None
    ratio: float
    ratio_low: float | None
    ratio_high: float | None
    fewest_searched: int
    most_searched: int


def interval_rows(evidence: Evidence) -> list[IntervalRow]:
    """Every planned cell, the missing ones too."""
    rows = []
    for arm, counts in evidence.planned.items():
        for count, planned in sorted(counts.items()):
            place = (evidence.metric.target, evidence.metric.key, arm, count)
            cell = evidence.cells.get(arm, {}).get(count)
            if cell is None:
                rows.append(IntervalRow(*place, 0, planned, 0))
                continue
            estimate = evidence.estimates[arm][count]
            seeds, patients = cell.defined().scores_SP.shape
            numbers = (estimate.value, *_ends(estimate))
            rows.append(IntervalRow(*place, seeds, planned, patients, *numbers))
    return rows


def difference_rows(evidence: Evidence) -> list[DifferenceRow]:
    """Every label count that both arms are to be run with, the missing ones too."""
    rows = []
    for arm in evidence.rivals:
        for count in evidence.counts(arm):
            reference = evidence.references[arm]
            place = (evidence.metric.target, evidence.metric.key, arm, reference, count)
            it = evidence.comparisons.get(arm, {}).get(count)
            if it is None:
                rows.append(DifferenceRow(*place))
                continue
            numbers = asdict(it) | {"difference": it.difference.value}
            low, high = _ends(it.difference)
            rows.append(DifferenceRow(*place, low=low, high=high, **numbers))
    return rows


def saved_rows(evidence: Evidence) -> list[SavedRow]:
    """A row for each finished cell of an arm that its reference can be compared with."""
    rows = []
    for arm, counts in evidence.saved.items():
        for count, it in counts.items():
            reference = evidence.references[arm]
            place = (evidence.metric.target, evidence.metric.key, arm, reference, count)
            needed, needed_low, needed_high = _inf(it.needed)
            saved, saved_low, saved_high = _inf(it.saved)
            ratio, ratio_low, ratio_high = _inf(it.ratio)
            rows.append(
                SavedRow(
                    *place,
                    it.score,
                    needed,
                    needed_low,
                    needed_high,
                    saved,
                    saved_low,
                    saved_high,
                    ratio,
                    ratio_low,
                    ratio_high,
                    *it.searched,
                )
            )
    return rows


def _ends(estimate: Estimate) -> Ends:
    return estimate.interval or (None, None)


def _inf(estimate: Estimate) -> tuple[float, float | None, float | None]:
    """Value and interval, in which None stands for "not reached"."""
    low, high = (math.inf if n is None else n for n in estimate.interval or (None, None))
    value = math.inf if estimate.value is None else estimate.value
    return (value, None, None) if estimate.interval is None else (value, low, high)


LATEX_HEAD = r"""% Needs \usepackage{booktabs}. Differences over seeds and patients; p-values with
% Holm's correction over label counts. Wilcoxon's is about other patients for these networks: it
% ignores seeds.
"""


def to_latex(study: str, evidence: Sequence[Evidence]) -> bytes:
    """The differences of the leading metrics, one table a target."""
    leading = [it for it in evidence if it.metric.leads]
    return (LATEX_HEAD + "\n".join(_latex(study, it) for it in leading)).encode()


def _latex(study: str, evidence: Evidence) -> str:
    head = (
        "arm & labelled scans & seeds & difference & 95\\,\\% interval & $p$ & $p$ (Wilcoxon) & $r$"
    )
    caption = (
        f"{study}, {evidence.metric.target}: {evidence.metric.title}, difference from "
        f"{evidence.reference}."
    )
    lines = [
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{escape_latex(caption)}}}",
        r"\begin{tabular}{lrrrrrrr}",
        r"\toprule",
        head + r" \\",
        r"\midrule",
        *(_latex_row(row) for row in difference_rows(evidence)),
        r"\bottomrule",
        r"\end{tabular}",
        r"\end{table}",
    ]
    return "\n".join(lines) + "\n"


def _latex_row(row: DifferenceRow) -> str:
    estimate = Estimate(row.difference, None if row.low is None else (row.low, row.high))
    fields = [
        arm_name(row.arm),
        str(row.label_count),
        str(row.seeds),
        number(row.difference, "+"),
        interval(estimate, "+"),
        p_text(row.p_bootstrap_holm),
        p_text(row.p_wilcoxon_holm),
        "–" if row.rank_biserial is None else number(row.rank_biserial, "+"),
    ]
    return " & ".join(escape_latex(field) for field in fields) + r" \\"


LATEX_SPECIAL = {c: f"\\{c}" for c in "&%$#_{}"} | {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "−": "$-$",
    "<": "$<$",
    ">": "$>$",
    "–": "--",
    "⌈": r"$\lceil$",
    "⌉": r"$\rceil$",
}


def escape_latex(text: str) -> str:
    """Text as LaTeX shows it."""
    return "".join(LATEX_SPECIAL.get(letter, letter) for letter in text)
