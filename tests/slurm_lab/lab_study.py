"""A real study on the lab: launch it, disturb it, wait for it, compare it with one left alone."""

import copy
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lab
import yaml

from fewscan.experiments.devices import Devices
from fewscan.experiments.stages import run_stage
from fewscan.harness.on_slurm import launch_sweep
from fewscan.harness.plan import Plan
from fewscan.harness.planner import make_plan
from fewscan.harness.study_file import parse_study
from fewscan.slurm import Status, cancel, status
from fewscan.slurm.folder import JOINED
from fewscan.storage.atomic import write_bytes
from fewscan.storage.runs import Event, RunFolder

ENDED = ("done", "failed", "cancelled", "lost")
WAIT_S = 600
"""For what takes seconds on an idle machine, and much longer on a busy one."""
STEPS = 200
SLOW_S = 1.0
"""A step's pace while a study is disturbed: a run lasts STEPS * SLOW_S, longer than any of it."""
FRESH_S = 10.0
"""A run whose heartbeat is younger than this trains."""
CHECKPOINT_EVERY_S = 5.0
SLURM = {
    "partition": "main",
    "memory_gb": 5,  # of a node's 8, so that no two workers share a node
    "max_workers": 3,
    "time_limit_min": 20,
    "signal_delay_s": 20,
    "poll_s": 3,
    "idle_s": 5,
    "wait_for_head_min": 5,
    "job_name": "lab",
}


def design(document: dict[str, Any], store: Path) -> dict[str, Any]:
    """The tiny study as 1 pre-training and 4 fine-tunings, each with its score; three can start."""
    document = copy.deepcopy(document)
    training = {"iterations": STEPS, "validate_every": 50}
    document["pretrain"]["denoise"]["training"] |= training
    document["finetune"]["training"] |= training
    document["finetune"] |= {"label_counts": [2], "seeds": [0, 1], "targets": ["multiclass"]}
    return document | {
        "store": str(store),
        "baselines": ["unsupervised"],
        "resources": {"device": "cpu", "checkpoint_every_s": CHECKPOINT_EVERY_S},
    }


def run_alone(document: dict[str, Any], folder: Path) -> dict[str, bytes]:
    """The results of the study's runs, one after the other in this process, undisturbed."""
    plan = make_plan(parse_study(document | {"folder": str(folder)}, "alone"))
    for run in plan.runs:
        plan.record(run).write(plan.folder_of(run))
        run_stage(plan.folder_of(run), Devices())
    return results(plan)


def results(plan: Plan) -> dict[str, bytes]:
    """What every run has found out, to the last byte: numbers, those of each patient, weights."""
    found = {}
    for run in plan.runs:
        folder = plan.folder_of(run)
        for file in (folder.result, folder.cases, folder.model):
            if file.exists():
                found[f"{run.name}: {file.name}"] = file.read_bytes()
    return found


class LabStudy:
    """One study in `folder` on the shared disk."""

    def __init__(
        self,
        document: dict[str, Any],
        folder: Path,
        undisturbed: dict[str, bytes],
        settings: dict[str, Any],
    ) -> None:
        folder.mkdir(parents=True)
        self.undisturbed = undisturbed
        """Its results if nobody disturbs it."""
        self._pace_file = lab.SHARED / f"{folder.name}.pace"
        self.pace(SLOW_S)
        pacing = [
            f"export LAB_PACE_FILE={self._pace_file}",
            f"export LAB_CLOCKS={lab.CLOCKS}",
            f"export PYTHONPATH={Path(__file__).parent / 'pace'}:$PYTHONPATH",
        ]
        settings = SLURM | settings
        settings["setup"] = [*pacing, *settings.get("setup", [])]
        document = document | {"folder": str(folder), "slurm": settings, "name": folder.name}
        self.file = lab.SHARED / f"{folder.name}.yaml"
        self.file.write_text(yaml.safe_dump(document))
        self.plan = make_plan(parse_study(document, str(self.file)))
        self.cluster = self.plan.folder.cluster

    def pace(self, seconds: float) -> None:
        """From now on every step of every run takes so many seconds longer."""
        write_bytes(self._pace_file, f"{seconds}".encode())

    def launch(self) -> str:
        return launch_sweep(self.plan)

    def command(self, *words: str) -> str:
        """What `fewscan WORDS STUDY` prints; it must succeed."""
        name, *options = words
        line = [sys.executable, "-m", "fewscan.harness.cli", name, str(self.file), *options]
        done = subprocess.run(line, capture_output=True, text=True, timeout=WAIT_S)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def cancel(self) -> None:
        cancel(self.cluster)

    def status(self) -> Status:
        return status(self.cluster)

    def joined(self) -> dict[str, str]:
        """Nodes of the workers that are in the cluster, by job."""
        return {w.job: w.node for w in self.status().workers if w.phase in JOINED and w.node}

    def runs(self) -> list[RunFolder]:
        return [self.plan.folder_of(run) for run in self.plan.runs]

    def training(self) -> dict[RunFolder, str]:
        """Runs that made a step within the last seconds, and the nodes they are on."""
        found = {}
        for folder in self.runs():
            beat = folder.read_progress()
            if beat and beat["step"] > 0 and time.time() - beat["time"] < FRESH_S:
                found[folder] = str(beat["host"])
        return found

    def until_training(self, count: int = 3) -> dict[RunFolder, str]:
        """Wait until so many runs train; their nodes."""
        return dict(self.until(lambda s: len(now := s.training()) == count and now))

    def until(self, what: Callable[["LabStudy"], Any], wait_s: float = WAIT_S) -> Any:
        """Wait until `what` is true; its value."""
        return until(lambda: what(self), wait_s, self.explain)

    def until_ended(self, state: str, wait_s: float = WAIT_S) -> Status:
        """Wait until the study is in `state`, and all its jobs have ended by themselves."""
        self.until(lambda s: s.status().state in ENDED, wait_s)
        now = self.status()
        assert now.state == state, self.explain()
        self.until(lambda s: not s.jobs())
        return now

    def finish(self) -> None:
        """Let the runs go at full speed; their results are those of an undisturbed run."""
        self.pace(0)
        self.until_ended("done")
        assert results(self.plan) == self.undisturbed

    def jobs(self) -> list[str]:
        """The study's jobs that Slurm has not ended."""
        now = self.status()
        return [job for job in [now.head and now.head.id, *(w.job for w in now.workers)] if job]

    def explain(self) -> str:
        log = self.cluster / "logs" / "driver.log"
        last = log.read_text()[-2000:] if log.exists() else ""
        beats = {run.name: self.plan.folder_of(run).read_progress() for run in self.plan.runs}
        return f"{self.status()}\n{json.dumps(beats, indent=1)}\n{last}"


def events(folder: RunFolder, kind: str) -> list[Event]:
    """The events of one kind, oldest first."""
    return [e for e in folder.committed_events() if e.kind == kind]


def until(what: Callable[[], Any], wait_s: float = WAIT_S, explain: Callable[[], str] = str) -> Any:
    """Wait until `what` is true; its value."""
    deadline = time.monotonic() + wait_s
    while not (value := what()):
        assert time.monotonic() < deadline, f"not within {wait_s} s\n{explain()}"
        time.sleep(0.3)
    return value
