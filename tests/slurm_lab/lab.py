"""A real Slurm with accounting and three nodes, on one Debian machine, as root.

    PYTHONPATH=tests python tests/slurm_lab/lab.py up      # idempotent; installs what is missing
    PYTHONPATH=tests python tests/slurm_lab/lab.py down    # ends all of it, leaves no trace

Every node is a network namespace with a mount and a UTS namespace of its own: own address, /tmp,
/dev/shm, /etc/hosts and host name. The bridge that joins them lives in the controller's namespace,
so nothing of the lab shows up on the machine's own network. The commands in `BIN` enter that
namespace when they are called from outside, and so stand for the cluster's login node.
"""

import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import debian

from fewscan.slurm.processes import descendants

# Not in /tmp: the nodes have one each, and this is their shared disk. Another place is another lab.
ROOT = Path(os.environ.get("FEWSCAN_LAB", "/var/tmp/slurm_lab"))
BIN = ROOT / "bin"
CONF = ROOT / "etc" / "slurm.conf"
SHARED = ROOT / "shared"
SMALL = ROOT / "small"  # a small shared disk, for filling and freezing it
SMALL_MB = 64
FILLER = SMALL / "filler"
CLOCKS = SHARED / "clocks"  # a file a node: by how many seconds its clock is ahead
NODES = ("n1", "n2", "n3")
CONTROLLER = "ctl"
ADDRESS = {CONTROLLER: "10.77.0.1", "n1": "10.77.0.11", "n2": "10.77.0.12", "n3": "10.77.0.13"}
PACKAGES = ("slurm-wlm", "slurmdbd", "munge", "mariadb-server", "iproute2")
COMMANDS = ("sbatch", "squeue", "scancel", "scontrol", "srun", "sinfo", "sacct", "sacctmgr")
CPUS = 4
MEMORY_MB = 8000
GRACE_S = 10
UP_S = 180
TAKER = "taker"
"""Name of the jobs that take nodes."""

SLURM_CONF = f"""
ClusterName=lab
SlurmctldHost={CONTROLLER}({ADDRESS[CONTROLLER]})
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={ROOT}/run/munge.socket,cred_expire=40
StateSaveLocation={ROOT}/state
SlurmdSpoolDir={ROOT}/spool/%n
SlurmctldPidFile={ROOT}/run/slurmctld.pid
SlurmdPidFile={ROOT}/run/slurmd.%n.pid
SlurmctldLogFile={ROOT}/log/slurmctld.log
SlurmdLogFile={ROOT}/log/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SlurmdParameters=config_overrides
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory,CR_LLN
DefMemPerCPU=1000
SchedulerParameters=sched_interval=2,bf_interval=2,requeue_setup_env_fail
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
ReturnToService=2
SlurmdTimeout=15
KillWait=10
MinJobAge=60
InactiveLimit=0
RebootProgram=/bin/true
AccountingStorageType=accounting_storage/slurmdbd
AccountingStoragePass={ROOT}/run/munge.socket
AccountingStorageHost={ADDRESS[CONTROLLER]}
JobAcctGatherType=jobacct_gather/none
""" + "\n".join(
    [
        *(
            f"NodeName={n} NodeAddr={ADDRESS[n]} CPUs={CPUS} RealMemory={MEMORY_MB} State=UNKNOWN"
            for n in NODES
        ),
        f"PartitionName=main Nodes=ALL Default=YES PriorityTier=1 PreemptMode=REQUEUE"
        f" GraceTime={GRACE_S} MaxTime=INFINITE State=UP",
        "PartitionName=high Nodes=ALL PriorityTier=10 PreemptMode=OFF MaxTime=INFINITE State=UP",
        "",
    ]
)

SLURMDBD_CONF = f"""
AuthType=auth/munge
AuthInfo=socket={ROOT}/run/munge.socket
DbdHost={CONTROLLER}
DbdAddr={ADDRESS[CONTROLLER]}
SlurmUser=root
LogFile={ROOT}/log/slurmdbd.log
PidFile={ROOT}/run/slurmdbd.pid
StorageType=accounting_storage/mysql
StorageHost=localhost
StorageUser=root
StorageLoc=slurm_acct
"""

CGROUP_CONF = "CgroupPlugin=cgroup/v1\nCgroupAutomount=no\n"


class LabError(Exception):
    """The lab cannot be brought up here; the message says why."""


def why_impossible() -> str | None:
    """What keeps the lab from running on this machine, or None."""
    if os.geteuid() != 0:
        return "only root may make network namespaces"
    if not Path("/etc/debian_version").exists():
        return "the recipe is for Debian and its Slurm packages"
    for needed in (Path(__file__).resolve(), Path(sys.executable)):
        if needed.is_relative_to("/tmp"):
            return f"{needed} is below /tmp, of which each node has its own; clone elsewhere"
    command = ["unshare", "--net", "--mount", "--uts", "true"]
    tried = subprocess.run(command, capture_output=True, text=True)
    return f"no namespaces here: {tried.stderr.strip()}" if tried.returncode else None


def up() -> None:
    """Bring the lab up, or restart what of it is down. Raises `LabError`."""
    reason = why_impossible()
    if reason:
        raise LabError(reason)
    _install()
    if CONF.exists() and CONF.read_text() != SLURM_CONF:
        down()  # its daemons would go on with what they have read
    _write_files()
    _make_network()
    _start_accounting()
    start_controller()
    for node in NODES:
        start_node(node)
    _await(
        "the three nodes", lambda: _sinfo().count("idle") + _sinfo().count("mixed") == len(NODES)
    )


def down() -> None:
    """End every process of the lab and remove its namespaces, mounts and files."""
    for namespace in (*NODES, CONTROLLER):
        kill_node(namespace)
        subprocess.run(["ip", "netns", "delete", _netns(namespace)], capture_output=True)
    _end(_daemons_outside())
    thaw()
    subprocess.run(["umount", "--lazy", str(SMALL)], capture_output=True)  # one may be dying in it
    shutil.rmtree(ROOT, ignore_errors=True)


def start_node(node: str) -> None:
    """Boot `node`: fresh /tmp and /dev/shm, then slurmd. Nothing happens if it is up."""
    if processes_of(node):
        return
    script = f"""
        mount --make-rprivate /
        mount -t tmpfs -o size=2g tmpfs /tmp
        mount -t tmpfs -o size=2g tmpfs /dev/shm
        mount --bind {ROOT}/etc/hosts /etc/hosts
        exec slurmd -D -N {node} -f {CONF}
    """
    _daemon(node, ["unshare", "--mount", "sh", "-ec", script], f"slurmd.{node}")


def kill_node(node: str) -> None:
    """The power goes: every process of `node`, slurmd first, gets SIGKILL at once."""
    _end(processes_of(node))


def cut(node: str) -> None:
    """Pull the cable of `node`: nothing comes in or goes out, and no connection is closed."""
    _do("ip", "-n", _netns(CONTROLLER), "link", "set", node, "down")


def plug_in(node: str) -> None:
    """Undo `cut`."""
    _do("ip", "-n", _netns(CONTROLLER), "link", "set", node, "up")


def kill_controller() -> None:
    """SIGKILL slurmctld; no command of Slurm is answered until `start_controller`."""
    _end({p: line for p, line in processes_of(CONTROLLER).items() if "slurmctld" in line})


def start_controller() -> None:
    """Nothing happens if slurmctld runs. Raises `LabError` if it does not answer."""
    if "slurmctld" not in " ".join(processes_of(CONTROLLER).values()):
        _daemon(CONTROLLER, ["slurmctld", "-D", "-f", str(CONF)], "slurmctld")
    _await("slurmctld", lambda: _succeeds("sinfo"))


def fill() -> None:
    """Write to the small disk until it is full."""
    with suppress(OSError), FILLER.open("wb", buffering=0) as file:
        for size in (1 << 20, 1 << 10):
            with suppress(OSError):
                while True:
                    file.write(bytes(size))


def make_room() -> None:
    """Undo `fill`."""
    FILLER.unlink(missing_ok=True)


def can_freeze() -> bool:
    """Whether the small disk is one that the kernel can stop."""
    return _output(["stat", "--file-system", "--format=%T", str(SMALL)]).startswith("ext")


def freeze() -> None:
    """Whoever writes to the small disk hangs until `thaw`, as with a server that is gone."""
    _do("fsfreeze", "--freeze", str(SMALL))


def thaw() -> None:
    """Undo `freeze`; nothing happens if it is not frozen."""
    subprocess.run(["fsfreeze", "--unfreeze", str(SMALL)], capture_output=True)


def set_clock(node: str, ahead_s: float) -> None:
    """Have the Python processes of jobs on `node` see another time; see `pace/sitecustomize.py`."""
    CLOCKS.mkdir(exist_ok=True)
    partial = CLOCKS / f"{node}.partial"
    partial.write_text(f"{ahead_s}")
    partial.rename(CLOCKS / node)


def processes_of(node: str) -> dict[int, str]:
    """Command lines by process id of everything that lives in the namespace of `node`."""
    path = Path("/run/netns") / _netns(node)
    if not path.exists():
        return {}
    wanted = path.stat().st_ino
    return {pid: line for pid, line in _processes() if _inode(pid) == wanted}


def on_node(node: str, command: Sequence[str]) -> list[str]:
    """`command` as it has to be called to run on `node`: its network, its /tmp, its host name."""
    if node == CONTROLLER:
        return ["nsenter", f"--net=/run/netns/{_netns(node)}", *command]
    slurmd = next(pid for pid, line in processes_of(node).items() if line.startswith("slurmd"))
    return ["nsenter", f"--target={slurmd}", "--net", "--uts", "--mount", *command]


def slurm(*command: str) -> str:
    """Run one of Slurm's commands on the login node; its output."""
    return _output([str(BIN / command[0]), *command[1:]])


def take(node: str, seconds: int) -> str:
    """A job of the high partition takes `node` whole for some seconds; its id."""
    options = ["--parsable", "--partition=high", f"--nodelist={node}", "--exclusive"]
    options += ["--output=/dev/null", f"--job-name={TAKER}"]
    return slurm("sbatch", *options, "--wrap", f"sleep {seconds}").strip()


def resume_nodes() -> None:
    """What an administrator does: a node that Slurm drained (a killed slurmstepd) takes jobs."""
    drained = slurm("sinfo", "--noheader", "--Node", "--states=drain", "--format=%N").split()
    for node in sorted(set(drained)):
        slurm("scontrol", "update", f"NodeName={node}", "State=RESUME")


def states() -> dict[str, str]:
    """Slurm's word for every job, by id."""
    lines = slurm("squeue", "--noheader", "--format=%i %T").splitlines()
    return dict(line.split() for line in lines)


def restarts(job: str) -> int:
    """How often Slurm has run `job` again."""
    found = re.search(r"Restarts=(\d+)", slurm("scontrol", "show", "job", job))
    return int(found[1]) if found else 0


def end_tree(process: subprocess.Popen[bytes]) -> None:
    """SIGKILL a process that a test has started, and all below it."""
    below = {each.pid: "" for each in descendants(process.pid)}
    process.kill()
    process.wait()
    _end(below)


def cancel_everything() -> None:
    """End every job of the lab."""
    for job in slurm("squeue", "--noheader", "--format=%i").split():
        slurm("scancel", job)


def await_idle() -> None:
    """Wait until no job is left and every node is up."""
    _await("an idle cluster", lambda: not slurm("squeue", "--noheader"))
    resume_nodes()
    _await("the three nodes", lambda: _sinfo().count("idle") == len(NODES))


def leftovers() -> list[str]:
    """Processes, ports, temporary files and shared memory that jobs have left on the nodes."""
    found = []
    for node in NODES:
        found += [
            f"{node}: process {pid} {line}"
            for pid, line in processes_of(node).items()
            if not line.startswith(("slurmd", "slurmstepd"))
        ]
        listeners = _output(on_node(node, ["ss", "-Htlnp"])).splitlines()
        found += [f"{node}: port {line}" for line in listeners if '"slurmd"' not in line]
        for folder in ("/tmp", "/dev/shm"):
            names = _output(on_node(node, ["ls", "-A", folder])).split()
            found += [f"{node}: {folder}/{name}" for name in names]
    return found


def _install() -> None:
    reason = debian.missing(("slurmctld", "slurmdbd", "munged", "mariadbd", "ip"), PACKAGES)
    if reason:
        raise LabError(reason)


def _write_files() -> None:
    for name in ("etc", "bin", "run", "log", "state", "shared", "small", "db"):
        (ROOT / name).mkdir(parents=True, exist_ok=True)
    for node in NODES:
        (ROOT / "spool" / node).mkdir(parents=True, exist_ok=True)
    ROOT.chmod(0o755)
    CONF.write_text(SLURM_CONF)
    (ROOT / "etc" / "cgroup.conf").write_text(CGROUP_CONF)
    hosts = ["127.0.0.1 localhost", *(f"{address} {name}" for name, address in ADDRESS.items())]
    (ROOT / "etc" / "hosts").write_text("\n".join(hosts) + "\n")
    _write_private(ROOT / "etc" / "slurmdbd.conf", SLURMDBD_CONF)
    if not (ROOT / "etc" / "munge.key").exists():
        _write_private(ROOT / "etc" / "munge.key", secrets.token_hex(64))
    if not SMALL.is_mount():
        _make_small_disk()
    for name in COMMANDS:
        _write_wrapper(name)


def _make_small_disk() -> None:
    """A file as ext4, which can be frozen; where that may not be mounted, memory, which cannot."""
    image = ROOT / "small.img"
    with image.open("wb") as file:
        file.truncate(SMALL_MB << 20)
    try:
        _do("mkfs.ext4", "-q", "-F", "-m", "0", str(image))
        _do("mount", "-o", "loop", str(image), str(SMALL))
    except (LabError, FileNotFoundError):
        _do("mount", "-t", "tmpfs", "-o", f"size={SMALL_MB}m", "tmpfs", str(SMALL))


def _write_private(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(0o600)


def _write_wrapper(name: str) -> None:
    """Outside of the lab's namespaces the command first enters the controller's."""
    outside = os.readlink("/proc/self/ns/net")
    real = f"/usr/bin/{name}"
    enter = f"nsenter --net=/run/netns/{_netns(CONTROLLER)}"
    (BIN / name).write_text(
        f"#!/bin/sh\nexport SLURM_CONF={CONF}\n"
        f'[ "$(readlink /proc/self/ns/net)" = "{outside}" ] && exec {enter} {real} "$@"\n'
        f'exec {real} "$@"\n'
    )
    (BIN / name).chmod(0o755)


def _make_network() -> None:
    controller = _netns(CONTROLLER)
    if not (Path("/run/netns") / controller).exists():
        _do("ip", "netns", "add", controller)
        inside = ("ip", "-n", controller)
        _do(*inside, "link", "set", "lo", "up")
        _do(*inside, "link", "add", "br0", "type", "bridge")
        _do(*inside, "address", "add", f"{ADDRESS[CONTROLLER]}/24", "dev", "br0")
        _do(*inside, "link", "set", "br0", "up")
    for node in NODES:
        if not (Path("/run/netns") / _netns(node)).exists():
            _make_wire(node, controller)


def _make_wire(node: str, controller: str) -> None:
    here = _netns(node)
    _do("ip", "netns", "add", here)
    peer = ("peer", "name", node, "netns", controller)
    _do("ip", "-n", here, "link", "add", "eth0", "type", "veth", *peer)
    _do("ip", "-n", controller, "link", "set", node, "master", "br0", "up")
    _do("ip", "-n", here, "link", "set", "lo", "up")
    _do("ip", "-n", here, "address", "add", f"{ADDRESS[node]}/24", "dev", "eth0")
    _do("ip", "-n", here, "link", "set", "eth0", "up")
    _do("ip", "-n", here, "route", "add", "default", "via", ADDRESS[CONTROLLER])


def _start_accounting() -> None:
    running = " ".join(processes_of(CONTROLLER).values())
    socket = ROOT / "run" / "mysql.socket"
    if "munged" not in running:
        options = {"key-file": "etc/munge.key", "socket": "run/munge.socket"}
        options |= {"pid-file": "run/munge.pid", "seed-file": "run/munge.seed"}
        options |= {"log-file": "log/munge.log"}
        arguments = [f"--{key}={ROOT / value}" for key, value in options.items()]
        (ROOT / "run" / "munge.socket").unlink(missing_ok=True)
        _daemon(CONTROLLER, ["munged", "--foreground", "--force", *arguments], "munged")
    if "mariadbd" not in running:
        data = f"--datadir={ROOT}/db"
        if not (ROOT / "db" / "mysql").exists():
            _do("mariadb-install-db", "--no-defaults", "--user=root", data)
        socket.unlink(missing_ok=True)
        options = ["--no-defaults", "--user=root", data, f"--socket={socket}", "--skip-networking"]
        _daemon(CONTROLLER, ["mariadbd", *options, f"--pid-file={ROOT}/run/mysql.pid"], "mariadbd")
    _await("MariaDB", socket.exists)
    _await("munge", (ROOT / "run" / "munge.socket").exists)
    if "slurmdbd" not in running:
        _daemon(CONTROLLER, ["slurmdbd", "-D"], "slurmdbd")
    _await("slurmdbd", lambda: _succeeds("sacctmgr", "--noheader", "list", "cluster"))
    if "lab" not in slurm("sacctmgr", "--noheader", "list", "cluster"):
        slurm("sacctmgr", "-i", "add", "cluster", "lab")


def _daemon(namespace: str, command: list[str], log: str) -> None:
    """Start `command` with the network and the host name of `namespace`, and leave it running."""
    named = ["unshare", "--uts", "sh", "-ec", f'hostname {namespace}; exec "$@"', "sh"]
    env = {**os.environ, "SLURM_CONF": str(CONF), "MYSQL_UNIX_PORT": f"{ROOT}/run/mysql.socket"}
    with (ROOT / "log" / f"{log}.out").open("a") as output:
        subprocess.Popen(
            ["nsenter", f"--net=/run/netns/{_netns(namespace)}", *named, *command],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            cwd="/",
            env=env,
        )


def _netns(node: str) -> str:
    return f"{ROOT.name}-{node}"


def _do(*command: str) -> None:
    _output(command)


def _output(command: Sequence[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise LabError(f"{' '.join(command)}: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout


def _succeeds(*command: str) -> bool:
    return (
        subprocess.run([str(BIN / command[0]), *command[1:]], capture_output=True).returncode == 0
    )


def _sinfo() -> list[str]:
    return slurm("sinfo", "--noheader", "--Node", "--partition=main", "--format=%T").split()


def _await(what: str, ready: Callable[[], bool]) -> None:
    deadline = time.monotonic() + UP_S
    while not ready():
        if time.monotonic() > deadline:
            raise LabError(f"{what} did not come up within {UP_S} s; logs are in {ROOT}/log")
        time.sleep(0.25)


def _processes() -> list[tuple[int, str]]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                line = (
                    (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                )
            except OSError:
                continue
            found.append((int(entry.name), line.strip()))
    return found


def _inode(pid: int) -> int | None:
    try:
        return os.stat(f"/proc/{pid}/ns/net").st_ino
    except OSError:
        return None


def _daemons_outside() -> dict[int, str]:
    """Processes of the lab whose namespace is gone by its name already."""
    return {
        pid: line
        for pid, line in _processes()
        if str(ROOT) in line and pid != os.getpid() and Path(line.split()[0]).name in DAEMONS
    }


DAEMONS = ("munged", "mariadbd", "slurmctld", "slurmdbd", "slurmd", "slurmstepd")


def _end(processes: dict[int, str]) -> None:
    """SIGKILL, and wait until they are gone."""
    for pid in processes:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    deadline = time.monotonic() + 10
    while any(_inode(pid) for pid in processes) and time.monotonic() < deadline:
        time.sleep(0.05)


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["up"]:
            up()
            print(slurm("sinfo"), end="")
            print(f"export PATH={BIN}:$PATH SLURM_CONF={CONF}")
        case ["down"]:
            down()
        case _:
            sys.exit(__doc__)
