"""What waiting workers do for a lost head: let it start, or submit another.

A head that is requeued may be held back for minutes; one that was killed together with its
supervisor never comes back. The workers notice, one of them acts.
"""

import secrets
import time
from dataclasses import replace

from fewscan.slurm.folder import ClusterOutcome, Folder, HeadRecord, Launch, read_object, say
from fewscan.slurm.processes import module_command
from fewscan.slurm.scheduler import CANCELLED, ClusterJob, Scheduler
from fewscan.slurm.schedulers import scheduler_for
from fewscan.storage.atomic import write_json
from fewscan.storage.errors import ClusterError, DiskFullError
from fewscan.storage.locks import exclusive

STABLE_S = 300
"""A head that lived so long since its submission has not died of itself."""
STARTED_S = 60
"""One that had started Ray need not have lived longer than this."""


class _Busy(ClusterError):
    """Another worker is looking after the head."""


def recover_head(folder: Folder, known: Launch) -> None:
    """See to it that the head comes back; at most one look at the queue per `poll_s` for all.

    `known` is the launch that the worker belongs to, should the folder's own not be readable.
    """
    launch = folder.launch() or known
    try:
        with exclusive(folder.recovery_lock_file, _Busy("another worker looks after the head")):
            if _due(folder, launch.settings.poll_s):
                _act(folder, launch)
    except _Busy:
        pass
    except (ClusterError, DiskFullError) as error:  # for a moment; there is a next time
        say(error)


def submit_head(folder: Folder, launch: Launch, early_deaths: int = 0) -> str:
    """Submit a head for `launch`; every earlier one is void from now on. Its job id."""
    scheduler = scheduler_for(folder, launch.settings)
    launch = replace(launch, id=secrets.token_hex(8))
    folder.write_launch(launch)
    command = module_command("supervisor", "head", str(folder.root), launch.id)
    job = scheduler.submit("head", command)
    folder.write_head_job(HeadRecord(job, time.time(), early_deaths))
    return job


def _due(folder: Folder, poll_s: float) -> bool:
    looked_unix = read_object(folder.recovery_file).get("looked_unix", 0.0)
    if 0 <= time.time() - looked_unix < poll_s:
        return False
    write_json(folder.recovery_file, {"looked_unix": time.time()})
    return True


def _act(folder: Folder, launch: Launch) -> None:
    if folder.outcome() is not None:
        return
    scheduler, known = scheduler_for(folder, launch.settings), folder.head_job()
    heads = [job for job in scheduler.look(also_over=True) if job.role == "head"]
    head = newest_head(heads, known)
    if head is None:
        _replace(folder, launch, scheduler, known, "the head's job is gone (UNKNOWN)")
    elif head.held:
        scheduler.start_now([head.id])
    elif head.state == CANCELLED:
        folder.write_outcome(ClusterOutcome("cancelled", f"head job {head.id} was cancelled"))
    elif head.over:
        _replace(folder, launch, scheduler, known, f"head job {head.id} is gone ({head.state})")


def newest_head(heads: list[ClusterJob], known: HeadRecord | None) -> ClusterJob | None:
    """The head's job; if nobody knows which that is, the last one that the scheduler knows."""
    if known is None:
        return heads[-1] if heads else None
    return next((job for job in heads if job.id == known.job), None)


def _replace(
    folder: Folder, launch: Launch, scheduler: Scheduler, before: HeadRecord | None, why: str
) -> None:
    """Submit another head, but not for ever: one that dies young again and again is broken."""
    deaths = before.early_deaths + 1 if before is not None and _died_young(folder, before) else 1
    if before is not None and deaths >= launch.settings.early_deaths:
        said = f"{why}, the {deaths}th within minutes of its start"
        folder.write_outcome(ClusterOutcome("failed", said, str(scheduler.log_of(before.job))))
        return
    say(f"{why}; submitting another")
    submit_head(folder, launch, deaths)


def _died_young(folder: Folder, head: HeadRecord) -> bool:
    """Whether it ended so soon that the next one may end in the same way."""
    last = folder.rendezvous()
    had_started = last is not None and last.job == head.job
    return time.time() - head.submitted_unix < (STARTED_S if had_started else STABLE_S)
