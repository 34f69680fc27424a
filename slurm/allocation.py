"""What a job was given: CPUs, GPUs, memory, time. Ray would count the whole node by itself."""

import os
import shutil
import signal
from dataclasses import dataclass

from fewscan.slurm.processes import TIME_NEARLY_OVER
from fewscan.slurm.settings import Settings

RESERVE_S = 5
"""Kept of the time to SIGKILL, for ending processes and clearing up."""
SIGNAL_RESERVE_S = 20
"""Kept of the warning time before a time limit, which Slurm keeps less precisely."""
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
    grace_s: float
    """From SIGTERM to SIGKILL, if the node is taken back."""
    kill_wait_s: float
    """From SIGTERM to SIGKILL, if the job is cancelled."""

    def closes_unix(self, settings: Settings) -> float:
        """From when on nothing new should start here, in seconds since 1970."""
        return self.ends_unix - settings.signal_delay_s - settings.closing_s

    def seconds_to_stop(
        self, settings: Settings, received: signal.Signals | None, cancelled: bool
    ) -> float:
        """From the stop signal (None: it is on its way) to when everything should have ended."""
        if cancelled:
            return max(1.0, self.kill_wait_s - RESERVE_S)
        if received == TIME_NEARLY_OVER:
            return max(1.0, settings.signal_delay_s - SIGNAL_RESERVE_S)
        return max(1.0, self.grace_s - RESERVE_S)


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
