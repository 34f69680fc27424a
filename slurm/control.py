"""What a person does to a cluster from any node: launch it, look at it, cancel it."""

import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fewscan.slurm.folder import (
    JOINED,
    ClusterOutcome,
    Folder,
    HeadRecord,
    Launch,
    read_object,
    tail,
)
from fewscan.slurm.head_recovery import newest_head, submit_head
from fewscan.slurm.scheduler import ENDING, PENDING, RUNNING, ClusterJob, Scheduler
from fewscan.slurm.schedulers import scheduler_for
from fewscan.slurm.settings import Settings
from fewscan.storage.errors import ClusterError
from fewscan.storage.locks import exclusive

AWAIT_S = 15.0
"""For a file that cannot be read: its owner writes it anew within this time."""
DISK_LEAST = 1 << 20
"""With less free space than this, small files cannot be written any more."""


@dataclass(frozen=True)
class WorkerStatus:
    """One worker job."""

    job: str
    """The scheduler's number of the job."""
    state: str
    """The scheduler's word."""
    reason: str
    """Why it is pending, in the scheduler's words."""
    node: str
    """Where it runs."""
    phase: str
    """waiting, joined, closing, leaving, requeued or ended; empty before its first start."""
    seconds_left: float | None
    """Until its time limit, for one that has joined."""


@dataclass(frozen=True)
class Failure:
    """Something that went wrong."""

    text: str
    """What, with the last lines of the log."""
    log: Path | None
    """Where to read more."""


@dataclass(frozen=True)
class Status:
    """A cluster as the shared disk and one look at the queue show it."""

    state: str
    """none, pending, starting, running, done, incomplete (over, but some of the work failed),
    failed (the driver, the set-up or the jobs), cancelled, lost, or unknown."""
    detail: str
    """One sentence to `state`."""
    head: ClusterJob | None
    """The head's job; None if the scheduler does not know it (any more)."""
    generation: int
    """How many heads there have been."""
    wanted: int | None
    """Workers that the head wants now."""
    commands_per_min: float | None
    """Questions and requests to the scheduler that the head has made a minute."""
    seen_unix: float | None
    """When the scheduler was asked for what is said of jobs; None if nobody ever did."""
    workers: tuple[WorkerStatus, ...]
    """All worker jobs that the scheduler knew then."""
    failures: tuple[Failure, ...]
    """The last of each kind."""


def launch(driver: Sequence[str], folder: Path, settings: Settings) -> str:
    """Submit the head and return its job id at once; the head runs `driver` and gets the workers.

    Launching what is running already changes nothing and gives the same id; launching what was
    cancelled or has failed goes on with it. Raises `ClusterError`, `DiskFullError`.
    """
    where = Folder(folder.resolve())
    where.prepare()
    busy = ClusterError("somebody else is launching this just now", where=where.root)
    with exclusive(where.lock_file, busy, wait_s=10):
        running = _running_head(where, settings)
        if running is not None:
            return running
        where.outcome_file.unlink(missing_ok=True)
        for stale in (where.demand_file, where.elastic_file, *where.workers.glob("[0-9]*.json")):
            stale.unlink(missing_ok=True)
        return submit_head(where, Launch("", tuple(driver), str(Path.cwd()), settings))


def cancel(folder: Path) -> list[str]:
    """End all jobs of the cluster and leave it resumable. The ids of those that were not over."""
    where = Folder(folder.resolve())
    launched = where.await_launch(AWAIT_S)
    if launched is None:
        raise ClusterError(
            _no_launch(where),
            where=where.launch_file,
            expected="what `sweep --on slurm` writes",
            remedy="look at your jobs, and end those of this study by hand, if there are any",
        )
    if where.outcome() is None:
        where.write_outcome(ClusterOutcome("cancelled", "cancelled by hand"))
    scheduler = scheduler_for(where, launched.settings)
    found = [job.id for job in scheduler.look() if job.state != ENDING]
    scheduler.cancel(found)
    return found


def status(folder: Path) -> Status:
    """What is known now, on any node. Without the scheduler's answer, what the head last heard."""
    where = Folder(folder.resolve())
    launched = where.await_launch(AWAIT_S)
    if launched is None:
        state = "unknown" if where.launch_file.exists() else "none"
        return Status(state, _no_launch(where), None, 0, None, None, None, (), ())
    scheduler = scheduler_for(where, launched.settings)
    elastic = read_object(where.elastic_file)
    failures = []
    seen_unix: float | None = time.time()
    try:
        found = scheduler.look()
    except ClusterError as error:
        found = [ClusterJob(**job) for job in elastic.get("jobs", ())]
        seen_unix = elastic.get("seen_unix")
        failures.append(Failure(str(error), None))
    head = newest_head([job for job in found if job.role == "head"], where.head_job())
    state, detail = _state(where, head, asked=not failures)
    failures += _failures(where, scheduler, state)
    rendezvous = where.rendezvous()
    return Status(
        state=state,
        detail=detail,
        head=head,
        generation=0 if rendezvous is None else rendezvous.generation,
        wanted=elastic.get("wanted"),
        commands_per_min=_commands_per_min(elastic),
        seen_unix=seen_unix,
        workers=tuple(_worker(where, job) for job in found if job.role == "worker"),
        failures=tuple(failures),
    )


def _no_launch(folder: Folder) -> str:
    if folder.launch_file.exists():
        return "its launch.json cannot be read, and no job of its own is there to write it anew"
    return "nothing was launched here"


def _running_head(folder: Folder, settings: Settings) -> str | None:
    launched = folder.launch()
    if folder.outcome() is not None or not folder.launch_file.exists():
        return None
    asked = settings if launched is None else launched.settings
    jobs = [job for job in scheduler_for(folder, asked).look() if job.role == "head"]
    head = newest_head(jobs, folder.head_job())
    return None if head is None or head.over else head.id


def _state(folder: Folder, head: ClusterJob | None, asked: bool) -> tuple[str, str]:
    outcome = folder.outcome()
    known, here = folder.head_job(), folder.rendezvous()
    if outcome is not None:
        return outcome.state, outcome.detail
    if head is None and not asked:
        since = "" if known is None else f" {(time.time() - known.submitted_unix) / 60:.0f} min ago"
        said = f"head job {_id(known)} was submitted{since}"
        return "unknown", f"{said}; Slurm does not answer here, and the head has not said more"
    if head is None and known is not None and (here is None or here.job != known.job):
        return "failed", f"head job {known.job} ended before it could start; its log may say why"
    if head is None:
        return "lost", f"head job {_id(known)} ended without a word; its log may say why"
    if head.state == PENDING:
        return "pending", f"head job {head.id} waits: {head.reason}"
    if here is not None and here.open and here.job == head.id:
        return "running", f"head job {head.id} on {head.node}, generation {here.generation}"
    return "starting", f"head job {head.id} is {head.state} on {head.node}"


def _id(head: HeadRecord | None) -> str:
    return "?" if head is None else head.job


def _commands_per_min(elastic: dict[str, Any]) -> float | None:
    if "seen_unix" not in elastic:
        return None
    minutes = (elastic["seen_unix"] - elastic["since_unix"]) / 60
    return float(elastic["slurm_commands"] / max(minutes, 1.0))


def _failures(folder: Folder, scheduler: Scheduler, state: str) -> list[Failure]:
    found = []
    outcome = folder.outcome()
    if outcome is not None and state in ("failed", "incomplete"):
        found.append(Failure(outcome.detail, Path(outcome.log) if outcome.log else None))
    elif state in ("lost", "failed"):
        log = scheduler.log_of(_id(folder.head_job()))
        full = shutil.disk_usage(folder.root).free < DISK_LEAST
        words = f"the disk is full: {folder.root}" if full else "its last words:"
        found.append(Failure(f"{words}\n{tail(log, 10)}", log))
    last: dict[str, Any] | None = read_object(folder.elastic_file).get("error")
    if last is not None:
        log_path = Path(last["log"]) if last["log"] else None
        words = tail(log_path, 10) if log_path else ""
        minutes = (time.time() - last["unix"]) / 60
        found.append(Failure(f"{minutes:.0f} min ago: {last['text']}\n{words}".strip(), log_path))
    return found


def _worker(folder: Folder, job: ClusterJob) -> WorkerStatus:
    report = folder.report(job.id)
    phase = "" if report is None else report.phase
    joined = report is not None and phase in JOINED and job.state == RUNNING
    left_s = report.ends_unix - time.time() if report is not None and joined else None
    return WorkerStatus(job.id, job.state, job.reason, job.node, phase, left_s)
