"""What was run on what, what is not finished and why, and how the losses went.

All of it is from the events in the run folders; a lost event is a lost minute of the record, not of
the results.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from fewscan.experiments.spec import Imported, Segment
from fewscan.harness.plan import Plan, PlannedRun
from fewscan.harness.status import StudyStatus, read_status
from fewscan.storage.runs import State

Points = list[tuple[int, float]]
"""(step, loss)"""


@dataclass(frozen=True)
class RunRecord:
    """One planned run: where it stands, and where and how long it ran."""

    run: PlannedRun
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


@dataclass(frozen=True)
class Machine:
    """The runs that ran on the same kind of machine with the same versions."""

    hosts: tuple[str, ...]
    devices: tuple[str, ...]
    ranks: int
    versions: tuple[str, ...]
    runs: int
    seconds: float
    device_hours: float


def read_records(plan: Plan) -> list[RunRecord]:
    """A record of each run of the plan, in its order."""
    status = read_status(plan)
    blocked = {run.run_id for run in status.blocked()}
    return [_record(status, run, blocked) for run in plan.runs]


def machines(records: Sequence[RunRecord]) -> list[Machine]:
    """The runs that have begun, grouped; a run without a record of its device is left out."""
    groups: dict[tuple[object, ...], list[RunRecord]] = {}
    for it in records:
        if it.devices:
            groups.setdefault((it.hosts, it.devices, it.ranks, it.versions), []).append(it)
    return [_machine(groups[key]) for key in sorted(groups, key=str)]


def _machine(records: Sequence[RunRecord]) -> Machine:
    one = records[0]
    return Machine(
        one.hosts,
        one.devices,
        one.ranks,
        one.versions,
        runs=len(records),
        seconds=sum(it.seconds for it in records),
        device_hours=sum(it.device_hours for it in records),
    )


def _record(status: StudyStatus, run: PlannedRun, blocked: set[str]) -> RunRecord:
    folder = status.plan.folder_of(run)
    events = folder.committed_events()
    starts = [event for event in events if event["kind"] == "started"]
    versions = [f"{name} {v}" for s in starts for name, v in s.get("versions", {}).items()]
    metrics = [event for event in events if event["kind"] == "metrics"]
    return RunRecord(
        run=run,
        state=status.states[run.run_id],
        reason=_reason(status, run, blocked),
        attempts=len(starts),
        hosts=_different([s["host"] for s in starts if "host" in s]),
        devices=_different([s["device"] for s in starts if "device" in s]),
        ranks=max((s.get("ranks", 1) for s in starts), default=1),
        versions=_different(versions),
        seconds=_seconds(events),
        device_share=_share(status.plan, run, starts),
        gpu_watts=_mean_watts(folder.usage_samples()),
        train=_points(metrics, "train/loss"),
        validation=_points(metrics, "validation/loss"),
    )


def energy(records: Sequence[RunRecord]) -> str:
    """What the GPUs drew, in words, as far as it was sampled; nobody samples a CPU."""
    begun = [it for it in records if it.devices]
    known = [it.gpu_kwh for it in begun if it.gpu_kwh is not None]
    if not known:
        return "not known"
    part = "" if len(known) == len(begun) else f" in {len(known)} of {len(begun)} runs"
    return f"{sum(known):.3g} kWh{part}"


def _mean_watts(samples: Sequence[dict[str, float]]) -> float | None:
    watts = [sample["gpu_power_watts"] for sample in samples if "gpu_power_watts" in sample]
    return sum(watts) / len(watts) if watts else None


def _share(plan: Plan, run: PlannedRun, starts: Sequence[dict[str, Any]]) -> float:
    """As the study file says now; a core is not shared."""
    on_gpu = any(start.get("device", "cpu") != "cpu" for start in starts)
    return plan.share_of(run).gpu_share if on_gpu else 1.0


def _reason(status: StudyStatus, run: PlannedRun, blocked: set[str]) -> str:
    folder = status.plan.folder_of(run)
    state = status.states[run.run_id]
    if state == "finished":
        lacks_cases = not isinstance(run.spec, Imported) and "test" in folder.read_result()
        lacks_cases = lacks_cases and not folder.cases.exists()
        return "its cases.csv is gone: not among the per-patient numbers" if lacks_cases else ""
    if run.run_id in blocked:
        return f"waits for run {', '.join(run.parents)}, which did not succeed"
    if state == "failed":
        return str(folder.read_error()["message"])
    return {"missing": "not begun", "interrupted": "the sweep goes on with it"}.get(state, "")


def _seconds(events: Sequence[dict[str, Any]]) -> float:
    """Each attempt from its start to its last event; the last one as it measured itself."""
    total, since, last = 0.0, None, 0.0
    for event in events:
        if event["kind"] == "finished":
            return total + float(event["seconds"])
        if event["kind"] == "started":
            total += last - since if since is not None else 0.0
            since = event["time"]
        last = event["time"]
    return total + (last - since if since is not None else 0.0)


def _points(metrics: Sequence[dict[str, Any]], name: str) -> Points:
    return [(e["step"], e["values"][name]) for e in metrics if name in e["values"]]


def _different(names: Sequence[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(names))


def curves(records: Sequence[RunRecord]) -> dict[str, list[RunRecord]]:
    """The runs with losses, one entry a panel: a pre-training, or a target and a label count."""
    panels: dict[str, list[RunRecord]] = {}
    for it in records:
        spec = it.run.spec
        if it.validation:
            title = it.run.name
            if isinstance(spec, Segment):
                scans = "scan" if spec.label_count == 1 else "scans"
                title = f"{spec.target}, {spec.label_count} {scans}"
            panels.setdefault(title, []).append(it)
    return panels
