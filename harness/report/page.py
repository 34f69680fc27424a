"""The report as one HTML page that needs no network: style and figures are inside it.

`report.html` beside this file is its template; jinja2 escapes every value that is put into it.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from experiments.spec import PROTOCOL, Segment
from harness.plan import UNSUPERVISED, Plan
from harness.report.evidence import Evidence
from harness.report.figures import (
    Colours,
    as_data_uri,
    draw_evidence,
    draw_published,
    draw_training,
)
from harness.report.findings import findings
from harness.report.pooled import PANELS, Cell
from harness.report.record import RunRecord, curves, machines
from harness.report.words import (
    MISSING,
    arm_name,
    interval,
    needed,
    needed_interval,
    number,
    p_text,
)
from harness.study import SCRATCH


@dataclass(frozen=True)
class Table:
    """A table as text, the first `labels` columns left-aligned."""

    head: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    labels: int = 1


@dataclass(frozen=True)
class Section:
    """What the page shows of one target."""

    target: str
    title: str
    """Of the leading metric."""
    figure: str
    means: Table
    differences: Table
    saved: Table
    others: Table
    """The other metrics of this target: the classes, for instance."""
    objections: list[str]


def render_page(
    plan: Plan,
    cells: Sequence[Cell],
    evidence: Sequence[Evidence],
    records: Sequence[RunRecord],
    colours: Colours,
) -> str:
    """The page as text."""
    loader = FileSystemLoader(Path(__file__).parent)
    environment = Environment(
        loader=loader,
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    leading = [it for it in evidence if it.metric.leads]
    panels = curves(records)
    return environment.get_template("report.html").render(
        study=plan.study.name,
        facts=_facts(plan, records),
        unfinished=[it for it in records if it.state != "finished"],
        troubled=[it for it in records if it.reason],
        runs=len(records),
        findings=[finding for it in leading for finding in findings(it)],
        published=as_data_uri(draw_published(cells, "", colours)),
        pooled=_pooled_table(cells),
        sections=[_section(it, evidence, colours) for it in leading],
        training=as_data_uri(draw_training(panels, colours)) if panels else "",
        machines=_machine_table(records),
        records=_run_table(records),
    )


def _facts(plan: Plan, records: Sequence[RunRecord]) -> list[tuple[str, str]]:
    split, finetune = plan.store.split, plan.study.finetune
    finished = sum(it.state == "finished" for it in records)
    hours = sum(it.device_hours for it in records)
    return [
        ("runs finished", f"{finished} of {len(records)}"),
        ("scans", f"{len(split.train)} train, {len(split.validation)} validation, "
                  f"{len(split.test)} test"),
        ("seeds", f"{len(finetune.seeds)}"),
        ("device-hours", f"{hours:.2f}"),
        ("protocol", f"{PROTOCOL}"),
        ("data", plan.store.fingerprint[:12]),
    ]  # fmt: skip


def _pooled_table(cells: Sequence[Cell]) -> Table:
    arms = _columns(cell.arm for cell in cells)
    rows: list[tuple[str, ...]] = []
    for panel in PANELS:
        here = {
            (c.label_count, c.arm): _pooled_text(c)
            for c in cells
            if (c.target, c.metric) == (panel.target, panel.metric)
        }

        rows += _by_count(panel.title, here, arms)
    return Table(("metric", "labelled scans", *map(arm_name, arms)), rows)


def _by_count(
    title: str, texts: Mapping[tuple[int, str], str], arms: Sequence[str]
) -> list[tuple[str, ...]]:
    """A row for each label count and a column for each arm; the title in the first row alone."""
    counts = sorted({count for count, _ in texts})
    placed = {(count, _column(arm, arms)): text for (count, arm), text in texts.items()}
    return [
        (
            title if n == counts[0] else "",
            str(n or "none (unsupervised)"),
            *(placed.get((n, arm), "") for arm in arms),
        )
        for n in counts
    ]


def _columns(arms: Iterable[str]) -> list[str]:
    """Each arm once; an unsupervised score has no column beside that of its pre-training."""
    arms = list(dict.fromkeys(arms))
    return [arm for arm in arms if _column(arm, arms) == arm]


def _column(arm: str, arms: Sequence[str]) -> str:
    pretraining = arm.removeprefix(f"{UNSUPERVISED}: ")
    return pretraining if pretraining in arms else arm


def _pooled_text(cell: Cell) -> str:
    if cell.mean is None:
        return MISSING
    spread = "" if cell.std is None else f" ± {cell.std:.3f}"
    return number(cell.mean) + spread + _incomplete(cell.runs, cell.planned)


def _incomplete(finished: int, planned: int) -> str:
    return "" if finished == planned else f" ({finished}/{planned})"


def _section(it: Evidence, evidence: Sequence[Evidence], colours: Colours) -> Section:
    others = [
        other
        for other in evidence
        if other.metric.target == it.metric.target and not other.metric.leads
    ]
    return Section(
        target=it.metric.target,
        title=it.metric.title,
        figure=as_data_uri(draw_evidence(it, colours)),
        means=_mean_table([it]),
        differences=_difference_table(it),
        saved=_saved_table(it),
        others=_mean_table(others),
        objections=list(dict.fromkeys(it.objections.values())),
    )


def _mean_table(evidence: Sequence[Evidence]) -> Table:
    arms = _columns(arm for it in evidence for arm in it.planned)
    rows: list[tuple[str, ...]] = []
    for it in evidence:
        places = [(n, arm) for arm, counts in it.planned.items() for n in counts]
        texts = {(n, arm): _mean_text(it, arm, n) for n, arm in places}
        rows += _by_count(it.metric.title, texts, arms)
    return Table(("metric", "labelled scans", *map(arm_name, arms)), rows)


def _mean_text(it: Evidence, arm: str, count: int) -> str:
    cell = it.cells.get(arm, {}).get(count)
    if cell is None:
        return MISSING
    estimate = it.estimates[arm][count]
    bounds = "" if estimate.interval is None else f"\n{interval(estimate)}"
    return number(estimate.value) + _incomplete(len(cell.seeds), it.planned[arm][count]) + bounds


def _difference_table(it: Evidence) -> Table:
    head = (
        "arm", "labelled scans", "seeds", "patients", "difference", "95 % interval",
        "p", "p Wilcoxon", "rank-biserial r", "d_z",
    )  # fmt: skip
    rows = []
    for arm in it.rivals:
        for n in sorted(it.planned[arm].keys() & it.planned.get(SCRATCH, {})):
            found = it.comparisons.get(arm, {}).get(n)
            if found is None:
                rows.append((arm_name(arm), str(n), *[MISSING] * (len(head) - 2)))
                continue
            rows.append((
                arm_name(arm), str(n), str(found.seeds), str(found.patients),
                number(found.difference.value, "+"), interval(found.difference, "+"),
                p_text(found.p_bootstrap_holm), p_text(found.p_wilcoxon_holm),
                number(found.rank_biserial, "+"),
                "–" if found.standardised is None else number(found.standardised, "+"),
            ))  # fmt: skip
    return Table(head, rows)


def _saved_table(it: Evidence) -> Table:
    head = ("arm", "labelled scans", "its score", "scratch needs", "95 % interval")
    rows = []
    for arm in it.rivals:
        for n in sorted(count for count in it.planned[arm] if count):
            found = it.saved.get(arm, {}).get(n)
            if found is None:
                rows.append((arm_name(arm), str(n), *[MISSING] * (len(head) - 2)))
                continue
            texts = (number(found.score), needed(found), needed_interval(found))
            rows.append((arm_name(arm), str(n), *texts))
    return Table(head, rows)


def _machine_table(records: Sequence[RunRecord]) -> Table:
    head = ("host", "device", "versions", "devices a run", "runs", "seconds", "device-hours")
    rows = [
        (
            ", ".join(it.hosts), ", ".join(it.devices), ", ".join(it.versions), str(it.ranks),
            str(it.runs), f"{it.seconds:,.0f}", f"{it.device_hours:.3f}",
        )
        for it in machines(records)
    ]  # fmt: skip
    return Table(head, rows, labels=3)


def _run_table(records: Sequence[RunRecord]) -> Table:
    head = ("run", "what", "state", "host", "device", "attempts", "seconds", "labelled scans")
    rows = [
        (
            it.run.run_id, it.run.name, it.state, ", ".join(it.hosts) or "–",
            ", ".join(it.devices) or "–", str(it.attempts) if it.attempts else "–",
            f"{it.seconds:,.1f}" if it.seconds else "–",
            str(it.run.spec.label_count) if isinstance(it.run.spec, Segment) else "–",
        )
        for it in records
    ]  # fmt: skip
    return Table(head, rows, labels=5)
