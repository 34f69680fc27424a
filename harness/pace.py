"""How fast a study goes just now, from the heartbeats of the runs that are under way."""

import time
from dataclasses import dataclass

from fewscan.harness.plan import PlannedRun
from fewscan.harness.status import StudyStatus
from fewscan.storage.runs import RunFolder


@dataclass(frozen=True)
class Pace:
    """Of all runs under way that have made a step since they were started."""

    runs: int
    """How many they are."""
    steps_per_s: float
    """Steps of the optimiser."""
    slices_per_s: float
    """Slices that they train on."""
    flops_per_s: float
    """The plan's arithmetic, so that kinds of runs add up."""


def read_pace(status: StudyStatus) -> Pace:
    """Since each run's last start; reads the events of runs under way alone."""
    pace = Pace(0, 0.0, 0.0, 0.0)
    for run in status.plan.runs:
        if status.states[run.run_id] == "running":
            pace = _with(pace, run, status.plan.folder_of(run))
    return pace


def _with(pace: Pace, run: PlannedRun, folder: RunFolder) -> Pace:
    beat = folder.read_progress()
    starts = [event for event in folder.committed_events() if event.kind == "started"]
    if not beat or not starts or not run.slices_a_step:
        return pace
    steps, seconds = beat["step"] - starts[-1].step, beat["time"] - starts[-1].time
    if steps <= 0 or seconds <= 0:
        return pace
    rate = steps / seconds
    return Pace(
        pace.runs + 1,
        pace.steps_per_s + rate,
        pace.slices_per_s + rate * run.slices_a_step,
        pace.flops_per_s + rate * run.flops / beat["steps"],
    )


def render_pace(status: StudyStatus) -> str:
    """One line: throughput, and when all is done if it goes on like this."""
    pace = read_pace(status)
    if not pace.runs:
        return "no run is training"
    left = sum(run.flops * (1 - status.fractions[run.run_id]) for run in status.plan.runs)
    left_s = left / pace.flops_per_s
    at = time.strftime("%a %H:%M", time.localtime(time.time() + left_s))
    who = "1 run trains" if pace.runs == 1 else f"{pace.runs} runs train"
    return (
        f"{who} at {pace.steps_per_s:.3g} steps/s, {pace.slices_per_s:.3g} "
        f"slices/s; at this pace all is done in {_duration(left_s)}, {at}"
    )


def _duration(seconds: float) -> str:
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"
