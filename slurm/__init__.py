"""An elastic Ray cluster made of Slurm jobs, for any program that is a Ray driver.

    from fewscan.slurm import Settings, cancel, launch, status

    launch(["python", "sweep.py"], Path("/shared/sweep"), Settings(partition="gpu", gpus=1))

A small head job runs Ray's head and the driver; worker jobs join as Slurm starts them, leave when
it takes them back, and return. `slurm.session` is for the driver and its tasks. Nothing here knows
what the program computes.
"""

from fewscan.slurm.control import Failure, Status, WorkerStatus, cancel, launch, status
from fewscan.slurm.settings import Settings

__all__ = ["Failure", "Settings", "Status", "WorkerStatus", "cancel", "launch", "status"]
