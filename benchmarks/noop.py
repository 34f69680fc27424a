"""A sweep of runs that compute nothing: what is left is what the harness costs.

    python -m benchmarks.noop STUDY.yaml

sweeps the study with a stage that leaves all the files of a run at once, and prints what that took
as a line of JSON.
"""

import csv
import io
import json
import os
import random
import resource
import sys
import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from rich.console import Console

from fewscan.experiments.checkpoint import save_model
from fewscan.experiments.devices import Devices
from fewscan.experiments.spec import Denoise, RunSpec, Segment, from_json
from fewscan.experiments.unet import UNet
from fewscan.harness.plan import Plan, PlannedRun, load_plan
from fewscan.storage.atomic import write_bytes, write_json
from fewscan.storage.runs import RunFolder
from fewscan.storage.slices import SliceStore

VALIDATIONS = 20
"""Lines of metrics in a run's events, as many as the paper's study writes."""


def noop_stage(folder: RunFolder, devices: Devices) -> None:
    """Leave events, model, cases and result of a run, made of random numbers, at once."""
    begun = time.time()
    with folder.owned():
        record = folder.read_spec()
        spec = from_json(record["spec"])
        numbers = random.Random(folder.run_id)
        store = SliceStore.open(Path(record["store"]))
        network = network_of(spec, store)
        save_model(folder.model, network, network.state_dict())
        scores: dict[str, Any] = {}
        if not isinstance(spec, Denoise):
            write_bytes(folder.cases, cases(spec, store, numbers))
            scores = scores_of(spec, store, numbers)
        write_bytes(folder.events, events(begun, numbers))
        write_json(folder.result, {**result(spec, numbers), **scores})


def network_of(spec: RunSpec, store: SliceStore) -> UNet:
    """The smallest network that the run could have left: the report draws with it."""
    channels, classes = len(store.channels), len(store.classes) if is_multiclass(spec) else 1
    outputs = 1 + classes if isinstance(spec, Segment) else channels
    return UNet(channels, outputs, width=2, depth=2)


def events(begun: float, numbers: random.Random) -> bytes:
    """An attempt that has just ended. It names its process, to tell places apart."""
    losses = [{n: numbers.random() for n in ("train/loss", "validation/loss")} for _ in range(20)]
    lines: list[dict[str, Any]] = [
        {"kind": "started", "time": begun, "step": 0, "process": os.getpid()},
        *(
            {"kind": "metrics", "time": begun, "step": step, "values": values}
            for step, values in enumerate(losses, start=1)
        ),
        {"kind": "finished", "time": time.time(), "step": VALIDATIONS, "seconds": 1.0},
    ]
    return b"".join(json.dumps(line).encode() + b"\n" for line in lines)


def result(spec: RunSpec, numbers: random.Random) -> dict[str, Any]:
    """What every result has."""
    return {"kind": spec.kind, "best_step": VALIDATIONS, "validation_loss": numbers.random()}


def scores_of(spec: RunSpec, store: SliceStore, numbers: random.Random) -> dict[str, Any]:
    """What the result of a run has that was scored on the test split."""
    names = ["pooled_ap", "pooled_best_dice", *(["class_dice_mean"] if is_multiclass(spec) else [])]
    labelled = list(store.split.train[: spec.label_count]) if isinstance(spec, Segment) else []
    test = {name: numbers.random() for name in names}
    return {"labelled": labelled, "validation": {"threshold": 0.5}, "test": test}


def cases(spec: RunSpec, store: SliceStore, numbers: random.Random) -> bytes:
    """A row for each test patient."""
    columns = ["ap", "dice_at_validation_threshold"]
    columns += [f"dice_{name}" for name in store.classes] if is_multiclass(spec) else []
    text = io.StringIO()
    writer = csv.DictWriter(text, ["subject", *columns], lineterminator="\n")
    writer.writeheader()
    for subject in store.split.test:
        writer.writerow({"subject": subject, **{name: numbers.random() for name in columns}})
    return text.getvalue().encode()


def is_multiclass(spec: RunSpec) -> bool:
    return isinstance(spec, Segment) and spec.target == "multiclass"


def leave_finished(plan: Plan, runs: Sequence[PlannedRun]) -> None:
    """Finished folders of these runs, in no time: what a look at a large study finds."""
    for run in runs:
        folder, numbers = plan.folder_of(run), random.Random(run.run_id)
        folder.path.mkdir(parents=True, exist_ok=True)
        folder.spec.write_text(json.dumps(plan.record(run)))
        folder.events.write_bytes(events(time.time(), numbers))
        folder.result.write_text(json.dumps(result(run.spec, numbers)))


def spans_by_process(plan: Plan) -> dict[int, list[tuple[float, float]]]:
    """For each process that ran runs: start and end of each of them, in seconds since 1970."""
    spans: dict[int, list[tuple[float, float]]] = {}
    for run in plan.runs:
        first, *_, last = plan.folder_of(run).committed_events()
        spans.setdefault(first["process"], []).append((first["time"], last["time"]))
    return {process: sorted(of_one) for process, of_one in spans.items()}


def main(study: Path) -> dict[str, Any]:
    """Sweep a study with `noop_stage`; seconds of each part, and the memory of this process."""
    from fewscan.harness.sweep import sweep

    begun = time.time()
    plan = load_plan(study)
    status = sweep(plan, Console(file=io.StringIO()), noop_stage)
    assert status.is_finished
    ended = time.time()
    places = spans_by_process(plan).values()
    starts, ends = zip(*(span for spans in places for span in spans), strict=True)
    report = plan.folder.report / "report.html"
    return {
        "runs": len(plan.runs),
        "places": len(places),
        "waits_s": [b[0] - a[1] for spans in places for a, b in pairwise(spans)],
        "before_first_run_s": min(starts) - begun,
        "running_s": max(ends) - min(starts),
        "until_report_s": report.stat().st_mtime - max(ends),
        "after_report_s": ended - report.stat().st_mtime,
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }


if __name__ == "__main__":
    from benchmarks import noop  # so that workers find the stage under this name

    print(json.dumps(noop.main(Path(sys.argv[1]))))
