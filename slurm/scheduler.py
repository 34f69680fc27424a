"""What an elastic cluster asks of a scheduler. `schedulers` lists those that can answer.

One file per scheduler. `tests/scheduler_contract.py` is the contract below as tests.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from fewscan.slurm.allocation import Allocation

Role = Literal["head", "worker"]
PENDING, RUNNING, ENDING, CANCELLED = "PENDING", "RUNNING", "COMPLETING", "CANCELLED"
"""Words for a job's state that are understood. Others are shown to people, and no more."""


@dataclass(frozen=True)
class ClusterJob:
    """One job of the cluster, as the scheduler sees it."""

    id: str
    """The scheduler's number of the job."""
    role: str
    """head or worker."""
    state: str
    """One of the words above, or any other."""
    reason: str
    """Why it is pending, in the scheduler's words."""
    node: str
    """Where it runs; empty while it is pending."""
    held: bool = False
    """It waits for no other reason than that it was requeued: `start_now` helps."""
    over: bool = False
    """It neither waits nor runs, nor will again."""


@dataclass(frozen=True)
class Check:
    """One thing that was looked at."""

    name: str
    """What."""
    ok: bool
    """Whether an elastic cluster can work with it."""
    found: str
    """What is the case."""
    remedy: str = ""
    """What to do about it; empty if nothing has to be done."""


class Scheduler(Protocol):
    """The jobs of one cluster: made for its folder and its settings, blind to all other jobs.

    Every method raises `ClusterError` if the scheduler cannot be reached or refuses; the error
    names the command and what it said. Any process of the same user, on any node, may ask, also
    from within a job. A job

    - runs its command on one node with what the settings ask for its role, with the environment
      of whoever submitted it, but nothing of the job that this one may have been submitted from
      (`job_script.outside_of_jobs`), between the lines of `job_script`, which give it a private
      folder and clear up;
    - adds what it prints to `log_of(job)`, which lies in the folder's `logs`;
    - gets SIGTERM, with all its processes, when its node is taken back, and SIGKILL not before the
      allocation's `grace_s` (`kill_wait_s` if it is cancelled); and SIGUSR2 `signal_delay_s` before
      its time limit;
    - is run again, with the same id and command, if its node is taken back or dies.
    """

    def submit(self, role: Role, command: Sequence[str]) -> str:
        """Queue a job that runs `command`; its id. Raises `DiskFullError` as well."""
        ...

    def look(self, *, also_over: bool = False) -> list[ClusterJob]:
        """All jobs that are not over, asked once; `also_over`: and those still remembered."""
        ...

    def cancel(self, jobs: Iterable[str]) -> None:
        """End these jobs for good; nothing happens to those that are over."""
        ...

    def requeue(self, job: str) -> None:
        """Run the job again from its beginning, unless it is ending or waits already.

        The job itself asks, as the last thing it does. It tries more than once: a job that ends
        without this is over.
        """
        ...

    def start_now(self, jobs: Sequence[str]) -> None:
        """Hold these back no longer."""
        ...

    def run_no_more(self, jobs: Iterable[str]) -> None:
        """Do not run these again, even if their nodes die; what runs goes on."""
        ...

    def log_of(self, job: str) -> Path:
        """Where the job's output is, or will be."""
        ...

    def allocation(self, role: Role) -> Allocation:
        """What this process was given, which runs in a job of that role."""
        ...

    def checks(self) -> list[Check]:
        """What of the scheduler works on this machine; never raises."""
        ...
