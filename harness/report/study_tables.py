"""The tables of what was measured: those of the CSV files, and the same numbers for people."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from operator import itemgetter
from typing import Any, NamedTuple

from fewscan.experiments.cost import BACKWARD, flops_by_part, forward_flops
from fewscan.experiments.spec import Finetune, Pretrain, Target
from fewscan.harness.arms import Arm
from fewscan.harness.report.bootstrap import Estimate
from fewscan.harness.report.comparison import Area
from fewscan.harness.report.evidence import Evidence, Outcome
from fewscan.harness.report.labels_needed import LabelsNeeded
from fewscan.harness.report.ranking import Pair, Ranked
from fewscan.harness.report.results import PanelPoint, Quantity, RunResults
from fewscan.harness.report.studies import Studies
from fewscan.harness.report.tables import (
    ABREAST,
    MISSING,
    Column,
    Linked,
    Table,
    at,
    interval,
    label_count,
    labels,
    needed,
    needed_between,
    needed_interval,
    number,
    one_decimal,
    p_text,
    percent,
    scans,
    signed,
)


def _csv(**paths: str) -> tuple[Column, ...]:
    """Columns of CSV files alone: key → attributes from a row's object to the value."""
    return tuple(Column(key, "", at(path)) for key, path in paths.items())


def _right(
    key: str, title: str, value: Callable[[Any], Any], write: Callable[[Any], str] = str
) -> Column:
    return Column(key, title, value, write, "right")


QUANTITY = _csv(target="quantity.target", metric="quantity.key")
ARM = Column("arm", "arm", at("arm"), lambda arm: arm.title)
LABELS = _right("label_count", "labelled scans", at("labels"), label_count)
IN_ALL = _right("labels_in_all", "labels in all", at("in_all"))


class Number(NamedTuple):
    """One test metric of a finished run."""

    run: RunResults
    metric: str
    value: float | None


def numbers_table(results: Iterable[RunResults]) -> Table:
    """Every test metric of every finished run."""
    run = _csv(run_id="run.folder.run_id", arm="run.place.arm", target="run.place.target")
    cell = _csv(label_count="run.place.labels", seed="run.place.seed", fold="run.place.fold")
    runs = [run for it in results for run in it.runs]
    rows = [Number(run, metric, value) for run in runs for metric, value in run.test.items()]
    return Table((*run, *cell, *_csv(metric="metric", value="value")), rows)


def labels_table(studies: Studies) -> Table:
    """What the numbers of each arm depend on, at the fewest and the most labelled scans."""
    rows = []
    for target in studies.targets:
        counts: dict[Arm, list[int | None]] = {}
        for arm, n in studies.planned(target):
            counts.setdefault(arm, []).append(n)
        for arm, found in counts.items():
            ends = dict.fromkeys([found[0], found[-1]])
            rows += [(target, arm, n, studies.budgets[target, arm, n]) for n in ends]
    columns = (
        Column("", "target", itemgetter(0)),
        Column("", "arm", itemgetter(1), lambda arm: arm.title),
        _right("", "labelled scans", itemgetter(2), label_count),
        Column("", "its numbers depend on the labels of", lambda row: row[3].words),
    )
    return Table(columns, rows)


def points_table(points: Sequence[PanelPoint]) -> Table:
    """The published figure in numbers."""
    columns = (
        *QUANTITY,
        *_csv(arm="arm", label_count="labels", labels_in_all="in_all"),
        *_csv(runs="runs", planned="planned", mean="mean", low="low", high="high", std="std"),
        Column("lowest", "", lambda it: min(it.values, default=None)),
        Column("highest", "", lambda it: max(it.values, default=None)),
    )
    return Table(columns, points)


def intervals_table(outcomes: Sequence[Outcome]) -> Table:
    """The mean over seeds and patients of every planned cell, the missing ones too."""
    columns = (
        *QUANTITY,
        *_csv(arm="arm", label_count="labels", labels_in_all="in_all"),
        Column("seeds", "", lambda it: it.scored[0]),
        *_csv(planned="planned"),
        Column("collapsed", "", lambda it: len(it.collapsed)),
        Column("patients", "", lambda it: it.scored[1]),
        *_csv(mean="mean.value", low="mean.low", high="mean.high"),
    )
    return Table(columns, outcomes)


def quartiles_table(outcomes: Sequence[Outcome]) -> Table:
    """Of what is described, over patients and seeds."""
    columns = (
        *QUANTITY,
        *_csv(arm="arm", label_count="labels", labels_in_all="in_all", seeds="seeds"),
        Column("patients", "", lambda it: it.scored[1]),
        *_csv(values="quartiles.values"),
        *_csv(lower="quartiles.lower", median="quartiles.median", upper="quartiles.upper"),
        *_csv(infinite_share="quartiles.infinite_share"),
    )
    return Table(columns, outcomes)


class ArmArea(NamedTuple):
    """The area of an arm, with its place."""

    quantity: Quantity
    arm: Arm
    compared_with: Arm | None
    area: Area


def areas(evidence: Evidence) -> list[ArmArea]:
    """The areas of a quantity, arm by arm."""
    references = evidence.references
    return [
        ArmArea(evidence.quantity, arm, references.get(arm), area)
        for arm, area in evidence.areas.items()
    ]


def areas_table(rows: Sequence[ArmArea]) -> Table:
    """The area under each curve over the logarithmic axis, and its difference from the reference.

    Of an arm that is compared both areas are over the label counts that the two share.
    """
    columns = (
        *QUANTITY,
        ARM,
        *_csv(reference="compared_with"),
        Column("label_counts", "over labelled scans", lambda it: _span(it.area.counts)),
        _right("seeds", "seeds", at("area.seeds")),
        *_csv(units="area.units"),
        *_csv(one_pretraining="area.one_pretraining"),
        _right("patients", "patients", at("area.patients")),
        _right("area", "its area", at("area.mean.value"), number),
        *_csv(area_low="area.mean.low", area_high="area.mean.high"),
        _right("reference_area", "the reference's", at("area.reference.value"), _number_or_dash),
        *_csv(reference_low="area.reference.low", reference_high="area.reference.high"),
        _right("difference", "difference", at("area.difference.value"), signed),
        *_csv(low="area.difference.low", high="area.difference.high"),
        _right("", "95 % interval", at("area.difference"), partial(interval, sign="+")),
        *_csv(p_uncorrected="area.p"),
        _right("p", "p", at("area.p_corrected"), p_text),
    )
    return Table(columns, rows)


def _number_or_dash(value: float | None) -> str:
    return "–" if value is None else number(value)


def _span(counts: tuple[int, ...]) -> str:
    return ", ".join(map(str, counts))


def differences_table(outcomes: Sequence[Outcome]) -> Table:
    """An arm minus its reference, at counts that both are to be run with."""
    columns = (
        *QUANTITY,
        ARM,
        *_csv(reference="reference"),
        LABELS,
        IN_ALL,
        _right("seeds", "seeds", at("comparison.seeds", missing=0)),
        _right("patients", "patients", at("comparison.patients", missing=0)),
        _right(
            "difference", "difference", at("comparison.difference.value"), partial(number, sign="+")
        ),
        *_csv(low="comparison.difference.low", high="comparison.difference.high"),
        _right("", "95 % interval", at("comparison.difference"), partial(interval, sign="+")),
        *_csv(p_uncorrected="comparison.p"),
        _right("p", "p", at("comparison.p_corrected"), p_text),
        _right("standardised", "d_z", at("comparison.standardised"), signed),
    )
    return Table(columns, outcomes)


def saved_table(outcomes: Sequence[Outcome], reference: str) -> Table:
    """What the reference, in words, needs for an arm's score.

    In CSV, where outcomes without it cannot stand, `inf` is "not reached with the most that were
    run".
    """
    columns = (
        *QUANTITY,
        ARM,
        *_csv(reference="reference"),
        LABELS,
        IN_ALL,
        _right("score", "its score", at("saved.score"), number),
        _right("", f"{reference} needs", at("saved"), needed),
        _right("", "95 % interval", at("saved"), needed_interval),
        *_csv(needed="saved.needed.value", needed_low="saved.needed.low"),
        *_csv(needed_high="saved.needed.high", saved="saved.saved.value"),
        *_csv(saved_low="saved.saved.low", saved_high="saved.saved.high"),
        *_csv(ratio="saved.ratio.value", ratio_low="saved.ratio.low"),
        *_csv(ratio_high="saved.ratio.high"),
        Column("fewest_searched", "", lambda it: it.saved.searched[0]),
        Column("most_searched", "", lambda it: it.saved.searched[1]),
    )
    return Table(columns, outcomes)


class Needed(NamedTuple):
    """What one arm needs for the score that is asked for."""

    quantity: Quantity
    arm: Arm
    found: LabelsNeeded
    named: bool


def needed_table(evidence: Sequence[Evidence]) -> Table:
    """The labelled scans that each arm needs for a score. In CSV `inf` is "more than searched"."""
    rows = [
        Needed(it.quantity, arm, found, it.is_named)
        for it in evidence
        for arm, found in it.needed.items()
    ]
    columns = (
        *QUANTITY,
        ARM,
        _right("score", "for a score of", at("found.score"), number),
        *_csv(named="named"),
        _right("", "labelled scans", lambda it: labels(it.found.needed.value, it.found.searched)),
        _right("", "95 % interval", at("found"), needed_between),
        *_csv(needed="found.needed.value", low="found.needed.low", high="found.needed.high"),
        Column("how", "how", at("found.how")),
        Column("reason", "why not", at("found.reason")),
        Column("fewest_searched", "", lambda it: it.found.searched[0]),
        Column("most_searched", "", lambda it: it.found.searched[1]),
    )
    return Table(columns, rows)


def runs_anchor(target: Target | None, arm: Arm, labels: int | None) -> str:
    """Of the runs that differ in seed alone, where the page lists runs."""
    return re.sub(r"\W+", "-", f"runs {target} {arm.key} {labels or 0}").strip("-")


def run_anchors(studies: Studies) -> dict[str, str]:
    """Run → its anchor: of those that differ in seed alone the first has one."""
    first: dict[str, str] = {}
    for plan in studies.plans:
        for run in plan.scores:
            place = run.place
            first.setdefault(runs_anchor(place.target, place.arm, place.labels), run.run_id)
    return {run_id: anchor for anchor, run_id in first.items()}


def _linked(it: Any, text: str) -> str:
    """To the runs that a number is made of."""
    if text == MISSING:
        return text
    return Linked(text, runs_anchor(it.quantity.target, it.arm, it.labels))


def _by_arm(items: Sequence[Any], text: Callable[[Any], str]) -> Table:
    """A row for each label count, a column for each arm; a title stands in its first row alone.

    Of more than `ABREAST` arms a row for each arm, and a column for each label count. An
    unsupervised score stands in the column, or row, of its pre-training, where there is one.
    """
    arms = dict.fromkeys(it.arm for it in items)
    finetuned = {arm: replace(arm, kind="fine-tuning") for arm in arms}
    place = {arm: finetuned[arm] if finetuned[arm] in arms else arm for arm in arms}
    texts = {(it.quantity.title, it.labels, place[it.arm]): _linked(it, text(it)) for it in items}
    shown = list(dict.fromkeys(place.values()))
    if len(shown) > ABREAST:
        return _arm_by_arm(texts, shown)
    rows: list[tuple[str | int | None, ...]] = []
    for name in dict.fromkeys(name for name, _, _ in texts):
        counts = sorted({n for other, n, _ in texts if other == name}, key=lambda n: n or 0)
        for n in counts:
            cells = [texts.get((name, n, arm), "") for arm in shown]
            rows.append((name if n == counts[0] else "", n, *cells))
    columns = [
        Column("", "metric", itemgetter(0)),
        _right("", "labelled scans", itemgetter(1), label_count),
        *(_right("", arm.title, itemgetter(k)) for k, arm in enumerate(shown, start=2)),
    ]
    return Table(columns, rows)


def _arm_by_arm(texts: Mapping[tuple[str, int | None, Arm], str], arms: Sequence[Arm]) -> Table:
    """The same turned round: a column for each label count, the unlabelled one first."""
    counts = sorted({n for _, n, _ in texts}, key=lambda n: n or 0)
    rows: list[tuple[str, ...]] = []
    for name in dict.fromkeys(name for name, _, _ in texts):
        here = [arm for arm in arms if any((name, n, arm) in texts for n in counts)]
        for arm in here:
            cells = [texts.get((name, n, arm), "") for n in counts]
            rows.append((name if arm == here[0] else "", arm.title, *cells))
    columns = [
        Column("", "metric", itemgetter(0)),
        Column("", "arm", itemgetter(1)),
        *(
            _right("", "unsupervised" if n is None else scans(n), itemgetter(k))
            for k, n in enumerate(counts, start=2)
        ),
    ]
    return Table(columns, rows)


class InRanking(NamedTuple):
    """A row of a ranking, or a pair of it, with its place."""

    quantity: Quantity
    counts: tuple[int, ...]
    it: Ranked | Pair


def _of_rankings(evidence: Sequence[Evidence], name: str) -> list[InRanking]:
    return [
        InRanking(found.quantity, found.ranking.counts, it)
        for found in evidence
        if found.ranking is not None
        for it in getattr(found.ranking, name)
    ]


def ranking_table(evidence: Sequence[Evidence]) -> Table:
    """Arms from best to worst, and how stable their places are."""
    columns = (
        *QUANTITY,
        _right("rank", "rank", at("it.rank")),
        Column("arm", "arm", at("it.arm"), lambda arm: arm.title),
        Column("label_counts", "", lambda row: _span(row.counts)),
        _right("area", "area", at("it.area.value"), number),
        *_csv(low="it.area.low", high="it.area.high"),
        _right("", "95 % interval", at("it.area"), interval),
        _right("best", "best in", at("it.best"), percent),
        Column("rank_low", "", lambda row: row.it.ranks and row.it.ranks[0]),
        Column("rank_high", "", lambda row: row.it.ranks and row.it.ranks[1]),
        _right("", "ranks, 95 %", at("it.ranks"), _ranks),
    )
    return Table(columns, _of_rankings(evidence, "ranked"))


def _ranks(ranks: tuple[int, int] | None) -> str:
    if ranks is None:
        return "–"
    low, high = ranks
    return f"{low}" if low == high else f"{low} to {high}"


def pairs_table(evidence: Sequence[Evidence]) -> Table:
    """Each ranked arm against each that is below it."""
    columns = (
        *QUANTITY,
        Column("arm", "arm", at("it.first"), lambda arm: arm.title),
        Column("against", "against", at("it.second"), lambda arm: arm.title),
        _right("improvement", "does better with", at("it.improvement.value"), percent),
        *_csv(improvement_low="it.improvement.low", improvement_high="it.improvement.high"),
        _right("", "95 % interval", at("it.improvement"), _percents),
        _right("difference", "difference", at("it.difference.value"), signed),
        *_csv(low="it.difference.low", high="it.difference.high"),
        _right("", "95 % interval", at("it.difference"), partial(interval, sign="+")),
        *_csv(p_uncorrected="it.p"),
        _right("p", "p", at("it.p_corrected"), p_text),
    )
    return Table(columns, _of_rankings(evidence, "pairs"))


def _percents(estimate: Estimate) -> str:
    return " to ".join(map(percent, estimate.interval or ())) or "–"


class Arithmetic(NamedTuple):
    """What the trainings of an arm, or of a pre-training, cost."""

    what: str
    target: Target | None
    runs: int
    tflop_a_step: float
    """Of the first of them."""
    pflop: float
    """Of all, with validation."""
    share_of_plain: float
    """What a step costs in parts of one through the whole network and back."""


def arithmetic(studies: Studies) -> list[Arithmetic]:
    """Trainings that differ in seed and label count alone together, trials with what they try."""
    groups: dict[tuple[str, Target | None], list[Arithmetic]] = {}
    for plan in studies.plans:
        for run in plan.runs:
            if not isinstance(run.spec, Pretrain | Finetune):
                continue
            store, training = run.store or plan.store, run.spec.training
            flops = flops_by_part(run.spec, run.spec.network, store)
            step = flops.training / training.iterations
            channels = len(store.channels)
            slice_ = forward_flops(run.spec.network, channels, channels, store.size)
            plain = (1 + BACKWARD) * slice_ * training.batch_size
            what = run.name.partition(" · ")[0] if run.place.target is None else run.place.arm.title
            own = Arithmetic(
                what, run.place.target, 1, step / 1e12, sum(flops) / 1e15, step / plain
            )
            groups.setdefault((what, run.place.target), []).append(own)
    return [
        found[0]._replace(runs=len(found), pflop=sum(it.pflop for it in found))
        for found in groups.values()
    ]


def arithmetic_table(studies: Studies) -> Table:
    """How much arithmetic each arm and each pre-training is (`experiments.cost`)."""
    columns = (
        Column("what", "what", at("what")),
        Column("target", "target", at("target"), lambda target: target or ""),
        _right("runs", "runs", at("runs")),
        _right("tflop_a_step", "TFLOP a step", at("tflop_a_step"), "{:.3g}".format),
        _right("of_plain", "of a plain one", at("share_of_plain"), percent),
        _right("pflop", "PFLOP in all", at("pflop"), "{:.3g}".format),
    )
    return Table(columns, arithmetic(studies))


def points_by_arm(points: Sequence[PanelPoint]) -> Table:
    """Means over seeds with their intervals, for people."""
    return _by_arm(points, _point)


def _point(it: PanelPoint) -> str:
    if it.mean is None:
        return MISSING
    return _with_interval(it.estimate, _incomplete(it.runs, it.planned))


def _incomplete(finished: int, planned: int) -> str:
    return "" if finished == planned else f" ({finished}/{planned})"


def means_by_arm(outcomes: Sequence[Outcome]) -> Table:
    """Means with their intervals, for people."""
    return _by_arm(outcomes, _mean)


def means_on_a_line(outcomes: Sequence[Outcome]) -> Table:
    """Means with their intervals, each on one line: for LaTeX."""
    return _by_arm(outcomes, _on_a_line)


def _on_a_line(it: Outcome) -> str:
    mean, *more = _mean(it).split("\n")
    return f"{mean} ({'; '.join(more)})" if more else mean


def _mean(it: Outcome) -> str:
    if it.mean is None:
        return MISSING
    fallen = f"\n{len(it.collapsed)} collapsed" if it.collapsed else ""
    return _with_interval(it.mean, _incomplete(it.seeds, it.planned)) + fallen


def _with_interval(it: Estimate, note: str = "", sign: str = "") -> str:
    """A line for the number, and one for its interval if it has one."""
    bounds = "" if it.interval is None else f"\n{interval(it, sign)}"
    return number(it.value, sign) + note + bounds


def differences_by_arm(outcomes: Sequence[Outcome]) -> Table:
    """Paired differences with their intervals, for people."""
    return _by_arm(outcomes, _difference)


def _difference(it: Outcome) -> str:
    return MISSING if it.comparison is None else _with_interval(it.comparison.difference, sign="+")


def quartiles_by_arm(outcomes: Sequence[Outcome]) -> Table:
    """Quartiles over patients and seeds, of how many, and how often it is infinite, for people."""
    return _by_arm(outcomes, _quartiles)


def _quartiles(it: Outcome) -> str:
    found = it.quartiles
    if found is None:
        return MISSING
    ends = f"{one_decimal(found.lower)} to {one_decimal(found.upper)}"
    infinite = f"; {found.infinite_share:.0%} ∞" if found.infinite_share else ""
    patients = f"{it.scored[1]} patient{'' if it.scored[1] == 1 else 's'}"
    return f"{one_decimal(found.median)}\n{ends}{infinite}; {patients}"
