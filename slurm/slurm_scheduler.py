"""Slurm as the scheduler: its commands, its variables, its words. They stand in this file alone.

Jobs go in through submitit; what became of them is asked of squeue, once for all of them. sacct is
never asked, for a cluster may have no accounting.
"""

import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import submitit
from submitit.core.utils import FailedJobError, FailedSubmissionError

from fewscan.slurm import job_script
from fewscan.slurm.allocation import Allocation, split_memory, usable_cpus
from fewscan.slurm.folder import Folder, say
from fewscan.slurm.processes import become_supervisor
from fewscan.slurm.scheduler import PENDING, RUNNING, Check, ClusterJob, Role
from fewscan.slurm.session import STARTED
from fewscan.slurm.settings import Settings
from fewscan.storage.errors import ClusterError, FewscanError, disk_full_explained

COMMANDS = ("sbatch", "squeue", "scancel", "scontrol")
COMMAND_TIMEOUT_S = 60
REQUEUE_PAUSES_S = (0.5, 1.0, 2.0, 4.0)
"""Between attempts; shorter than any grace time."""
ROLES: tuple[Role, ...] = ("head", "worker")
ALIVE = ("PENDING", "CONFIGURING", "RUNNING", "COMPLETING", "SUSPENDED", "REQUEUED", "RESIZING")
KILL_WAIT_S = 30.0
"""Slurm's own default."""
HELD = "BeginTime"
"""Reason of a requeued job, which is held back for two minutes."""


class Slurm:
    """The jobs of one cluster on Slurm."""

    def __init__(self, folder: Folder, settings: Settings) -> None:
        self._folder = folder
        self._settings = settings

    def submit(self, role: Role, command: Sequence[str]) -> str:
        """See `Scheduler`."""
        logs = self._folder.logs
        try:
            with disk_full_explained(logs), _outside_of_a_job():
                executor = submitit.SlurmExecutor(folder=logs)
                executor.update_parameters(**_parameters(self._folder, self._settings, role))
                return str(executor.submit(become, list(command)).job_id)
        except (FailedJobError, FailedSubmissionError, RuntimeError) as error:
            raise _refused("sbatch", str(error)) from error

    def look(self, *, also_over: bool = False) -> list[ClusterJob]:
        """See `Scheduler`."""
        names = ",".join(_job_name(self._folder, self._settings, role) for role in ROLES)
        command = ["squeue", "--noheader", f"--name={names}", "--format=%i|%j|%T|%r|%N"]
        output = run([*command, *(["--states=all"] if also_over else [])])
        return [_parse(line) for line in output.splitlines() if line.strip()]

    def cancel(self, jobs: Iterable[str]) -> None:
        """See `Scheduler`."""
        ids = list(jobs)
        if ids:
            run(["scancel", *ids])

    def requeue(self, job: str) -> None:
        """See `Scheduler`. A controller that is busy is asked again."""
        for wait_s in (*REQUEUE_PAUSES_S, None):
            try:
                state = run(["squeue", "--noheader", f"--jobs={job}", "--format=%T"]).strip()
                if state == RUNNING:
                    run(["scontrol", "requeue", job])
                return
            except ClusterError as error:
                if wait_s is None:
                    raise
                say(error)
                time.sleep(wait_s)

    def start_now(self, jobs: Sequence[str]) -> None:
        """See `Scheduler`."""
        run(["scontrol", "update", f"JobId={','.join(jobs)}", "StartTime=now"])

    def run_no_more(self, jobs: Iterable[str]) -> None:
        """See `Scheduler`."""
        if ids := ",".join(jobs):
            run(["scontrol", "update", f"JobId={ids}", "Requeue=0"])

    def log_of(self, job: str) -> Path:
        """See `Scheduler`."""
        return self._folder.logs / f"{job}_0_log.out"  # submitit's name for it

    def allocation(self, role: Role) -> Allocation:
        """See `Scheduler`."""
        head = role == "head"
        limit_min = self._settings.head_limit_min if head else self._settings.time_limit_min
        grace_s, kill_wait_s = read_grace(os.environ.get("SLURM_JOB_PARTITION"))
        return read_allocation(os.environ, limit_min, grace_s, kill_wait_s)

    def checks(self) -> list[Check]:
        """See `Scheduler`."""
        found = Check("submitit", True, submitit.__version__)
        return [found, *(_command(name) for name in COMMANDS), _controller(), _accounting()]


def become(command: Sequence[str]) -> None:
    """Runs as a job, in submitit's process: let `command` take its place.

    The stop signals are blocked before, so that none is lost, or ends the job, in between.
    """
    become_supervisor()
    sys.stdout.flush()
    sys.stderr.flush()
    os.execvp(command[0], list(command))


def run(command: Sequence[str]) -> str:
    """Output of a Slurm command. Raises `ClusterError` with the command and what it said."""
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=COMMAND_TIMEOUT_S, check=False
        )
    except FileNotFoundError as error:
        raise ClusterError(
            f"there is no {command[0]} here",
            where=" ".join(command),
            expected="Slurm's commands in PATH",
            remedy="run this on a login or compute node of a Slurm cluster",
        ) from error
    except subprocess.TimeoutExpired as error:
        raise _refused(" ".join(command), f"no answer within {COMMAND_TIMEOUT_S} s") from error
    if done.returncode:
        raise _refused(" ".join(command), done.stderr.strip() or f"exit code {done.returncode}")
    return done.stdout


def read_grace(partition: str | None) -> tuple[float, float]:
    """Seconds from SIGTERM to SIGKILL for a preempted job and for a cancelled one.

    The partition's GraceTime and the cluster's KillWait; Slurm's default if it does not say.
    """
    asked = [["scontrol", "show", "config"]]
    asked += [["scontrol", "show", "partition", partition]] if partition else []
    try:
        said = "\n".join(run(command) for command in asked)
    except ClusterError as error:
        say(error)
        said = ""
    kill_wait = re.search(r"^KillWait\s*=\s*(\d+)", said, re.MULTILINE)
    grace = re.search(r"\bGraceTime=(\d+)", said)
    kill_wait_s = float(kill_wait[1]) if kill_wait else KILL_WAIT_S
    return (float(grace[1]) if grace else 0.0) or kill_wait_s, kill_wait_s


def read_allocation(
    env: Mapping[str, str], limit_min: int, grace_s: float, kill_wait_s: float
) -> Allocation:
    """From the variables that Slurm sets in a job; `limit_min` is the job's time limit."""
    memory, object_store = split_memory(_memory(env))
    return Allocation(
        job=env["SLURM_JOB_ID"],
        node=env.get("SLURMD_NODENAME") or socket.gethostname(),
        address=env.get("SLURM_LAUNCH_NODE_IPADDR"),
        cpus=_cpus(env),
        gpus=_gpus(env),
        memory=memory,
        object_store=object_store,
        ends_unix=_ends_unix(env, limit_min),
        grace_s=grace_s,
        kill_wait_s=kill_wait_s,
    )


def _cpus(env: Mapping[str, str]) -> int:
    given = env.get("SLURM_CPUS_PER_TASK") or env.get("SLURM_CPUS_ON_NODE")
    return min(int(given), usable_cpus()) if given else usable_cpus()


def _gpus(env: Mapping[str, str]) -> int:
    for name in ("SLURM_STEP_GPUS", "SLURM_JOB_GPUS"):
        if env.get(name):
            return len(env[name].split(","))
    count = env.get("SLURM_GPUS_ON_NODE")
    return int(count) if count else 0


def _memory(env: Mapping[str, str]) -> int | None:
    """Bytes; None if Slurm does not limit it."""
    if env.get("SLURM_MEM_PER_NODE", "0") != "0":
        return int(env["SLURM_MEM_PER_NODE"]) << 20
    if env.get("SLURM_MEM_PER_CPU", "0") != "0":
        return (int(env["SLURM_MEM_PER_CPU"]) << 20) * int(env.get("SLURM_CPUS_ON_NODE", "1"))
    return None


def _ends_unix(env: Mapping[str, str], limit_min: int) -> float:
    if env.get("SLURM_JOB_END_TIME"):  # set since Slurm 22.05 on most clusters
        return float(env["SLURM_JOB_END_TIME"])
    return float(env.get(STARTED) or time.time()) + 60 * limit_min


def _refused(command: str, message: str) -> ClusterError:
    return ClusterError(
        f"Slurm refused: {message}",
        where=command,
        remedy="correct the settings it names, or ask `scontrol show partition` what is allowed",
    )


def _job_name(folder: Folder, settings: Settings, role: Role) -> str:
    """The same for all jobs of a role, so that one query finds them all."""
    return f"{settings.job_name}-{folder.key}-{role}"


def _parse(line: str) -> ClusterJob:
    number, name, state, reason, node = line.strip().split("|")
    return ClusterJob(
        id=number,
        role=name.rpartition("-")[2],
        state=state,
        reason=reason,
        node=node,
        held=state == PENDING and reason == HELD,
        over=state not in ALIVE,
    )


def _parameters(folder: Folder, settings: Settings, role: Role) -> dict[str, Any]:
    own_head = role == "head" and settings.head == "own"
    memory_gb = settings.head_memory_gb if own_head else settings.memory_gb
    limit_min = settings.head_limit_min if role == "head" else settings.time_limit_min
    cpus = settings.head_cpus if own_head else settings.cpus
    disk, name = "${SLURM_TMPDIR:-${TMPDIR:-/tmp}}", f"{folder.key[:4]}-$SLURM_JOB_ID"
    wanted = {
        "job_name": _job_name(folder, settings, role),
        "partition": (settings.head_partition if own_head else None) or settings.partition,
        "account": settings.account,
        "qos": settings.qos,
        "constraint": None if own_head else settings.constraint,
        "exclude": settings.exclude,
        "time": limit_min,
        "nodes": 1,
        "ntasks_per_node": 1,
        "cpus_per_task": cpus,
        "srun_args": [f"--cpus-per-task={cpus}"],  # srun has not inherited it since Slurm 22.05
        "gpus_per_node": None if own_head else settings.gpus or None,
        "mem": None if memory_gb is None else f"{round(memory_gb * 1024)}M",
        "signal_delay_s": settings.signal_delay_s,
        "stderr_to_stdout": True,
        "setup": job_script.lines_before(disk, name, settings.setup),
        "teardown": job_script.lines_after(),
        "additional_parameters": {"requeue": True, **settings.sbatch},
    }
    return {key: value for key, value in wanted.items() if value is not None}


@contextmanager
def _outside_of_a_job() -> Iterator[None]:
    """A job submitted from a job must not inherit that job's variables, but needs SLURM_CONF."""
    conf = os.environ.get("SLURM_CONF")
    wanted = job_script.outside_of_jobs(os.environ)
    other = [name for name, value in os.environ.items() if wanted.get(name) != value]
    with submitit.helpers.clean_env(other):
        os.environ.update({name: wanted[name] for name in other if name in wanted})
        if conf is not None:
            os.environ["SLURM_CONF"] = conf
        yield


def _command(name: str) -> Check:
    path = shutil.which(name)
    remedy = "" if path else "run on a login node of the cluster; perhaps `module load slurm`"
    return Check(name, path is not None, path or "not in PATH", remedy)


def _controller() -> Check:
    try:
        run(["squeue", "--noheader", "--me"])
    except FewscanError as error:
        return Check("controller", False, error.found, "ask the administrators; nothing can run")
    return Check("controller", True, "squeue answers")


def _accounting() -> Check:
    """Its absence is no fault: nothing here asks sacct."""
    try:
        run(["sacct", "--noheader", "--starttime=now"])
    except FewscanError:
        return Check("accounting", True, "no sacct; that is fine, job states come from squeue")
    return Check("accounting", True, "sacct answers (it is not needed)")
