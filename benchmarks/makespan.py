"""How well a sweep fills its devices: the demo's plan, scaled down, from its runs' own events.

No schedule can end before the longest chain of runs, nor before all work is shared out evenly. The
work of a run is what it took in this very sweep, so a busy machine lengthens both sides alike.
"""

import os
import subprocess
import sys
import time
from collections.abc import Mapping

from benchmarks.results import Finding
from benchmarks.setting import Setting
from benchmarks.study import ROOT, study_store, unused
from fewscan.harness.loading import load_plan
from fewscan.harness.plan import Plan
from fewscan.storage.system.workers import usable_cpus

Span = tuple[float, float]
"""Start and end, in seconds since 1970."""


def measure(setting: Setting) -> list[Finding]:
    """One sweep of the demo's plan by the command, in a process of its own."""
    store = study_store(setting, size=48)
    folder = unused(setting.folder / "sweep", "demo")
    values = [f"store={store}", f"folder={folder}", *setting.demo_overrides]
    study = ROOT / "experiments" / "demo.yaml"
    begun = time.time()
    arguments = [argument for value in values for argument in ("--set", value)]
    command = [sys.executable, "-m", "fewscan.harness.cli", "sweep", str(study), *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=environment)
    return findings(load_plan(study, tuple(values)), (begun, time.time()))


def findings(plan: Plan, command: Span) -> list[Finding]:
    """What the finished runs of a plan say, swept by a command that began and ended so."""
    spans = {run.run_id: span_of(plan, run.run_id) for run in plan.runs}
    starts, ends = zip(*spans.values(), strict=True)
    seconds = {run_id: end - start for run_id, (start, end) in spans.items()}
    chain, share = longest_chain(plan, seconds), sum(seconds.values()) / usable_cpus()
    bound = max(chain, share)
    before, after = min(starts) - command[0], command[1] - max(ends)
    note = (
        f"{len(spans)} runs of {min(seconds.values()):.1f} to {max(seconds.values()):.1f} s on "
        f"{usable_cpus()} devices; longest chain {chain:.1f} s, work / devices {share:.1f} s; "
        f"{before:.1f} s before the first run, {after:.1f} s after the last (report, MLflow, end)"
    )
    what = "the demo's plan over max(critical path, total work / devices)"
    return [
        Finding(
            f"makespan of {what}",
            ((max(ends) - min(starts)) / bound,),
            "×",
            at_most=1.15,
            note=note,
        ),
        Finding(f"the whole command of {what}", ((command[1] - command[0]) / bound,), "×"),
    ]


def span_of(plan: Plan, run_id: str) -> Span:
    """Of the last attempt: its end, and its own measure of how long it took."""
    finished = plan.folder.run(run_id).committed_events()[-1]
    assert finished.seconds is not None
    return finished.time - finished.seconds, finished.time


def longest_chain(plan: Plan, seconds: Mapping[str, float]) -> float:
    """Seconds of the longest chain of runs, each starting from the one before."""
    until: dict[str, float] = {}
    for run in plan.runs:
        parents = [until.get(parent, 0.0) for parent in run.parents]
        until[run.run_id] = seconds[run.run_id] + max(parents, default=0.0)
    return max(until.values())
