"""Slurm's commands, faked at the subprocess edge: state in a folder, jobs run for real.

`install(folder)` makes sbatch, squeue, scancel, scontrol and srun in `folder`/bin; with that in
PATH programs believe that they are on a cluster of `nodes` nodes, which is this machine. `serve`
stands for Slurm's daemons: it starts and kills jobs. Only what `slurm/` uses is there.
"""

import fcntl
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

COMMANDS = ("sbatch", "squeue", "scancel", "scontrol", "srun", "sacct")
PARTITIONS = ("main",)
FIELDS = {"%i": "id", "%j": "name", "%T": "state", "%r": "reason", "%N": "node"}
KILL_WAIT_S = 10
ENVIRONMENT = "FAKE_SLURM"


def install(folder: Path, nodes: int = 4) -> Path:
    """Make the commands; the folder to put in front of PATH. Needs `FAKE_SLURM=folder` set."""
    (folder / "bin").mkdir(parents=True)
    (folder / "jobs").mkdir()
    (folder / "nodes").write_text(str(nodes))
    for name in COMMANDS:
        path = folder / "bin" / name
        path.write_text(f'#!/bin/sh\nexec {sys.executable} {__file__} {name} "$@"\n')
        path.chmod(0o755)
    return folder / "bin"


def commands_given(folder: Path) -> list[str]:
    """Every command so far, as it was typed."""
    log = folder / "commands"
    return log.read_text().splitlines() if log.exists() else []


def jobs(folder: Path) -> dict[str, dict[str, Any]]:
    """All jobs ever, by id."""
    files = sorted((folder / "jobs").glob("*.json"), key=lambda file: int(file.stem))
    return {file.stem: json.loads(file.read_text()) for file in files}


@contextmanager
def serving(folder: Path) -> Iterator[None]:
    """Slurm's daemons run for the block; at its end every job is killed."""
    daemon = subprocess.Popen([sys.executable, __file__, "serve"])
    try:
        yield
    finally:
        daemon.kill()
        daemon.wait()
        _end_all(folder)


def _end_all(folder: Path) -> None:
    for job in jobs(folder).values():
        for pid in _pids(job["id"]):
            _kill(pid, signal.SIGKILL)


def sbatch(folder: Path, arguments: list[str]) -> int:
    script = Path(arguments[-1])
    options = dict(_options(script.read_text()))
    if options.get("partition", "main") not in PARTITIONS:
        sys.stderr.write("sbatch: error: invalid partition specified: nonsense\n")
        return 1
    number = str(len(jobs(folder)) + 1)
    environment = {k: v for k, v in os.environ.items() if not k.startswith("SLURM_")}
    _save(
        folder,
        {
            "id": number,
            "name": options["job-name"],
            "script": script.read_text(),
            "options": options,
            "environment": environment,
            "cwd": os.getcwd(),
            "state": "PENDING",
            "reason": "Resources",
            "node": "",
            "requeue": False,
        },
    )
    print(f"Submitted batch job {number}")
    return 0


def squeue(folder: Path, arguments: list[str]) -> int:
    options = dict(argument.lstrip("-").split("=", 1) for argument in arguments if "=" in argument)
    over = ("COMPLETED", "CANCELLED", "FAILED")
    for job in jobs(folder).values():
        if "name" in options and job["name"] not in options["name"].split(","):
            continue
        if "jobs" in options and job["id"] not in options["jobs"].split(","):
            continue
        if job["state"] in over and options.get("states") != "all":
            continue
        line = options.get("format", "%i")
        for letter, field in FIELDS.items():
            line = line.replace(letter, job[field])
        print(line)
    return 0


def scancel(folder: Path, arguments: list[str]) -> int:
    for number in arguments:
        job = jobs(folder)[number]
        if job["state"] == "PENDING":
            _save(folder, {**job, "state": "CANCELLED"})
        elif job["state"] == "RUNNING":
            _stop(folder, job, requeue=False)
    return 0


def scontrol(folder: Path, arguments: list[str]) -> int:
    if arguments[0] == "requeue":
        job = jobs(folder)[arguments[1]]
        if job["state"] != "RUNNING":
            sys.stderr.write("Job is pending execution\n")
            return 1
        if job.get("once"):
            sys.stderr.write(f"Requested operation is presently disabled for job {job['id']}\n")
            return 1
        _stop(folder, job, requeue=True)
        return 0
    if arguments[:2] == ["show", "config"]:
        print(f"Configuration data as of today\nKillWait                = {KILL_WAIT_S} sec")
        return 0
    if arguments[:2] == ["show", "partition"]:
        print(f"PartitionName={arguments[2]}\n   GraceTime=0 Hidden=NO")
        return 0
    assert arguments[0] == "update"
    change = {"once": True} if arguments[2] == "Requeue=0" else {"reason": "Resources"}
    for number in arguments[1].partition("=")[2].split(","):
        _save(folder, {**jobs(folder)[number], **change})
    return 0


def srun(_: Path, arguments: list[str]) -> int:
    """Runs the command as a child, its output in the file that sbatch has opened already."""
    words = list(arguments)
    while words and words[0].startswith("-"):
        word = words.pop(0)
        if "=" not in word and word != "--unbuffered":
            words.pop(0)
    return _exit_code(subprocess.run(words).returncode)


def sacct(_: Path, __: list[str]) -> int:
    sys.stderr.write("Slurm accounting storage is disabled\n")
    return 1


def preempt(number: str) -> None:
    """Slurm's warning: SIGTERM to every process of the step; the rest is up to the job."""
    for pid in _pids(number):
        if not _is_batch_script(pid):
            _kill(pid, signal.SIGTERM)


def set_time_limit(folder: Path, number: str, limit_min: int) -> None:
    """As an administrator would, with scontrol."""
    with _locked(folder):
        job = jobs(folder)[number]
        _save(folder, {**job, "options": {**job["options"], "time": str(limit_min)}})


def look_after_queue(folder: Path) -> None:
    """Start what may start; kill what had its time to end."""
    running = [job for job in jobs(folder).values() if job["state"] in ("RUNNING", "COMPLETING")]
    free = int((folder / "nodes").read_text()) - len(running)
    for job in jobs(folder).values():
        if job["state"] == "PENDING" and job["reason"] != "BeginTime" and free > 0:
            free -= 1
            began = {"state": "RUNNING", "reason": "None", "node": "fake1", "started": time.time()}
            _save(folder, {**job, **began, "warned": False})
            subprocess.Popen([sys.executable, __file__, "run", job["id"]])
        elif job["state"] == "COMPLETING" and time.time() > job["kill_unix"]:
            for pid in _pids(job["id"]):
                _kill(pid, signal.SIGKILL)
        elif job["state"] == "RUNNING":
            _mind_the_time(folder, job)


def _mind_the_time(folder: Path, job: dict[str, Any]) -> None:
    """Warn as `--signal` asks, and end what has reached its time limit."""
    number, _, delay_s = job["options"]["signal"].partition("@")
    left_s = job["started"] + 60 * int(job["options"]["time"]) - time.time()
    if left_s < 0:
        _stop(folder, job, requeue=False)
    elif left_s < int(delay_s) and not job["warned"]:
        _save(folder, {**job, "warned": True})
        for pid in _pids(job["id"]):
            if not _is_batch_script(pid):
                _kill(pid, signal.Signals[f"SIG{number}"])


def run_job(folder: Path, number: str) -> None:
    """Runs detached: the batch script, and what becomes of the job afterwards."""
    job = jobs(folder)[number]
    output = job["options"]["output"].replace("%j", number)
    script = folder / f"{number}.sh"
    script.write_text(job["script"])
    with open(output, "ab") as log:
        code = subprocess.run(
            ["bash", str(script)],
            cwd=job["cwd"] if Path(job["cwd"]).is_dir() else "/tmp",  # as Slurm does
            stdout=log,
            stderr=log,
            stdin=subprocess.DEVNULL,
            env={**job["environment"], **_slurm_variables(job)},
        ).returncode
    for pid in _pids(number):
        if pid != os.getpid():
            _kill(pid, signal.SIGKILL)
    with _locked(folder):
        job = jobs(folder)[number]
        if job["requeue"]:
            after = {"state": "PENDING", "reason": "BeginTime", "node": "", "requeue": False}
        elif job["state"] == "COMPLETING":
            after = {"state": "CANCELLED", "node": ""}
        else:
            after = {"state": "FAILED" if code else "COMPLETED", "node": ""}
        _save(folder, {**job, **after})


def _stop(folder: Path, job: dict[str, Any], requeue: bool) -> None:
    kill_unix = time.time() + KILL_WAIT_S
    _save(folder, {**job, "state": "COMPLETING", "requeue": requeue, "kill_unix": kill_unix})
    preempt(job["id"])


def _slurm_variables(job: dict[str, Any]) -> dict[str, str]:
    cpus = str(job["options"].get("cpus-per-task", 1))
    return {
        "SLURM_JOB_ID": job["id"],
        "SLURM_JOB_NAME": job["name"],
        "SLURM_JOB_NUM_NODES": "1",
        "SLURM_JOB_PARTITION": job["options"].get("partition", "main"),
        "SLURM_NTASKS": "1",
        "SLURM_PROCID": "0",
        "SLURM_JOB_NODELIST": "fake1",
        "SLURMD_NODENAME": "fake1",
        "SLURM_CPUS_PER_TASK": cpus,
        "SLURM_CPUS_ON_NODE": cpus,
        "SLURM_LAUNCH_NODE_IPADDR": "127.0.0.1",
        "SLURM_MEM_PER_NODE": "1000",
        "SLURM_JOB_END_TIME": f"{job['started'] + 60 * int(job['options']['time']):.0f}",
    }


def _options(script: str) -> Iterator[tuple[str, str]]:
    for line in script.splitlines():
        if line.startswith("#SBATCH --"):
            key, _, value = line.removeprefix("#SBATCH --").partition("=")
            yield key, shlex.split(value)[0] if value else ""


def _pids(number: str) -> list[int]:
    """Processes of a job: they carry its number in their environment."""
    mark = f"SLURM_JOB_ID={number}".encode()
    where = f"{ENVIRONMENT}={os.environ[ENVIRONMENT]}".encode()
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and entry.name != str(os.getpid()):
            with suppress(OSError):
                variables = (entry / "environ").read_bytes().split(b"\0")
                if mark in variables and where in variables:
                    found.append(int(entry.name))
    return found


def _is_batch_script(pid: int) -> bool:
    with suppress(OSError):
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
        return command.startswith(b"bash\0") or __file__.encode() in command
    return False


def _kill(pid: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, number)


def _save(folder: Path, job: dict[str, Any]) -> None:
    path = folder / "jobs" / f"{job['id']}.json"
    temporary = path.with_suffix(f".{os.getpid()}")
    temporary.write_text(json.dumps(job))
    temporary.rename(path)


def _exit_code(code: int) -> int:
    return code if code >= 0 else 128 - code


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    with (folder / "lock").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def main() -> int:
    folder = Path(os.environ[ENVIRONMENT])
    name, *arguments = sys.argv[1:]
    if name == "srun":
        return srun(folder, arguments)
    if name == "run":
        run_job(folder, arguments[0])
        return 0
    while name == "serve":
        with _locked(folder):
            look_after_queue(folder)
        time.sleep(0.05)
    commands = {each.__name__: each for each in (sbatch, squeue, scancel, scontrol, sacct)}
    with _locked(folder):
        with (folder / "commands").open("a") as log:
            log.write(shlex.join([name, *arguments]) + "\n")
        return commands[name](folder, arguments)


if __name__ == "__main__":
    sys.exit(main())
