"""What Slurm runs: the two functions that submitit calls. Neither Ray nor torch is loaded here.

Their arguments never change, for after a node failure Slurm runs the original pickle again; what
has happened meanwhile is in the folder.
"""

from pathlib import Path

from fewscan.slurm import allocation, processes
from fewscan.slurm.folder import Folder


def run_worker(root: str) -> None:
    """Be a worker of the cluster in `root`."""
    from fewscan.slurm.worker import Worker

    processes.become_supervisor()
    folder = Folder(Path(root))
    launch = folder.launch()
    if launch is not None and folder.outcome() is None:
        try:
            Worker(folder, launch).run()
        finally:
            leave_nothing()


def run_head(root: str, launch_id: str) -> None:
    """Be the head of the cluster in `root`, unless a later launch has made this one void."""
    from fewscan.slurm.head import Head

    processes.become_supervisor()
    folder = Folder(Path(root))
    launch = folder.launch()
    if launch is not None and launch.id == launch_id and folder.outcome() is None:
        try:
            Head(folder, launch).run()
        finally:
            leave_nothing()


def leave_nothing() -> None:
    """No process and no file of the job stays on the node, however it ends."""
    processes.end_descendants()
    allocation.remove_temporary_folder()
