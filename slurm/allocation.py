"""What this job was given: CPUs, GPUs, memory, time, an address, a place for temporary files.

Ray sees none of Slurm's limits by itself; it would count the whole node.
"""

import os
import shutil
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from fewscan.slurm.inside import TEMPORARY
from fewscan.slurm.settings import Settings
from fewscan.storage.errors import ClusterError

OBJECT_STORE_LEAST, OBJECT_STORE_MOST = 80 << 20, 1 << 30
MEMORY_UNKNOWN = 4 << 30


@dataclass(frozen=True)
class Allocation:
    """One job's share of one node."""

    job: str
    """Slurm's number of the job."""
    node: str
    """Slurm's name of the node."""
    cpus: int
    """CPUs that this job may use."""
    gpus: int
    """GPUs that this job may use."""
    memory: int
    """Bytes of memory for tasks, without the object store."""
    object_store: int
    """Bytes of shared memory for Ray's objects."""
    ends_unix: float
    """When Slurm will end the job, in seconds since 1970."""

    @classmethod
    def here(cls, limit_min: int, environment: Mapping[str, str] | None = None) -> "Allocation":
        """Read it from the variables that Slurm sets; `limit_min` is the job's time limit."""
        env = os.environ if environment is None else environment
        memory = _memory(env)
        store = _object_store(memory)
        return cls(
            job=env["SLURM_JOB_ID"],
            node=env.get("SLURMD_NODENAME") or socket.gethostname(),
            cpus=_cpus(env),
            gpus=_gpus(env),
            memory=memory - store,
            object_store=store,
            ends_unix=_ends_unix(env, limit_min),
        )

    def closes_unix(self, settings: Settings) -> float:
        """From when on nothing new should start here, in seconds since 1970."""
        return self.ends_unix - settings.signal_delay_s - settings.closing_s


def own_address(env: Mapping[str, str] | None = None) -> str:
    """The address under which other nodes reach this one. Raises `ClusterError`."""
    told = (os.environ if env is None else env).get("SLURM_LAUNCH_NODE_IPADDR")
    for address in (told, _resolved(), address_towards("10.255.255.255")):
        if address and not address.startswith("127."):
            return address
    raise ClusterError(
        f"node {socket.gethostname()} knows no address of its own but 127.0.0.1",
        expected="an address that other nodes can reach",
        remedy="ask the administrators to give the node's name an address in DNS or /etc/hosts",
    )


def address_towards(other: str) -> str | None:
    """This node's address on the interface that leads to `other`; nothing is sent."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((other, 9))
            return str(probe.getsockname()[0])
        except OSError:
            return None


def free_ports(count: int) -> list[int]:
    """Different ports that nobody listens on just now. Another job may be quicker: try again."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("", 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()


def temporary_folder() -> Path:
    """The job's private folder on the node's own disk, empty whatever an earlier run left there."""
    folder = Path(os.environ[TEMPORARY])
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(mode=0o700)
    return folder


def remove_temporary_folder() -> None:
    """Remove the job's private folder, and the one of its name that tasks may make in memory."""
    folder = Path(os.environ[TEMPORARY])
    for each in (folder, Path("/dev/shm") / folder.name):
        shutil.rmtree(each, ignore_errors=True)


def _cpus(env: Mapping[str, str]) -> int:
    given = env.get("SLURM_CPUS_PER_TASK") or env.get("SLURM_CPUS_ON_NODE")
    usable = len(os.sched_getaffinity(0))
    return min(int(given), usable) if given else usable


def _gpus(env: Mapping[str, str]) -> int:
    for name in ("SLURM_STEP_GPUS", "SLURM_JOB_GPUS"):
        if env.get(name):
            return len(env[name].split(","))
    count = env.get("SLURM_GPUS_ON_NODE")
    return int(count) if count else 0


def _memory(env: Mapping[str, str]) -> int:
    if env.get("SLURM_MEM_PER_NODE", "0") != "0":
        return int(env["SLURM_MEM_PER_NODE"]) << 20
    if env.get("SLURM_MEM_PER_CPU", "0") != "0":
        return (int(env["SLURM_MEM_PER_CPU"]) << 20) * int(env.get("SLURM_CPUS_ON_NODE", "1"))
    return min(MEMORY_UNKNOWN, os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2)


def _object_store(memory: int) -> int:
    shared = shutil.disk_usage("/dev/shm").free
    wanted = min(memory // 10, shared // 2, OBJECT_STORE_MOST)
    return max(wanted, OBJECT_STORE_LEAST)


def _ends_unix(env: Mapping[str, str], limit_min: int) -> float:
    if env.get("SLURM_JOB_END_TIME"):  # set since Slurm 22.05 on most clusters
        return float(env["SLURM_JOB_END_TIME"])
    return float(env.get("ELASTIC_JOB_STARTED") or time.time()) + 60 * limit_min


def _resolved() -> str | None:
    try:
        return socket.gethostbyname(socket.gethostname())
    except OSError:
        return None
