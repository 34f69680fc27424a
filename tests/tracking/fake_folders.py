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
from fewscan.experiments.results import Result, RunRecord
from fewscan.experiments.spec import (
    Evaluation,
    Finetune,
    Network,
    Pretrain,
    Score,
    Training,
    run_id,
)
from fewscan.experiments.unet import UNet
from fewscan.harness.arms import Arm, Place
from fewscan.harness.plan import Plan, PlannedRun
from fewscan.harness.study import Finetuning, Study
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
    dae = Pretrain(DATA, NETWORK, TRAINING)
    runs = [PlannedRun(dae, Place(Arm("pre-training"), None, None, 0), "pre-train dae", 4.0)]
    scores = []
    for seed in (0, 1):
        spec = Finetune(DATA, NETWORK, "binary", 1, TRAINING, seed, init=run_id(dae))
        place, name = Place(Arm("fine-tuning", "dae"), "binary", 1, seed), f"dae · seed {seed}"
        runs.append(PlannedRun(spec, place, f"fine-tune {name}", 2.0))
        score = Score(DATA, Evaluation(), (run_id(spec),))
        scores.append(PlannedRun(score, place, f"score {name}", 1.0))
    place = Place(Arm("unsupervised", "dae"), "binary", None, 0)
    unsupervised = Score(DATA, Evaluation(), (run_id(dae),))
    runs.append(PlannedRun(unsupervised, place, "unsupervised · dae", 1.0))
    return Plan(study, cast(Any, store), (*runs, *scores))


def start(plan: Plan, index: int, at: float = T0) -> RunFolder:
    folder = plan.folder_of(plan.runs[index])
    plan.record(plan.runs[index]).write(folder)
    attempt = {"host": "n1", "device": "cpu", "versions": {"torch": "2.13.0"}}
    folder.append_event("started", 0, at, attempt=attempt)
    return folder


def learn(folder: RunFolder, steps: range, at: float = T0, commit: bool = True) -> None:
    for step in steps:
        values = {"train/loss": 1 / (step + 1), "validation/loss": None if step == 3 else 0.5}
        folder.append_event("metrics", step, at + step, values=values)
    if commit:
        folder.append_event("checkpoint", steps.stop, at + steps.stop)


def finish(folder: RunFolder, at: float = T0 + 100, model: bool = True, loss: float = 0.5) -> None:
    """Leave what a training, or a score, leaves at its end."""
    spec = RunRecord.read(folder).spec
    folder.append_event("finished", 20, at, seconds=12.5)
    if isinstance(spec, Score):
        test = {"ap": 0.25, "best_dice": None, "class_dice/core (1)": 0.5}
        Result(spec.kind, validation={"threshold": 0.1}, test=test).write(folder)
    else:
        if model:
            network = UNet(4, 1, NETWORK.width, NETWORK.depth)
            save_model(folder.model, network, network.state_dict())
        Result(spec.kind, best_step=20, validation_loss=loss).write(folder)
    folder.progress.unlink(missing_ok=True)


def finish_cell(plan: Plan, seed: int, loss: float = 0.5) -> RunFolder:
    """A fine-tuning and its score, whose folder is returned."""
    finish(start(plan, 1 + seed), loss=loss)
    score = start(plan, 4 + seed)
    finish(score)
    return score


def first_four(plan: Plan) -> Plan:
    """The same study without the scores of its fine-tunings."""
    return Plan(plan.study, plan.store, plan.runs[:4])


def four_states(plan: Plan) -> None:
    """Finished, running, failed, interrupted."""
    for index in range(4):
        learn(start(plan, index), range(5))
    folders = [plan.folder_of(run) for run in plan.runs]
    finish(folders[0])
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
