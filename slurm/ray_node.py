"""One Ray node inside one job: its command lines, its start, its end.

Every port, address and folder is given explicitly, because nodes are shared: Ray's defaults
collide, and its discovery would find somebody else's cluster. The token keeps strangers out.
"""

import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from fewscan.slurm import network, processes
from fewscan.slurm.allocation import Allocation
from fewscan.slurm.folder import Folder, Rendezvous, read_object, tail
from fewscan.slurm.session import Session
from fewscan.slurm.temporary_folder import job_folder, make_node_folder
from fewscan.storage.errors import ClusterError

START_TRIES = 3
START_S = 90
SETTLE_S = 5
"""From a node's first task to Ray's word that the node has started, at most."""
JOB_LABEL = "slurm-job"
HEAD_RESOURCE = "head"
"""The head's node has 1000 of it, so that drivers can pin what must not be lost with a worker."""
LOSE_HEAD_S = 20
"""A worker whose head does not answer for so long gives up and looks for the next one."""
CommandMaker = Callable[[Path], tuple[list[str], str]]
"""Gives the arguments of `ray start` and the cluster's address, for a temporary folder."""


@dataclass(frozen=True)
class RayNode:
    """A running Ray node."""

    process: subprocess.Popen[bytes]
    """The `ray start --block` that we started; it ends when the node does."""
    address: str
    """`ip:port` of the control store it belongs to."""
    temporary: Path
    """Its folder on the node's own disk, in the job's own."""

    @property
    def stop_file(self) -> Path:
        """Tasks that see this file come to an end: they checkpoint, and return."""
        return self.temporary / "stop"

    @property
    def closed_file(self) -> Path:
        """Here once Ray starts nothing new on the node, because its time is nearly over."""
        return self.temporary / "closed"

    @property
    def activity_file(self) -> Path:
        """What the watcher on the head sees of all nodes."""
        return self.temporary / "nodes.json"

    def alive(self) -> bool:
        return self.process.poll() is None


def ray_environment(folder: Folder) -> dict[str, str]:
    """The environment of every process that talks to this cluster."""
    kept = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    return {
        **kept,
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(folder.token_file),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_gcs_rpc_server_reconnect_timeout_s": str(LOSE_HEAD_S),
        "RAY_grpc_enable_http_proxy": "0",
        "RAY_worker_niceness": "0",  # not Ray's 15: others on a shared node would have its CPUs
    }


def start_head(folder: Folder, share: Allocation, *, takes_tasks: bool) -> RayNode:
    """Start a new Ray cluster. Raises `ClusterError` with Ray's own last words."""
    own = network.own_address(share.address)

    def command(temporary: Path) -> tuple[list[str], str]:
        (port,) = network.free_ports(1)
        options = ["--head", f"--port={port}", "--include-dashboard=false"]
        if find_spec("grpc"):  # then Ray would start its client server, on port 10001
            options.append("--ray-client-server-port=0")
        cpus, gpus = (share.cpus, share.gpus) if takes_tasks else (0, 0)
        common = _common(share, own, temporary, cpus, gpus, {HEAD_RESOURCE: 1000})
        return [*options, *common], f"{own}:{port}"

    return _start(folder, share, command)


def start_worker(folder: Folder, share: Allocation, head: Rendezvous) -> RayNode:
    """Join the cluster of `head`. Raises `ClusterError` with Ray's own last words."""
    towards_head = network.address_towards(head.address.rpartition(":")[0])
    own = towards_head or network.own_address(share.address)

    def command(temporary: Path) -> tuple[list[str], str]:
        common = _common(share, own, temporary, share.cpus, share.gpus, {})
        return [f"--address={head.address}", *common], head.address

    return _start(folder, share, command)


def stop(node: RayNode) -> None:
    """End the node and everything it started, and leave nothing on the disk."""
    processes.end_descendants()
    shutil.rmtree(node.temporary, ignore_errors=True)


def drain(folder: Folder, node: RayNode, job: str, seconds: float) -> subprocess.Popen[bytes]:
    """Tell Ray that this node will be taken away in `seconds`: no new tasks, no blame.

    Once Ray has agreed, `node.closed_file` is there.
    """
    words = [node.address, job, f"{seconds:.0f}", str(node.closed_file)]
    command = processes.module_command("ray_drain", *words)
    return processes.start(command, node.temporary / "drain.log", ray_environment(folder))


def watch(folder: Folder, node: RayNode) -> subprocess.Popen[bytes]:
    """Keep writing what every node is doing to `node.activity_file`."""
    command = processes.module_command("ray_watch", node.address, str(node.activity_file))
    return processes.start(command, node.temporary / "watch.log", ray_environment(folder))


def await_joined(node: RayNode, job: str) -> None:
    """Wait until the watcher sees `job` in the cluster. Raises `ClusterError`."""
    deadline = time.monotonic() + START_S
    while job not in read_object(node.activity_file):
        if not node.alive() or time.monotonic() > deadline or processes.stop_waits():
            raise _no_start(node.temporary)
        time.sleep(0.1)


def _start(folder: Folder, share: Allocation, command: CommandMaker) -> RayNode:
    for _ in range(START_TRIES):  # a port may have been taken between looking and using it
        temporary = make_node_folder()
        arguments, address = command(temporary)
        environment = _task_environment(folder, share, temporary)
        line = processes.module_command("ray_start", "--block", *arguments)
        process = processes.start(line, temporary / "ray.log", environment)
        if _settled(process, temporary):
            return RayNode(process, address, temporary)
        processes.end_descendants()
        if processes.stop_waits():
            break
    error = _no_start(temporary)
    shutil.rmtree(temporary, ignore_errors=True)
    raise error


def _settled(process: subprocess.Popen[bytes], temporary: Path) -> bool:
    """Whether Ray says that it runs, rather than ending.

    A node that is wanted back meanwhile may have been given tasks already, which may checkpoint: so
    for a moment it is waited for all the same.
    """
    deadline = time.monotonic() + START_S
    while process.poll() is None and time.monotonic() < deadline:
        if "Ray runtime started" in tail(temporary / "ray.log", 60):
            return True
        if processes.stop_waits():
            deadline = min(deadline, time.monotonic() + SETTLE_S)
        time.sleep(0.1)
    return False


def _no_start(temporary: Path) -> ClusterError:
    return ClusterError(
        f"Ray did not start:\n{tail(temporary / 'ray.log', 5)}",
        where=f"{temporary} on {os.uname().nodename}",
        expected=f"a running Ray node within {START_S} s",
    )


def _common(
    share: Allocation,
    own: str,
    temporary: Path,
    cpus: int,
    gpus: int,
    resources: Mapping[str, float],
) -> list[str]:
    ports = network.free_ports(5)
    names = ("node-manager", "object-manager", "metrics-export", "runtime-env-agent")
    return [
        f"--node-ip-address={own}",
        f"--temp-dir={temporary}",
        f"--num-cpus={cpus}",
        f"--num-gpus={gpus}",
        f"--resources={json.dumps(dict(resources))}",
        f"--labels={JOB_LABEL}={share.job}",
        f"--memory={share.memory}",
        f"--object-store-memory={share.object_store}",
        *(f"--{name}-port={port}" for name, port in zip(names, ports, strict=False)),
        f"--dashboard-agent-listen-port={ports[4]}",
        "--min-worker-port=0",  # the kernel chooses free ones
        "--max-worker-port=0",
        "--disable-usage-stats",
        "--log-style=record",
    ]


def _task_environment(folder: Folder, share: Allocation, temporary: Path) -> dict[str, str]:
    """What tasks on this node see."""
    session = Session(
        folder=folder.root,
        job=share.job,
        stop_file=temporary / "stop",
        temporary_folder=job_folder(),
    )
    return {
        **ray_environment(folder),
        "TMPDIR": str(temporary),  # what a killed task leaves behind goes with the job
        **session.variables(),
    }
