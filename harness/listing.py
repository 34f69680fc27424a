"""A plan for people: its runs one by one while they are few, else grouped."""

from collections.abc import Iterable, Iterator, Sequence

from rich.console import Group, RenderableType
from rich.table import Table

from fewscan.harness.plan import VERBS, Plan, PlannedRun
from fewscan.harness.status import StudyStatus, read_status, render_estimate, render_states, summary

LISTED_AT_MOST = 50
"""Runs that `fewscan plan` lists one by one without being asked to."""


def render_plan(plan: Plan) -> RenderableType:
    """What is to be run, what of it is done, and the arithmetic of it all."""
    status = read_status(plan)
    if len(plan.runs) <= LISTED_AT_MOST:
        body: list[RenderableType] = ["\n".join(run_lines(status))]
    else:
        body = [_groups(status), "--runs lists them one by one"]
    estimate = [] if status.is_finished else [render_estimate(status)]
    title = f"study {plan.study.name} on {plan.store.path}\n"
    return Group(title, *body, "", summary(status), *estimate)


def run_lines(status: StudyStatus) -> Iterator[str]:
    """A line a run, in columns: id, state, arithmetic, parents, name, why it failed."""
    yield f"{'run':12}  {'state':11}  {'PFLOP':>8}  {'starts from':12}  what"
    for run in status.plan.runs:
        state, pflop = status.states[run.run_id], f"{run.flops / 1e15:.3g}"
        parents = ", ".join(run.parents) or "–"
        reason = f": {_reason(status.plan, run)}" if state == "failed" else ""
        yield f"{run.run_id}  {state:11}  {pflop:>8}  {parents:12}  {run.name}{reason}"


def _reason(plan: Plan, run: PlannedRun) -> str:
    return str(plan.folder_of(run).read_error()["message"]).partition("\n")[0]


def _groups(status: StudyStatus) -> Table:
    table = Table()
    for column in ("what", "labelled scans", "seeds", "runs", "PFLOP", "state"):
        table.add_column(column, justify="right" if column in ("runs", "PFLOP") else "left")
    groups: dict[str, list[PlannedRun]] = {}
    for run in status.plan.runs:
        groups.setdefault(_group_of(run), []).append(run)
    for name, runs in groups.items():
        places = [run.place for run in runs if run.place.labels is not None]
        counts = spans({place.labels for place in places if place.labels is not None})
        seeds = spans({place.seed for place in places})
        pflop = f"{sum(run.flops for run in runs) / 1e15:.3g}"
        states = render_states([status.states[run.run_id] for run in runs])
        table.add_row(name, counts, seeds, str(len(runs)), pflop, states)
    return table


def _group_of(run: PlannedRun) -> str:
    """The same for runs that differ in label count and seed alone."""
    place = run.place
    if place.labels is None:
        return run.name
    return f"{VERBS[run.kind]} {place.target} · {place.arm.key}"


def spans(numbers: Iterable[int]) -> str:
    """Whole numbers in order, three neighbours or more joined: "1, 2, 8–11"."""
    parts: list[list[int]] = []
    for number in sorted(numbers):
        if parts and number == parts[-1][-1] + 1:
            parts[-1].append(number)
        else:
            parts.append([number])
    return ", ".join(map(_span, parts))


def _span(part: Sequence[int]) -> str:
    return f"{part[0]}–{part[-1]}" if len(part) > 2 else ", ".join(map(str, part))
