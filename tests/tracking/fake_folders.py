"""Run folders as a sweep would leave them, and what MLflow shows of them."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
from mlflow import MlflowClient

from fewscan.experiments.checkpoint import save_model
from fewscan.experiments.spec import (
    Anomaly,
    Augmentation,
    Denoise,
    Evaluation,
    Network,
    Noise,
    Segment,
    Training,
    run_id,
)
from fewscan.experiments.unet import UNet
from fewscan.harness.plan import Plan, PlannedRun
from fewscan.harness.study import Finetuning, Study
from fewscan.storage.atomic import write_json
from fewscan.storage.runs import RunFolder
from fewscan.storage.splits import Split

DATA = "f00dcafe"
SIZE = 16
T0 = 1_700_000_000.0
TRAINING = Training(iterations=30, validate_every=10)
NETWORK = Network(width=2, depth=2)
ROOT = Path(__file__).parents[2]


def make_plan(folder: Path, name: str = "a study") -> Plan:
    store = SimpleNamespace(
        path=folder / "store",
        fingerprint=DATA,
        size=SIZE,
        protocol=1,
        subjects={"one": SimpleNamespace(affine=np.diag([-1, -1, 1, 1]))},
        split=Split(("a", "b"), ("c",), ("d",)),
        manifest=SimpleNamespace(parameters=SimpleNamespace(axis=2, normalisation="quantile")),
        channels=("flair", "t1", "t1ce", "t2"),
        classes=("core", "oedema"),
    )
    study = Study(name, folder / "store", folder, Finetuning((1,), TRAINING))
    dae = Denoise(DATA, NETWORK, Noise(), TRAINING)
    evaluation = Evaluation()
    runs = [PlannedRun(dae, "scratch", "pre-train dae", 4.0)]
    for seed in (0, 1):
        parts = (TRAINING, Augmentation(), evaluation, seed, run_id(dae))
        spec = Segment(DATA, NETWORK, "binary", 1, *parts)
        runs.append(PlannedRun(spec, "dae", f"binary · dae · 1 scan · seed {seed}", 2.0))
    unsupervised = Anomaly(DATA, evaluation, run_id(dae))
    runs.append(PlannedRun(unsupervised, "dae", "unsupervised · dae", 1.0))
    return Plan(study, cast(Any, store), tuple(runs))


def start(plan: Plan, index: int, at: float = T0) -> RunFolder:
    folder = plan.folder_of(plan.runs[index])
    folder.create(plan.record(plan.runs[index]))
    versions = {"torch": "2.13.0"}
    folder.append_event("started", time=at, step=0, host="n1", device="cpu", versions=versions)
    return folder


def learn(folder: RunFolder, steps: range, at: float = T0, commit: bool = True) -> None:
    for step in steps:
        values = {"train/loss": 1 / (step + 1), "validation/loss": None if step == 3 else 0.5}
        folder.append_event("metrics", time=at + step, step=step, values=values)
    if commit:
        folder.append_event("checkpoint", time=at + steps.stop, step=steps.stop)


def finish(
    folder: RunFolder, kind: str, at: float = T0 + 100, model: bool = True, loss: float = 0.5
) -> None:
    if model:
        network = UNet(4, 1, NETWORK.width, NETWORK.depth)
        save_model(folder.model, network, network.state_dict())
    folder.append_event("finished", time=at, step=20, seconds=12.5)
    test = {"ap": 0.25, "best_dice": None, "class_dice/core (1)": 0.5}
    write_json(
        folder.result,
        {
            "kind": kind,
            "best_step": 20,
            "validation_loss": loss,
            "validation": {"threshold": 0.1},
            "test": test,
        },
    )
    folder.progress.unlink(missing_ok=True)


def four_states(plan: Plan) -> None:
    """Finished, running, failed, interrupted."""
    for index in range(4):
        learn(start(plan, index), range(5))
    folders = [plan.folder_of(run) for run in plan.runs]
    finish(folders[0], "denoise")
    folders[1].beat(5, 30)
    folders[2].fail(RuntimeError("out of luck\nand of memory"))


def database(plan: Plan) -> str:
    return f"sqlite:///{plan.folder.mlflow_database}"


def shown(plan: Plan, uri: str | None = None) -> dict[str, dict[str, Any]]:
    """What MLflow shows of a study, if it knows it: by spec id, the parent under ""."""
    client = MlflowClient(uri or database(plan))
    experiment = client.get_experiment_by_name(plan.study.name)
    if experiment is None:
        return {}
    runs = client.search_runs([experiment.experiment_id])
    models = client.search_logged_models([experiment.experiment_id])
    names = {run.info.run_id: run.data.tags.get("fewscan.run_id", "") for run in runs}
    assert len(set(names.values())) == len(runs), "two runs of one spec"
    return {
        names[run.info.run_id]: {
            "name": run.info.run_name,
            "status": run.info.status,
            "start": run.info.start_time if "fewscan.run_id" in run.data.tags else None,
            "end": run.info.end_time if "fewscan.run_id" in run.data.tags else None,
            "params": run.data.params,
            "tags": run.data.tags | parent_name(run, names),
            "metrics": {
                key: sorted(
                    (p.step, p.timestamp, p.value)
                    for p in client.get_metric_history(run.info.run_id, key)
                )
                for key in run.data.metrics
            },
            "models": [
                (m.name, str(m.status), m.params, sorted((p.key, p.value) for p in m.metrics or []))
                for m in models
                if m.source_run_id == run.info.run_id
            ],
            "artifacts": sorted(file.path for file in client.list_artifacts(run.info.run_id)),
            "data": [data.dataset.digest for data in run.inputs.dataset_inputs],
            "outputs": len(run.outputs.model_outputs) if run.outputs else 0,
        }
        for run in runs
    }


def parent_name(run: Any, names: dict[str, str]) -> dict[str, str]:
    parent = run.data.tags.get("mlflow.parentRunId")
    return {} if parent is None else {"mlflow.parentRunId": names[parent]}


def mlflow_id(plan: Plan, index: int) -> str:
    client = MlflowClient(database(plan))
    experiment = client.get_experiment_by_name(plan.study.name)
    wanted = f"tags.`fewscan.run_id` = '{plan.runs[index].run_id}'"
    (run,) = client.search_runs([experiment.experiment_id], wanted)
    return str(run.info.run_id)


@contextmanager
def mlflow_server(uri: str, port: int) -> Iterator[subprocess.Popen[bytes]]:
    """The server of `fewscan ui` on a store, ready; ended, with all its processes, afterwards."""
    script = (
        f"from fewscan.harness.tracking.ui import serve; serve({uri!r}, {{}}, '127.0.0.1', {port})"
    )
    server = subprocess.Popen(
        [sys.executable, "-c", script],
        cwd=Path(uri.removeprefix("sqlite:///")).parent,  # where artifacts go by default
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
    )
    try:
        assert server.stdout is not None
        assert server.stdout.readline() == b"Ctrl-C ends it\n"
        yield server
    finally:
        server.send_signal(signal.SIGTERM)
        assert server.wait(30) == 0
