"""One sweep that several tests look at: as a person gives it, of data that are not BraTS.

It starts where files lie that nobody may run, and is watched until its end.
"""

import json
import os
import re
import shutil
import socket
import subprocess
import sysconfig
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import yaml
from click.testing import CliRunner

from fewscan.harness.cli import main
from fewscan.harness.loading import load_plan
from fewscan.harness.plan import Plan

ROOT = Path(__file__).parents[1]
FEWSCAN = Path(sysconfig.get_path("scripts")) / "fewscan"
"""The command as it is installed."""
SPLIT = {"train": ["phantom_00000"], "validation": ["phantom_00001"], "test": ["phantom_00002"]}
LOOK_EVERY_S = 0.3
NICENESS = 3
"""What the study asks for."""
DAEMONS = ("gcs_server", "raylet", "dashboard.py", "agent.py", "log_monitor.py", "monitor.py")
Listening = set[tuple[str, str]]
"""Process and address of all that listen."""


@dataclass
class WholeSweep:
    """What was swept, what was said of it, what was seen meanwhile."""

    scans: Path
    """A raw data set of nnU-Net's."""
    checked: str
    """What `fewscan check` says of the store."""
    study: Path
    plan: Plan
    said: str
    """What the sweep printed."""
    listening: Listening = field(default_factory=set)
    """During the sweep, as psutil tells."""
    listening_by_ss: Listening = field(default_factory=set)
    """The same as `ss` tells, where there is one."""
    niceness: dict[int, int] = field(default_factory=dict)
    """Of the processes that execute runs, as last seen: process → the least of its threads."""


def sweep_own_data(tiny: dict[str, Any], folder: Path) -> WholeSweep:
    """From the phantom command to the end of the sweep of a tiny study of ten runs."""
    scans, store, split = folder / "raw", Path(tiny["store"]), folder / "split.json"
    split.write_text(json.dumps(SPLIT))
    fewscan("phantom", scans, "--subjects", 3, "--format", "nnunet")
    fewscan("prepare", scans, store, "--size", 16, "--split", split)
    checked = fewscan("check", store)
    study = folder / "study.yaml"
    tiny["finetune"]["label_counts"] = ["all"]
    tiny["resources"]["niceness"] = NICENESS
    study.write_text(yaml.safe_dump(tiny))
    swept = WholeSweep(scans, checked, study, load_plan(study), "")
    write_traps(folder / "traps")
    with (folder / "said.txt").open("wb") as said:
        sweep = subprocess.Popen(
            [FEWSCAN, "sweep", str(study)], cwd=folder / "traps", stdout=said, stderr=said
        )
        while sweep.poll() is None:
            family = [psutil.Process(sweep.pid)]
            family += family[0].children(recursive=True)
            swept.listening |= listening(family)
            swept.listening_by_ss |= listening_by_ss(family)
            swept.niceness |= niceness_of_runs(family)
            time.sleep(LOOK_EVERY_S)
    swept.said = (folder / "said.txt").read_text()
    assert sweep.returncode == 0, swept.said
    return swept


def fewscan(*arguments: str | int | Path) -> str:
    """What a command prints; in this process, for a new one loads torch again."""
    done = CliRunner().invoke(main, list(map(str, arguments)), catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


def write_traps(folder: Path) -> None:
    """What a person may have in her working directory: files of our names, a changed clone."""
    for name in ("slurm.py", "storage.py", "harness/__init__.py", "experiments/__init__.py"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(
            "raise SystemExit('the file of the working directory was run')\n"
        )
    for room in ("experiments", "harness", "slurm", "storage"):
        shutil.copytree(ROOT / room, folder / "fewscan" / room)
    stages = folder / "fewscan" / "experiments" / "stages.py"
    stages.write_text("raise SystemExit('the changed copy was run')\n")


def niceness_of_runs(family: Sequence[psutil.Process]) -> dict[int, int]:
    """Process → the least niceness of its threads."""
    found = {}
    for process in family:
        with suppress(psutil.Error, ProcessLookupError):
            if name_of(process) == "ImplicitFunc":
                threads = [thread.id for thread in process.threads()]
                found[process.pid] = min(os.getpriority(os.PRIO_PROCESS, id) for id in threads)
    return found


def listening(family: Sequence[psutil.Process]) -> Listening:
    """Process and address of everything that listens."""
    names = names_of(family)
    return {
        (names[it.pid], it.laddr.ip.removeprefix("::ffff:"))
        for it in psutil.net_connections("inet")
        if it.pid in names and (it.status == psutil.CONN_LISTEN or it.type == socket.SOCK_DGRAM)
    }


def listening_by_ss(family: Sequence[psutil.Process]) -> Listening:
    """The same from the lines of `ss`: "tcp LISTEN 0 128 127.0.0.1:80 *:* users:((…,pid=7,…"."""
    if shutil.which("ss") is None:
        return set()
    names = names_of(family)
    shown = subprocess.run(["ss", "-Hltunp"], capture_output=True, text=True, check=True).stdout
    found = set()
    for line in shown.splitlines():
        address = line.split()[4].rpartition(":")[0].strip("[]").removeprefix("::ffff:")
        for pid in map(int, re.findall(r"pid=(\d+)", line)):
            if pid in names:
                found.add((names[pid], "::" if address == "*" else address))
    return found


def names_of(family: Sequence[psutil.Process]) -> dict[int, str]:
    """Of those that are still there."""
    names = {}
    for process in family:
        with suppress(psutil.Error):
            names[process.pid] = name_of(process)
    return names


def name_of(process: psutil.Process) -> str:
    """As docs/security.md calls it."""
    words = " ".join(process.cmdline())
    if "ray::" in words:
        return words.split()[0].removeprefix("ray::").partition(".")[0].partition("(")[0]
    for name in DAEMONS:
        if name in process.name() or f"/{name}" in words:
            return name.removesuffix(".py")
    return "fewscan"
