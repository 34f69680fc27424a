"""MLflow as a view of fake run folders: complete, rebuildable, and never doubled by a kill."""

import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from mlflow import MlflowClient

from experiments.checkpoint import load_model, save_model
from experiments.spec import (
    PROTOCOL,
    Anomaly,
    Augmentation,
    Denoise,
    Evaluation,
    Imported,
    Network,
    Noise,
    Segment,
    Training,
    run_id,
    to_json,
)
from experiments.unet import UNet
from harness.plan import Plan, PlannedRun
from harness.study import Finetuning, Study
from harness.tracking import models, ui
from harness.tracking import tracker as tracking
from harness.tracking.tracker import Tracker, serve_ui, sync
from storage.atomic import write_json
from storage.errors import TrackingError
from storage.runs import RunFolder

DATA = "f00dcafe"
SIZE = 16
T0 = 1_700_000_000.0
TRAINING = Training(iterations=30, validate_every=10)
NETWORK = Network(width=2, depth=2)
ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    for name in tracking.DEFAULTS:
        monkeypatch.setenv(name, tracking.DEFAULTS[name])


@pytest.fixture(scope="module")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A migrated database, to copy: making one takes seconds. An earlier try was killed."""
    path = tmp_path_factory.mktemp("empty") / "mlflow.db"
    path.with_name(".mlflow.db.1.partial").write_bytes(b"half a database")
    tracking._create_database(path)
    return path


@pytest.fixture
def plan(tmp_path: Path, empty_database: Path) -> Plan:
    """A pre-training, two fine-tunings of it, its unsupervised score; nothing has started."""
    folder = tmp_path / "my study ü"
    folder.mkdir()
    shutil.copy(empty_database, folder / "mlflow.db")
    return make_plan(folder)


def make_plan(folder: Path, name: str = "a study") -> Plan:
    store = SimpleNamespace(
        path=folder / "store",
        fingerprint=DATA,
        size=SIZE,
        protocol=1,
        channels=("flair", "t1", "t1ce", "t2"),
        classes=("core", "oedema"),
        manifest=SimpleNamespace(parameters=SimpleNamespace(axis=2, normalisation="quantile")),
        subjects={"one": SimpleNamespace(affine=np.diag([-1, -1, 1, 1]))},
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


def finish(folder: RunFolder, kind: str, at: float = T0 + 100, model: bool = True) -> None:
    if model:
        network = UNet(4, 1, NETWORK.width, NETWORK.depth)
        save_model(folder.model, network, network.state_dict())
    folder.append_event("finished", time=at, step=20, seconds=12.5)
    test = {"ap": 0.25, "best_dice": None, "class_dice/core (1)": 0.5}
    write_json(
        folder.result,
        {"kind": kind, "best_step": 20, "validation": {"threshold": 0.1}, "test": test},
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
    """All that MLflow shows of a study: by spec id, the parent under ""."""
    client = MlflowClient(uri or database(plan))
    experiment = client.get_experiment_by_name(plan.study.name)
    assert experiment is not None
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


class Calls:
    """Stands in for MlflowClient: counts the calls, and dies after the n-th."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, die_after: int | None = None) -> None:
        self.made: list[str] = []
        self.die_after = die_after
        monkeypatch.setattr(tracking, "MlflowClient", self._client)

    def _client(self, uri: str) -> Any:
        return _Counted(uri, self)


class _Counted:
    def __init__(self, uri: str, calls: Calls) -> None:
        self._real = MlflowClient(uri)
        self._calls = calls

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            answer = getattr(self._real, name)(*args, **kwargs)
            self._calls.made.append(name)
            if len(self._calls.made) == self._calls.die_after:
                raise Killed
            return answer

        return call


class Killed(BaseException):
    pass


def test_each_started_run_is_shown_under_the_study(plan: Plan) -> None:
    four_states(plan)
    Tracker(plan).update()
    seen = shown(plan)
    parent, children = seen[""], [seen[run.run_id] for run in plan.runs]
    assert (parent["name"], parent["status"]) == ("a study", "RUNNING")
    assert parent["tags"]["data"] == DATA
    assert [c["status"] for c in children] == ["FINISHED", "RUNNING", "FAILED", "SCHEDULED"]
    assert [c["name"] for c in children] == [run.name for run in plan.runs]
    assert all(c["tags"]["mlflow.parentRunId"] == "" for c in children)
    assert children[2]["tags"]["error"] == "RuntimeError: out of luck"
    finished = children[0]
    assert (finished["start"], finished["end"]) == (T0 * 1000, (T0 + 100) * 1000)
    assert finished["params"].items() >= {
        ("stage", "denoise"),
        ("arm", "pre-training"),
        ("init", "scratch"),
        ("seed", "0"),
        ("network/width", "2"),
        ("noise/std", "0.2"),
        ("training/lr", "0.0001"),
    }
    tags = {"host": "n1", "device": "cpu", "versions/torch": "2.13.0", "attempts": "1"}
    assert finished["tags"].items() >= tags.items()
    assert (
        children[1]["params"].items()
        >= {
            "stage": "segment",
            "arm": "dae",
            "init": "dae",
            "target": "binary",
            "label_count": "1",
            "seed": "0",
        }.items()
    )


def test_metrics_keep_their_steps_and_times_and_results_stand_at_the_best_step(plan: Plan) -> None:
    learn(start(plan, 0), range(5))
    finish(plan.folder_of(plan.runs[0]), "denoise")
    Tracker(plan).update()
    metrics = shown(plan)[plan.runs[0].run_id]["metrics"]
    assert metrics["seconds"] == [(20, (T0 + 100) * 1000, 12.5)]
    expected = [(step, (T0 + step) * 1000, 1 / (step + 1)) for step in range(5)]
    assert metrics["train/loss"] == expected
    assert [point[0] for point in metrics["validation/loss"]] == [0, 1, 2, 4]  # null: not defined
    assert metrics["test/ap"] == [(20, (T0 + 100) * 1000, 0.25)]
    assert metrics["test/class_dice/core _1_"] == [(20, (T0 + 100) * 1000, 0.5)]
    assert "test/best_dice" not in metrics


def test_a_run_without_a_started_event_begins_with_its_spec(plan: Plan) -> None:
    folder = plan.folder_of(plan.runs[3])
    folder.create(plan.record(plan.runs[3]))
    os.utime(folder.spec, (T0, T0))
    finish(folder, "anomaly", model=False)
    Tracker(plan).update()
    run = shown(plan)[folder.run_id]
    assert (run["start"], run["end"]) == (T0 * 1000, (T0 + 100) * 1000)


def test_a_run_that_has_not_started_is_not_shown(plan: Plan) -> None:
    folder = plan.folder_of(plan.runs[0])
    folder.create(plan.record(plan.runs[0]))
    Tracker(plan).update()
    assert list(shown(plan)) == [""]


def test_only_what_a_checkpoint_covers_is_sent(plan: Plan) -> None:
    folder = start(plan, 1)
    learn(folder, range(3))
    size = folder.events.stat().st_size
    learn(folder, range(3, 6), commit=False)
    tracker = Tracker(plan)
    tracker.update()
    assert len(shown(plan)[folder.run_id]["metrics"]["train/loss"]) == 3
    folder.truncate_events(size)  # killed, and started again
    folder.append_event("started", time=T0 + 50, step=3, host="n2", device="cpu")
    learn(folder, range(3, 6), at=T0 + 50)
    tracker.update()
    points = shown(plan)[folder.run_id]["metrics"]["train/loss"]
    assert [step for step, _, _ in points] == [0, 1, 2, 3, 4, 5]
    assert shown(plan)[folder.run_id]["tags"]["attempts"] == "2"


def test_an_update_asks_mlflow_nothing_about_unchanged_runs(
    plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    four_states(plan)
    calls = Calls(monkeypatch)
    tracker = Tracker(plan)
    tracker.update()
    calls.made.clear()
    tracker.update()
    assert calls.made == []
    learn(plan.folder_of(plan.runs[1]), range(5, 7))
    tracker.update()
    assert calls.made == ["log_batch", "set_tag"]


def test_more_points_than_a_request_may_hold(plan: Plan) -> None:
    folder = start(plan, 3)
    values = {f"m{i}": float(i) for i in range(120)}
    for step in range(20):
        folder.append_event("metrics", step=step, values=values)
    folder.append_event("checkpoint", step=20)
    Tracker(plan).update()
    metrics = shown(plan)[folder.run_id]["metrics"]
    assert sum(len(points) for points in metrics.values()) == 2400


def test_killed_after_any_call_the_next_process_completes_the_view(
    plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    learn(start(plan, 0), range(3))
    finish(plan.folder_of(plan.runs[0]), "denoise")
    learn(start(plan, 1), range(3))
    monkeypatch.setattr(models, "CODE", None)  # many small files, the same for each model
    Tracker(plan).close(finished=False)
    expected = shown(plan)
    assert expected[plan.runs[0].run_id]["outputs"] == 1
    for call in range(1, 100):
        again = make_plan(plan.folder.path, f"killed after {call}")
        calls = Calls(monkeypatch, die_after=call)
        try:
            Tracker(again).update()
            Tracker(again).close(finished=False)
            break
        except Killed:
            calls.die_after = None
            Tracker(again).close(finished=False)
        seen = shown(again)
        parent = seen[""]
        assert parent["name"] == parent["tags"]["mlflow.runName"] == again.study.name
        parent["name"] = parent["tags"]["mlflow.runName"] = plan.study.name
        assert seen == expected, f"killed after {calls.made[:call]}"
    assert call > 20


def test_rebuilt_elsewhere_the_view_is_the_same(
    plan: Plan, empty_database: Path, tmp_path: Path
) -> None:
    four_states(plan)
    Tracker(plan).update()
    learn(plan.folder_of(plan.runs[1]), range(5, 9))
    tracker = Tracker(plan)
    tracker.update()
    tracker.close(finished=False)
    shutil.copy(empty_database, tmp_path / "second.db")
    second = f"sqlite:///{tmp_path / 'second.db'}"
    Tracker(plan, second).close(finished=False)
    assert shown(plan, second) == shown(plan)


def test_the_study_is_found_again_from_another_path(plan: Plan, tmp_path: Path) -> None:
    learn(start(plan, 0), range(3))
    Tracker(plan).update()
    moved = make_plan(tmp_path / "moved")
    shutil.copytree(plan.folder.path, moved.folder.path)
    Tracker(moved, database(plan)).update()
    seen = shown(plan)
    assert len(seen) == 2
    folder = seen[plan.runs[0].run_id]["tags"]["fewscan.run_folder"]
    assert folder.startswith(str(moved.folder.path))


def test_after_the_sweep_nothing_is_left_running_and_the_next_sweep_goes_on(plan: Plan) -> None:
    four_states(plan)
    tracker = Tracker(plan)
    tracker.update()
    tracker.close(finished=False)
    statuses = {name: run["status"] for name, run in shown(plan).items()}
    ids = [run.run_id for run in plan.runs]
    assert [statuses[i] for i in ids] == ["FINISHED", "KILLED", "FAILED", "KILLED"]
    assert statuses[""] == "KILLED"
    Tracker(plan).update()
    statuses = {name: run["status"] for name, run in shown(plan).items()}
    assert [statuses[i] for i in ids] == ["FINISHED", "RUNNING", "FAILED", "SCHEDULED"]
    assert statuses[""] == "RUNNING"


def test_sync_shows_a_sweep_that_runs_elsewhere_as_running(plan: Plan) -> None:
    four_states(plan)
    sync(plan)
    seen = shown(plan)
    statuses = [seen[run.run_id]["status"] for run in plan.runs]
    assert statuses == ["FINISHED", "RUNNING", "FAILED", "KILLED"]
    assert seen[""]["status"] == "RUNNING"
    for index, run in enumerate(plan.runs):
        plan.folder_of(run).error.unlink(missing_ok=True)
        finish(plan.folder_of(plan.runs[index]), run.spec.kind)
    sync(plan)
    assert {run["status"] for run in shown(plan).values()} == {"FINISHED"}


def test_a_failure_that_was_overcome_leaves_no_trace(plan: Plan) -> None:
    folder = start(plan, 3)
    folder.fail(RuntimeError("no"))
    tracker = Tracker(plan)
    tracker.update()
    assert shown(plan)[folder.run_id]["tags"]["error"] == "RuntimeError: no"
    folder.error.unlink()
    finish(folder, "anomaly", model=False)
    tracker.update()
    run = shown(plan)[folder.run_id]
    assert run["status"] == "FINISHED"
    assert "error" not in run["tags"]
    assert run["models"] == []


@pytest.mark.parametrize("same_process", [True, False])
def test_a_run_begun_anew_takes_the_place_of_the_old_one(plan: Plan, same_process: bool) -> None:
    folder = start(plan, 0)
    learn(folder, range(3))
    finish(folder, "denoise")
    tracker = Tracker(plan)
    tracker.update()
    shutil.rmtree(folder.path)
    folder = start(plan, 0, at=T0 + 1000)
    learn(folder, range(2), at=T0 + 1000)
    (tracker if same_process else Tracker(plan)).update()
    run = shown(plan)[folder.run_id]
    assert run["start"] == (T0 + 1000) * 1000
    assert [step for step, _, _ in run["metrics"]["train/loss"]] == [0, 1]


def test_a_kill_before_the_first_checkpoint_does_not_make_a_new_run(plan: Plan) -> None:
    folder = start(plan, 0)
    Tracker(plan).update()
    before = mlflow_id(plan, 0)
    folder.truncate_events(0)
    start(plan, 0, at=T0 + 60)
    Tracker(plan).update()
    assert mlflow_id(plan, 0) == before


def test_a_run_that_was_renamed_is_shown_under_its_new_name(plan: Plan) -> None:
    learn(start(plan, 1), range(2))
    Tracker(plan).update()
    renamed = PlannedRun(plan.runs[1].spec, "denoise", "binary · denoise", 1.0)
    Tracker(Plan(plan.study, plan.store, (renamed,))).update()
    run = shown(plan)[renamed.run_id]
    assert (run["name"], run["params"]["arm"]) == ("binary · denoise", "denoise")
    assert len(run["metrics"]["train/loss"]) == 2


def test_a_run_that_the_study_no_longer_asks_for_does_not_seem_to_run(plan: Plan) -> None:
    start(plan, 1)
    Tracker(plan).update()
    Tracker(Plan(plan.study, plan.store, plan.runs[:1])).update()
    assert shown(plan)[plan.runs[1].run_id]["status"] == "KILLED"


def test_a_request_that_was_taken_twice_leaves_one_run(plan: Plan) -> None:
    learn(start(plan, 1), range(2))
    Tracker(plan).update()
    client = MlflowClient(database(plan))
    run = client.get_run(mlflow_id(plan, 1))
    tags = {k: run.data.tags[k] for k in ("fewscan.run_id", "fewscan.study_id")}
    client.create_run(run.info.experiment_id, run.info.start_time + 1, tags)
    Tracker(plan).update()
    assert shown(plan)[plan.runs[1].run_id]["metrics"]
    assert mlflow_id(plan, 1) == run.info.run_id


def test_two_studies_of_one_name_do_not_mix(plan: Plan, tmp_path: Path) -> None:
    other = make_plan(tmp_path / "other")
    for one in (plan, other):
        learn(start(one, 0), range(2))
        Tracker(one, database(plan)).update()
    client = MlflowClient(database(plan))
    experiment = client.get_experiment_by_name("a study")
    assert len(client.search_runs([experiment.experiment_id])) == 4


def test_what_a_person_deleted_in_the_ui_comes_back(plan: Plan) -> None:
    folder = start(plan, 1)
    tracker = Tracker(plan)
    tracker.update()
    MlflowClient(database(plan)).delete_run(mlflow_id(plan, 1))
    learn(folder, range(2))
    with pytest.raises(TrackingError):
        tracker.update()
    tracker.update()
    assert len(shown(plan)[folder.run_id]["metrics"]["train/loss"]) == 2


def test_an_imported_checkpoint_is_shown_with_its_model(plan: Plan) -> None:
    spec = Imported("ab" * 32)
    folder = plan.folder.run(run_id(spec))
    record = {"spec": to_json(spec), "name": "imported dae", "init": "scratch"}
    folder.create(record)
    network = UNet(4, 4, 2, 2)
    save_model(folder.model, network, network.state_dict())
    write_json(folder.result, {"kind": "imported", "file": "dae.pt"})
    write_json(plan.folder.imports, {"dae": folder.run_id})
    Tracker(plan).update()
    run = shown(plan)[folder.run_id]
    assert (run["name"], run["status"]) == ("imported dae", "FINISHED")
    assert len(run["models"]) == 1


def test_a_damaged_folder_is_named_and_the_others_are_shown(plan: Plan) -> None:
    four_states(plan)
    plan.folder_of(plan.runs[0]).model.write_bytes(b"rot")
    plan.folder_of(plan.runs[1]).events.write_bytes(b"rot\n")
    tracker = Tracker(plan)
    with pytest.raises(TrackingError, match=r"pre-train dae: .*\n.*seed 0: ") as error:
        tracker.close(finished=False)
    assert "model.pt" in str(error.value)
    seen = shown(plan)
    assert [seen[run.run_id]["status"] for run in plan.runs[2:]] == ["FAILED", "KILLED"]
    assert seen[""]["status"] == "KILLED"


def test_the_report_lies_on_the_study_and_is_replaced(plan: Plan, tmp_path: Path) -> None:
    figure = tmp_path / "figure.csv"
    tracker = Tracker(plan)
    for text in ("old", "new"):
        figure.write_text(text)
        tracker.log_report([figure])
    client = MlflowClient(database(plan))
    experiment = client.get_experiment_by_name(plan.study.name)
    (parent,) = client.search_runs([experiment.experiment_id])
    assert Path(client.download_artifacts(parent.info.run_id, "report/figure.csv")).read_text() == (
        "new"
    )
    assert (plan.folder.mlflow_artifacts / parent.info.run_id).is_dir()


def test_the_address_is_the_argument_then_the_environment_then_the_study_folder(
    plan: Plan, empty_database: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert Tracker(plan).uri == database(plan)
    shutil.copy(empty_database, tmp_path / "else where.db")
    elsewhere = f"sqlite:///{tmp_path / 'else where.db'}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", elsewhere)
    start(plan, 0)
    Tracker(plan).update()
    assert len(shown(plan, elsewhere)) == 2
    assert MlflowClient(database(plan)).get_experiment_by_name("a study") is None
    assert Tracker(plan, "http://given").uri == "http://given"


def test_a_killed_migration_leaves_nothing_in_the_way(empty_database: Path) -> None:
    assert [file.name for file in empty_database.parent.iterdir()] == ["mlflow.db"]


def test_the_model_is_the_network_also_where_this_repository_is_not(
    plan: Plan, tmp_path: Path
) -> None:
    finish(start(plan, 1), "segment")
    Tracker(plan).update()
    images = np.random.default_rng(0).random((3, 4, SIZE, SIZE), dtype=np.float32)
    np.save(tmp_path / "images.npy", images)
    facts = {
        "run_id": plan.runs[1].run_id,
        "stage": "segment",
        "target": "binary",
        "protocol": PROTOCOL,
        "data": DATA,
        "store_protocol": 1,
        "channels": ["flair", "t1", "t1ce", "t2"],
        "classes": ["core", "oedema"],
        "slice_size": SIZE,
        "axis": 2,
        "normalisation": "quantile",
        "orientations": ["LPS"],
        "threshold": 0.1,
    }
    script = f"""
import sys
sys.path = [p for p in sys.path if p not in ("", {str(ROOT)!r})]
sys.meta_path = [f for f in sys.meta_path if "editable" not in repr(f)]
import importlib.util
assert importlib.util.find_spec("experiments") is None
import mlflow, numpy, torch
mlflow.set_tracking_uri({database(plan)!r})
model = mlflow.pytorch.load_model("runs:/{mlflow_id(plan, 1)}/model")
images = torch.from_numpy(numpy.load("images.npy"))
numpy.save("outputs.npy", model(images).detach().numpy())
info = mlflow.models.get_model_info("runs:/{mlflow_id(plan, 1)}/model")
assert info.signature.inputs.inputs[0].shape == (-1, 4, {SIZE}, {SIZE})
assert info.signature.outputs.inputs[0].shape == (-1, 1, {SIZE}, {SIZE})
assert info.metadata == {facts!r}, info.metadata
"""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    subprocess.run([sys.executable, "-c", script], cwd=tmp_path, env=environment, check=True)
    network = load_model(plan.folder_of(plan.runs[1]).model)
    expected = network(torch.from_numpy(images)).detach().numpy()
    # Another process may compute with another number of threads, which changes the last bits.
    np.testing.assert_allclose(np.load(tmp_path / "outputs.npy"), expected, rtol=1e-5, atol=1e-6)


def test_a_server_that_comes_late_catches_up(
    plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server is `fewscan ui`'s own, so this tests that as well."""
    port = ui.free_port("127.0.0.1")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{port}")
    four_states(plan)
    tracker = Tracker(plan)
    begun = time.monotonic()
    with pytest.raises(TrackingError, match="the run folders hold everything"):
        tracker.update()
    assert time.monotonic() - begun < 30
    call = f"serve({database(plan)!r}, '/', '127.0.0.1', {port})"
    script = f"from harness.tracking.ui import serve; {call}"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    server = subprocess.Popen(
        [sys.executable, "-c", script], cwd=tmp_path, env=environment, stdout=subprocess.PIPE
    )
    try:
        assert server.stdout is not None
        assert server.stdout.readline().startswith(f"http://127.0.0.1:{port}/ ".encode())
        tracker.update()
        tracker.close(finished=False)
        over_http = shown(plan, f"http://127.0.0.1:{port}")
    finally:
        server.send_signal(signal.SIGTERM)
    assert server.wait(20) == 0
    with pytest.raises(OSError, match="refused"):
        socket.create_connection(("127.0.0.1", port), timeout=5)
    assert over_http == shown(plan)
    assert len(over_http[plan.runs[0].run_id]["models"]) == 1


class _NotMlflow(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"<html>Welcome to nginx</html>")

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def not_mlflow() -> Iterator[str]:
    server = HTTPServer(("127.0.0.1", 0), _NotMlflow)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://me:secret@127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_a_server_that_is_no_mlflow(plan: Plan, not_mlflow: str) -> None:
    with pytest.raises(TrackingError, match="cannot be reached or refuses") as error:
        Tracker(plan, not_mlflow).update()
    assert "secret" not in str(error.value)


def test_a_server_that_hangs_holds_nobody_up(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        uri = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(TrackingError, match="timed out"):
            Tracker(plan, uri).update()


def test_a_store_that_mlflow_no_longer_writes(plan: Plan, tmp_path: Path) -> None:
    with pytest.raises(TrackingError):
        Tracker(plan, (tmp_path / "mlruns").as_uri()).update()


def test_a_database_of_another_version(plan: Plan) -> None:
    with sqlite3.connect(plan.folder.mlflow_database) as connection:
        connection.execute("UPDATE alembic_version SET version_num = 'from_the_future'")
    with pytest.raises(TrackingError, match="version"):
        Tracker(plan).update()


def test_a_file_that_is_no_database(plan: Plan) -> None:
    plan.folder.mlflow_database.write_text("rot, and more of it than fits in a header " * 100)
    with pytest.raises(TrackingError, match="not a database"):
        Tracker(plan).update()


def test_an_experiment_in_the_bin_is_not_revived_silently(plan: Plan) -> None:
    Tracker(plan).update()
    client = MlflowClient(database(plan))
    client.delete_experiment(client.get_experiment_by_name(plan.study.name).experiment_id)
    with pytest.raises(TrackingError, match="mlflow experiments restore"):
        Tracker(plan).update()


def test_the_ui_has_nothing_to_show_before_a_sweep(plan: Plan) -> None:
    with pytest.raises(TrackingError, match="nothing of the study"):
        serve_ui(plan)
    plan.folder.mlflow_database.unlink()
    with pytest.raises(TrackingError, match="nothing of the study"):
        serve_ui(plan)


def test_the_ui_of_a_server_is_the_server_s(
    plan: Plan, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tracking, "tracked_experiment", lambda plan, uri: "7")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:secret@lab:5000/")
    serve_ui(plan)
    assert capsys.readouterr().out == "http://me:***@lab:5000/#/experiments/7/runs\n"


def test_a_server_for_other_machines_knows_its_own_names() -> None:
    assert ui._allowed_hosts("127.0.0.1") == []
    option, hosts = ui._allowed_hosts("0.0.0.0")
    assert option == "--allowed-hosts"
    assert {f"{socket.gethostname()}:*", "localhost:*"} <= set(hosts.split(","))
    assert "*" not in hosts.split(",")


def test_a_port_that_is_taken(plan: Plan) -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as taken,
        pytest.raises(TrackingError, match="choose another --port"),
    ):
        ui.serve(database(plan), "/", "127.0.0.1", taken.getsockname()[1])


def test_told_which_runs_begin_an_update_looks_at_no_other(
    plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And ends with what a look at all of them shows, also after a server that was away."""
    looked: list[str] = []
    state = RunFolder.state
    monkeypatch.setattr(RunFolder, "state", lambda f: (looked.append(f.run_id), state(f))[1])
    ids = [run.run_id for run in plan.runs]
    tracker = Tracker(plan)
    tracker.update([])
    learn(start(plan, 0), range(3))
    start(plan, 1)
    looked.clear()
    tracker.update(ids[:3])  # the third is offered and has not begun
    assert sorted(looked) == sorted(ids[:3])
    assert {"", ids[0], ids[1]} == set(shown(plan))
    finish(plan.folder_of(plan.runs[0]), "denoise")
    plan.folder_of(plan.runs[1]).fail(ValueError("no"))
    tracker.update([])
    looked.clear()
    start(plan, 2)
    monkeypatch.setattr(tracking, "MlflowClient", lambda uri: 1 / 0)
    tracker._view = None
    with pytest.raises(ZeroDivisionError):
        tracker.update([ids[3]])
    monkeypatch.setattr(tracking, "MlflowClient", MlflowClient)
    start(plan, 3)
    tracker.update([])
    tracker.update([])
    seen = shown(plan)
    assert [seen[i]["status"] for i in ids] == ["FINISHED", "FAILED", "SCHEDULED", "SCHEDULED"]
    looked.clear()
    learn(plan.folder_of(plan.runs[3]), range(3))
    tracker.update([])
    assert sorted(looked) == sorted(ids[2:]), "those that are over are not looked at again"
    assert len(shown(plan)[ids[3]]["metrics"]["train/loss"]) == 3
    seen = shown(plan)
    Tracker(plan).update()
    assert shown(plan) == seen


def test_a_damaged_run_costs_no_look_at_all_others(
    plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is tried again, and shown once it is mended."""
    for index in range(3):
        learn(start(plan, index), range(3))
    good = plan.folder_of(plan.runs[1]).events.read_bytes()
    plan.folder_of(plan.runs[1]).events.write_text("no event\n")
    tracker = Tracker(plan)
    with pytest.raises(TrackingError, match="a line is not an event"):
        tracker.update()
    calls = Calls(monkeypatch)
    with pytest.raises(TrackingError, match="a line is not an event"):
        tracker.update([])
    assert calls.made == [], "the connection stands"
    plan.folder_of(plan.runs[1]).events.write_bytes(good)
    tracker.update([])
    assert len(shown(plan)) == 4
