"""Run folders as a sweep would leave them, and what MLflow shows of them."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
from mlflow import MlflowClient

from fewscan.experiments.checkpoint import save_model
from fewscan.experiments.results import Result
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
from fewscan.harness.tracking.ui import SERVER_SETTINGS
from fewscan.storage.manifest import Parameters
from fewscan.storage.runs import RunFolder
from fewscan.storage.splits import Split

DATA = "f00dcafe"
SIZE = 16
T0 = 1_700_000_000.0
TRAINING = Training(iterations=30, validate_every=10)
NETWORK = Network(width=2, depth=2)
ROOT = Path(__file__).parents[2]


PARAMETERS = Parameters(1, SIZE, 4, ("flair", "t1", "t1ce", "t2"), ("core", "oedema"))


class FakeStore(SimpleNamespace):
    """As a store, it is itself alone."""

    __hash__ = object.__hash__


def make_plan(folder: Path, name: str = "a study") -> Plan:
    """A pre-training, two fine-tunings of it, its unsupervised score, the scores of the two."""
    store = FakeStore(
        path=folder / "store",
        fingerprint=DATA,
        size=SIZE,
        protocol=1,
        subjects={"one": SimpleNamespace(affine=np.diag([-1, -1, 1, 1]))},
        split=Split(("a", "b"), ("c",), ("d",)),
        manifest=SimpleNamespace(parameters=PARAMETERS),
        channels=("flair", "t1", "t1ce", "t2"),
        classes=("core", "oedema"),
    )
    study = Study(name, folder / "store", folder, Finetuning((1,), TRAINING))
    dae = Pretrain(DATA, NETWORK, TRAINING)
    evaluation = Evaluation()
    place = Place(Arm("pre-training"), None, None, 0)
    trained, scored = [PlannedRun(dae, place, "pre-train dae", 4.0)], []
    for seed in (0, 1):
        spec = Finetune(DATA, NETWORK, "binary", 1, TRAINING, seed, init=run_id(dae))
        score = Score(DATA, evaluation, (run_id(spec),))
        place = Place(Arm("fine-tuning", "dae"), "binary", 1, seed)
        cell = f"binary · dae · 1 scan · seed {seed}"
        trained.append(PlannedRun(spec, place, f"fine-tune {cell}", 2.0))
        scored.append(PlannedRun(score, place, f"score {cell}", 1.0))
    place = Place(Arm("unsupervised", "dae"), "binary", None, 0)
    score = Score(DATA, evaluation, (run_id(dae),))
    unsupervised = PlannedRun(score, place, "unsupervised · dae", 1.0)
    return Plan(study, cast(Any, store), (*trained, unsupervised, *scored))


def start(plan: Plan, index: int, at: float = T0) -> RunFolder:
    folder = plan.folder_of(plan.runs[index])
    plan.record(plan.runs[index]).write(folder)
    begin(folder, at)
    return folder


def begin(folder: RunFolder, at: float, step: int = 0, host: str = "n1") -> None:
    """An attempt, as a run says it."""
    attempt = {"host": host, "device": "cpu", "versions": {"torch": "2.13.0"}}
    folder.append_event("started", step, at_unix=at, attempt=attempt)


def learn(folder: RunFolder, steps: range, at: float = T0, commit: bool = True) -> None:
    for step in steps:
        values = {"train/loss": 1 / (step + 1), "validation/loss": None if step == 3 else 0.5}
        folder.append_event("metrics", step, at_unix=at + step, values=values)
    if commit:
        folder.append_event("checkpoint", steps.stop, at_unix=at + steps.stop)


def finish(
    plan: Plan, index: int, at: float = T0 + 100, model: bool = True, loss: float = 0.5
) -> None:
    """End a run that has begun with the result of its kind, and the model if it trains."""
    run, folder = plan.runs[index], plan.folder_of(plan.runs[index])
    trains = run.kind != Score.kind
    if model and trains:
        network = UNet(4, 2 if run.kind == Finetune.kind else 4, NETWORK.width, NETWORK.depth)
        save_model(folder.model, network, network.state_dict())
    folder.append_event("finished", 20 if trains else 0, at_unix=at, seconds=12.5)
    result = Result(run.kind, best_step=20, validation_loss=loss)
    if not trains:
        test = {"ap": 0.25, "best_dice": None, "class_dice/core (1)": 0.5}
        result = Result(run.kind, validation={"threshold": 0.1}, test=test)
    result.write(folder)
    folder.progress.unlink(missing_ok=True)


def finish_all(plan: Plan, *indices: int, **how: Any) -> None:
    """Begin and end these runs."""
    for index in indices:
        start(plan, index)
        finish(plan, index, **how)


def four_states(plan: Plan) -> None:
    """Of the first four runs: finished, running, failed, interrupted."""
    for index in range(4):
        learn(start(plan, index), range(5))
    folders = [plan.folder_of(run) for run in plan.runs]
    finish(plan, 0)
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


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


@contextmanager
def mlflow_server(uri: str, port: int) -> Iterator[subprocess.Popen[bytes]]:
    """A server of MLflow's own, as a laboratory has one; ended afterwards."""
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", uri]
    server = subprocess.Popen(
        [*command, "--port", str(port), "--workers", "1"],
        cwd=Path(uri.removeprefix("sqlite:///")).parent,  # where artifacts go by default
        env=os.environ | SERVER_SETTINGS,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        for _ in range(600):
            with suppress(OSError):
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1).close()
                break
            time.sleep(0.2)
        yield server
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait(30)


@contextmanager
def ui_server(uri: str, artifacts: Path) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """The server of `fewscan ui` on a store: the address of its pages; ended afterwards."""
    script = (
        "import sys; from pathlib import Path; from fewscan.harness.tracking.ui import serve; "
        "serve(sys.argv[1], Path(sys.argv[2]), {'page': '/'}, None)"
    )
    server = subprocess.Popen(
        [sys.executable, "-P", "-c", script, uri, str(artifacts)],
        stdout=subprocess.PIPE,
        text=True,
        # Whoever started the tests with nohup has had us ignore it.
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL),
    )
    try:
        assert server.stdout is not None
        assert server.stdout.readline() == "page\n"
        address = server.stdout.readline().strip().rstrip("/")
        assert server.stdout.readline().endswith("Ctrl-C ends it\n")
        yield address, server
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait(30)
