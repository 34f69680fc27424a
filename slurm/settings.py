"""What a person may ask of Slurm, and which combinations make no sense.

Plain values without logic; everything that is refused here is refused before a job is submitted.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal

# fmt: off
OWN_KEYS = frozenset({
    "account", "array", "chdir", "constraint", "cpus-per-task", "error", "exclude",
    "gpus-per-node", "job-name", "mem", "no-requeue", "nodes", "ntasks", "ntasks-per-node",
    "open-mode", "output", "partition", "qos", "requeue", "signal", "time",
})
# fmt: on
"""sbatch keys that a field below, or the supervisor, owns; `sbatch` may not set them."""


@dataclass(frozen=True)
class Settings:
    """The jobs of one elastic cluster.

    Raises `ValueError` for what cannot work.
    """

    scheduler: str = "slurm"
    """Who runs the jobs: a name in `schedulers`."""
    partition: str | None = None
    """Partition of the workers (and of the head, unless `head_partition` says otherwise)."""
    account: str | None = None
    """Account that is charged."""
    qos: str | None = None
    """Quality of service."""
    constraint: str | None = None
    """Node features that are required, in Slurm's syntax."""
    exclude: str | None = None
    """Nodes to avoid, in Slurm's syntax."""
    time_limit_min: int = 240
    """Time limit of a worker in minutes. Reaching it is normal: the worker is requeued."""
    gpus: int = 0
    """GPUs a worker gets."""
    cpus: int = 1
    """CPUs a worker gets."""
    memory_gb: float | None = None
    """Memory a worker gets in GB; None leaves it to the partition's default."""
    min_workers: int = 0
    """So many workers are kept even when there is nothing for them to do."""
    max_workers: int = 1
    """Never more workers than this."""
    head: Literal["own", "worker"] = "own"
    """Whether the head has a small job of its own or lives in the first worker's job."""
    head_partition: str | None = None
    """Partition of a head with its own job; a long one without preemption, if there is one."""
    head_cpus: int = 1
    """CPUs of a head with its own job."""
    head_memory_gb: float | None = None
    """Memory of a head with its own job, in GB."""
    head_time_limit_min: int | None = None
    """Time limit of a head with its own job, in minutes; None takes that of the workers."""
    setup: tuple[str, ...] = ()
    """Shell lines before anything starts (`module load cuda`); one that fails ends the job."""
    sbatch: Mapping[str, str | int | bool] = field(default_factory=dict)
    """Other sbatch keys, passed through: `{"mail-type": "FAIL"}`. True is a flag without value."""
    job_name: str = "elastic"
    """Start of the jobs' name."""
    signal_delay_s: int = 120
    """How long before its time limit a job is warned, in seconds, to checkpoint and be requeued."""
    closing_s: int = 60
    """For so many seconds before its warning a worker takes nothing new, as it would not reach its
    first checkpoint. Long enough for a start-up and a checkpoint interval."""
    poll_s: float = 30.0
    """Seconds between two looks at the queue; each is one question for all jobs."""
    idle_s: float = 120.0
    """A worker that has had nothing to do for so many seconds, and is not wanted, is released."""
    early_deaths: int = 3
    """Give up when so many workers in a row end without having joined."""
    wait_for_head_min: float = 30.0
    """A worker without a head gives its node back after so many minutes."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "setup", tuple(self.setup))
        object.__setattr__(self, "sbatch", MappingProxyType(dict(self.sbatch)))
        self._check_counts()
        self._check_times()
        self._check_head()
        self._check_keys()

    def __reduce__(self) -> tuple[object, ...]:
        # A mapping proxy cannot be pickled.
        return type(self)._from, (self.as_json(),)

    def as_json(self) -> dict[str, object]:
        """Plain values, for a JSON file."""
        return {**vars(self), "setup": list(self.setup), "sbatch": dict(self.sbatch)}

    @classmethod
    def _from(cls, values: dict[str, object]) -> "Settings":
        return cls(**values)  # type: ignore[arg-type]

    @property
    def head_limit_min(self) -> int:
        """Time limit of the head's job in minutes."""
        own = self.head_time_limit_min if self.head == "own" else None
        return own or self.time_limit_min

    def _check_counts(self) -> None:
        for name, least in (("cpus", 1), ("gpus", 0), ("min_workers", 0), ("max_workers", 1)):
            _at_least(self, name, least)
        for name, least in (("head_cpus", 1), ("early_deaths", 1)):
            _at_least(self, name, least)
        for name in ("memory_gb", "head_memory_gb"):
            if getattr(self, name) is not None:
                _above(self, name, 0)
        if self.min_workers > self.max_workers:
            raise ValueError(
                f"min_workers {self.min_workers} is more than max_workers {self.max_workers}"
            )

    def _check_times(self) -> None:
        for name in ("time_limit_min", "signal_delay_s"):
            _at_least(self, name, 1)
        _at_least(self, "closing_s", 0)
        for name in ("poll_s", "idle_s", "wait_for_head_min"):
            _above(self, name, 0)
        shortest_min = min(self.time_limit_min, self.head_limit_min)
        if shortest_min * 60 < 2 * self.signal_delay_s:
            raise ValueError(
                f"a time limit of {shortest_min} min leaves no time to work: jobs are warned"
                f" signal_delay_s = {self.signal_delay_s} s before it; allow twice that"
            )
        if self.time_limit_min * 60 <= self.signal_delay_s + self.closing_s:
            raise ValueError(
                f"a time limit of {self.time_limit_min} min leaves no time to start anything:"
                f" closing_s = {self.closing_s} and signal_delay_s = {self.signal_delay_s} fill it"
            )

    def _check_head(self) -> None:
        given = [
            name
            for name in ("head_partition", "head_memory_gb", "head_time_limit_min")
            if getattr(self, name) is not None
        ]
        if self.head not in ("own", "worker"):
            raise ValueError(f'head is {self.head!r}; it can be "own" or "worker"')
        if self.head == "worker" and given:
            raise ValueError(f"{', '.join(given)}: the head has no job of its own (head: worker)")

    def _check_keys(self) -> None:
        for key in self.sbatch:
            plain = str(key).lstrip("-").replace("_", "-")
            if plain in OWN_KEYS:
                raise ValueError(
                    f"sbatch key {key!r} has a setting of its own or is not yours to set"
                )
        for name in ("job_name", "partition", "account", "qos", "constraint", "exclude"):
            value = getattr(self, name)
            if value is not None and (not value or any(c.isspace() for c in value)):
                raise ValueError(f"{name} {value!r} is empty or contains a space")
        if any("\n" in line for line in self.setup):
            raise ValueError("setup takes one shell line per entry")


def _at_least(settings: Settings, name: str, least: int) -> None:
    if getattr(settings, name) < least:
        raise ValueError(f"{name} is {getattr(settings, name)}; it must be at least {least}")


def _above(settings: Settings, name: str, bound: float) -> None:
    if getattr(settings, name) <= bound:
        raise ValueError(f"{name} is {getattr(settings, name)}; it must be more than {bound:g}")
