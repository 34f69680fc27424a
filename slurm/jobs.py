"""Slurm's own commands: submit, look, cancel, requeue. An error names the command that failed.

Jobs go in through submitit; what became of them is asked of squeue, once for all of them. sacct is
never asked, for a cluster may have no accounting.
"""

import os
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import submitit
from submitit.core.utils import FailedJobError, FailedSubmissionError

from fewscan.slurm.folder import Folder
from fewscan.slurm.inside import TEMPORARY
from fewscan.slurm.settings import Settings
from fewscan.storage.errors import ClusterError, disk_full_explained

COMMAND_TIMEOUT_S = 60
REQUEUE_PAUSES_S = (0.5, 1.0, 2.0, 4.0)
"""Between attempts; shorter than any grace time."""
SOCKET_PATH_LIMIT = 45
"""A longer temporary folder would push Ray's socket paths over the kernel's 107 bytes."""
ROLES = ("head", "worker")
ALIVE = ("PENDING", "CONFIGURING", "RUNNING", "COMPLETING", "SUSPENDED", "REQUEUED", "RESIZING")


@dataclass(frozen=True)
class Job:
    """One line of squeue."""

    id: str
    """Slurm's number of the job."""
    role: str
    """head or worker."""
    state: str
    """Slurm's word: PENDING, RUNNING, COMPLETING, …"""
    reason: str
    """Why it is pending, in Slurm's words."""
    node: str
    """Where it runs; empty while it is pending."""


def job_name(folder: Folder, settings: Settings, role: str) -> str:
    """The same for all jobs of a role, so that one query finds them all."""
    return f"{settings.job_name}-{folder.key}-{role}"


def submit(
    folder: Folder, settings: Settings, role: str, function: Callable[..., None], *args: Any
) -> str:
    """Submit a job that calls `function(*args)`; its id. Raises `ClusterError`, `DiskFullError`."""
    try:
        with disk_full_explained(folder.logs), _outside_of_a_job():
            executor = submitit.SlurmExecutor(folder=folder.logs)
            executor.update_parameters(**_parameters(folder, settings, role))
            return str(executor.submit(function, *args).job_id)
    except (FailedJobError, FailedSubmissionError, RuntimeError) as error:
        raise _failed("sbatch", str(error)) from error


def query(folder: Folder, settings: Settings, states: str | None = None) -> list[Job]:
    """All jobs of this cluster that Slurm still knows. Raises `ClusterError`."""
    names = ",".join(job_name(folder, settings, role) for role in ROLES)
    command = ["squeue", "--noheader", f"--name={names}", "--format=%i|%j|%T|%r|%N"]
    output = run([*command, *([f"--states={states}"] if states else [])])
    return [_parse(line) for line in output.splitlines() if line.strip()]


def cancel(ids: Iterable[str]) -> None:
    """End these jobs; nothing happens to those that are over."""
    ids = list(ids)
    if ids:
        run(["scancel", *ids])


def requeue(job: str) -> None:
    """Have Slurm end the job and run it again."""
    run(["scontrol", "requeue", job])


def requeue_if_running(job: str) -> None:
    """Have Slurm run the job again, unless it has been cancelled or is being requeued already.

    A controller that is busy is asked again: a job that ends without this is not run again.
    """
    for wait_s in (*REQUEUE_PAUSES_S, None):
        try:
            if run(["squeue", "--noheader", f"--jobs={job}", "--format=%T"]).strip() == "RUNNING":
                requeue(job)
            return
        except ClusterError as error:
            if wait_s is None:
                raise
            print(error, flush=True)
            time.sleep(wait_s)


def start_now(ids: Sequence[str]) -> None:
    """Slurm holds requeued jobs back for two minutes (BeginTime); let these go at once."""
    run(["scontrol", "update", f"JobId={','.join(ids)}", "StartTime=now"])


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
        raise _failed(" ".join(command), f"no answer within {COMMAND_TIMEOUT_S} s") from error
    if done.returncode:
        raise _failed(" ".join(command), done.stderr.strip() or f"exit code {done.returncode}")
    return done.stdout


def _failed(command: str, message: str) -> ClusterError:
    return ClusterError(
        f"Slurm refused: {message}",
        where=command,
        remedy="mend the settings it names, or ask `scontrol show partition` what is allowed",
    )


def _parse(line: str) -> Job:
    number, name, state, reason, node = line.strip().split("|")
    return Job(number, name.rpartition("-")[2], state, reason, node)


def _parameters(folder: Folder, settings: Settings, role: str) -> dict[str, Any]:
    own_head = role == "head" and settings.head == "own"
    memory_gb = settings.head_memory_gb if own_head else settings.memory_gb
    limit_min = settings.head_limit_min if role == "head" else settings.time_limit_min
    cpus = settings.head_cpus if own_head else settings.cpus
    wanted = {
        "job_name": job_name(folder, settings, role),
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
        "setup": _setup(folder, settings),
        "teardown": _teardown(),
        "additional_parameters": {"requeue": True, **settings.sbatch},
    }
    return {key: value for key, value in wanted.items() if value is not None}


def _setup(folder: Folder, settings: Settings) -> list[str]:
    """A line that fails ends the job there, and says which it was.

    The temporary folder is chosen by the shell, which outlives a supervisor that is killed.
    """
    report = 'echo "setup line failed: $BASH_COMMAND" >&2'
    name = f"{folder.key}-$SLURM_JOB_ID"
    return [
        f'export {TEMPORARY}="${{SLURM_TMPDIR:-${{TMPDIR:-/tmp}}}}/{name}"',
        f'[ ${{#{TEMPORARY}}} -le {SOCKET_PATH_LIMIT} ] || {TEMPORARY}="/tmp/{name}"',
        'export ELASTIC_JOB_STARTED="$(date +%s)"',
        f"trap '{report}' ERR",
        "set -e",
        *settings.setup,
        "set +e",
        "trap - ERR",
    ]


def _teardown() -> list[str]:
    """What a supervisor does itself, unless it was killed: leave no process and no file."""
    ours = f'$(grep -lsz "^{TEMPORARY}=${TEMPORARY}\\$" /proc/[0-9]*/environ | cut -d/ -f3)'
    return [
        "code=$?",
        f"kill -KILL {ours} 2>/dev/null",
        f'rm -rf "${TEMPORARY}" "/dev/shm/${{{TEMPORARY}##*/}}"',
        "exit $code",
    ]


@contextmanager
def _outside_of_a_job() -> Iterator[None]:
    """A job submitted from a job must not inherit that job's variables, but needs SLURM_CONF."""
    conf = os.environ.get("SLURM_CONF")
    ours = [name for name in os.environ if name.startswith("ELASTIC_")]
    with submitit.helpers.clean_env(ours):
        if conf is not None:
            os.environ["SLURM_CONF"] = conf
        yield
