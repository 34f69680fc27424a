"""What the scheduler runs as a job. Neither Ray nor torch is loaded here.

    python -P -m fewscan.slurm.supervisor worker ROOT
    python -P -m fewscan.slurm.supervisor head ROOT LAUNCH

The arguments of a job never change, for after a node failure the scheduler gives the same command
again; what has happened meanwhile is in the folder ROOT.
"""

import sys
from pathlib import Path

from fewscan.slurm import processes
from fewscan.slurm.folder import Folder
from fewscan.slurm.head import HeadJob
from fewscan.slurm.temporary_folder import remove_job_folder
from fewscan.slurm.worker import Worker

AWAIT_LAUNCH_S = 300.0
"""For a file that is there but cannot be read; running workers write it anew."""


def run_worker(root: str) -> None:
    """Be a worker of the cluster in `root`."""
    folder = Folder(Path(root))
    launch = folder.await_launch(AWAIT_LAUNCH_S)
    if launch is not None and folder.outcome() is None:
        try:
            Worker(folder, launch).run()
        finally:
            leave_nothing()


def run_head(root: str, launch_id: str) -> None:
    """Be the head of the cluster in `root`, unless a later launch has made this one void."""
    folder = Folder(Path(root))
    launch = folder.await_launch(AWAIT_LAUNCH_S)
    if launch is not None and launch.id == launch_id and folder.outcome() is None:
        try:
            HeadJob(folder, launch).run()
        finally:
            leave_nothing()


def leave_nothing() -> None:
    """No process and no file of the job stays on the node, however it ends."""
    processes.end_descendants()
    remove_job_folder()


if __name__ == "__main__":
    processes.become_supervisor()
    role, *arguments = sys.argv[1:]
    if role == "head":
        run_head(*arguments)
    else:
        run_worker(*arguments)
