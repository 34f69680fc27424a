"""The job's private folder on the node's own disk; the job's script has made it."""

import shutil
from pathlib import Path

from fewscan.slurm.session import Session
from fewscan.storage.system.private import require_private


def make_node_folder() -> Path:
    """An empty folder for one Ray node inside the job's own, which nobody else can enter.

    Ray opens its own folders to everybody; here that lets nobody in. Raises `NotWritableError` if
    the job's folder is not closed to others.
    """
    require_private(job_folder())
    folder = job_folder() / "n"  # short, for the paths of sockets
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(mode=0o700)
    return folder


def remove_job_folder() -> None:
    """With the one of its name that tasks may make in memory."""
    folder = job_folder()
    for each in (folder, Path("/dev/shm") / folder.name):
        shutil.rmtree(each, ignore_errors=True)


def job_folder() -> Path:
    """Where everything of the job on this node lies."""
    folder = Session.here().temporary_folder
    assert folder is not None, "only a job has one: see `job_script`"
    return folder
