"""What waiting workers do for a lost head: let it start, or submit another.

A head that is requeued may be held back for minutes; one that was killed together with its
supervisor never comes back. The workers notice, one of them acts.
"""

import secrets
import time
from dataclasses import replace

from fewscan.slurm.folder import Folder, Launch, read_json
from fewscan.slurm.processes import module_command
from fewscan.slurm.scheduler import CANCELLED, Scheduler
from fewscan.slurm.schedulers import scheduler_for
from fewscan.storage.atomic import write_json
from fewscan.storage.errors import ClusterError
from fewscan.storage.locks import exclusive

STABLE_S = 300
"""A head that lived so long has not died of itself."""


class _Busy(ClusterError):
    """Another worker is looking after the head."""


def recover_head(folder: Folder) -> None:
    """See to it that the head comes back; at most one look at the queue per `poll_s` for all."""
    launch = folder.launch()
    if launch is None:
        return
    try:
        with exclusive(folder.recovery_lock_file, _Busy("another worker looks after the head")):
            if _due(folder, launch.settings.poll_s):
                _act(folder, launch)
    except _Busy:
        pass
    except ClusterError as error:  # the scheduler may be down for a moment; there is a next time
        print(error, flush=True)


def submit_head(folder: Folder, launch: Launch, early_deaths: int = 0) -> str:
    """Submit a head for `launch`; every earlier one is void from now on. Its job id."""
    scheduler = scheduler_for(folder, launch.settings)
    launch = replace(launch, id=secrets.token_hex(8))
    folder.write_launch(launch)
    command = module_command("supervisor", "head", str(folder.root), launch.id)
    job = scheduler.submit("head", command)
    record = {"job": job, "submitted_unix": time.time(), "early_deaths": early_deaths}
    write_json(folder.head_job_file, record)
    return job


def _due(folder: Folder, poll_s: float) -> bool:
    last = read_json(folder.recovery_file)
    if last is not None and 0 <= time.time() - last["looked_unix"] < poll_s:
        return False
    write_json(folder.recovery_file, {"looked_unix": time.time()})
    return True


def _act(folder: Folder, launch: Launch) -> None:
    head = folder.head_job()
    if head is None or folder.outcome() is not None:
        return
    scheduler = scheduler_for(folder, launch.settings)
    job = {job.id: job for job in scheduler.look(also_over=True)}.get(head)
    if job is None:
        _replace(folder, launch, scheduler, f"head job {head} is gone (UNKNOWN)")
    elif job.held:
        scheduler.start_now([head])
    elif job.state == CANCELLED:
        folder.write_outcome("cancelled", f"head job {head} was cancelled")
    elif job.over:
        _replace(folder, launch, scheduler, f"head job {head} is gone ({job.state})")


def _replace(folder: Folder, launch: Launch, scheduler: Scheduler, why: str) -> None:
    """Submit another head, but not for ever: one that dies young again and again is broken."""
    before = read_json(folder.head_job_file)
    lived_s = time.time() - before["submitted_unix"]
    deaths = before["early_deaths"] + 1 if lived_s < STABLE_S else 1
    if deaths >= launch.settings.early_deaths:
        log = scheduler.log_of(before["job"])
        folder.write_outcome("failed", f"{why}, the {deaths}th within minutes of its start", log)
        return
    print(f"{why}; submitting another", flush=True)
    submit_head(folder, launch, deaths)
