"""The tables of the report's page, as text."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from fewscan.experiments.spec import Segment
from fewscan.harness.plan import UNSUPERVISED
from fewscan.harness.report.distances import DistanceRow
from fewscan.harness.report.evidence import Evidence
from fewscan.harness.report.pooled import PANELS, Cell
from fewscan.harness.report.record import RunRecord, machines
from fewscan.harness.report.words import (
    MISSING,
    arm_name,
    interval,
    millimetres,
    needed,
    needed_interval,
    number,
    p_text,
    scans,
)
from fewscan.harness.study import Published


@dataclass(frozen=True)
class Table:
    """A table as text, the first `labels` columns left-aligned."""

    head: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    labels: int = 1


def pooled_table(cells: Sequence[Cell]) -> Table:
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


def mean_table(evidence: Sequence[Evidence]) -> Table:
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


def difference_table(it: Evidence) -> Table:
    head = (
        "arm", "labelled scans", "seeds", "patients", "difference", "95 % interval",
        "p", "p Wilcoxon", "rank-biserial r", "d_z",
    )  # fmt: skip
    rows = []
    for arm in it.rivals:
        for n in it.counts(arm):
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


def saved_table(it: Evidence) -> Table:
    head = ("arm", "labelled scans", "its score", f"{it.reference} needs", "95 % interval")
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


def machine_table(records: Sequence[RunRecord]) -> Table:
    head = ("host", "device", "versions", "devices a run", "runs", "seconds", "device-hours")
    rows = [
        (
            ", ".join(it.hosts), ", ".join(it.devices), ", ".join(it.versions), str(it.ranks),
            str(it.runs), f"{it.seconds:,.0f}", f"{it.device_hours:.3f}",
        )
        for it in machines(records)
    ]  # fmt: skip
    return Table(head, rows, labels=3)


def run_table(records: Sequence[RunRecord]) -> Table:
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


def distance_table(rows: Sequence[DistanceRow], planned: Mapping[str, Mapping[int, int]]) -> Table:
    """HD95: quartiles over patients and seeds, and how often it is infinite."""
    arms = _columns(planned)
    lines: list[tuple[str, ...]] = []
    for name in dict.fromkeys(row.name for row in rows):
        missing = {(n, arm): MISSING for arm, counts in planned.items() for n in counts}
        texts = missing | {
            (row.label_count, row.arm): f"{millimetres(row.median_mm)}\n"
            f"{millimetres(row.lower_mm)} to {millimetres(row.upper_mm)}; "
            f"{row.infinite_share or 0:.0%} ∞"
            for row in rows
            if row.name == name
        }
        lines += _by_count(f"HD95 of {name}, mm" if name != "lesion" else "HD95, mm", texts, arms)
    return Table(("metric", "labelled scans", *map(arm_name, arms)), lines)


def published_table(published: Sequence[Published]) -> Table:
    """The figures of others with their citations, word for word."""
    titles = {panel.metric: panel.title for panel in PANELS}
    rows = [
        (
            it.label,
            titles[it.metric],
            "; ".join(f"{v:g} with {scans(n)}" for n, v in sorted(it.points)) or f"{it.value:g}",
            it.citation,
        )
        for it in published
    ]
    return Table(("published", "metric", "value", "citation"), rows, labels=4)


def settings_table(names: tuple[str, str], unlike: Sequence[tuple[str, str, str]]) -> Table:
    """What two studies do differently."""
    return Table(("setting", *names), unlike, labels=3)
