"""What MLflow is to show of a run, computed from its folder; a score's model from its parent's.

Plain values, no MLflow in here: the same folders give the same values, on any machine, at any time.
`harness.tracking.mlflow_study` makes MLflow look like it.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from fewscan.experiments.results import Result, RunRecord
from fewscan.experiments.spec import (
    PROTOCOL,
    Finetune,
    Imported,
    Pretrain,
    Score,
    scheme_to_json,
    to_json,
)
from fewscan.harness.arms import SCRATCH
from fewscan.harness.ensembles import which_network
from fewscan.harness.plan import Plan, PlannedRun, slice_format
from fewscan.harness.tracking.points import (
    LABEL_COUNT,
    SECONDS,
    Point,
    final_numbers,
    flat,
    learning_curves,
    milliseconds,
    usage_curves,
)
from fewscan.storage.errors import RunError
from fewscan.storage.runs import Event, RunFolder, State

RUN_ID = "fewscan.run_id"
BEGUN = "fewscan.begun"
"""The time of the first event: tells a run that was begun anew, in an emptied folder, from the one
that went on."""
ERROR = "error"
TAG_LENGTH = 500
"""Characters; servers refuse tags of a few thousand."""
LISTED = 4
"""Items of a list that a tag names."""

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


@dataclass(frozen=True)
class MlflowRun:
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
    learning: tuple[Point, ...]
    """Losses by step, as far as a checkpoint covers them, oldest first."""
    usage: tuple[Point, ...]
    """What it took of its machine, oldest first; empty if that was not asked for."""
    results: tuple[Point, ...] = ()
    """The final numbers, at the label counts that they stand for."""
    files: tuple[Path, ...] = ()
    """What a finished run left for people to read."""
    model: Path | None = None
    """The weights that validation chose, once the run is finished."""
    model_facts: dict[str, Any] = field(default_factory=dict)
    """What must be known to use the model on a new scan: logged with it, as its metadata. Empty
    without a model."""

    @property
    def digest(self) -> str:
        """A hash of all but the status: equal digests, nothing to send."""
        content = {k: v for k, v in asdict(self).items() if k not in ("status", "ended_ms")}
        text = json.dumps(content, sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def view_of(plan: Plan, run: PlannedRun, state: State, status: str) -> MlflowRun:
    """What MLflow is to show of a run whose folder is in `state`.

    Raises `RunError` if a file of the folder is damaged.
    """
    folder = plan.folder_of(run)
    events = folder.committed_events()
    begun_ms = _begun_ms(folder, events)
    last_ms = milliseconds(events[-1].time) if events else begun_ms
    error = _error(folder) if state == "failed" else {}
    ended_ms = milliseconds(error["time"]) if error else last_ms
    tags = _identity(run, folder) | _attempts(events)
    tags[BEGUN] = str(milliseconds(events[0].time) if events else begun_ms)
    if error:
        first_line = error["message"].partition("\n")[0]
        tags[ERROR] = f"{error['kind']}: {first_line}"[:TAG_LENGTH]
    view = MlflowRun(
        run_id=run.run_id,
        name=_name(run),
        status=status,
        begun_ms=begun_ms,
        ended_ms=None if status in LIVE else ended_ms,
        params=_params(run),
        tags=tags,
        learning=tuple(learning_curves(events)),
        usage=tuple(usage_curves(folder.usage_samples())),
    )
    if state != "finished":
        return view
    result, trained = Result.read(folder), _trained(run, folder)
    more = {SECONDS: events[-1].seconds if events else None, LABEL_COUNT: _label_count(run)}
    return replace(
        view,
        results=tuple(final_numbers(result, more, _stands_for(plan, run), last_ms)),
        files=tuple(file for file in (folder.result, folder.cases) if file.exists()),
        model=trained.model if trained else None,
        model_facts=_model_facts(plan, run, trained, result) if trained else {},
    )


def _name(run: PlannedRun) -> str:
    """What tells the runs of an arm apart comes first: the UI's list has room for little more."""
    place = run.place
    if not place.is_cell:
        return run.name
    cell = f"{place.scans} · seed {place.seed} · {place.arm.key} · {place.target}"
    if isinstance(run.spec, Finetune):
        cell = f"{cell} · training{which_network(run.spec)}"
    return cell if place.fold is None else f"{cell} · {place.fold}"


def _begun_ms(folder: RunFolder, events: Sequence[Event]) -> int:
    """A run that does not say when it started, or failed before that, began with its spec."""
    starts = [event.time for event in events if event.kind == "started"]
    return milliseconds(starts[0] if starts else folder.spec.stat().st_mtime)


def _params(run: PlannedRun) -> dict[str, str]:
    """Place and spec, flat, with names for people in front; what is None is left out."""
    place, spec = run.place, to_json(run.spec)
    if spec.get("rate_from"):
        spec["training"]["lr"] = "chosen by trials: run/lr"
    for key in ("protocol", "data", "init", "parents", "rate_from"):  # tags
        spec.pop(key, None)
    named = {
        "stage": spec.pop("kind"),
        "arm": place.arm.key,
        "init": place.arm.init or SCRATCH,
        "target": place.target,
        "label_count": _label_count(run),
        "seed": place.seed,
        "outer_fold": None if place.fold is None else place.fold.number,
        "networks": place.arm.networks if place.arm.is_ensemble else None,
    }
    return {k: str(v) for k, v in flat({**named, **spec}) if v is not None}


def _identity(run: PlannedRun, folder: RunFolder) -> dict[str, str]:
    tags = {
        RUN_ID: run.run_id,
        "fewscan.run_folder": str(folder.path),
        "protocol": PROTOCOL,
        "data": to_json(run.spec).get("data"),
        "starts_from": ", ".join(run.parents) or None,
    }
    return {key: str(value) for key, value in tags.items() if value is not None}


def _attempts(events: Sequence[Event]) -> dict[str, str]:
    """Where the last attempt ran, and how many there were since the last fresh start."""
    attempts = [event.attempt for event in events if event.kind == "started"]
    if not attempts:
        return {}
    place = {k: v for k, v in attempts[-1].items() if k != "init"}
    return {"attempts": str(len(attempts))} | {k: _short(v) for k, v in flat(place)}


def _short(value: Any) -> str:
    """A list of all a network's tensors says no more than their number."""
    long_list = isinstance(value, list) and len(value) > LISTED
    return str(len(value)) if long_list else str(value)[:TAG_LENGTH]


def _error(folder: RunFolder) -> dict[str, Any]:
    try:
        return folder.read_error()
    except RunError:  # it has started again in the meantime; the next pass sees that
        return {}


def _label_count(run: PlannedRun) -> int | None:
    """0 for the unsupervised score, which uses none; None for a pre-training."""
    unsupervised = run.place.arm.kind == "unsupervised"
    return 0 if unsupervised else run.place.labels


def _stands_for(plan: Plan, run: PlannedRun) -> list[int]:
    """The label counts at which a chart shows the result: all of them if it uses no label."""
    if run.place.labels is not None:
        return [run.place.labels]
    counts = {score.place.labels for score in plan.grid if score.place.labels is not None}
    return sorted(counts) if run.kind == Score.kind and counts else [0]


def _trained(run: PlannedRun, folder: RunFolder) -> RunFolder | None:
    """The folder whose model is logged on the finished run; None: no model belongs there.

    A pre-training's is on its own run. A fine-tuning's is on that of its score: there stand its
    numbers and its threshold.
    """
    match run.spec:
        case Pretrain():
            return folder
        case Imported() if folder.model.exists():
            return folder
        case Score(parents=(parent,)) if run.place.labels is not None:
            return folder.sibling(parent)
    return None


def _model_facts(plan: Plan, run: PlannedRun, trained: RunFolder, result: Result) -> dict[str, Any]:
    store = run.store or plan.store
    scheme, slices = None, slice_format(store)
    match run.spec:
        case Pretrain():
            scheme = scheme_to_json(run.spec.scheme)
        case Imported(scheme=taught):
            scheme = None if taught is None else scheme_to_json(taught)
            slices = RunRecord.read(trained).slices
    facts = {
        "run_id": run.run_id,
        "stage": run.kind,
        "target": run.place.target,
        "scheme": scheme,
        "protocol": PROTOCOL,
        "data": to_json(run.spec).get("data"),
        "store_protocol": store.protocol,
        **slices.to_json(),
        "best_step": Result.read(trained).best_step if trained.result.exists() else None,
        "threshold": result.threshold,
        "mirror": True if isinstance(run.spec, Score) and run.spec.mirror else None,
        "postprocess": {"rules": result.postprocess["rules"]} if result.postprocess else None,
    }
    return {key: value for key, value in facts.items() if value is not None}
