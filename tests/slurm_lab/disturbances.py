"""What may happen to a study on a cluster: one small function a kind, and how it is undone.

A kind is a function of the study's folder on the cluster and a random generator. It does its harm,
yields the words for what it has hit, and undoes it when it is resumed `lasts_s` later. It raises
`NotNow` if there is nothing to hit at the moment.
"""

import os
import random
import re
import signal
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import lab

LASTS_S = 20.0
CONTROLLER_S = 30.0
POWER_OFF_S = 5.0
CLOCK_S = (-300.0, -30.0, 30.0, 300.0)
"""By how much a clock may be wrong."""

MARKS = {
    "driver": "fewscan.harness.cli sweep",
    "run": "ray::ImplicitFunc",
    "raylet": "/raylet/raylet ",
    "gcs_server": "/gcs/gcs_server ",
    "ray start": "fewscan.slurm.ray_start",
    "ray_watch": "fewscan.slurm.ray_watch",
    "head supervisor": "fewscan.slurm.supervisor head",
    "worker supervisor": "fewscan.slurm.supervisor worker",
    "slurmstepd": "slurmstepd: [",
    "process": "",
}
"""What the command line of each kind of process contains."""


class NotNow(Exception):
    """There is nothing of that kind to disturb."""


@dataclass(frozen=True)
class Kind:
    """One way of disturbing a study."""

    name: str
    harm: Callable[[Path, random.Random], AbstractContextManager[str]]
    """Gets the cluster's folder; yields what was hit."""
    lasts_s: float = 0.0
    """Until it is undone."""
    possible: Callable[[], bool] = lambda: True
    """Whether this machine's lab can do it."""


KINDS: dict[str, Kind] = {}


def kind(
    name: str, lasts_s: float = 0.0, possible: Callable[[], bool] = lambda: True
) -> Callable[[Callable[[Path, random.Random], Iterator[str]]], None]:
    """Put a function into `KINDS`."""

    def register(harm: Callable[[Path, random.Random], Iterator[str]]) -> None:
        KINDS[name] = Kind(name, contextmanager(harm), lasts_s, possible)

    return register


@dataclass(frozen=True)
class Process:
    """A process of a job on a node of the lab."""

    node: str
    pid: int
    line: str

    def __str__(self) -> str:
        """What it is, of which job's: head or worker; where."""
        name = next((name for name, mark in MARKS.items() if mark in self.line), "process")
        what = name if MARKS[name] else self.line[:100]
        found = re.search(rb"SLURM_JOB_NAME=[^\0]*-(\w+)", self._environment())
        of = f" of the {found[1].decode()}" if found else ""
        return f"{what}{of}, {self.pid} on {self.node}"

    def _environment(self) -> bytes:
        try:
            return Path(f"/proc/{self.pid}/environ").read_bytes()
        except OSError:
            return b""

    def send(self, number: signal.Signals) -> None:
        """Raises `NotNow` if it has just ended."""
        try:
            os.kill(self.pid, number)
        except ProcessLookupError as error:
            raise NotNow from error


def processes(mark: str = "") -> list[Process]:
    """Of jobs, on all nodes; of those, whose command line contains `mark`."""
    return [
        Process(node, pid, line)
        for node in lab.NODES
        for pid, line in sorted(lab.processes_of(node).items())
        if mark in line and not line.startswith("slurmd ")
    ]


def one_of(found: list[Process], draw: random.Random) -> Process:
    if not found:
        raise NotNow
    return draw.choice(found)


def killing(mark: str) -> Callable[[Path, random.Random], Iterator[str]]:
    """SIGKILL one process of that kind."""

    def harm(cluster: Path, draw: random.Random) -> Iterator[str]:
        process = one_of(processes(mark), draw)
        words = str(process)
        process.send(signal.SIGKILL)
        yield words

    return harm


def stopping(mark: str) -> Callable[[Path, random.Random], Iterator[str]]:
    """SIGSTOP one process of that kind: it hangs, and goes on as if nothing had been."""

    def harm(cluster: Path, draw: random.Random) -> Iterator[str]:
        process = one_of(processes(mark), draw)
        process.send(signal.SIGSTOP)
        try:
            yield str(process)
        finally:
            with suppress(NotNow):
                process.send(signal.SIGCONT)

    return harm


for role, mark in MARKS.items():
    kind(f"kill {role}")(killing(mark))
for role in ("driver", "run", "raylet", "gcs_server", "head supervisor", "worker supervisor"):
    kind(f"stop {role}", LASTS_S)(stopping(MARKS[role]))


def job_of(role: str, draw: random.Random) -> tuple[str, str]:
    """A running job, head or worker, and its node."""
    lines = lab.slurm("squeue", "--noheader", "--states=RUNNING", "--format=%i %j %N").splitlines()
    found = [line.split() for line in lines]
    jobs = [(job, node) for job, name, node in found if name.endswith(f"-{role}")]
    if not jobs:
        raise NotNow
    return draw.choice(sorted(jobs))


def preempting(role: str) -> Callable[[Path, random.Random], Iterator[str]]:
    """A job of a higher partition takes the node."""

    def harm(cluster: Path, draw: random.Random) -> Iterator[str]:
        job, node = job_of(role, draw)
        lab.take(node, 5)
        yield f"job {job} on {node}"

    return harm


def requeueing(role: str) -> Callable[[Path, random.Random], Iterator[str]]:
    """`scontrol requeue`, by hand."""

    def harm(cluster: Path, draw: random.Random) -> Iterator[str]:
        job, node = job_of(role, draw)
        try:
            lab.slurm("scontrol", "requeue", job)
        except lab.LabError as error:
            raise NotNow from error
        yield f"job {job} on {node}"

    return harm


for role in ("head", "worker"):
    kind(f"preempt {role}")(preempting(role))
    kind(f"requeue {role}")(requeueing(role))


@kind("power off", POWER_OFF_S)
def power_off(cluster: Path, draw: random.Random) -> Iterator[str]:
    node = draw.choice(lab.NODES)
    lab.kill_node(node)
    try:
        yield node
    finally:
        lab.start_node(node)


@kind("cut network", LASTS_S)
def cut_cable(cluster: Path, draw: random.Random) -> Iterator[str]:
    node = draw.choice(lab.NODES)
    lab.cut(node)
    try:
        yield node
    finally:
        lab.plug_in(node)


@kind("wrong clock", LASTS_S)
def skew_clock(cluster: Path, draw: random.Random) -> Iterator[str]:
    node, ahead_s = draw.choice(lab.NODES), draw.choice(CLOCK_S)
    lab.set_clock(node, ahead_s)
    try:
        yield f"{node} by {ahead_s:+.0f} s"
    finally:
        lab.set_clock(node, 0.0)


@kind("kill slurmctld", CONTROLLER_S)
def kill_controller(cluster: Path, draw: random.Random) -> Iterator[str]:
    lab.kill_controller()
    try:
        yield "no command of Slurm answers"
    finally:
        lab.start_controller()


@kind("full disk", LASTS_S)
def fill_disk(cluster: Path, draw: random.Random) -> Iterator[str]:
    lab.fill()
    try:
        yield str(lab.SMALL)
    finally:
        lab.make_room()


@kind("frozen disk", LASTS_S, possible=lab.can_freeze)
def freeze_disk(cluster: Path, draw: random.Random) -> Iterator[str]:
    lab.freeze()
    try:
        yield str(lab.SMALL)
    finally:
        lab.thaw()


def file_of(cluster: Path, draw: random.Random) -> Path:
    """One that is there: whatever the jobs tell each other, and the token."""
    names = [*cluster.glob("*.json"), *cluster.glob("workers/*.json"), cluster / "token"]
    found = sorted(path for path in names if path.exists() and path.name != "outcome.json")
    if not found:
        raise NotNow
    return draw.choice(found)


@kind("empty file")
def empty_file(cluster: Path, draw: random.Random) -> Iterator[str]:
    path = file_of(cluster, draw)
    path.write_bytes(b"")
    yield str(path.relative_to(cluster))


@kind("delete file")
def delete_file(cluster: Path, draw: random.Random) -> Iterator[str]:
    path = file_of(cluster, draw)
    path.unlink(missing_ok=True)
    yield str(path.relative_to(cluster))


@kind("spoil file")
def spoil_file(cluster: Path, draw: random.Random) -> Iterator[str]:
    path = file_of(cluster, draw)
    path.write_bytes(draw.randbytes(200))
    yield str(path.relative_to(cluster))
