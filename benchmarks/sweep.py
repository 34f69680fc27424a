"""What a sweep costs besides its runs, and the commands on a large study.

Bare seconds: there is no published way to compare with.

`RUNS` runs that compute nothing are swept by a process of its own; `plan` and `status` are given to
`PLANNED` runs, all of them finished.
"""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import quantiles
from typing import Any

import yaml

from benchmarks.measure import cost_of
from benchmarks.noop import leave_finished
from benchmarks.results import Finding
from benchmarks.setting import Setting
from benchmarks.study import ROOT, study_store, unused
from fewscan.harness.loading import load_plan

TRAINING = {"iterations": 1, "validate_every": 1, "batch_size": 1}
ARMS = 2


def measure(setting: Setting) -> list[Finding]:
    """The no-op sweep, then both commands."""
    folder = setting.folder / "sweep"
    store = study_store(setting, size=16)
    swept = sweep_of(setting.noop_runs, store, folder)
    large = study_of(setting.planned_runs, store, folder, "large")
    leave_finished(load_plan(large), load_plan(large).runs)
    return [
        overhead(swept),
        memory(swept),
        *(
            command(name, large, setting.planned_runs, setting.rounds)
            for name in ("plan", "status")
        ),
    ]


def study_of(runs: int, store: Path, folder: Path, name: str) -> Path:
    """A new study of about so many runs on two CPU devices: two arms, two targets, many
    seeds, and a training and a score of each."""
    a_seed = ARMS * 2 * 2
    counts = [1, 2, 4, 8, "all"][: max(1, runs // a_seed)]
    document = {
        "name": name,
        "store": str(store),
        "folder": unused(folder, name),
        "network": {"width": 2, "depth": 2},
        "pretrain": {"denoise": {"training": TRAINING}},
        "finetune": {
            "label_counts": counts,
            "seeds": list(range(max(1, round(runs / (len(counts) * a_seed))))),
            "inits": ["scratch", "denoise"],
            "training": TRAINING,
        },
        "resources": {"device": "cpu"},
    }
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(document))
    return path


def sweep_of(runs: int, store: Path, folder: Path) -> dict[str, Any]:
    """Sweep so many no-op runs in a process of its own; see `benchmarks.noop.main`."""
    study = study_of(runs, store, folder, "noop")
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.noop", str(study)],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},  # for the workers too
    )
    return dict(json.loads(done.stdout.splitlines()[-1]))


def overhead(swept: dict[str, Any]) -> Finding:
    """From the end of a run to the start of the next one in the same place."""
    quartiles = quantiles(swept["waits_s"], n=4)
    parts = ("before_first_run_s", "running_s", "until_report_s", "after_report_s")
    before, running, report, after = (f"{swept[part]:.1f} s" for part in parts)
    return Finding(
        f"overhead per trial of the sweep (no-op stage, warm), {swept['runs']} runs",
        tuple(quartiles),
        "s",
        at_most=1.0,
        note=f"median and quartiles; until the first run {before}, all runs {running} in "
        f"{swept['places']} processes, then until the report {report}, until the end {after}",
    )


def memory(swept: dict[str, Any]) -> Finding:
    """The most that the driver held: plan, Tune, MLflow and the report together."""
    return Finding(
        f"memory of the driver, {swept['runs']} no-op runs planned, swept, tracked and reported",
        (swept["peak_bytes"] / 1e9,),
        "GB",
        at_most=1.0,
    )


def command(name: str, study: Path, runs: int, rounds: int) -> Finding:
    """Core seconds of a command with all that it loads; it has one thread, and a busy machine
    lengthens its wall time alone."""
    arguments = [sys.executable, "-m", "fewscan.harness.cli", name, str(study)]
    costs = [cost_of(lambda: _quietly(arguments)) for _ in range(1 + rounds)][1:]
    return Finding(
        f"`{name}` on {runs:,} finished runs, core seconds",
        tuple(cost.core_s for cost in costs),
        "s",
        at_most=3,
        note=f"on the clock {min(c.wall_s for c in costs):.2g} to "
        f"{max(c.wall_s for c in costs):.2g} s",
    )


def _quietly(arguments: Sequence[str]) -> None:
    subprocess.run(arguments, check=True, stdout=subprocess.DEVNULL)
