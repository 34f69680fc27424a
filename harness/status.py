"""Where a study stands, read from its folders alone, from any machine that sees them."""

from collections import Counter
from collections.abc import Collection, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import NamedTuple

from fewscan.experiments.results import Result
from fewscan.harness.plan import Plan, PlannedRun
from fewscan.storage.errors import RunError
from fewscan.storage.runs import State

SYMBOLS: dict[State, str] = {
    "finished": "[green]✓[/]",
    "running": "[cyan]▶[/]",
    "interrupted": "[yellow]‖[/]",
    "failed": "[red]✗[/]",
    "damaged": "[red]?[/]",
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
            state = states[run_id] = "damaged" if folder.damage() else folder.state()
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
        return self.in_state("failed")

    def in_state(self, state: State) -> list[PlannedRun]:
        return [run for run in self.plan.runs if self.states[run.run_id] == state]

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


class Pace(NamedTuple):
    """Of a run under way that has made a step since it was started."""

    steps_per_s: float
    """Steps of the optimiser."""
    slices_per_s: float
    """Slices that it trains on."""
    flops_per_s: float
    """The plan's arithmetic, so that kinds of runs add up."""


def read_paces(status: StudyStatus) -> Iterator[Pace]:
    """Since each run's last start; reads the events of runs under way alone."""
    for run in status.plan.runs:
        if status.states[run.run_id] != "running" or not run.slices_a_step:
            continue
        folder = status.plan.folder_of(run)
        beat = folder.read_progress()
        try:
            starts = [event for event in folder.committed_events() if event.kind == "started"]
        except RunError:  # damaged since it was looked at
            continue
        if not beat or not starts:
            continue
        steps, seconds = beat["step"] - starts[-1].step, beat["time"] - starts[-1].time
        if steps > 0 and seconds > 0:
            rate = steps / seconds
            yield Pace(rate, rate * run.slices_a_step, rate * run.flops / beat["steps"])


CHANGES_BITS = ("device", "precision", "ranks", "threads", "torch", "code")
"""What a result records of how it was computed, and what its last bits may depend on."""


def mixtures(plan: Plan) -> Iterator[str]:
    """A sentence for each of these that is not the same for all finished runs of a kind."""
    found: dict[tuple[str, str], Counter[str]] = {}
    for run in plan.runs:
        folder = plan.folder_of(run)
        if not folder.result.exists():
            continue
        with suppress(RunError):  # damaged, which is said elsewhere
            computed = Result.read(folder).computed
            for key in CHANGES_BITS:
                if key in computed:
                    found.setdefault((run.kind, key), Counter())[str(computed[key])] += 1
    for (kind, key), counts in found.items():
        if len(counts) > 1:
            values = ", ".join(
                f"{value} ({count} run{'' if count == 1 else 's'})"
                for value, count in counts.most_common()
            )
            depends = "the last bits of their numbers may depend on it"
            if key == "precision":
                depends = "arms are not compared at one precision: set it in the study file"
            yield f"runs of {kind} were computed with different {key}: {values}; {depends}"
