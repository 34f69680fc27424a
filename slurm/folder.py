"""The cluster's folder on the shared disk: every file's name, and who writes it.

Whatever the jobs tell each other goes through here, in JSON files that are replaced atomically. A
killed job leaves the last whole state behind; a job that is run again starts from it.

A file may be empty, old or unreadable for a while (a file server that went down, a full disk). For
whoever reads it that means "not known yet", never an end; whoever owns it looks after it and writes
it anew (`Keeper`).
"""

import contextlib
import hashlib
import json
import os
import secrets
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

from fewscan.slurm.settings import Settings
from fewscan.storage.atomic import replacing, write_json
from fewscan.storage.errors import FewscanError, disk_full_explained, not_writable_explained

JOINED = ("joined", "closing")
"""Phases of a worker that is in the cluster."""
TOKEN_BYTES = 32
KEEP_EVERY_S = 3.0
"""Between two looks of an owner at its files."""
Record = TypeVar("Record")


@dataclass(frozen=True)
class Launch:
    """What was asked for by the last `launch`."""

    id: str
    """Names this launch; a head of another launch steps aside."""
    driver: tuple[str, ...]
    """The command that the head runs."""
    cwd: str
    """Where it runs."""
    settings: Settings
    """How the jobs look."""

    def to_json(self) -> dict[str, Any]:
        return {**vars(self), "settings": self.settings.as_json()}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "Launch":
        settings = Settings(**value["settings"])
        return cls(value["id"], tuple(value["driver"]), value["cwd"], settings)


@dataclass(frozen=True)
class HeadRecord:
    """The job of the head that was submitted last."""

    job: str
    """The scheduler's number of it."""
    submitted_unix: float
    early_deaths: int
    """Heads in a row before it that died within minutes of their start."""


@dataclass(frozen=True)
class Rendezvous:
    """Where the head is. A later head has a higher generation, and is another Ray cluster."""

    generation: int
    """Counts the heads of this folder from 1."""
    address: str
    """`ip:port` of Ray's control store."""
    job: str
    """The head's job."""
    open: bool
    """False once the head is leaving."""


@dataclass(frozen=True)
class ClusterOutcome:
    """How it ended."""

    state: str
    """done, incomplete (over, and some of the work failed), failed or cancelled."""
    detail: str
    """One sentence, and the last lines of the log."""
    log: str | None = None
    """Where to read more."""

    @property
    def is_cancelled(self) -> bool:
        """Whether what runs may still checkpoint."""
        return self.state == "cancelled"


@dataclass(frozen=True)
class WorkerReport:
    """What a worker says of itself."""

    job: str
    node: str
    """The scheduler's name of it."""
    host: str
    phase: str
    """waiting, joined, closing, leaving, requeued or ended."""
    generation: int | None
    """Of the head that it has joined."""
    ends_unix: float
    """When the scheduler will end the job."""
    since_unix: float
    """Since when it is in this phase."""


@dataclass(frozen=True)
class Folder:
    """Paths below `root`, and the reading and writing of what lies there."""

    root: Path

    @property
    def launch_file(self) -> Path:
        return self.root / "launch.json"  # launch(); a worker that replaces a lost head

    @property
    def head_job_file(self) -> Path:
        return self.root / "head_job.json"  # whoever submitted the head

    @property
    def rendezvous_file(self) -> Path:
        return self.root / "head.json"  # the head

    @property
    def demand_file(self) -> Path:
        return self.root / "demand.json"  # the driver

    @property
    def elastic_file(self) -> Path:
        return self.root / "elastic.json"  # the head

    @property
    def outcome_file(self) -> Path:
        return self.root / "outcome.json"  # the head; cancel()

    @property
    def recovery_file(self) -> Path:
        return self.root / "head_recovery.json"  # workers that wait for a head

    @property
    def recovery_lock_file(self) -> Path:
        return self.root / "head_recovery.lock"

    @property
    def token_file(self) -> Path:
        return self.root / "token"  # launch()

    @property
    def lock_file(self) -> Path:
        return self.root / "lock"

    @property
    def workers(self) -> Path:
        return self.root / "workers"

    @property
    def logs(self) -> Path:
        return self.root / "logs"

    @property
    def driver_log(self) -> Path:
        return self.logs / "driver.log"

    @property
    def key(self) -> str:
        """Short name of the folder, the same on every node."""
        return hashlib.sha256(str(self.root.resolve()).encode()).hexdigest()[:8]

    def worker_file(self, job: str) -> Path:
        return self.workers / f"{job}.json"

    def prepare(self) -> None:
        """Make the folder, and the token that keeps others out.

        Raises `NotWritableError` if it may not, `DiskFullError` if it cannot.
        """
        with not_writable_explained(self.root), disk_full_explained(self.root):
            for folder in (self.root, self.workers, self.logs):
                folder.mkdir(parents=True, exist_ok=True)
            ensure_token(self.token_file)

    def token(self) -> str | None:
        """None if there is none, or not a whole one."""
        return read_token(self.token_file)

    def write_launch(self, launch: Launch) -> None:
        write_json(self.launch_file, launch.to_json())

    def launch(self) -> Launch | None:
        return _read(self.launch_file, Launch.from_json)

    def await_launch(self, wait_s: float) -> Launch | None:
        """As `launch`, with patience for a file that is there, and not to be read just now."""
        deadline = time.monotonic() + wait_s
        while (found := self.launch()) is None and self.launch_file.exists():
            if time.monotonic() > deadline:
                break
            time.sleep(0.5)
        return found

    def write_head_job(self, head: HeadRecord) -> None:
        write_json(self.head_job_file, asdict(head))

    def head_job(self) -> HeadRecord | None:
        return _read(self.head_job_file, lambda value: HeadRecord(**value))

    def write_rendezvous(self, rendezvous: Rendezvous) -> None:
        write_json(self.rendezvous_file, asdict(rendezvous))

    def rendezvous(self) -> Rendezvous | None:
        return _read(self.rendezvous_file, lambda value: Rendezvous(**value))

    def write_outcome(self, outcome: ClusterOutcome) -> None:
        write_json(self.outcome_file, asdict(outcome))

    def outcome(self) -> ClusterOutcome | None:
        return _read(self.outcome_file, lambda value: ClusterOutcome(**value))

    def write_report(self, report: WorkerReport) -> None:
        write_json(self.worker_file(report.job), asdict(report))

    def report(self, job: str) -> WorkerReport | None:
        return _read(self.worker_file(job), lambda value: WorkerReport(**value))

    def demand(self) -> int | None:
        """How many workers the driver could use."""
        return _read(self.demand_file, lambda value: int(value["workers"]))


class Keeper:
    """Writes an owner's files anew when they cannot be read, and never over one that can.

    A file may be missing for the moment in which it is replaced, so only one that was unreadable
    twice is written. `files` are what reads each (None: it cannot be read) and what writes it.
    """

    def __init__(self, *files: tuple[Callable[[], object], Callable[[], object]]) -> None:
        self._files = files
        self._suspects: set[int] = set()
        self._next_look = 0.0

    def look(self) -> None:
        """Cheap if called often. Does not raise for lack of room: there is a next time."""
        if time.monotonic() < self._next_look:
            return
        self._next_look = time.monotonic() + KEEP_EVERY_S
        for number, (read, write) in enumerate(self._files):
            if read() is not None:
                self._suspects.discard(number)
            elif number not in self._suspects:
                self._suspects.add(number)
            else:
                say(f"a file of the cluster's folder could not be read: {write.__name__} anew")
                with contextlib.suppress(FewscanError, OSError):
                    write()


def read_json(path: Path) -> Any:
    """The value in `path`; None if there is no such file or it cannot be understood just now."""
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):  # ESTALE of NFS among them
        return None


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in `path`; empty where `read_json` would give anything else."""
    value = read_json(path)
    return value if isinstance(value, dict) else {}


def _read(path: Path, make: Callable[[Any], Record]) -> Record | None:
    value = read_json(path)
    try:
        return None if value is None else make(value)
    except (TypeError, KeyError, ValueError, AttributeError):
        return None


def say(text: object) -> None:
    """Print; a log on a full disk ends nobody."""
    with contextlib.suppress(OSError):
        print(text, flush=True)


def tail(path: Path, lines: int = 20) -> str:
    """The last lines of a log; empty if there is none."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - 20_000))
            text = file.read().decode(errors="replace")
    except OSError:
        return ""
    return "\n".join(text.splitlines()[-lines:])


def ensure_token(path: Path) -> None:
    """Have a token in `path` that its owner alone can read, unless there is a whole one."""
    if read_token(path) is None:
        write_token(path, secrets.token_hex(TOKEN_BYTES))


def read_token(path: Path) -> str | None:
    """None if there is none, or not a whole one."""
    text = ""
    with contextlib.suppress(OSError, ValueError):
        text = path.read_text()
    return text if len(text) == 2 * TOKEN_BYTES else None


def write_token(path: Path, text: str) -> None:
    """Atomically, readable by its owner alone."""
    with replacing(path) as temporary:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(text)
