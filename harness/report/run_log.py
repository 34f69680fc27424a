"""What was run on what, what is not finished and why, and how the losses went.

All of it is from the events in the run folders; a lost event is a lost minute of the record, not of
the results.
"""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import groupby
from operator import attrgetter
from pathlib import Path

from fewscan.experiments.results import Result
from fewscan.harness.plan import PlannedRun
from fewscan.harness.report.results import read_patients
from fewscan.harness.report.studies import Studies
from fewscan.harness.status import StudyStatus, read_status
from fewscan.storage.errors import RunError
from fewscan.storage.runs import Event, RunFolder, State

Points = list[tuple[int, float]]
"""(step, loss)"""


@dataclass(frozen=True)
class RunLog:
    """One planned run: where it stands, and where and how long it ran."""

    run: PlannedRun
    folder: Path
    state: State
    reason: str
    """Why it is not finished; empty if it is."""
    attempts: int
    hosts: tuple[str, ...]
    devices: tuple[str, ...]
    ranks: int
    """Devices it ran on together."""
    versions: tuple[str, ...]
    """ "torch 2.13.0" and the like, of all attempts."""
    seconds: float
    """Of all attempts, up to their last event."""
    device_share: float = 1.0
    """Of a device, for runs that share one."""
    gpu_watts: float | None = None
    """What the first rank's GPU drew, for all that ran on it, in the mean; None: not sampled."""
    train: Points = field(default_factory=list)
    validation: Points = field(default_factory=list)

    @property
    def device_hours(self) -> float:
        return self.seconds * self.ranks * self.device_share / 3600

    @property
    def gpu_kwh(self) -> float | None:
        """The run's share of what its GPUs drew; None if that was not sampled."""
        return None if self.gpu_watts is None else self.gpu_watts * self.device_hours / 1000


def read_logs(studies: Studies) -> list[RunLog]:
    """One for each run of the studies, in their order."""
    logs = []
    for plan in studies.plans:
        status = read_status(plan)
        blocked = {run.run_id for run in status.blocked()}
        logs += [_log(status, run, blocked) for run in plan.runs]
    return logs


def by_machine(logs: Sequence[RunLog]) -> list[list[RunLog]]:
    """The runs that have begun: those on the same kind of machine with the same versions together.

    A run without a record of its device is left out.
    """
    machine = attrgetter("hosts", "devices", "ranks", "versions")
    begun = sorted((it for it in logs if it.devices), key=lambda it: str(machine(it)))
    return [list(runs) for _, runs in groupby(begun, machine)]


def _log(status: StudyStatus, run: PlannedRun, blocked: set[str]) -> RunLog:
    folder = status.plan.folder_of(run)
    events: list[Event] = []
    with suppress(RunError):  # damaged, which is the reason below
        events = folder.committed_events()
    starts = [event.attempt for event in events if event.kind == "started"]
    versions = [f"{name} {v}" for s in starts for name, v in s.get("versions", {}).items()]
    hosts, devices = ([s[key] for s in starts if key in s] for key in ("host", "device"))
    watts = [it["gpu_power_watts"] for it in folder.usage_samples() if "gpu_power_watts" in it]
    # As the study file says now; a core is not shared.
    share = status.plan.share_of(run).gpu_share if {*devices} - {"cpu"} else 1.0
    return RunLog(
        run=run,
        folder=folder.path,
        state=status.states[run.run_id],
        reason=_reason(status, run, blocked),
        attempts=len(starts),
        hosts=tuple(dict.fromkeys(hosts)),
        devices=tuple(dict.fromkeys(devices)),
        ranks=max((s.get("ranks", 1) for s in starts), default=1),
        versions=tuple(dict.fromkeys(versions)),
        seconds=_seconds(events),
        device_share=share,
        gpu_watts=sum(watts) / len(watts) if watts else None,
        train=_points(events, "train/loss"),
        validation=_points(events, "validation/loss"),
    )


def _reason(status: StudyStatus, run: PlannedRun, blocked: set[str]) -> str:
    folder = status.plan.folder_of(run)
    state = status.states[run.run_id]
    if damage := folder.damage() or (state == "finished" and _unreadable(folder)):
        return f"damaged: {damage}; the next sweep computes it again"
    if state == "finished":
        lacks_cases = bool(Result.read(folder).test) and not folder.cases.exists()
        return "its cases.csv is gone: not among the per-patient numbers" if lacks_cases else ""
    if run.run_id in blocked:
        return f"waits for run {', '.join(run.parents)}, which did not succeed"
    if state == "failed":
        return str(folder.read_error()["message"])
    return {"missing": "not begun", "interrupted": "the sweep goes on with it"}.get(state, "")


def _unreadable(folder: RunFolder) -> str | None:
    """What is wrong with the numbers of a finished run."""
    try:
        Result.read(folder)
        read_patients(folder.cases)
    except RunError as error:
        return f"{error.found}: {error.where}"
    return None


def _seconds(events: Sequence[Event]) -> float:
    """Each attempt from its start to its last event; the last one as it measured itself."""
    total, since, last = 0.0, None, 0.0
    for event in events:
        if event.kind == "finished":
            return total + (event.seconds or 0.0)
        if event.kind == "started":
            total += last - since if since is not None else 0.0
            since = event.time
        last = event.time
    return total + (last - since if since is not None else 0.0)


def _points(events: Sequence[Event], name: str) -> Points:
    values = [(event.step, event.values.get(name)) for event in events]
    return [(step, value) for step, value in values if value is not None]


def curves(logs: Sequence[RunLog]) -> dict[str, list[RunLog]]:
    """The runs with losses, one entry a panel: a pre-training, or a target and a label count."""
    panels: dict[str, list[RunLog]] = {}
    for it in logs:
        place = it.run.place
        if it.validation and place.arm.kind != "unsupervised":
            scans = f"{place.labels} scan{'' if place.labels == 1 else 's'}"
            title = f"{place.target}, {scans}" if place.is_cell else it.run.name
            panels.setdefault(title, []).append(it)
    return panels
