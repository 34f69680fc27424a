"""The report as one HTML page that needs no network: style and figures are inside it.

`report.html` beside this file is its template; jinja2 escapes every value that is put into it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from matplotlib.figure import Figure

from fewscan.experiments.spec import PROTOCOL
from fewscan.harness.report.content import Content
from fewscan.harness.report.evidence import Evidence
from fewscan.harness.report.examples import Examples
from fewscan.harness.report.figures import as_data_uri
from fewscan.harness.report.findings import findings
from fewscan.harness.report.page_tables import (
    Table,
    difference_table,
    distance_table,
    machine_table,
    mean_table,
    pooled_table,
    published_table,
    run_table,
    saved_table,
    settings_table,
)
from fewscan.harness.report.pair import Pair
from fewscan.harness.report.record import energy
from fewscan.harness.report.words import scans


@dataclass(frozen=True)
class Section:
    """What the page shows of one target."""

    target: str
    title: str
    """Of the leading metric."""
    reference: str
    figure: str
    means: Table
    differences: Table
    saved: Table
    others: Table
    """The other metrics of this target: the classes, NSD."""
    distances: Table
    """HD95."""
    objections: list[str]


def render_page(content: Content, figures: Mapping[str, Figure]) -> str:
    """The page as text."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    plan, records = content.plan, content.records
    drawn = {name: as_data_uri(figure) for name, figure in figures.items()}
    return environment.get_template("report.html").render(
        study=plan.study.name,
        pair=_pair_table(content),
        facts=_facts(content),
        unfinished=[it for it in records if it.state != "finished"],
        troubled=[it for it in records if it.reason],
        runs=len(records),
        findings=[finding for it in content.leading for finding in findings(it)],
        figures=drawn,
        pooled=pooled_table(content.cells),
        published=published_table(content.published),
        sections=[_section(it, content, drawn[it.metric.target]) for it in content.leading],
        tolerance_mm=plan.study.evaluation.nsd_tolerance_mm,
        examples=_examples_words(content.examples),
        no_examples=content.no_examples,
        machines=machine_table(records),
        records=run_table(records),
    )


def _facts(content: Content) -> list[tuple[str, str]]:
    plan, records = content.plan, content.records
    split, finetune = plan.store.split, plan.study.finetune
    finished = sum(it.state == "finished" for it in records)
    hours = sum(it.device_hours for it in records)
    return [
        ("runs finished", f"{finished} of {len(records)}"),
        ("scans", f"{len(split.train)} train, {len(split.validation)} validation, "
                  f"{len(split.test)} test"),
        ("seeds", f"{len(finetune.seeds)}"),
        ("device-hours", f"{hours:.2f}"),
        ("GPU energy", energy(records)),
        ("protocol", f"{PROTOCOL}"),
        ("data", plan.store.fingerprint[:12]),
    ]  # fmt: skip


def _pair_table(content: Content) -> Table | None:
    plan = content.plan
    return settings_table(plan.names, plan.differences()) if isinstance(plan, Pair) else None


def _section(it: Evidence, content: Content, figure: str) -> Section:
    target = it.metric.target
    others = [o for o in content.evidence if o.metric.target == target and not o.metric.leads]
    return Section(
        target=target,
        title=it.metric.title,
        reference=it.reference,
        figure=figure,
        means=mean_table([it]),
        differences=difference_table(it),
        saved=saved_table(it),
        others=mean_table(others),
        distances=distance_table(
            [row for row in content.distances if row.target == target], it.planned
        ),
        objections=list(dict.fromkeys(it.objections.values())),
    )


def _examples_words(examples: Examples | None) -> str:
    """Which runs are shown."""
    if examples is None:
        return ""
    choice = examples.choice
    runs = [f"{arm} (run {run_id})" for arm, run_id in choice.runs.items()]
    if choice.anomaly is not None:
        runs.append(f"anomaly map of {choice.anomaly[0]} (run {choice.anomaly[1]})")
    return f"{scans(choice.label_count)}, seed {choice.seed}: {', '.join(runs)}"
