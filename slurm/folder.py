"""The cluster's folder on the shared disk: every file's name, and who writes it.

Whatever the jobs tell each other goes through here, in JSON files that are replaced atomically. A
killed job leaves the last whole state behind; a job that is run again starts from it.
"""

import errno
import hashlib
import json
import os
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fewscan.slurm.settings import Settings
from fewscan.storage.atomic import replacing, write_json
from fewscan.storage.errors import disk_full_explained, not_writable_explained

JOINED = ("joined", "closing")
"""Phases of a worker that is in the cluster."""


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
            if not self.token_file.exists():
                _write_secret(self.token_file, secrets.token_hex(32))

    def write_launch(self, launch: Launch) -> None:
        value = {**vars(launch), "settings": launch.settings.as_json()}
        write_json(self.launch_file, value)

    def launch(self) -> Launch | None:
        value = read_json(self.launch_file)
        if value is None:
            return None
        settings = Settings(**value["settings"])
        return Launch(value["id"], tuple(value["driver"]), value["cwd"], settings)

    def write_rendezvous(self, rendezvous: Rendezvous) -> None:
        write_json(self.rendezvous_file, vars(rendezvous))

    def rendezvous(self) -> Rendezvous | None:
        value = read_json(self.rendezvous_file)
        return None if value is None else Rendezvous(**value)

    def write_outcome(self, state: str, detail: str, log: Path | None = None) -> None:
        """`state` is done, incomplete (over, and some of the work failed), failed or cancelled."""
        text = None if log is None else str(log)
        write_json(self.outcome_file, {"state": state, "detail": detail, "log": text})

    def outcome(self) -> dict[str, Any] | None:
        value: dict[str, Any] | None = read_json(self.outcome_file)
        return value

    def head_job(self) -> str | None:
        value = read_json(self.head_job_file)
        return None if value is None else str(value["job"])


def read_json(path: Path) -> Any:
    """The value in `path`, or None if there is no such file."""
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except OSError as error:
        if error.errno != errno.ESTALE:
            raise
        return read_json(path)  # NFS: it was replaced between opening and reading


def tail(path: Path, lines: int = 20) -> str:
    """The last lines of a log; empty if there is none."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - 20_000))
            text = file.read().decode(errors="replace")
    except OSError:
        return ""
    return "\n".join(text.splitlines()[-lines:])


def _write_secret(path: Path, text: str) -> None:
    with replacing(path) as temporary:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(text)
