"""From results to files: figures, tables and the page that says what they mean.

Works on an unfinished study: a missing cell is missing, nothing is imputed. Every number of a
figure stands in a CSV file, and the same run folders give the same bytes. The page needs no other
file and no network; `report.html` is its template, into which jinja2 puts every value escaped.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from matplotlib import rc_context
from matplotlib.figure import Figure

from fewscan.experiments.catalogue import panels
from fewscan.experiments.spec import PROTOCOL
from fewscan.harness.concerns import concerns
from fewscan.harness.listing import growing
from fewscan.harness.report import study_tables
from fewscan.harness.report.answer import answers
from fewscan.harness.report.earlier import GRID, earlier, grid_of, keep_earlier
from fewscan.harness.report.evidence import Evidence, Outcome, gather
from fewscan.harness.report.examples import Examples, draw_examples, read_examples
from fewscan.harness.report.figures import (
    as_data_uri,
    colours_of,
    draw_evidence,
    draw_published,
    draw_training,
    save_figure,
    style,
)
from fewscan.harness.report.findings import findings
from fewscan.harness.report.methods import methods
from fewscan.harness.report.next_steps import next_steps
from fewscan.harness.report.postprocessing import (
    Postprocessed,
    postprocessing_table,
    read_postprocessed,
)
from fewscan.harness.report.results import PanelPoint, RunResults, panel_points, read_results
from fewscan.harness.report.run_log import RunLog, by_machine, curves, read_logs
from fewscan.harness.report.studies import Studies
from fewscan.harness.report.tables import ABREAST, scans, to_csv, to_latex
from fewscan.harness.report.trainings import (
    TrainingCell,
    Trial,
    read_trainings,
    trainings_table,
    trials_of,
    trials_table,
    warnings_of,
)
from fewscan.harness.status import mixtures
from fewscan.storage.atomic import remove_leftovers, write_bytes
from fewscan.storage.errors import FewscanError, StudyError
from fewscan.storage.locks import exclusive

OTHERS_WRITE_WITHIN_S = 120.0


@dataclass(frozen=True)
class Report:
    """All that a report says, gathered once: figures, tables and page show the same."""

    studies: Studies
    results: Sequence[RunResults]
    points: Sequence[PanelPoint]
    evidence: Sequence[Evidence]
    logs: Sequence[RunLog]
    examples: Examples | None
    no_examples: str
    """Why there are none."""
    trainings: Sequence[TrainingCell] = ()
    trials: Sequence[Trial] = ()
    postprocessed: Sequence[Postprocessed] = ()

    @property
    def leading(self) -> list[Evidence]:
        """What the verdicts are about: one for each target."""
        return [it for it in self.evidence if it.quantity.leads]

    @property
    def pooled(self) -> list[Outcome]:
        """The differences in numbers of all pixels that the published figure shows."""
        shown = [it for it in self.evidence if it.quantity.metric.scope == "pooled"]
        return [outcome for it in shown if it.quantity.metric.panel for outcome in it.paired]

    def outcomes(self, *, compared: bool) -> list[Outcome]:
        """Of what is compared by means, or of what is described by quartiles."""
        found = [it for it in self.evidence if it.is_compared == compared]
        return [outcome for it in found for outcome in it.outcomes]

    @cached_property
    def figures(self) -> dict[str, Figure]:
        """By the name of the file, the published figure first."""
        with rc_context(style()):
            return self._drawn()

    def _drawn(self) -> dict[str, Figure]:
        arms = dict.fromkeys(it.arm for it in self.points if it.labels is not None)
        colours, store = colours_of(list(arms)), self.studies.first.store
        figures = {
            "figure": draw_published(
                self.points,
                colours,
                self.studies.published,
                self.studies.first.study.report.axis,
            )
        }
        for it in self.leading:
            figures[it.quantity.target] = draw_evidence(it, colours)
        if self.examples is not None:
            figures["examples"] = draw_examples(self.examples, store.channels[0], store.meaning)
        if losses := curves(self.logs):
            figures["training"] = draw_training(losses, colours)
        return figures


def write_report(studies: Studies) -> list[Path]:
    """Write figures, page and tables into the report folder; returns the files, figure first.

    Raises `StudyError` if no run of the study has a test result yet.
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
    with exclusive(folder / ".lock", _busy(folder), wait_s=OTHERS_WRITE_WITHIN_S):
        remove_leftovers(folder)
        keep_earlier(studies)
        return _write(report, folder)


def _write(report: Report, folder: Path) -> list[Path]:
    files = [folder / f"{name}.{kind}" for name in report.figures for kind in ("png", "pdf")]
    for file in files:
        save_figure(report.figures[file.stem], file)
    texts = render_csv(report)
    texts |= {"report.html": render_page(report), "tables.tex": render_latex(report)}
    texts[GRID] = f"{grid_of(report.studies)}\n"
    for name, text in texts.items():
        write_bytes(folder / name, text.encode())
        files.append(folder / name)
    return files


def _busy(folder: Path) -> StudyError:
    return StudyError(
        f"another process has been writing this report for {OTHERS_WRITE_WITHIN_S:.0f} s",
        where=folder,
        expected="a report written in seconds",
        remedy="look for a `fewscan report` or `sweep` that hangs, and end it",
    )


def gather_report(studies: Studies, results: Sequence[RunResults]) -> Report:
    """Read the run folders and compute everything."""
    examples, no_examples = None, "no label count has been finished by all arms yet"
    try:
        examples = None if studies.are_compared else read_examples(studies.first, results)
    except FewscanError as error:  # a report without pictures is better than none
        no_examples = str(error)
    points, evidence = panel_points(studies, results), gather(studies, results)
    trainings, groups = read_trainings(studies)
    return Report(
        studies,
        results,
        points,
        evidence,
        read_logs(studies),
        examples,
        no_examples,
        trainings,
        trials_of(groups),
        read_postprocessed(studies, results),
    )


def render_csv(report: Report) -> dict[str, str]:
    """Name of the file → its text."""
    areas = [area for it in report.evidence for area in study_tables.areas(it)]
    paired = [outcome for it in report.evidence for outcome in it.paired]
    saved = [outcome for outcome in report.outcomes(compared=True) if outcome.saved]
    described = [outcome for outcome in report.outcomes(compared=False) if outcome.cell]
    # In the order of the runs, which begins with what is not fine-tuned.
    keys = list(dict.fromkeys(it.quantity for it in described))
    arms = list(dict.fromkeys(it.place.arm for it in report.results))
    described.sort(key=lambda it: (keys.index(it.quantity), arms.index(it.arm)))
    tables = {
        "figure": study_tables.points_table(report.points),
        "numbers": study_tables.numbers_table(report.results),
        "areas": study_tables.areas_table(areas),
        "intervals": study_tables.intervals_table(report.outcomes(compared=True)),
        "differences": study_tables.differences_table(paired),
        "labels_saved": study_tables.saved_table(saved, ""),
        "trainings": trainings_table(report.trainings),
        "trials": trials_table(report.trials),
        "ranking": study_tables.ranking_table(report.leading),
        "pairs": study_tables.pairs_table(report.leading),
        "arithmetic": study_tables.arithmetic_table(report.studies),
        "labels_needed": study_tables.needed_table(report.leading),
        "quartiles": study_tables.quartiles_table(described),
    }
    if report.postprocessed:
        tables["postprocessing"] = postprocessing_table(report.postprocessed)
    return {f"{name}.csv": to_csv(table) for name, table in tables.items()}


LATEX_HEAD = r"""% Needs \usepackage{booktabs}. Over seeds and patients; p-values are corrected
% for all areas and label counts that the report tests.
"""


def render_latex(report: Report) -> str:
    """Means, areas and differences of what the verdicts are about, and of post-processing."""
    texts = []
    for it in report.leading:
        what = f"{report.studies.name}, {it.quantity.target}: {it.quantity.title}"
        means = study_tables.means_on_a_line(it.outcomes)
        texts.append(to_latex(means, caption=f"{what}, mean and 95 % interval."))
        areas = study_tables.areas_table(study_tables.areas(it))
        texts.append(to_latex(areas, caption=f"{what}, mean over the logarithmic axis."))
        if it.ranking is not None:
            ranking = study_tables.ranking_table([it])
            texts.append(to_latex(ranking, caption=f"{what}, ranked by that area."))
        table = study_tables.differences_table(it.paired).without("patients", "standardised")
        texts.append(to_latex(table, caption=f"{what}, difference from {it.reference}."))
    if report.postprocessed:
        table = postprocessing_table(report.postprocessed)
        texts.append(to_latex(table, caption=f"{report.studies.name}: post-processing, Dice."))
    return LATEX_HEAD + "\n".join(texts)


def render_page(report: Report) -> str:
    """The page as text; `report.html` asks the report and makes the tables."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["scans"] = scans
    return environment.get_template("report.html").render(
        report=report,
        studies=report.studies,
        logs=report.logs,
        machines=by_machine(report.logs),
        figures={name: as_data_uri(figure) for name, figure in report.figures.items()},
        answers=answers(report.leading),
        findings=[finding for it in report.leading for finding in findings(it)],
        panels=panels(),
        protocol=PROTOCOL,
        tables=study_tables,
        mixtures=mixtures,
        concerns=concerns,
        trainings_table=trainings_table,
        postprocessing_table=postprocessing_table,
        trials_table=trials_table,
        warnings=list(warnings_of(report.trainings)),
        earlier=earlier(report.studies),
        next_steps=next_steps(report.studies, report.leading),
        methods=methods,
        abreast=ABREAST,
        growing=growing,
        run_folder=partial(_run_folder, report.studies),
        anchors=study_tables.run_anchors(report.studies),
    )


def _run_folder(studies: Studies, log: RunLog) -> str:
    """From the page, to follow a number to what it was made of."""
    return Path(os.path.relpath(log.folder, studies.report_folder)).as_posix()
