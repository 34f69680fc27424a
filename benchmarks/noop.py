"""A sweep of runs that compute nothing: what is left is what the harness costs.

    python -m benchmarks.noop STUDY.yaml

sweeps the study with a stage that leaves all the files of a run at once, and prints what that took
as a line of JSON.
"""

import io
import json
import os
import random
import resource
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from rich.console import Console

from fewscan.experiments.cases import Row, means, to_csv
from fewscan.experiments.catalogue import computed
from fewscan.experiments.checkpoint import save_model
from fewscan.experiments.devices import Devices
from fewscan.experiments.results import Result, RunRecord
from fewscan.experiments.spec import Finetune, RunSpec, Score, Target
from fewscan.experiments.unet import UNet
from fewscan.harness.loading import load_plan
from fewscan.harness.plan import Plan, PlannedRun
from fewscan.storage.atomic import write_bytes
from fewscan.storage.runs import RunFolder
from fewscan.storage.slices import SliceStore

VALIDATIONS = 20
"""Lines of metrics in a run's events, as many as the paper's study writes."""


def noop_stage(folder: RunFolder, devices: Devices) -> None:
    """Leave events and result of a run, and its model or its cases, made of random numbers."""
    begun = time.time()
    with folder.owned():
        record = RunRecord.read(folder)
        numbers = random.Random(folder.run_id)
        assert record.store is not None
        store = SliceStore.open(record.store)
        finished = result(record.spec, numbers)
        if isinstance(record.spec, Score):
            finished = scored(record.spec, folder, store, numbers)
        else:
            network = network_of(record.spec, store)
            save_model(folder.model, network, network.state_dict())
        if isinstance(record.spec, Finetune):
            labelled = store.split.train[: record.spec.label_count]
            finished = replace(finished, labelled=labelled)
        write_bytes(folder.events, events(begun, numbers))
        finished.write(folder)


def network_of(spec: RunSpec, store: SliceStore) -> UNet:
    """The smallest network that the run could have left: the report draws with it."""
    channels = outputs = len(store.channels)
    if isinstance(spec, Finetune):
        outputs = 1 + (len(store.classes) if spec.target == "multiclass" else 1)
    return UNet(channels, outputs, width=2, depth=2)


def events(begun: float, numbers: random.Random) -> bytes:
    """An attempt that has just ended. It names its process, to tell places apart."""
    losses = [{n: numbers.random() for n in ("train/loss", "validation/loss")} for _ in range(20)]
    lines: list[dict[str, Any]] = [
        {"kind": "started", "time": begun, "step": 0, "attempt": {"process": os.getpid()}},
        *(
            {"kind": "metrics", "time": begun, "step": step, "values": values}
            for step, values in enumerate(losses, start=1)
        ),
        {"kind": "finished", "time": time.time(), "step": VALIDATIONS, "seconds": 1.0},
    ]
    return b"".join(json.dumps(line).encode() + b"\n" for line in lines)


def result(spec: RunSpec, numbers: random.Random) -> Result:
    """What every result has."""
    return Result(spec.kind, best_step=VALIDATIONS, validation_loss=numbers.random())


def scored(spec: Score, folder: RunFolder, store: SliceStore, numbers: random.Random) -> Result:
    """Leaves a row for each test scan; every number of the catalogue."""
    parents = [folder.sibling(run_id) for run_id in spec.parents]
    taught = RunRecord.read(parents[0]).spec
    target: Target = taught.target if isinstance(taught, Finetune) else "binary"
    metrics = computed(spec.evaluation, target, store.keeps_scan_labels)
    columns = [
        m.column(name)
        for m in metrics
        if m.scope == "structure"
        for name in m.structures(target, store.meaning, store.regions)
    ]
    columns += [m.column() for m in metrics if m.scope in ("patient", "pooled")]
    rows: list[Row] = [
        {"subject": scan, "patient": scan} | {name: numbers.random() for name in columns}
        for scan in store.split.test
    ]
    write_bytes(folder.cases, to_csv(rows))
    test = {m.result_key(): numbers.random() for m in metrics if m.scope == "pooled"}
    return Result(
        spec.kind,
        labelled=Result.read(parents[0]).labelled,
        validation={"threshold": 0.5},
        test=test
        | means(
            rows,
            target,
            store.meaning,
            spec.evaluation,
            store.regions,
            store.keeps_scan_labels,
        ),
    )


def leave_finished(plan: Plan, runs: Sequence[PlannedRun]) -> None:
    """Finished folders of these runs, in no time: what a look at a large study finds."""
    for run in runs:
        folder, numbers = plan.folder_of(run), random.Random(run.run_id)
        plan.record(run).write(folder)
        folder.events.write_bytes(events(time.time(), numbers))
        result(run.spec, numbers).write(folder)


def spans_by_process(plan: Plan) -> dict[int, list[tuple[float, float]]]:
    """For each process that ran runs: start and end of each of them, in seconds since 1970."""
    spans: dict[int, list[tuple[float, float]]] = {}
    for run in plan.runs:
        first, *_, last = plan.folder_of(run).committed_events()
        spans.setdefault(first.attempt["process"], []).append((first.time, last.time))
    return {process: sorted(of_one) for process, of_one in spans.items()}


def main(study: Path) -> dict[str, Any]:
    """Sweep a study with `noop_stage`; seconds of each part, and the memory of this process."""
    from fewscan.harness.sweep import sweep

    begun = time.time()
    # Workers find the stage by its name, and import nothing from the working directory.
    os.environ["PYTHONPATH"] = str(Path(__file__).parents[1])
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
