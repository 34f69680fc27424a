"""A study for people in a terminal: what is to be run, where it stands, how long the rest takes."""

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from fewscan.experiments.spec import Finetune, Pretrain, Score, Target, Training
from fewscan.harness.arms import Arm
from fewscan.harness.by_count import ByCount, plain_table
from fewscan.harness.concerns import concerns
from fewscan.harness.first_pace import FirstPace
from fewscan.harness.networks import needed_bytes
from fewscan.harness.plan import VERBS, Plan, PlannedRun, slices_a_scan
from fewscan.harness.status import SYMBOLS, StudyStatus, mixtures, read_paces, read_status
from fewscan.storage.runs import State

Measure = Callable[[Plan], FirstPace | None]
"""How fast the device of a plan is; None: nobody can tell here."""
LISTED_AT_MOST = 50
"""Runs that `fewscan plan` lists one by one without being asked to."""
SYMBOLS_AT_MOST = 6
"""Seeds of a cell that are shown one by one; of more, their number."""
ARM_WIDTH = 12
"""Letters of an arm's column, at least."""
ERRORS_AT_MOST = 5
"""Failed runs whose reason is shown in full."""


def render_plan(plan: Plan, measure: Measure = lambda plan: None) -> RenderableType:
    """Its runs one by one while few, else grouped; what is done, and how long the rest takes.

    `measure` is asked how fast the device is, if no run tells.
    """
    status = read_status(plan)
    if len(plan.runs) <= LISTED_AT_MOST:
        body: list[RenderableType] = ["\n".join(run_lines(status))]
    else:
        body = [_groups(status), "--runs lists them one by one"]
    estimate = [] if status.is_finished else [render_estimate(status, measure)]
    title = f"study {plan.study.name} on {plan.store.path}\n"
    if trained := _iterations(plan):
        body.append(trained)
    if memory := _memory(plan):
        body.append(memory)
    body += [escape(sentence) for sentence in growing(plan)]
    known = [f"[yellow]note:[/] {escape(sentence)}" for sentence in concerns(plan)]
    return Group(title, *body, "", *known, summary(status), *estimate)


def growing(plan: Plan) -> Iterator[str]:
    """What the looks of an adaptive study saw, and what comes next; nothing of another study."""
    yield from plan.looked
    if plan.look is not None and len(plan.looked) < plan.look.number:
        yield (
            f"look {plan.look.number} of at most {plan.look.of} is taken when these runs are "
            "finished; then seeds are added where it is open, or the study is over"
        )


def _iterations(plan: Plan) -> str:
    """How long the cells of the grid are trained, in iterations and epochs of their slices."""
    found: dict[int, Training] = {}
    for run in plan.runs:
        if isinstance(run.spec, Finetune) and run.place.is_cell and run.place.arm.is_ranked:
            found[run.spec.label_count] = run.spec.training
    each = slices_a_scan(plan.store)
    texts = [
        f"{it.iterations:,} at {count} ({it.iterations * it.batch_size / count / each:.3g} epochs)"
        for count, it in sorted(found.items())
    ]
    return f"iterations by labelled scans: {', '.join(texts)}" if texts else ""


def _memory(plan: Plan) -> str:
    """What trainings take of each of their devices; the largest of each stage."""
    most: dict[str, float] = {}
    for run in plan.runs:
        if isinstance(run.spec, Pretrain | Finetune):
            needs = needed_bytes(plan.study, run.spec, run.store or plan.store)
            most[run.kind] = max(needs, most.get(run.kind, 0))
    texts = [f"{VERBS.get(kind, 'pre-train')} {needs / 1e9:.2g} GB" for kind, needs in most.items()]
    return f"memory a device, roughly: {', '.join(texts)}" if texts else ""


def run_lines(status: StudyStatus) -> Iterator[str]:
    """A line a run, in columns: id, state, arithmetic, parents, name, why it failed."""
    yield f"{'run':12}  {'state':11}  {'PFLOP':>8}  {'starts from':12}  what"
    for run in status.plan.runs:
        state, pflop = status.states[run.run_id], f"{run.flops / 1e15:.3g}"
        parents = ", ".join(run.parents) or "–"
        line = f"{run.run_id}  {state:11}  {pflop:>8}  {parents:12}  {run.name}"
        if state == "failed":
            line += ": " + status.plan.folder_of(run).read_error()["message"].partition("\n")[0]
        if state == "damaged":
            line += f": {status.plan.folder_of(run).damage()}"
        yield line


def _groups(status: StudyStatus) -> Table:
    table = Table()
    for column in ("what", "labelled scans", "seeds", "runs", "PFLOP", "state"):
        table.add_column(column, justify="right" if column in ("runs", "PFLOP") else "left")
    groups: dict[str, list[PlannedRun]] = {}
    for run in status.plan.runs:
        groups.setdefault(_group_of(run), []).append(run)
    for name, runs in groups.items():
        places = [run.place for run in runs if run.place.is_cell]
        counts = spans({place.labels for place in places if place.labels is not None})
        seeds = spans({place.seed for place in places})
        pflop = f"{sum(run.flops for run in runs) / 1e15:.3g}"
        states = render_states([status.states[run.run_id] for run in runs])
        table.add_row(name, counts, seeds, str(len(runs)), pflop, states)
    return table


def _group_of(run: PlannedRun) -> str:
    """The same for runs that differ in label count and seed alone."""
    place = run.place
    if run.made_in is not None:
        return _of_partner(run)
    if not place.is_cell:
        return run.name_in_all_folds
    return f"{VERBS[run.kind]} {place.target} · {place.arm.key}"


def _of_partner(run: PlannedRun) -> str:
    """All runs of another study together."""
    return f"{run.place.arm.study}, the partner"


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


def render_status(status: StudyStatus) -> RenderableType:
    """Label count × arm for each target, its seeds in the cell; the other runs above."""
    parts: list[RenderableType] = [_other_runs(status)]
    parts += [_grid(status, target) for target in status.plan.study.finetune.targets]
    parts.append("  ".join(f"{symbol} {state}" for state, symbol in SYMBOLS.items()))
    parts.append(summary(status))
    waits = status.plan.folder.read_waiting()
    if waits and status.count()["running"]:  # else it is what a killed sweep has left
        parts.append(f"[yellow]waiting:[/] {escape(waits)}")
    parts += [escape(sentence) for sentence in growing(status.plan)]
    parts += [f"[yellow]mixed:[/] {sentence}" for sentence in mixtures(status.plan)]
    parts += _errors(status)
    return Group(*parts)


def _errors(status: StudyStatus) -> Iterator[str]:
    """The first failed runs with their reasons; many usually share one."""
    failed = status.failed()
    for run in failed[:ERRORS_AT_MOST]:
        folder = status.plan.folder_of(run)
        message = escape(folder.read_error()["message"])
        yield f"[red]failed[/] {run.run_id} {run.name}\n    {message}\n    {folder.error}"
    if len(failed) > ERRORS_AT_MOST:
        more = len(failed) - ERRORS_AT_MOST
        yield f"[red]failed[/] {more} more: `fewscan status STUDY --runs` lists them"


def _other_runs(status: StudyStatus) -> Table:
    """A line for each, or for those that differ in seed alone, together."""
    table = plain_table(show_header=False)
    several: dict[str, list[PlannedRun]] = {}
    for run in status.plan.runs:
        if not run.place.is_cell:
            name = run.name_in_all_folds.partition(" · seed ")[0]
            name = name if run.made_in is None else _of_partner(run)
            several.setdefault(name, []).append(run)
    for name, runs in several.items():
        states = render_states([status.states[run.run_id] for run in runs])
        percent = sum(status.fractions[run.run_id] for run in runs) / len(runs)
        of_what = "runs" if runs[0].place.fold or runs[0].made_in else "seeds"
        which = runs[0].run_id if len(runs) == 1 else f"{len(runs)} {of_what}"
        table.add_row(states, name, f"{percent:.0%}", which)
    return table


def _grid(status: StudyStatus, target: Target) -> Group:
    cells: dict[tuple[Arm, int], list[State]] = {}
    for run in status.plan.grid:
        place = run.place
        if place.target == target and place.labels is not None:
            cells.setdefault((place.arm, place.labels), []).append(status.state_of_cell(run))
    texts = {place: render_states(states) for place, states in cells.items()}
    width = max(ARM_WIDTH, *(len(Text.from_markup(text)) for text in texts.values()))
    arms = list(dict.fromkeys(arm for arm, _ in cells))
    counts = sorted({count for _, count in cells})
    table = ByCount(arms, counts, lambda arm, count: texts.get((arm, count), ""), width)
    folds = " and folds" if status.plan.folds else ""
    return Group(f"{target}: the seeds{folds} of each cell", table)


def render_states(states: Sequence[State]) -> str:
    """A symbol for each of a few runs; of many, how many are in each state: "480✓ 3▶ 1✗"."""
    if len(states) <= SYMBOLS_AT_MOST:
        return "".join(SYMBOLS[state] for state in states)
    count = Counter(states)
    return " ".join(f"{count[state]}{symbol}" for state, symbol in SYMBOLS.items() if count[state])


def summary(status: StudyStatus) -> str:
    count = status.count()
    states = ", ".join(f"{count[state]} {state}" for state in SYMBOLS if count[state])
    return f"{len(status.states)} runs: {states}; {status.done_fraction:.0%} of the work is done"


def render_estimate(status: StudyStatus, measure: Measure = lambda plan: None) -> str:
    """One line: what is left, and how long it takes at the pace of now, else of finished runs, else
    at the one that is measured."""
    left = sum(run.flops * (1 - status.fractions[run.run_id]) for run in status.plan.runs)
    text = f"{left / 1e15:.3g} PFLOP are left: "
    paces = list(read_paces(status))
    if paces:
        steps, slices, flops = map(sum, zip(*paces, strict=True))
        left_s = left / flops
        hours, minutes = divmod(round(left_s / 60), 60)
        duration = f"{hours} h {minutes} min" if hours else f"{minutes} min"
        at = time.strftime("%a %H:%M", time.localtime(time.time() + left_s))
        who = "1 run trains" if len(paces) == 1 else f"{len(paces)} runs train"
        return text + (
            f"{who} at {steps:.3g} steps/s, {slices:.3g} slices/s; at this pace all is done in "
            f"{duration}, {at}"
        )
    if seconds_a_flop := _seconds_a_flop(status):
        device_hours = _left_s(status, seconds_a_flop) / 3600
        return text + f"{device_hours:.3g} device-hours, as fast as the finished runs were"
    if pace := measure(status.plan):
        device_hours = _left_s(status, 1 / pace.flops_per_s) / 3600
        return text + (
            f"about {_roughly(device_hours)} device-hours by a few steps timed here "
            f"({pace.device}); reading, augmentation and metrics come on top"
        )
    return text + "how long that takes is unknown until a run trains"


def _roughly(hours: float) -> str:
    """With two digits: "0.042", "6.7", "410"."""
    return f"{float(f'{hours:.2g}'):,g}"


def _seconds_a_flop(status: StudyStatus) -> float:
    """Of finished trainings; 0 if there is none. Scores tell nothing of it: their metrics have no
    arithmetic that is counted."""
    trained = [run for run in status.in_state("finished") if run.slices_a_step]
    seconds = sum((status.plan.folder_of(run).last_attempt_s() for run in trained), 0.0)
    return seconds / sum(run.flops for run in trained) if trained else 0.0


def _left_s(status: StudyStatus, seconds_a_flop: float) -> float:
    """Seconds of one device for all that is left; of scores as long each as finished ones took."""
    scored = [run for run in status.in_state("finished") if run.kind == Score.kind]
    took_s = [status.plan.folder_of(run).last_attempt_s() for run in scored]
    left_s = 0.0
    for run in status.plan.runs:
        is_like_them = run.kind == Score.kind and sum(took_s) > 0
        whole_s = sum(took_s) / len(took_s) if is_like_them else run.flops * seconds_a_flop
        left_s += whole_s * (1 - status.fractions[run.run_id])
    return left_s
