"""The job's private folder on the node's own disk; the job's script has chosen its name."""

import shutil
from pathlib import Path

from fewscan.slurm.session import Session


def make_temporary_folder() -> Path:
    """Empty, whatever an earlier run of the job has left there."""
    folder = _folder()
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(mode=0o700)
    return folder


def remove_temporary_folder() -> None:
    """With the one of its name that tasks may make in memory."""
    folder = _folder()
    for each in (folder, Path("/dev/shm") / folder.name):
        shutil.rmtree(each, ignore_errors=True)


def _folder() -> Path:
    folder = Session.here().temporary_folder
    assert folder is not None, "only a job has one: see `job_script`"
    return folder
