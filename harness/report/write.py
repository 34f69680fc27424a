"""From results to files: figures, tables and the page that says what they mean.

Works on an unfinished study: a missing cell is missing, nothing is imputed. Every number of a
figure stands in a CSV beside it, and the same run folders give the same bytes.
"""

from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from rich.table import Table

from fewscan.harness.plan import Plan
from fewscan.harness.report.content import Content, draw_figures, gather_content
from fewscan.harness.report.distances import DistanceRow
from fewscan.harness.report.figures import save_figure
from fewscan.harness.report.page import render_page
from fewscan.harness.report.pair import Pair
from fewscan.harness.report.pooled import PANELS, Cell, Row, collect_cells, collect_rows
from fewscan.harness.report.tables import (
    DifferenceRow,
    IntervalRow,
    SavedRow,
    difference_rows,
    interval_rows,
    saved_rows,
    to_csv,
    to_latex,
)
from fewscan.storage.atomic import write_bytes
from fewscan.storage.errors import StudyError


def write_report(plan: Plan) -> list[Path]:
    """Write figures, page and tables into the report folder; returns the files, figure first.

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
    folder = report_folder(plan)
    folder.mkdir(parents=True, exist_ok=True)
    content = gather_content(plan, rows)
    figures = draw_figures(content)
    files = [folder / f"{name}.{kind}" for name in figures for kind in ("png", "pdf")]
    for file in files:
        save_figure(figures[file.stem], file)
    pages = {"report.html": render_page(content, figures).encode()}
    for name, text in (pages | _tables(content)).items():
        write_bytes(folder / name, text)
        files.append(folder / name)
    return files


def report_folder(plan: Plan) -> Path:
    """Where the report of a study, or of a pair of studies, goes."""
    return plan.report_folder if isinstance(plan, Pair) else plan.folder.report


def _tables(content: Content) -> dict[str, bytes]:
    evidence = content.evidence
    return {
        "figure.csv": _csv(Cell, content.cells),
        "numbers.csv": _csv(Row, content.rows),
        "intervals.csv": _csv(IntervalRow, [r for it in evidence for r in interval_rows(it)]),
        "differences.csv": _csv(DifferenceRow, [r for it in evidence for r in difference_rows(it)]),
        "labels_saved.csv": _csv(SavedRow, [r for it in evidence for r in saved_rows(it)]),
        "distances.csv": _csv(DistanceRow, content.distances),
        "tables.tex": to_latex(content.plan.study.name, evidence),
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
