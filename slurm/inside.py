"""For programs that run on the cluster: what they may tell it, and what it tells them.

The driver says how many workers it could use. A task learns that its node will be taken away, in
time to checkpoint. Everything works, and says "not on Slurm", in a program that runs elsewhere.
"""

import math
import os
import time
from pathlib import Path

from fewscan.slurm.folder import read_json
from fewscan.storage.atomic import write_json

TEMPORARY = "ELASTIC_TEMPORARY"
"""Variable that holds the job's own folder on the node's own disk."""
FOLDER = "ELASTIC_FOLDER"
DEMAND_FILE = "ELASTIC_DEMAND_FILE"
STOP_FILE = "ELASTIC_STOP_FILE"
CLOSES_UNIX = "ELASTIC_CLOSES_UNIX"
INCOMPLETE = 10
"""Exit code of a driver that has done what it could, while some of its work failed for good."""


def is_on_slurm() -> bool:
    """Whether this is the driver, or a task, of an elastic cluster."""
    return FOLDER in os.environ


def ask_for_workers(count: int) -> None:
    """Driver: so many workers would have something to do now. Cheap when nothing has changed."""
    if DEMAND_FILE in os.environ:
        path = Path(os.environ[DEMAND_FILE])
        if read_json(path) != {"workers": count}:
            write_json(path, {"workers": count})


def stop_requested() -> bool:
    """Task or driver: Slurm is taking this node, or the head's, back. Checkpoint and return."""
    return STOP_FILE in os.environ and Path(os.environ[STOP_FILE]).exists()


def is_closed() -> bool:
    """Driver: it is too late to start anything, for the head's own time is nearly over."""
    return time.time() >= float(os.environ.get(CLOSES_UNIX, math.inf))


def temporary() -> Path | None:
    """Task: its job's folder on the node's own disk; None elsewhere than on Slurm.

    It is removed with the job, and so is /dev/shm/NAME, if NAME is the name of that folder.
    """
    return Path(os.environ[TEMPORARY]) if TEMPORARY in os.environ else None
