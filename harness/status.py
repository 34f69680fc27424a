"""Where a study stands, read from its folders alone, from any machine that sees them."""

from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table

from fewscan.experiments.spec import Target
from fewscan.harness.arms import Arm
from fewscan.harness.plan import Plan, PlannedRun
from fewscan.storage.runs import State

ASSUMED_FLOPS = 100e12
"""For the estimate of hours: a tenth of the bf16 matrix rate of an H100, by its data sheet."""

SYMBOLS_AT_MOST = 6
"""Seeds of a cell that are shown one by one; of more, their number."""
ERRORS_AT_MOST = 5
"""Failed runs whose reason is shown in full."""
SYMBOLS: dict[State, str] = {
    "finished": "[green]✓[/]",
    "running": "[cyan]▶[/]",
    "interrupted": "[yellow]‖[/]",
    "failed": "[red]✗[/]",
    "missing": "[dim]·[/]",
}


@dataclass(frozen=True)
class StudyStatus:
    """The state of each run of a plan, and how far the running ones are."""

    plan: Plan
    states: dict[str, State]
    """Run id → state."""
    fractions: dict[str, float]
    """Run id → part of its steps that is done, 0 to 1."""

    @property
    def done_fraction(self) -> float:
        """Part of the whole study's arithmetic that is done, 0 to 1."""
        total = sum(run.flops for run in self.plan.runs)
        done = sum(run.flops * self.fractions[run.run_id] for run in self.plan.runs)
        return done / total if total else 1.0

    @property
    def is_finished(self) -> bool:
        """Whether every run has a result."""
        return all(state == "finished" for state in self.states.values())

    @property
    def is_over(self) -> bool:
        """Whether nothing can be done any more: every run is finished, failed or blocked."""
        hopeless = len(self.failed()) + len(self.blocked())
        return hopeless + self.count()["finished"] == len(self.states)

    def count(self) -> Counter[State]:
        """How many runs are in each state."""
        return Counter(self.states.values())

    def looked_at_again(self, run_ids: Collection[str]) -> "StudyStatus":
        """The same with the folders of these runs read anew, and no other."""
        states, fractions = dict(self.states), dict(self.fractions)
        for run_id in run_ids:
            folder = self.plan.folder.run(run_id)
            state = states[run_id] = folder.state()
            beat = folder.read_progress() if state == "running" else {}
            fraction = beat["step"] / max(beat["steps"], 1) if beat else 0.0
            fractions[run_id] = 1.0 if state == "finished" else fraction
        return StudyStatus(self.plan, states, fractions)

    def state_of_cell(self, score: PlannedRun) -> State:
        """Of a fine-tuning and its score together: what the first of them is that is not over."""
        chain = [self.states.get(run_id, "finished") for run_id in (*score.parents, score.run_id)]
        return next((state for state in chain if state != "finished"), "finished")

    def failed(self) -> list[PlannedRun]:
        """The runs whose last attempt raised an error."""
        return [run for run in self.plan.runs if self.states[run.run_id] == "failed"]

    def blocked(self) -> list[PlannedRun]:
        """The runs that wait for a failed one, directly or not."""
        hopeless = {run.run_id for run in self.failed()}
        blocked = []
        for run in self.plan.runs:
            waits = self.states[run.run_id] not in ("failed", "finished")
            if waits and hopeless.intersection(run.parents):
                hopeless.add(run.run_id)
                blocked.append(run)
        return blocked


def read_status(plan: Plan) -> StudyStatus:
    """Ask every run folder of the plan."""
    return StudyStatus(plan, {}, {}).looked_at_again([run.run_id for run in plan.runs])


def render_status(status: StudyStatus) -> RenderableType:
    """Label count × arm for each target, its seeds in the cell; the other runs above."""
    parts: list[RenderableType] = [_other_runs(status)]
    parts += [_grid(status, target) for target in status.plan.study.finetune.targets]
    parts.append("  ".join(f"{symbol} {state}" for state, symbol in SYMBOLS.items()))
    parts.append(summary(status))
    if not status.is_finished:
        parts.append(render_estimate(status))
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
    table = Table(box=None, show_header=False)
    for run in status.plan.runs:
        if run.place.labels is None:
            percent = f"{status.fractions[run.run_id]:.0%}"
            table.add_row(SYMBOLS[status.states[run.run_id]], run.name, percent, run.run_id)
    return table


def _grid(status: StudyStatus, target: Target) -> Table:
    cells: dict[tuple[Arm, int], list[State]] = {}
    for run in status.plan.grid:
        place = run.place
        if place.target == target and place.labels is not None:
            cells.setdefault((place.arm, place.labels), []).append(status.state_of_cell(run))
    counts = sorted({count for _, count in cells})
    table = Table(title=f"{target}: the seeds of each cell", title_justify="left")
    table.add_column("labelled scans")
    for count in counts:
        table.add_column(str(count))
    for arm in dict.fromkeys(arm for arm, _ in cells):
        table.add_row(arm.key, *(render_states(cells.get((arm, count), [])) for count in counts))
    return table


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


def render_estimate(status: StudyStatus) -> str:
    """How long the rest takes, from the runs that are finished, or from an assumption."""
    left = sum(run.flops * (1 - status.fractions[run.run_id]) for run in status.plan.runs)
    finished = [run for run in status.plan.runs if status.states[run.run_id] == "finished"]
    seconds = sum(status.plan.folder_of(run).last_attempt_s() for run in finished)
    rate = sum(run.flops for run in finished) / seconds if seconds else ASSUMED_FLOPS
    source = "as in its finished runs" if seconds else "assumed, not measured"
    hours = left / rate / 3600
    text = f"{left / 1e15:.3g} PFLOP are left: {hours:.3g} device-hours"
    running = status.count()["running"]
    if running:
        text += f", {hours / running:.3g} hours with the {running} runs at a time of now"
    return f"{text}, at {rate / 1e12:.3g} TFLOP/s a run ({source})"
