"""What a job was given: CPUs, GPUs, memory, time. Ray would count the whole node by itself."""

import os
import shutil
from dataclasses import dataclass

from fewscan.slurm.settings import Settings

OBJECT_STORE_LEAST, OBJECT_STORE_MOST = 80 << 20, 1 << 30
MEMORY_UNKNOWN = 4 << 30


@dataclass(frozen=True)
class Allocation:
    """One job's share of one node."""

    job: str
    """The scheduler's number of the job."""
    node: str
    """The scheduler's name of the node."""
    address: str | None
    """The node's address, if the scheduler says it; see `network.own_address`."""
    cpus: int
    """CPUs that this job may use."""
    gpus: int
    """GPUs that this job may use."""
    memory: int
    """Bytes of memory for tasks, without the object store."""
    object_store: int
    """Bytes of shared memory for Ray's objects."""
    ends_unix: float
    """When the scheduler will end the job, in seconds since 1970."""

    def closes_unix(self, settings: Settings) -> float:
        """From when on nothing new should start here, in seconds since 1970."""
        return self.ends_unix - settings.signal_delay_s - settings.closing_s


def usable_cpus() -> int:
    """CPUs that this process may use."""
    return len(os.sched_getaffinity(0))


def split_memory(memory: int | None) -> tuple[int, int]:
    """Bytes for tasks and for Ray's objects, of a job's memory; None if nobody has limited it."""
    if memory is None:
        whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        memory = min(MEMORY_UNKNOWN, whole // 2)
    shared = shutil.disk_usage("/dev/shm").free
    store = max(min(memory // 10, shared // 2, OBJECT_STORE_MOST), OBJECT_STORE_LEAST)
    return memory - store, store
