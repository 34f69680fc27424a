"""How many workers there should be, and what to ask of the scheduler to get there.

One look at the queue per interval, whatever the number of workers. `next_actions` is the whole
policy and touches nothing; `Elastic` carries it out and keeps count of what goes wrong.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fewscan.slurm.folder import JOINED, Folder, Launch, WorkerReport, read_object, say, tail
from fewscan.slurm.processes import module_command
from fewscan.slurm.scheduler import PENDING, ClusterJob
from fewscan.slurm.schedulers import scheduler_for
from fewscan.slurm.settings import Settings
from fewscan.storage.atomic import write_json
from fewscan.storage.errors import ClusterError

YOUNG_S = 120
"""A worker that ends without a word within so many seconds may do so every time."""
PATIENCE_S = 600
"""While some workers work and others die at once (a bad node?), how long to ask for no more."""


@dataclass(frozen=True)
class QueueActions:
    """What to ask of the scheduler now."""

    submit: int = 0
    """New worker jobs."""
    release: tuple[str, ...] = ()
    """Jobs to end: pending ones, or idle ones."""
    start_now: tuple[str, ...] = ()
    """Requeued jobs that the scheduler holds back for no reason of ours."""


def wanted_workers(settings: Settings, demand: int | None) -> int:
    """Worker jobs that there should be; without a word from the driver, the most."""
    asked = settings.max_workers if demand is None else demand
    wanted = max(settings.min_workers, min(settings.max_workers, asked))
    return wanted - 1 if settings.head == "worker" and wanted > 0 else wanted


def next_actions(
    wanted: int, present: Sequence[ClusterJob], idle_s: Mapping[str, float], release_after_s: float
) -> QueueActions:
    """Grow at once; shrink by what waits in the queue first, then by what is idle; never by work.

    Parameters
    ----------
    wanted : workers that there should be
    present : worker jobs that the scheduler knows and we have not released
    idle_s : for each job that has joined, how long it has had nothing to do (0: it works)
    release_after_s : idle time after which a worker may go
    """
    surplus = len(present) - wanted
    pending = [job.id for job in reversed(present) if job.state == PENDING]
    idle = [job.id for job in present if idle_s.get(job.id, 0.0) >= release_after_s]
    release = tuple([*pending, *idle][: max(0, surplus)])
    start = tuple(job.id for job in present if job.held and job.id not in release)
    return QueueActions(max(0, -surplus), release, start)


def has_joined(report: WorkerReport | None) -> bool:
    """Whether a worker is in the cluster, by its own report."""
    return report is not None and report.phase in JOINED


def died_young(report: WorkerReport | None) -> bool:
    """Whether a worker job that is gone ended without a word, soon after its start or not begun."""
    if report is None:
        return True
    young = time.time() - report.since_unix < YOUNG_S
    return young and report.phase in ("waiting", "joined")


class Elastic:
    """The head's side of the queue. Raises `ClusterError` from `tick` when it gives up."""

    def __init__(self, folder: Folder, launch: Launch, activity_file: Path) -> None:
        self.folder = folder
        self.settings = launch.settings
        self.scheduler = scheduler_for(folder, launch.settings)
        self.activity_file = activity_file
        before = read_object(folder.elastic_file)
        self.known: set[str] = set(before.get("known", ()))
        self.released: set[str] = set(before.get("released", ()))
        self.joined: set[str] = set()
        self.early_deaths = 0
        self.patience_until = 0.0
        self.commands = 0
        self.since_unix = time.time()
        self.seen: list[ClusterJob] = []
        self.wanted: int | None = None
        self.demand: int | None = None
        self.error: dict[str, Any] | None = None

    def tick(self) -> None:
        """Look once, act once."""
        self.commands += 1
        try:
            self.seen = self.scheduler.look()
        except ClusterError as error:  # the controller may be away for a while
            self._note(str(error))
            return
        workers = [job for job in self.seen if job.role == "worker"]
        self._account_for({job.id for job in workers})
        present = [job for job in workers if job.id not in self.released]
        self._carry_out(present)
        self._save(len(present))

    def _account_for(self, ids: set[str]) -> None:
        """Find out what became of the jobs that have vanished."""
        for job in sorted(self.known - ids):
            report = self.folder.report(job)
            unreadable = report is None and self.folder.worker_file(job).exists()
            died = job not in self.released and not unreadable and died_young(report)
            self.early_deaths = self.early_deaths + 1 if died else 0
            if died:
                where = f" on {report.node}" if report else ""
                said = f"worker job {job} ended{where} before it could work"
                self._note(said, self.scheduler.log_of(job))
            self.folder.worker_file(job).unlink(missing_ok=True)
        self.known = ids
        self.released &= ids
        joined = {job for job in ids if has_joined(self.folder.report(job))}
        if joined - self.joined:
            self.early_deaths = 0
        self.joined = joined
        self._judge()

    def _judge(self) -> None:
        """After too many early deaths: the end, or, if some workers do work, more patience."""
        if self.early_deaths >= self.settings.early_deaths and self.joined:
            self.patience_until = time.monotonic() + PATIENCE_S
            self.early_deaths = 0
        elif self.early_deaths >= self.settings.early_deaths:
            log = (self.error or {}).get("log")
            words = f"; the last said:\n{tail(Path(log), 10)}" if log else ""
            raise ClusterError(
                f"{self.early_deaths} worker jobs in a row ended before they could work{words}",
                where=log,
                expected="workers that start Ray and join",
                remedy="read the log named above, fix `setup` or the other settings, launch again",
            )

    def _carry_out(self, present: Sequence[ClusterJob]) -> None:
        said = self.folder.demand()
        self.demand = self.demand if said is None else said  # it cannot always be read
        self.wanted = wanted_workers(self.settings, self.demand)
        todo = next_actions(self.wanted, present, self._idle_s(), self.settings.idle_s)
        patient = time.monotonic() < self.patience_until
        for _ in range(0 if patient else todo.submit):
            if not self._submit(alone=not present):
                break
        self.released |= set(todo.release)
        scheduler = self.scheduler
        for ask, ids in ((scheduler.cancel, todo.release), (scheduler.start_now, todo.start_now)):
            if ids:
                self.commands += 1
                try:
                    ask(ids)
                except ClusterError as error:
                    self._note(str(error))

    def _submit(self, alone: bool) -> bool:
        """Submit one worker. A refusal is final only if no worker is left that could go on."""
        self.commands += 1
        try:
            command = module_command("supervisor", "worker", str(self.folder.root))
            self.known.add(self.scheduler.submit("worker", command))
        except ClusterError as error:
            self._note(str(error))
            self.early_deaths += alone
            if self.early_deaths >= self.settings.early_deaths:
                raise
            return False
        return True

    def _idle_s(self) -> dict[str, float]:
        activity = read_object(self.activity_file)
        return {job: node["idle_s"] for job, node in activity.items() if node["status"] == "IDLE"}

    def _note(self, text: str, log: Path | None = None) -> None:
        self.error = {
            "text": text,
            "log": None if log is None else str(log),
            "unix": time.time(),
        }
        say(text)

    def _save(self, present: int) -> None:
        state = {
            "wanted": self.wanted,
            "present": present,
            "known": sorted(self.known),
            "released": sorted(self.released),
            "early_deaths": self.early_deaths,
            "slurm_commands": self.commands,
            "since_unix": self.since_unix,
            "seen_unix": time.time(),
            "jobs": [vars(job) for job in self.seen],
            "error": self.error,
        }
        write_json(self.folder.elastic_file, state)
