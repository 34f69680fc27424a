"""One table, three renderings: CSV for programs, LaTeX for the paper, texts for page and terminal.

And how a value is written for people, the same in every table and sentence. An empty field of a CSV
file is a number that is not there: the cell is missing, or one seed gives no interval.
"""

import csv
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import isinf
from typing import Any, Literal

from fewscan.harness.arms import Arm
from fewscan.harness.report.bootstrap import Estimate
from fewscan.harness.report.labels_needed import LabelsNeeded
from fewscan.harness.report.labels_saved import LabelsSaved

ABREAST = 4
"""Arms that stand side by side, in one panel or as columns; more have a panel or a row each. Of
five lines with bands in one panel none can be followed, and five columns do not fit a page."""

MISSING = "missing"
NOT_REACHED = "not reached"


def at(path: str, missing: Any = None) -> Callable[[Any], Any]:
    """Attributes from a row's object to a value: "comparison.seeds"; `missing` if one is None."""

    def follow(it: Any) -> Any:
        for name in path.split("."):
            if it is None:
                return missing
            it = getattr(it, name)
        return it

    return follow


class Linked(str):
    """A text that leads to a place on the page."""

    anchor: str

    def __new__(cls, text: str, anchor: str) -> "Linked":
        made = super().__new__(cls, text)
        made.anchor = anchor
        return made

    def __str__(self) -> "Linked":
        return self


@dataclass(frozen=True)
class Column:
    """One column of a table."""

    key: str
    """Its name in CSV files; empty: it is for people alone."""
    title: str
    """For people; empty: it is for programs alone."""
    value: Callable[[Any], Any]
    """Of a row's object."""
    write: Callable[[Any], str] = str
    """A value for people."""
    align: Literal["left", "right"] = "left"


@dataclass(frozen=True)
class Table:
    """Columns, and an object for each row."""

    columns: Sequence[Column]
    rows: Sequence[Any]

    def without(self, *keys: str) -> "Table":
        """Leave out the columns with these keys."""
        return Table([it for it in self.columns if it.key not in keys], self.rows)

    def for_people(self) -> tuple[list[Column], list[list[str]]]:
        """The columns that have a title, and what stands in them."""
        shown = [column for column in self.columns if column.title]
        return shown, [[it.write(it.value(row)) for it in shown] for row in self.rows]


def to_csv(table: Table) -> str:
    """A header and a line for each row, of the columns that have a key."""
    shown = [column for column in table.columns if column.key]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([column.key for column in shown])
    writer.writerows([_csv_field(column.value(row)) for column in shown] for row in table.rows)
    return text.getvalue()


def _csv_field(value: object) -> object:
    """Text that a spreadsheet would run as a formula begins with an apostrophe."""
    value = value.key if isinstance(value, Arm) else value
    return f"'{value}" if isinstance(value, str) and value.startswith(tuple("=+-@\t\r")) else value


LATEX = r"""\begin{table}
\centering
\caption{%s}
\begin{tabular}{%s}
\toprule
%s
\midrule
%s
\bottomrule
\end{tabular}
\end{table}
"""


def to_latex(table: Table, caption: str) -> str:
    """A floating table; needs booktabs."""
    columns, rows = table.for_people()
    places = "".join(column.align[0] for column in columns)
    head, *body = map(_latex_row, [[column.title for column in columns], *rows])
    return LATEX % (escape_latex(caption), places, head, "\n".join(body))


def _latex_row(texts: list[str]) -> str:
    return " & ".join(map(escape_latex, texts)) + r" \\"


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


def scans(count: float) -> str:
    """ "1 labelled scan", "4 labelled scans"."""
    return f"{count:g} labelled scan{'' if count == 1 else 's'}"


def label_count(labels: int | None) -> str:
    """ "4", or that there are none."""
    return "none (unsupervised)" if labels is None else str(labels)


def number(value: float | None, sign: str = "") -> str:
    """Three decimals and a real minus sign; `sign="+"` shows a plus too."""
    return MISSING if value is None else f"{value:{sign}.3f}".replace("-", "−")


def signed(value: float | None) -> str:
    """ "+0.050"; of an effect size that is not defined a dash."""
    return "–" if value is None else number(value, "+")


def interval(estimate: Estimate | None, sign: str = "") -> str:
    """ "0.010 to 0.090", or a dash where there is none."""
    ends = estimate and estimate.interval
    return " to ".join(number(end, sign) for end in ends) if ends else "–"


def percent(share: float | None) -> str:
    """ "62 %"; a dash where there is none."""
    return "–" if share is None else f"{share:.0%}".replace("%", " %")


def one_decimal(value: float | None) -> str:
    """ "12.3"; "∞" is infinite."""
    if value is None:
        return MISSING
    return "∞" if isinf(value) else f"{value:.1f}"


def p_text(p: float | None) -> str:
    """Three decimals, "< 0.001" below, a dash where there is none."""
    if p is None:
        return "–"
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def labels(value: float, searched: tuple[int, int]) -> str:
    """A number of labelled scans on the other arm's curve: "9.3", "≤ 1", "> 938"."""
    if isinf(value):
        return f"> {searched[1]}"
    return f"≤ {searched[0]}" if value <= searched[0] else f"{value:.3g}"


def needed(saved: LabelsSaved | None) -> str:
    """What the other arm needs: a number, or "not reached (> 938)"."""
    if saved is None or saved.needed.value is None:
        return MISSING
    text = labels(saved.needed.value, saved.searched)
    return f"{NOT_REACHED} ({text})" if isinf(saved.needed.value) else text


def needed_interval(saved: LabelsSaved | None) -> str:
    """ "6.1 to > 938", or a dash where there is none."""
    return MISSING if saved is None else needed_between(saved)


def needed_between(it: LabelsSaved | LabelsNeeded) -> str:
    """The ends of the interval on the curve that was searched."""
    return " to ".join(labels(end, it.searched) for end in it.needed.interval or ()) or "–"
