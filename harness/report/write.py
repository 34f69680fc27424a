"""From results to files: figures, tables and the page that says what they mean.

Works on an unfinished study: a missing cell is missing, nothing is imputed. Every number of a
figure stands in a CSV file, and the same run folders give the same bytes. The page needs no other
file and no network; `report.html` is its template, into which jinja2 puts every value escaped.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from matplotlib.figure import Figure
from rich.markup import escape
from rich.table import Table as TerminalTable

from fewscan.experiments.catalogue import panels
from fewscan.experiments.spec import PROTOCOL, Evaluation
from fewscan.harness.report import study_tables
from fewscan.harness.report.evidence import Evidence, gather
from fewscan.harness.report.examples import Examples, draw_examples, read_examples
from fewscan.harness.report.figures import (
    as_data_uri,
    colours_of,
    draw_evidence,
    draw_published,
    draw_training,
    save_figure,
)
from fewscan.harness.report.findings import findings
from fewscan.harness.report.results import (
    PanelPoint,
    Quantity,
    RunResults,
    Spread,
    panel_points,
    read_results,
    spreads,
)
from fewscan.harness.report.run_log import RunLog, curves, energy, read_logs, remarks
from fewscan.harness.report.studies import Studies
from fewscan.harness.report.tables import scans, to_csv, to_html, to_latex
from fewscan.storage.atomic import write_bytes
from fewscan.storage.errors import FewscanError, StudyError


@dataclass(frozen=True)
class Report:
    """All that a report says, gathered once: figures, tables and page show the same."""

    studies: Studies
    results: Sequence[RunResults]
    points: Sequence[PanelPoint]
    evidence: Sequence[Evidence]
    spreads: Sequence[Spread]
    logs: Sequence[RunLog]
    examples: Examples | None
    no_examples: str
    """Why there are none."""

    @property
    def leading(self) -> list[Evidence]:
        """What the verdicts are about: one for each target."""
        return [it for it in self.evidence if it.quantity.leads]

    @cached_property
    def figures(self) -> dict[str, Figure]:
        """By the name of the file, the published figure first."""
        arms = dict.fromkeys(it.arm for it in self.points if it.labels is not None)
        colours, store = colours_of(list(arms)), self.studies.first.store
        figures = {"figure": draw_published(self.points, colours, self.studies.published)}
        for it in self.leading:
            figures[it.quantity.target] = draw_evidence(it, colours)
        if self.examples is not None:
            figures["examples"] = draw_examples(self.examples, store.channels[0], store.classes)
        if losses := curves(self.logs):
            figures["training"] = draw_training(losses, colours)
        return figures


def write_report(studies: Studies) -> list[Path]:
    """Write figures, page and tables into the report folder; returns the files, figure first.

    Raises `StudyError` if no run has a test result yet.
    """
    results = read_results(studies)
    if not results:
        raise StudyError(
            "no run of the study has a test result yet",
            where=studies.first.folder.path,
            expected="at least one finished fine-tuning or unsupervised run",
            remedy="`fewscan sweep` runs the study, `fewscan status` shows where it stands",
        )
    report = gather_report(studies, results)
    folder = studies.report_folder
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / f"{name}.{kind}" for name in report.figures for kind in ("png", "pdf")]
    for file in files:
        save_figure(report.figures[file.stem], file)
    for name, text in {"report.html": render_page(report).encode(), **_tables(report)}.items():
        write_bytes(folder / name, text)
        files.append(folder / name)
    return files


def gather_report(studies: Studies, results: Sequence[RunResults]) -> Report:
    """Read the run folders and compute everything."""
    examples, no_examples = None, "no label count has been finished by all arms yet"
    try:
        examples = None if studies.are_compared else read_examples(studies.first, results)
    except FewscanError as error:  # a report without pictures is better than none
        no_examples = str(error)
    try:
        described = spreads(studies, results)
    except StudyError:  # runs of one cell with other patients: among the evidence's objections
        described = []
    return Report(
        studies,
        results,
        panel_points(studies, results),
        gather(studies, results),
        described,
        read_logs(studies),
        examples,
        no_examples,
    )


def render_report(studies: Studies) -> TerminalTable:
    """Mean ± standard deviation over seeds, for the terminal."""
    table = study_tables.points_by_arm(panel_points(studies, read_results(studies)))
    columns, rows = table.for_people()
    title = "test split, mean ± standard deviation over seeds"
    shown = TerminalTable(title=title, title_justify="left")
    for column in columns:
        shown.add_column(escape(column.title), justify=column.align)
    for row in rows:
        shown.add_row(*map(escape, row))
    return shown


LATEX_HEAD = r"""% Needs \usepackage{booktabs}. Differences over seeds and patients; p-values with
% Holm's correction over label counts. Wilcoxon's is about other patients for these networks: it
% ignores seeds.
"""


def _tables(report: Report) -> dict[str, bytes]:
    evidence = report.evidence
    tables = {
        "figure": study_tables.points_table(report.points),
        "numbers": study_tables.numbers_table(report.results),
        "intervals": study_tables.intervals_table(evidence),
        "differences": study_tables.differences_table(evidence),
        "labels_saved": study_tables.saved_table(evidence).having("score"),
        "quartiles": study_tables.quartiles_table(report.spreads),
    }
    latex = LATEX_HEAD + "\n".join(_latex(report.studies.name, it) for it in report.leading)
    files = {f"{name}.csv": to_csv(table) for name, table in tables.items()}
    return files | {"tables.tex": latex.encode()}


def _latex(study: str, it: Evidence) -> str:
    what = f"{it.quantity.target}: {it.quantity.title}, difference from {it.reference}."
    table = study_tables.differences_table([it]).without("patients", "standardised")
    return to_latex(table, caption=f"{study}, {what}")


def render_page(report: Report) -> str:
    """The page as text."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["table"] = to_html
    studies, logs = report.studies, report.logs
    drawn = {name: as_data_uri(figure) for name, figure in report.figures.items()}
    names = [source.name for source in studies.sources]
    shown = [metric for _, metric in panels()]
    return environment.get_template("report.html").render(
        study=studies.name,
        compared=names if studies.are_compared else None,
        settings=study_tables.settings_table(names, studies.differences()),
        facts=_facts(report),
        unfinished=[it for it in logs if it.state != "finished"],
        troubled=[it for it in logs if it.reason],
        runs=len(logs),
        findings=[finding for it in report.leading for finding in findings(it)],
        figures=drawn,
        panels=[(it.panel_title, it.explanation_under(studies.evaluation)) for it in shown],
        points=study_tables.points_by_arm(report.points),
        published=study_tables.published_table(studies.published),
        sections=[_section(it, report, drawn) for it in report.leading],
        examples=_examples_words(report.examples),
        no_examples=report.no_examples,
        machines=study_tables.machines_table(logs),
        remarks=remarks(logs),
        logs=study_tables.runs_table(logs),
    )


def _facts(report: Report) -> list[tuple[str, str]]:
    plan, logs = report.studies.first, report.logs
    split, finetune = plan.store.split, plan.study.finetune
    finished = sum(it.state == "finished" for it in logs)
    hours = sum(it.device_hours for it in logs)
    return [
        ("runs finished", f"{finished} of {len(logs)}"),
        ("scans", f"{len(split.train)} train, {len(split.validation)} validation, "
                  f"{len(split.test)} test"),
        ("seeds", f"{len(finetune.seeds)}"),
        ("device-hours", f"{hours:.2f}"),
        ("GPU energy", energy(logs)),
        ("protocol", f"{PROTOCOL}"),
        ("data", plan.store.fingerprint[:12]),
    ]  # fmt: skip


def _section(it: Evidence, report: Report, drawn: Mapping[str, str]) -> dict[str, Any]:
    """What the page shows of one target."""
    target, evaluation = it.quantity.target, report.studies.evaluation
    others = [
        other for other in report.evidence
        if other.quantity.target == target and not other.quantity.leads
    ]  # fmt: skip
    described = [spread for spread in report.spreads if spread.quantity.target == target]
    return {
        "leading": it,
        "explanation": it.quantity.metric.explanation_under(evaluation),
        "figure": drawn[target],
        "means": study_tables.means_by_arm([it]),
        "is_incomplete": any(
            len(it.cells[arm][n].seeds) < planned
            for arm, counts in it.planned.items()
            for n, planned in counts.items()
            if n in it.cells.get(arm, {})
        ),
        "differences": study_tables.differences_table([it]),
        "saved": study_tables.saved_table([it]),
        "others": study_tables.means_by_arm(others),
        "other_metrics": _explained(
            (o.quantity for o in others if o.quantity.metric != it.quantity.metric), evaluation
        ),
        "quartiles": study_tables.quartiles_by_arm(described, it.planned),
        "quartile_metrics": _explained((spread.quantity for spread in described), evaluation),
        "objections": list(dict.fromkeys(it.objections.values())),
    }


def _explained(quantities: Iterable[Quantity], evaluation: Evaluation) -> list[tuple[str, str]]:
    """Title and explanation of each metric, once."""
    metrics = dict.fromkeys(quantity.metric for quantity in quantities)
    return [(it.title_under(evaluation), it.explanation_under(evaluation)) for it in metrics]


def _examples_words(examples: Examples | None) -> str:
    """Which runs are shown."""
    if examples is None:
        return ""
    choice = examples.choice
    pairs = zip(choice.arms, choice.run_ids, strict=True)
    runs = [f"{arm.key} (run {run_id})" for arm, run_id in pairs]
    if choice.anomaly is not None:
        runs.append(f"anomaly map of {choice.anomaly[0]} (run {choice.anomaly[1]})")
    return f"{scans(choice.labels)}, seed {choice.seed}: {', '.join(runs)}"
