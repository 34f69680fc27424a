"""For programs that run on the cluster: what they may tell it, and what it tells them.

The driver says how many workers it could use. A task learns that its node will be taken away, in
time to checkpoint. The names of the variables that carry this from job to program stand here alone.
"""

import contextlib
import math
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from fewscan.slurm.folder import read_json
from fewscan.storage.atomic import write_json
from fewscan.storage.errors import DiskFullError

PREFIX = "ELASTIC_"
"""Start of the names of all variables that are ours."""
TEMPORARY = f"{PREFIX}TEMPORARY"
"""Variable that holds the job's own folder on the node's own disk."""
STARTED = f"{PREFIX}JOB_STARTED"
"""When the job began, in whole seconds since 1970."""
JOB = f"{PREFIX}JOB"
FOLDER = f"{PREFIX}FOLDER"
DEMAND_FILE = f"{PREFIX}DEMAND_FILE"
STOP_FILE = f"{PREFIX}STOP_FILE"
CLOSES_UNIX = f"{PREFIX}CLOSES_UNIX"


@dataclass(frozen=True)
class Session:
    """What this process knows of the cluster it runs on; elsewhere, that it is on none.

    Everything works elsewhere too: nobody asks it to stop, and nobody hears what it asks for.
    """

    INCOMPLETE: ClassVar[int] = 10
    """Exit code of a driver that has done what it could, while some of its work failed for good."""
    TRY_AGAIN: ClassVar[int] = 11
    """Exit code of a driver that was stopped by something that passes, such as a full disk."""
    REFUSED: ClassVar[int] = 12
    """Exit code of a driver that knows that trying again would end the same way."""

    folder: Path | None = None
    """The cluster's folder; None elsewhere than on a cluster."""
    job: str | None = None
    """Task: the scheduler's number of the job that it runs in."""
    demand_file: Path | None = None
    """Where the driver writes how many workers it could use; None for tasks."""
    stop_file: Path | None = None
    """It is there once this process has to stop."""
    closes_unix: float = math.inf
    """From when on the driver should start nothing, in seconds since 1970."""
    temporary_folder: Path | None = None
    """Its job's folder on the node's own disk; None elsewhere than on a cluster.

    It is removed with the job, and so is /dev/shm/NAME, if NAME is the name of that folder.
    """

    @classmethod
    def here(cls, environment: Mapping[str, str] | None = None) -> "Session":
        """The session that this process belongs to, read from its environment."""
        env = os.environ if environment is None else environment

        def path(name: str) -> Path | None:
            return Path(env[name]) if name in env else None

        return cls(
            folder=path(FOLDER),
            job=env.get(JOB),
            demand_file=path(DEMAND_FILE),
            stop_file=path(STOP_FILE),
            closes_unix=float(env.get(CLOSES_UNIX, math.inf)),
            temporary_folder=path(TEMPORARY),
        )

    def variables(self) -> dict[str, str]:
        """What a process must find in its environment so that `here` gives this session there."""
        values = {
            FOLDER: self.folder,
            JOB: self.job,
            DEMAND_FILE: self.demand_file,
            STOP_FILE: self.stop_file,
            CLOSES_UNIX: f"{self.closes_unix:.0f}",  # also of `inf`
            TEMPORARY: self.temporary_folder,
        }
        return {name: str(value) for name, value in values.items() if value is not None}

    @property
    def is_on_cluster(self) -> bool:
        """Whether this is the driver, or a task, of an elastic cluster."""
        return self.folder is not None

    def ask_for_workers(self, count: int) -> None:
        """Driver: so many workers would have something to do now. Cheap if nothing has changed."""
        if self.demand_file is not None and read_json(self.demand_file) != {"workers": count}:
            with contextlib.suppress(DiskFullError):  # it is asked for again soon
                write_json(self.demand_file, {"workers": count})

    def stop_requested(self) -> bool:
        """Task or driver: this node, or the head's, is taken back. Checkpoint and return."""
        return self.stop_file is not None and self.stop_file.exists()

    def is_closed(self) -> bool:
        """Driver: it is too late to start anything, for the head's own time is nearly over."""
        return time.time() >= self.closes_unix
