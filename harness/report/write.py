"""From results to files: figures, tables and the page that says what they mean.

Works on an unfinished study: a missing cell is missing, nothing is imputed. Every number of a
figure stands in a CSV beside it, and the same run folders give the same bytes.
"""

from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from rich.table import Table

from harness.plan import Plan
from harness.report.evidence import Evidence, gather
from harness.report.figures import colours_of, draw_published, save_figure
from harness.report.page import render_page
from harness.report.pooled import PANELS, Cell, Row, collect_cells, collect_rows
from harness.report.record import read_records
from harness.report.tables import (
    DifferenceRow,
    IntervalRow,
    SavedRow,
    difference_rows,
    interval_rows,
    saved_rows,
    to_csv,
    to_latex,
)
from storage.atomic import write_bytes
from storage.errors import StudyError


def write_report(plan: Plan) -> list[Path]:
    """Write figure, page and tables into the report folder; returns the files, figure first.

    Raises `StudyError` if no run has a test result yet.
    """
    rows = collect_rows(plan)
    if not rows:
        raise StudyError(
            "no run of the study has a test result yet",
            where=plan.folder.path,
            expected="at least one finished fine-tuning or unsupervised run",
            remedy="`fewscan sweep` runs the study, `fewscan status` shows where it stands",
        )
    folder = plan.folder.report
    folder.mkdir(parents=True, exist_ok=True)
    cells, evidence = collect_cells(plan, rows), gather(plan)
    colours = colours_of(list(dict.fromkeys(cell.arm for cell in cells if cell.label_count)))
    figure = draw_published(cells, plan.study.name, colours)
    for name in ("figure.png", "figure.pdf"):
        save_figure(figure, folder / name)
    page = render_page(plan, cells, evidence, read_records(plan), colours)
    contents = {"report.html": page.encode()} | _tables(plan.study.name, rows, cells, evidence)
    for name, content in contents.items():
        write_bytes(folder / name, content)
    return [folder / name for name in ("figure.png", "figure.pdf", *contents)]


def _tables(
    study: str, rows: Sequence[Row], cells: Sequence[Cell], evidence: Sequence[Evidence]
) -> dict[str, bytes]:
    return {
        "figure.csv": _csv(Cell, cells),
        "numbers.csv": _csv(Row, rows),
        "intervals.csv": _csv(IntervalRow, [r for it in evidence for r in interval_rows(it)]),
        "differences.csv": _csv(DifferenceRow, [r for it in evidence for r in difference_rows(it)]),
        "labels_saved.csv": _csv(SavedRow, [r for it in evidence for r in saved_rows(it)]),
        "tables.tex": to_latex(study, evidence),
    }


def _csv(kind: type[Any], rows: Sequence[Any]) -> bytes:
    return to_csv([f.name for f in fields(kind)], (asdict(row) for row in rows))


def render_report(plan: Plan) -> Table:
    """Mean ± standard deviation over seeds, for the terminal."""
    cells = collect_cells(plan, collect_rows(plan))
    counts = sorted({cell.label_count for cell in cells if cell.label_count})
    table = Table(title="test split, mean ± standard deviation over seeds", title_justify="left")
    for column in ("metric", "arm", *map(str, counts)):
        table.add_column(column)
    for panel in PANELS:
        here = [c for c in cells if (c.target, c.metric) == (panel.target, panel.metric)]
        for arm in dict.fromkeys(c.arm for c in here):
            by_count = {c.label_count: c for c in here if c.arm == arm}
            if 0 in by_count:
                table.add_row(panel.metric, arm, _text(by_count[0]), *[""] * (len(counts) - 1))
            else:
                texts = [_text(by_count[n]) if n in by_count else "" for n in counts]
                table.add_row(panel.metric, arm, *texts)
    return table


def _text(cell: Cell) -> str:
    if cell.mean is None:
        return "missing"
    spread = "" if cell.std is None else f" ± {cell.std:.3f}"
    missing = "" if cell.runs == cell.planned else f" ({cell.runs}/{cell.planned})"
    return f"{cell.mean:.3f}{spread}{missing}"
