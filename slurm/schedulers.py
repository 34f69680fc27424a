"""The schedulers by name, as in the setting `scheduler`."""

from collections.abc import Callable

from fewscan.slurm.folder import Folder
from fewscan.slurm.scheduler import Scheduler
from fewscan.slurm.settings import Settings
from fewscan.slurm.slurm_scheduler import Slurm
from fewscan.storage.errors import ClusterError

SCHEDULERS: dict[str, Callable[[Folder, Settings], Scheduler]] = {
    "slurm": Slurm,
}


def scheduler_for(folder: Folder, settings: Settings) -> Scheduler:
    """The scheduler of the cluster in `folder`. Raises `ClusterError` if there is none."""
    if settings.scheduler not in SCHEDULERS:
        raise ClusterError(
            f"there is no scheduler {settings.scheduler!r}",
            where="scheduler",
            expected=f"one of {', '.join(SCHEDULERS)}",
            remedy="leave the setting out, or correct it",
        )
    return SCHEDULERS[settings.scheduler](folder, settings)
