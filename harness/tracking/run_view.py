"""What MLflow is to show of a run, computed from its folder alone.

Plain values, no MLflow in here: the same folder gives the same view, on any machine, at any time.
`harness.tracking.view` makes MLflow look like it.

Every number keeps the time at which its event was written, so sending it again changes nothing: in
MLflow a point is its key, step, time and value together.
"""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from experiments.spec import Anomaly, Imported
from harness.plan import Plan, PlannedRun
from storage.errors import RunError
from storage.runs import RunFolder, State

RUN_ID = "fewscan.run_id"
BEGUN = "fewscan.begun"
"""The time of the first event: tells a run that was begun anew, in an emptied folder, from the one
that went on."""
ERROR = "error"
TAG_LENGTH = 500
"""Characters; servers refuse tags of a few thousand."""

Statuses = Mapping[State, str]
"""The MLflow status of each state of a run folder."""

WHILE_SWEEPING: Statuses = {
    "running": "RUNNING",
    "interrupted": "SCHEDULED",  # it goes on as soon as there is a place for it
    "failed": "FAILED",
    "finished": "FINISHED",
}
AFTER_THE_SWEEP: Statuses = {**WHILE_SWEEPING, "running": "KILLED", "interrupted": "KILLED"}
FROM_OUTSIDE: Statuses = {**WHILE_SWEEPING, "interrupted": "KILLED"}
"""For a process that only looks: a sweep may be running the study somewhere."""
LIVE = ("RUNNING", "SCHEDULED")


class Point(NamedTuple):
    """One value of one metric."""

    key: str
    value: float
    time_ms: int
    step: int


@dataclass(frozen=True)
class RunView:
    """One run as MLflow is to show it."""

    run_id: str
    name: str
    status: str
    """RUNNING, SCHEDULED, FINISHED, FAILED or KILLED."""
    begun_ms: int
    """When its first attempt started, in milliseconds since 1970."""
    ended_ms: int | None
    params: dict[str, str]
    """What decides the numbers: never changes in the life of a run."""
    tags: dict[str, str]
    """Names, places and versions."""
    series: tuple[Point, ...]
    """Metrics by step, as far as a checkpoint covers them, oldest first."""
    results: tuple[Point, ...]
    """The final numbers, at the step of the model that was kept."""
    model: Path | None
    """The weights that validation chose, once the run is finished."""
    model_facts: dict[str, Any]
    """What must be known to use the model on a new scan: logged with it, as its metadata."""

    @property
    def digest(self) -> str:
        """A hash of all but the status: equal digests, nothing to send."""
        content = {k: v for k, v in asdict(self).items() if k not in ("status", "ended_ms")}
        text = json.dumps(content, sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def view_of(plan: Plan, run: PlannedRun, state: State, status: str) -> RunView:
    """The view of a run whose folder is in `state`.

    Raises `RunError` if a file of the folder is damaged.
    """
    folder = plan.folder_of(run)
    events = _events(folder)
    begun_ms = _begun_ms(folder, events)
    result = folder.read_result() if state == "finished" else {}
    error = _error(folder) if state == "failed" else {}
    ended_ms = _ms(error["time"]) if error else _last_ms(events, begun_ms)
    return RunView(
        run_id=run.run_id,
        name=run.name,
        status=status,
        begun_ms=begun_ms,
        ended_ms=None if status in LIVE else ended_ms,
        params=_params(plan, run),
        tags={
            **_identity(plan, run, folder),
            **_attempts(events),
            **_first_line(error),
            BEGUN: str(_ms(events[0]["time"]) if events else begun_ms),
        },
        series=tuple(_series(events)),
        results=tuple(_results(result, events, _last_ms(events, begun_ms))),
        model=_model(run, folder) if state == "finished" else None,
        model_facts=_model_facts(plan, run, result),
    )


def _events(folder: RunFolder) -> list[dict[str, Any]]:
    try:
        return folder.committed_events()
    except (ValueError, KeyError) as error:
        raise RunError(
            f"a line is not an event ({error})",
            where=folder.events,
            expected="one JSON object a line, as fewscan writes them",
            remedy=f"disk or hand has changed it: delete the folder {folder.path} and sweep again",
        ) from error


def _ms(seconds: float) -> int:
    return round(seconds * 1000)


def _begun_ms(folder: RunFolder, events: list[dict[str, Any]]) -> int:
    """A run that does not say when it started, or failed before that, began with its spec."""
    starts = [event["time"] for event in events if event["kind"] == "started"]
    return _ms(starts[0] if starts else folder.spec.stat().st_mtime)


def _last_ms(events: list[dict[str, Any]], begun_ms: int) -> int:
    return _ms(events[-1]["time"]) if events else begun_ms


def _params(plan: Plan, run: PlannedRun) -> dict[str, str]:
    """The spec, flat, with names for people in front; what is None is left out."""
    spec = dict(plan.record(run)["spec"])
    for key in ("protocol", "data", "init"):  # tags
        spec.pop(key, None)
    named = {"stage": spec.pop("kind"), "arm": run.arm, "init": run.init}
    return {k: str(v) for k, v in _flat({**named, **spec}) if v is not None}


def _identity(plan: Plan, run: PlannedRun, folder: RunFolder) -> dict[str, str]:
    spec = plan.record(run)["spec"]
    tags = {
        RUN_ID: run.run_id,
        "fewscan.run_folder": str(folder.path),
        "protocol": spec["protocol"],
        "data": spec.get("data"),
        "starts_from": spec["init"],
    }
    return {key: str(value) for key, value in tags.items() if value is not None}


def _attempts(events: list[dict[str, Any]]) -> dict[str, str]:
    """Where the last attempt ran, and how many there were since the last fresh start."""
    attempts = [event for event in events if event["kind"] == "started"]
    if not attempts:
        return {}
    place = {k: v for k, v in attempts[-1].items() if k not in ("kind", "time", "step")}
    return {"attempts": str(len(attempts))} | {k: str(v)[:TAG_LENGTH] for k, v in _flat(place)}


def _error(folder: RunFolder) -> dict[str, Any]:
    try:
        return folder.read_error()
    except RunError:  # it has started again in the meantime; the next pass sees that
        return {}


def _first_line(error: dict[str, Any]) -> dict[str, str]:
    if not error:
        return {}
    line = str(error["message"]).partition("\n")[0]
    return {ERROR: f"{error['kind']}: {line}"[:TAG_LENGTH]}


def _series(events: list[dict[str, Any]]) -> Iterator[Point]:
    for event in events:
        if event["kind"] == "metrics":
            yield from _points(event["values"], _ms(event["time"]), event["step"])


def _results(
    result: dict[str, Any], events: list[dict[str, Any]], ended_ms: int
) -> Iterator[Point]:
    """The result, and how long the last attempt took: what no further attempt can change."""
    if result:
        seconds = events[-1].get("seconds") if events else None
        yield from _points({**result, "seconds": seconds}, ended_ms, result.get("best_step") or 0)


def _points(values: dict[str, Any], time_ms: int, step: int) -> Iterator[Point]:
    """The numbers among the values; a null is a number that is not defined."""
    for key, value in _flat(values):
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            yield Point(_metric_key(key), float(value), time_ms, step)


def _metric_key(key: str) -> str:
    """MLflow refuses other characters, which a data set's class names may have."""
    return re.sub(r"[^\w\-. :/]", "_", key)


def _model(run: PlannedRun, folder: RunFolder) -> Path | None:
    if isinstance(run.spec, Anomaly):
        return None
    return None if isinstance(run.spec, Imported) and not folder.model.exists() else folder.model


def _model_facts(plan: Plan, run: PlannedRun, result: dict[str, Any]) -> dict[str, Any]:
    spec = plan.record(run)["spec"]
    facts = {
        "run_id": run.run_id,
        "stage": spec["kind"],
        "target": spec.get("target"),
        "protocol": spec["protocol"],
        "data": spec.get("data"),
        "store_protocol": plan.store.protocol,
        **plan.slices,
        "threshold": result.get("validation", {}).get("threshold"),
    }
    return {key: value for key, value in facts.items() if value is not None}


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}/")
        else:
            yield f"{prefix}{key}", value
