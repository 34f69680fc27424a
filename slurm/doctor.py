"""What works here: the scheduler, the shared disk, ports, shared memory; and how to fix the rest.

`checks` looks at the machine it runs on. With settings it also sends a short job to a node,
compares the clocks, and tries the disk between the two.
"""

import fcntl
import json
import shutil
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from fewscan.slurm import network, shared_disk_check
from fewscan.slurm.folder import Folder, read_json, tail
from fewscan.slurm.processes import module_command
from fewscan.slurm.scheduler import Check, Scheduler
from fewscan.slurm.schedulers import scheduler_for
from fewscan.slurm.settings import Settings
from fewscan.storage.atomic import write_json
from fewscan.storage.errors import FewscanError
from fewscan.storage.system.private import make_private_folder

SLOW_RENAME_S = 0.5
SKEW_S = 5.0
SHARED_MEMORY_LEAST = 256 << 20
NODE_WAIT_S = 120.0
NCCL_WAIT_S = 90
WRITABLE = "choose a folder on the shared disk that you can write"
SLOW_ANSWER_S = 10.0
"""There and back; a preempted node has about 25 s in which to be noticed."""


def checks(folder: Path, settings: Settings | None = None) -> list[Check]:
    """Everything that can be told from here; with `settings`, from a node as well.

    `folder` need not exist yet, and is left as it was. Raises `ClusterError` if the settings name a
    scheduler that does not exist.
    """
    try:
        with _workplace(folder.resolve()) as workplace:
            where = Folder(workplace)
            scheduler = scheduler_for(where, settings or Settings())
            found = _here(workplace, scheduler, None)
            if settings is not None:
                found += _from_a_node(where, scheduler, settings)
            return found
    except OSError as error:
        scheduler = scheduler_for(Folder(folder), settings or Settings())
        return [Check("shared disk", False, str(error), WRITABLE), *scheduler.checks()]


@contextmanager
def _workplace(folder: Path) -> Iterator[Path]:
    """A folder of our own in `folder`; afterwards it is gone, and what had to be made for it."""
    missing = [each for each in (folder, *folder.parents) if not each.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    workplace = make_private_folder(".doctor-", folder)
    try:
        yield workplace
    finally:
        shutil.rmtree(workplace, ignore_errors=True)
        with suppress(OSError):  # somebody else has begun to use it
            for each in missing:
                each.rmdir()


def _here(folder: Path, scheduler: Scheduler, told_address: str | None) -> list[Check]:
    found = scheduler.checks()
    found += [_guarded("shared disk", _disk, folder), _guarded("locks", _locks, folder)]
    return [*found, _shared_memory(), _address(told_address), _gpus(), _nccl()]


def _guarded(name: str, check: Callable[[Path], Check], folder: Path) -> Check:
    try:
        return check(folder)
    except (OSError, FewscanError) as error:
        return Check(name, False, str(error), WRITABLE)


def _disk(folder: Path) -> Check:
    """Atomic replacement, and what it takes."""
    probe = folder / f".probe-{socket.gethostname()}"
    times = []
    for number in range(10):
        began = time.perf_counter()
        write_json(probe, number)
        times.append(time.perf_counter() - began)
        if read_json(probe) != number:
            return Check(
                "shared disk", False, "a replaced file shows its old value", "another disk"
            )
    probe.unlink()
    median_s = statistics.median(times)
    free = shutil.disk_usage(folder).free >> 30
    slow = "slow; checkpoint less often or use another disk" if median_s > SLOW_RENAME_S else ""
    said = f"{median_s * 1000:.0f} ms to replace a file, {free} GB free"
    return Check("shared disk", median_s <= SLOW_RENAME_S, said, slow)


def _locks(folder: Path) -> Check:
    """Two processes must not get the same lock."""
    program = (
        "import fcntl, sys\nfile = open(sys.argv[1], 'a')\n"
        "fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)"
    )
    path = folder / f".lock-{socket.gethostname()}"
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        command = [sys.executable, "-P", "-c", program, str(path)]
        refused = subprocess.run(command, capture_output=True, check=False).returncode != 0
    path.unlink()
    remedy = "" if refused else "mount it with flock; until then launch a study from one shell only"
    return Check("locks", refused, "respected" if refused else "ignored by this disk", remedy)


def _shared_memory() -> Check:
    free = shutil.disk_usage("/dev/shm").free
    enough = free >= SHARED_MEMORY_LEAST
    remedy = "" if enough else "remove what earlier jobs left in /dev/shm, or ask for a larger one"
    return Check("/dev/shm", enough, f"{free >> 20} MB free", remedy)


def _address(told: str | None) -> Check:
    try:
        address = network.own_address(told)
        ports = network.free_ports(8)
    except (FewscanError, OSError) as error:
        return Check("ports", False, str(error), "the node needs an address that others can reach")
    return Check("ports", True, f"{address}, free ports like {ports[0]}")


def _gpus() -> Check:
    command = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return Check("GPU", True, "none on this machine (a login node often has none)")
    return Check("GPU", True, ", ".join(done.stdout.split("\n")).strip(", "))


NCCL_PROGRAM = """
import tempfile, torch
from torch import distributed
if not torch.cuda.is_available():
    raise SystemExit("torch %s sees no GPU; NCCL was not tried" % torch.__version__)
if not distributed.is_nccl_available():
    raise RuntimeError("torch %s was built without NCCL" % torch.__version__)
with tempfile.NamedTemporaryFile() as meeting:
    distributed.init_process_group("nccl", f"file://{meeting.name}", rank=0, world_size=1)
    distributed.all_reduce(torch.ones(1, device="cuda"))
    torch.cuda.synchronize()
    distributed.destroy_process_group()
version = ".".join(map(str, torch.cuda.nccl.version()))
print("NCCL", version, "adds up on a GPU of", torch.cuda.device_count())
"""


def _nccl() -> Check:
    """Whether DDP between GPUs can work; tried in a process of its own, which loads torch."""
    if find_spec("torch") is None:
        return Check("NCCL", False, "torch is not installed here", "pip install torch")
    command = [sys.executable, "-P", "-c", NCCL_PROGRAM]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=NCCL_WAIT_S, check=False
        )
    except subprocess.TimeoutExpired:
        said, code = f"no answer within {NCCL_WAIT_S} s", 1
    else:
        said, code = (done.stdout + done.stderr).strip().rpartition("\n")[2], done.returncode
    if code and "was not tried" not in said:
        fix = "install a CUDA build of torch that fits the driver; until then devices: 1"
        return Check("NCCL", False, said, fix)
    return Check("NCCL", True, said)


def node_report(root: str, scheduler_name: str) -> None:
    """Runs as a job: writes what a node sees, then answers for the disk between the nodes."""
    seen_unix = time.time()
    folder = Path(root)
    asked = json.loads((folder / "doctor_ask.json").read_text())
    scheduler = scheduler_for(Folder(folder), Settings(scheduler=scheduler_name))
    found = _here(folder, scheduler, scheduler.allocation("worker").address)
    found.append(_launch_directory(Path(asked["cwd"])))
    report = {"token": asked["unix"], "unix": seen_unix, "node": socket.gethostname()}
    write_json(folder / "doctor_node.json", {**report, "checks": [vars(check) for check in found]})
    shared_disk_check.answer(folder)


def _launch_directory(cwd: Path) -> Check:
    """The driver runs where it was launched, on the node of the head."""
    if cwd.is_dir():
        return Check("launch directory", True, str(cwd))
    remedy = "give the commands in a directory on the shared disk"
    return Check("launch directory", False, f"{cwd} is not on this node", remedy)


def _from_a_node(where: Folder, scheduler: Scheduler, settings: Settings) -> list[Check]:
    """Send a job, wait for its report, put its checks behind ours."""
    folder = where.root
    answer = folder / "doctor_node.json"
    try:
        where.prepare()
        write_json(folder / "doctor_ask.json", {"unix": time.time(), "cwd": str(Path.cwd())})
        command = module_command("doctor", str(folder), settings.scheduler)
        job = scheduler.submit("worker", command)
    except FewscanError as error:
        return [Check("a job", False, str(error), "fix the settings that the scheduler names")]
    report = _await(answer, NODE_WAIT_S)
    if report is None:
        scheduler.cancel([job])
        words = tail(scheduler.log_of(job), 5) or "it has not begun: the queue may be long"
        said = f"job {job} gave no answer within {NODE_WAIT_S:.0f} s; its log: {words}"
        return [Check("a job", False, said, "fix what the log says, or try again later")]
    between = _between(shared_disk_check.ask(folder), report["node"])
    checked = [Check(f"{report['node']}: {c.pop('name')}", **c) for c in report["checks"]]
    return [_clock(report), between, *checked]


def _between(seen: shared_disk_check.SharedDiskReport, node: str) -> Check:
    name = "disk between nodes"
    if seen.faults:
        said = f"{len(seen.faults)} faults against {node}: {'; '.join(seen.faults[:3])}"
        fix = "use a disk on which rename is atomic for other nodes too (not FUSE, not a sync)"
        return Check(name, False, said, fix)
    said = f"{seen.rounds} files replaced, none missing or torn on {node}; "
    said += f"{seen.there_and_back_s * 1000:.0f} ms there and back"
    quick = seen.there_and_back_s < SLOW_ANSWER_S
    fix = "" if quick else "it caches; mount it with a short actimeo, or use another disk"
    return Check(name, quick, said, fix)


def _clock(report: dict[str, Any]) -> Check:
    """The node's clock lies between our asking and our reading, or it is wrong by that much."""
    early_s, late_s = report["token"] - report["unix"], report["unix"] - time.time()
    skew_s = max(0.0, early_s, late_s)
    remedy = "" if skew_s < SKEW_S else "ask the administrators to run NTP; time limits will be off"
    return Check("clocks", skew_s < SKEW_S, f"{skew_s:.1f} s apart", remedy)


def _await(path: Path, wait_s: float) -> dict[str, Any] | None:
    deadline = time.monotonic() + wait_s
    while time.monotonic() < deadline:
        value = read_json(path)
        if value is not None:
            found: dict[str, Any] = value
            return found
        time.sleep(0.5)
    return None


if __name__ == "__main__":
    node_report(*sys.argv[1:])
