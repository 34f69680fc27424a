"""The tables of the report: those that are CSV files, and those that people alone see."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from fewscan.experiments.catalogue import panels
from fewscan.harness.arms import Arm
from fewscan.harness.report.bootstrap import Estimate
from fewscan.harness.report.evidence import Evidence
from fewscan.harness.report.results import PanelPoint, RunResults, Spread
from fewscan.harness.report.run_log import RunLog, machines
from fewscan.harness.report.tables import (
    MISSING,
    Column,
    Table,
    interval,
    label_count,
    needed,
    needed_interval,
    number,
    one_decimal,
    p_text,
    scans,
    signed,
)
from fewscan.harness.study import Published

UNKNOWN = Estimate(None, None)


def _for_programs(*keys: str) -> tuple[Column, ...]:
    return tuple(Column(key) for key in keys)


def _right(title: str, key: str = "", write: Any = str) -> Column:
    return Column(key, title, write, "right")


ARM = Column("arm", "arm", lambda arm: arm.title)
LABELS = _right("labelled scans", "label_count", label_count)


def numbers_table(results: Iterable[RunResults]) -> Table:
    """Every test metric of every finished run."""
    keys = ("run_id", "arm", "target", "label_count", "seed", "metric", "value")
    rows = (
        (it.folder.run_id, it.place.arm, it.place.target, it.place.labels, it.place.seed, *number_)
        for it in results
        for number_ in it.test.items()
    )
    return Table(_for_programs(*keys), tuple(rows))


def points_table(points: Iterable[PanelPoint]) -> Table:
    """The published figure in numbers."""
    keys = ("target", "metric", "arm", "label_count", "runs", "planned")
    numbers = ("mean", "std", "lowest", "highest")
    rows = (
        (
            it.target, it.metric.overall_key(it.target), it.arm, it.labels, len(it.values),
            it.planned, it.mean, it.std,
            min(it.values, default=None), max(it.values, default=None),
        )
        for it in points
    )  # fmt: skip
    return Table(_for_programs(*keys, *numbers), tuple(rows))


def intervals_table(evidence: Iterable[Evidence]) -> Table:
    """The mean over seeds and patients of every planned cell, the missing ones too."""
    place = ("target", "metric", "arm", "label_count")
    counted = ("seeds", "planned", "patients")
    rows = (
        (it.quantity.target, it.quantity.key, arm, n, *_interval(it, arm, n, planned))
        for it in evidence
        for arm, counts in it.planned.items()
        for n, planned in sorted(counts.items(), key=lambda item: item[0] or 0)
    )
    return Table(_for_programs(*place, *counted, "mean", "low", "high"), tuple(rows))


def _interval(it: Evidence, arm: Arm, n: int | None, planned: int) -> tuple[Any, ...]:
    cell = it.cells.get(arm, {}).get(n)
    if cell is None:
        return 0, planned, 0, None, None, None
    estimate = it.estimates[arm][n]
    seeds, patients = cell.defined().scores_SP.shape
    return seeds, planned, patients, estimate.value, *(estimate.interval or (None, None))


DIFFERENCES = (
    *_for_programs("target", "metric"),
    ARM,
    Column("reference"),
    LABELS,
    _right("seeds", "seeds"),
    _right("patients", "patients"),
    _right("difference", "difference", lambda value: number(value, "+")),
    *_for_programs("low", "high"),
    _right("95 % interval", write=lambda estimate: interval(estimate, "+")),
    Column("p_bootstrap"),
    _right("p", "p_bootstrap_holm", p_text),
    Column("p_wilcoxon"),
    _right("p Wilcoxon", "p_wilcoxon_holm", p_text),
    _right("rank-biserial r", "rank_biserial", signed),
    _right("d_z", "standardised", signed),
)


def differences_table(evidence: Iterable[Evidence]) -> Table:
    """An arm minus its reference at every count that both are to be run with."""
    rows = (
        (it.quantity.target, it.quantity.key, arm, it.references[arm], n, *_difference(it, arm, n))
        for it in evidence
        for arm in it.compared_arms
        for n in it.shared_counts(arm)
    )
    return Table(DIFFERENCES, tuple(rows))


def _difference(it: Evidence, arm: Arm, n: int) -> tuple[Any, ...]:
    found = it.comparisons.get(arm, {}).get(n)
    if found is None:
        return (0, 0, None, None, None, UNKNOWN, *[None] * 6)
    low, high = found.difference.interval or (None, None)
    return (
        found.seeds, found.patients, found.difference.value, low, high, found.difference,
        found.p_bootstrap, found.p_bootstrap_holm, found.p_wilcoxon, found.p_wilcoxon_holm,
        found.rank_biserial, found.standardised,
    )  # fmt: skip


def saved_table(evidence: Sequence[Evidence]) -> Table:
    """What its reference needs for an arm's score, at every count that the arm is to be run with.

    In CSV `inf` is "not reached with the most that were run".
    """
    rows = (
        (it.quantity.target, it.quantity.key, arm, it.references[arm], n, *_saved(it, arm, n))
        for it in evidence
        for arm in it.compared_arms
        for n in it.counts(arm)
    )
    reference = evidence[0].reference if evidence else ""
    columns = (
        *_for_programs("target", "metric"),
        ARM,
        Column("reference"),
        LABELS,
        _right("its score", "score", number),
        _right(f"{reference} needs", write=lambda it: needed(it) if it else MISSING),
        _right("95 % interval", write=lambda it: needed_interval(it) if it else MISSING),
        *_for_programs("needed", "needed_low", "needed_high", "saved", "saved_low", "saved_high"),
        *_for_programs("ratio", "ratio_low", "ratio_high", "fewest_searched", "most_searched"),
    )
    return Table(columns, tuple(rows))


def _saved(it: Evidence, arm: Arm, n: int) -> tuple[Any, ...]:
    found = it.saved.get(arm, {}).get(n)
    if found is None:
        return (None,) * 14
    numbers = [end for each in (found.needed, found.saved, found.ratio) for end in _inf(each)]
    return (found.score, found, found, *numbers, *found.searched)


def _inf(estimate: Estimate) -> tuple[float, float | None, float | None]:
    """Value and interval, in which None stands for "not reached"."""
    low, high = (math.inf if n is None else n for n in estimate.interval or (None, None))
    value = math.inf if estimate.value is None else estimate.value
    return (value, None, None) if estimate.interval is None else (value, low, high)


def quartiles_table(spreads: Iterable[Spread]) -> Table:
    """Of what may be infinite: quartiles over patients and seeds."""
    place = ("target", "metric", "arm", "label_count", "seeds", "values")
    numbers = ("lower", "median", "upper", "infinite_share")
    rows = (
        (
            it.quantity.target, it.quantity.key, it.arm, it.labels, it.seeds, it.values,
            it.lower, it.median, it.upper, it.infinite_share,
        )
        for it in spreads
    )  # fmt: skip
    return Table(_for_programs(*place, *numbers), tuple(rows))


Texts = Mapping[tuple[str, int | None, Arm], str]
"""Title of a metric, labelled scans, arm → what stands there."""


def by_arm(texts: Texts) -> Table:
    """A row for each label count, a column for each arm; a title stands in its first row alone.

    An unsupervised score stands in the column of its pre-training, where there is one.
    """
    arms = list(dict.fromkeys(arm for _, _, arm in texts))
    columns = list(dict.fromkeys(_column(arm, arms) for arm in arms))
    placed = {(title, n, _column(arm, arms)): text for (title, n, arm), text in texts.items()}
    rows: list[tuple[str | int | None, ...]] = []
    for title in dict.fromkeys(title for title, _, _ in texts):
        counts = sorted({n for name, n, _ in texts if name == title}, key=lambda n: n or 0)
        for n in counts:
            shown = [placed.get((title, n, arm), "") for arm in columns]
            rows.append((title if n == counts[0] else "", n, *shown))
    head = [Column("", "metric"), LABELS, *(_right(arm.title) for arm in columns)]
    return Table(tuple(head), tuple(rows))


def _column(arm: Arm, arms: Sequence[Arm]) -> Arm:
    finetuned = replace(arm, kind="fine-tuning")
    return finetuned if finetuned in arms else arm


def points_by_arm(points: Iterable[PanelPoint]) -> Table:
    """Mean ± standard deviation over seeds, for people."""
    return by_arm({(it.metric.panel_title, it.labels, it.arm): _point(it) for it in points})


def _point(point: PanelPoint) -> str:
    if point.mean is None:
        return MISSING
    spread = "" if point.std is None else f" ± {point.std:.3f}"
    return number(point.mean) + spread + _incomplete(len(point.values), point.planned)


def _incomplete(finished: int, planned: int) -> str:
    return "" if finished == planned else f" ({finished}/{planned})"


def means_by_arm(evidence: Iterable[Evidence]) -> Table:
    """Means with their intervals, for people."""
    return by_arm({
        (it.quantity.title, n, arm): _mean(it, arm, n)
        for it in evidence
        for arm, counts in it.planned.items()
        for n in counts
    })  # fmt: skip


def _mean(it: Evidence, arm: Arm, n: int | None) -> str:
    cell = it.cells.get(arm, {}).get(n)
    if cell is None:
        return MISSING
    estimate = it.estimates[arm][n]
    bounds = "" if estimate.interval is None else f"\n{interval(estimate)}"
    return number(estimate.value) + _incomplete(len(cell.seeds), it.planned[arm][n]) + bounds


def quartiles_by_arm(
    spreads: Sequence[Spread], planned: Mapping[Arm, Mapping[int | None, int]]
) -> Table:
    """Quartiles over patients and seeds and how often it is infinite, for people."""
    found = {(_with_unit(it), it.labels, it.arm): _quartiles(it) for it in spreads}
    places = [(arm, n) for arm, counts in planned.items() for n in counts]
    titles = dict.fromkeys(title for title, _, _ in found)
    return by_arm({
        (title, n, arm): found.get((title, n, arm), MISSING) for title in titles
        for arm, n in places
    })  # fmt: skip


def _with_unit(spread: Spread) -> str:
    unit = spread.quantity.metric.unit
    return f"{spread.quantity.title}, {unit}" if unit else spread.quantity.title


def _quartiles(it: Spread) -> str:
    ends = f"{one_decimal(it.lower)} to {one_decimal(it.upper)}"
    return f"{one_decimal(it.median)}\n{ends}; {it.infinite_share or 0:.0%} ∞"


def machines_table(logs: Sequence[RunLog]) -> Table:
    """Kinds of machine with what ran on them."""
    columns = (
        Column("", "host", ", ".join),
        Column("", "device", ", ".join),
        Column("", "versions", ", ".join),
        _right("devices a run"),
        _right("runs"),
        _right("seconds", write="{:,.0f}".format),
        _right("device-hours", write="{:.3f}".format),
    )
    rows = (
        (it.hosts, it.devices, it.versions, it.ranks, it.runs, it.seconds, it.device_hours)
        for it in machines(logs)
    )
    return Table(columns, tuple(rows))


def runs_table(logs: Iterable[RunLog]) -> Table:
    """Where each run stands and what it took."""
    columns = (
        *(Column("", title) for title in ("run", "what", "state")),
        *(Column("", title, lambda names: ", ".join(names) or "–") for title in ("host", "device")),
        _right("attempts", write=lambda n: str(n or "–")),
        _right("seconds", write=lambda s: f"{s:,.1f}" if s else "–"),
        _right("labelled scans", write=lambda n: str(n or "–")),
    )
    rows = (
        (
            it.run_id, it.name, it.state, it.hosts, it.devices, it.attempts, it.seconds,
            it.place.labels,
        )
        for it in logs
    )  # fmt: skip
    return Table(columns, tuple(rows))


def published_table(published: Iterable[Published]) -> Table:
    """The figures of others with their citations, word for word."""
    titles = {metric.overall_key(target): metric.panel_title for target, metric in panels()}
    rows = tuple(
        (
            it.label,
            titles[it.metric],
            "; ".join(f"{v:g} with {scans(n)}" for n, v in sorted(it.points)) or f"{it.value:g}",
            it.citation,
        )
        for it in published
    )
    names = ("published", "metric", "value", "citation")
    return Table(tuple(Column("", name) for name in names), rows)


def settings_table(names: Iterable[str], differences: Iterable[tuple[str, ...]]) -> Table:
    """What two studies do differently."""
    return Table(tuple(Column("", name) for name in ("setting", *names)), tuple(differences))
