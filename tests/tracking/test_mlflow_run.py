"""What MLflow shows of fake run folders."""

import json
import os
import shutil
from dataclasses import replace

import pytest
from fake_folders import (
    DATA,
    T0,
    begin,
    database,
    finish,
    finish_all,
    four_states,
    learn,
    mlflow_id,
    shown,
    start,
)
from mlflow import MlflowClient

from fewscan.experiments.checkpoint import save_model
from fewscan.experiments.results import Result, RunRecord
from fewscan.experiments.spec import Imported, run_id
from fewscan.experiments.unet import UNet
from fewscan.harness.arms import Arm
from fewscan.harness.plan import Plan, slice_format
from fewscan.harness.tracking.mlflow_run import view_of
from fewscan.harness.tracking.models import load_logged
from fewscan.harness.tracking.tracker import Tracker
from fewscan.storage.atomic import write_json
from fewscan.storage.errors import TrackingError


def test_each_started_run_is_shown_under_the_study(plan: Plan) -> None:
    four_states(plan)
    Tracker(plan).update()
    seen = shown(plan)
    parent, children = seen[""], [seen[run.run_id] for run in plan.runs[:4]]
    assert (parent["name"], parent["status"]) == ("a study", "RUNNING")
    assert parent["tags"]["data"] == DATA
    assert [c["status"] for c in children] == ["FINISHED", "RUNNING", "FAILED", "SCHEDULED"]
    assert [c["name"] for c in children] == [
        "pre-train dae",
        "1 scan · seed 0 · dae · binary · training",
        "1 scan · seed 1 · dae · binary · training",
        "unsupervised · dae",
    ]
    assert all(c["tags"]["mlflow.parentRunId"] == "" for c in children)
    assert children[2]["tags"]["error"] == "RuntimeError: out of luck"
    finished = children[0]
    assert (finished["start"], finished["end"]) == (T0 * 1000, (T0 + 100) * 1000)
    assert finished["params"].items() >= {
        ("stage", "pretrain"),
        ("arm", "pre-training"),
        ("init", "scratch"),
        ("seed", "0"),
        ("network/width", "2"),
        ("scheme/kind", "denoise"),
        ("scheme/noise/std", "0.2"),
        ("training/lr", "0.0001"),
    }
    tags = {"host": "n1", "device": "cpu", "versions/torch": "2.13.0", "attempts": "1"}
    assert finished["tags"].items() >= tags.items()
    assert (
        children[1]["params"].items()
        >= {
            "stage": "finetune",
            "arm": "dae",
            "init": "dae",
            "target": "binary",
            "label_count": "1",
            "seed": "0",
        }.items()
    )
    assert (
        children[3]["params"].items()
        >= {
            "stage": "score",
            "arm": "unsupervised: dae",
            "init": "dae",
            "target": "binary",
            "label_count": "0",
            "seed": "0",
        }.items()
    )


def test_a_score_is_shown_where_its_fine_tuning_stands(plan: Plan) -> None:
    """With the model, its numbers and its threshold; the fine-tuning's run has the curves."""
    learn(start(plan, 1), range(3))
    finish(plan, 1)
    finish_all(plan, 4)
    Tracker(plan).update()
    seen = shown(plan)
    training, score = (seen[plan.runs[i].run_id] for i in (1, 4))
    assert score["name"] == "1 scan · seed 0 · dae · binary"
    assert training["name"] == f"{score['name']} · training"
    place = ("arm", "init", "target", "label_count", "seed")
    assert [score["params"][k] for k in place] == [training["params"][k] for k in place]
    assert (score["params"]["stage"], score["params"]["split"]) == ("score", "test")
    assert score["tags"]["starts_from"] == plan.runs[1].run_id
    assert (len(training["models"]), len(score["models"])) == (0, 1)
    assert {"test/ap", "validation/threshold"} <= set(score["metrics"])
    assert not any(key.startswith("test/") for key in training["metrics"])
    assert {"learning/train_loss", "validation/loss"} <= set(training["metrics"])


def test_a_run_without_a_model_costs_no_look_at_its_spec(
    plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    four_states(plan)
    finish_all(plan, 4)
    monkeypatch.setattr(RunRecord, "read", lambda _: 1 / 0)
    for run in plan.runs[:5]:
        state = plan.folder_of(run).state()
        assert view_of(plan, run, state, "RUNNING").run_id == run.run_id


def test_curves_keep_their_steps_and_times(plan: Plan) -> None:
    learn(start(plan, 1), range(5))
    Tracker(plan).update()
    metrics = shown(plan)[plan.runs[1].run_id]["metrics"]
    assert set(metrics) == {"learning/train_loss", "learning/validation_loss"}
    expected = [(step, (T0 + step) * 1000, 1 / (step + 1)) for step in range(5)]
    assert metrics["learning/train_loss"] == expected
    defined = [step for step, _, _ in metrics["learning/validation_loss"]]
    assert defined == [0, 1, 2, 4]  # a null is a number that is not defined


def test_final_numbers_stand_at_the_label_count(plan: Plan) -> None:
    """So the chart of a number over "step" is the label-efficiency curve."""
    one, score = plan.runs[1], plan.runs[4]
    place = replace(one.place, labels=30)
    training = replace(one, spec=replace(one.spec, label_count=30), place=place)
    spec = replace(score.spec, parents=(training.run_id,))
    thirty = replace(score, spec=spec, place=place)
    runs = (plan.runs[0], training, *plan.runs[2:4], thirty, plan.runs[5])
    plan = Plan(plan.study, plan.store, runs)
    finish_all(plan, *range(6), model=False)
    view = {r.run_id: view_of(plan, r, "finished", "FINISHED") for r in plan.runs}
    steps = [{point.step for point in view[run.run_id].results} for run in plan.runs]
    assert steps == [{0}, {30}, {1}, {1, 30}, {30}, {1}]  # unsupervised: a horizontal line
    ended_ms = (T0 + 100) * 1000
    numbers = {p.key: p for p in view[thirty.run_id].results}
    assert numbers["test/ap"] == ("test/ap", 0.25, ended_ms, 30)
    assert numbers["test/class_dice/core _1_"].value == 0.5
    assert numbers["run/seconds"].value == 12.5
    assert numbers["run/label_count"].value == 30
    assert numbers["validation/threshold"].value == 0.1
    trained = {p.key: p.value for p in view[training.run_id].results}
    assert (trained["run/best_step"], trained["validation/loss"]) == (20, 0.5)
    assert "test/best_dice" not in numbers  # null: not defined


def test_what_the_run_took_of_its_machine_is_a_system_metric(plan: Plan) -> None:
    folder = start(plan, 1)
    for second in (0, 10):
        folder.append_usage({"cpu_cores_busy": 1.5 + second, "memory_megabytes": 100.0 + second})
    with folder.usage.open("a") as file:
        file.write('{"time": 1700000')  # half a line, as a kill leaves it
    tracker = Tracker(plan)
    tracker.update()
    folder.append_usage({"memory_megabytes": 0.0})  # becomes part of the half line, and is lost
    folder.append_usage({"memory_megabytes": 200.0})
    tracker.update()
    metrics = shown(plan)[folder.run_id]["metrics"]
    assert sorted(v for _, _, v in metrics["system/memory_megabytes"]) == [100.0, 110.0, 200.0]
    assert len(metrics["system/cpu_cores_busy"]) == 2


def test_a_finished_run_has_its_cases_and_its_data(plan: Plan) -> None:
    """Also one whose parent's model is missing, which is said."""
    finish_all(plan, 1, 4, model=False)
    folder = plan.folder_of(plan.runs[4])
    folder.cases.write_text("subject,ap\nBraTS_1,0.5\n")
    tracker = Tracker(plan)
    with pytest.raises(TrackingError, match="model of a run is missing") as error:
        tracker.update()
    assert str(plan.folder_of(plan.runs[1]).model) in str(error.value)
    client = MlflowClient(database(plan))
    run = client.get_run(mlflow_id(plan, 4))
    assert (run.info.status, run.data.metrics["test/ap"]) == ("FINISHED", 0.25)
    assert {file.path for file in client.list_artifacts(run.info.run_id)} == {
        "cases.csv",
        "result.json",
    }
    (data,) = run.inputs.dataset_inputs
    assert (data.dataset.name, data.dataset.digest) == ("store", DATA)
    assert json.loads(data.dataset.profile)["fingerprint"] == DATA
    network = UNet(4, 2, 2, 2)
    save_model(plan.folder_of(plan.runs[1]).model, network, network.state_dict())
    tracker.update([])
    assert len(shown(plan)[folder.run_id]["models"]) == 1


def test_a_run_without_a_started_event_begins_with_its_spec(plan: Plan) -> None:
    folder = plan.folder_of(plan.runs[3])
    plan.record(plan.runs[3]).write(folder)
    os.utime(folder.spec, (T0, T0))
    finish(plan, 3)
    Tracker(plan).update()
    run = shown(plan)[folder.run_id]
    assert (run["start"], run["end"]) == (T0 * 1000, (T0 + 100) * 1000)


def test_a_run_that_has_not_started_is_not_shown(plan: Plan) -> None:
    folder = plan.folder_of(plan.runs[0])
    plan.record(plan.runs[0]).write(folder)
    Tracker(plan).update()
    assert list(shown(plan)) == [""]


def test_only_what_a_checkpoint_covers_is_sent(plan: Plan) -> None:
    folder = start(plan, 1)
    learn(folder, range(3))
    size = folder.events.stat().st_size
    learn(folder, range(3, 6), commit=False)
    tracker = Tracker(plan)
    tracker.update()
    assert len(shown(plan)[folder.run_id]["metrics"]["learning/train_loss"]) == 3
    folder.truncate_events(size)  # killed, and started again
    begin(folder, T0 + 50, step=3, host="n2")
    learn(folder, range(3, 6), at=T0 + 50)
    tracker.update()
    points = shown(plan)[folder.run_id]["metrics"]["learning/train_loss"]
    assert [step for step, _, _ in points] == [0, 1, 2, 3, 4, 5]
    assert shown(plan)[folder.run_id]["tags"]["attempts"] == "2"


def test_a_failure_that_was_overcome_leaves_no_trace(plan: Plan) -> None:
    folder = start(plan, 3)
    folder.fail(RuntimeError("no"))
    tracker = Tracker(plan)
    tracker.update()
    assert shown(plan)[folder.run_id]["tags"]["error"] == "RuntimeError: no"
    folder.error.unlink()
    finish(plan, 3)
    tracker.update()
    run = shown(plan)[folder.run_id]
    assert run["status"] == "FINISHED"
    assert "error" not in run["tags"]
    assert run["models"] == []


@pytest.mark.parametrize("same_process", [True, False])
def test_a_run_begun_anew_takes_the_place_of_the_old_one(plan: Plan, same_process: bool) -> None:
    folder = start(plan, 0)
    learn(folder, range(3))
    finish(plan, 0)
    tracker = Tracker(plan)
    tracker.update()
    shutil.rmtree(folder.path)
    folder = start(plan, 0, at=T0 + 1000)
    learn(folder, range(2), at=T0 + 1000)
    (tracker if same_process else Tracker(plan)).update()
    run = shown(plan)[folder.run_id]
    assert run["start"] == (T0 + 1000) * 1000
    assert [step for step, _, _ in run["metrics"]["learning/train_loss"]] == [0, 1]


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
    place = replace(plan.runs[1].place, arm=Arm("fine-tuning", "denoise"))
    renamed = replace(plan.runs[1], place=place)
    Tracker(Plan(plan.study, plan.store, (renamed,))).update()
    run = shown(plan)[renamed.run_id]
    name = "1 scan · seed 0 · denoise · binary · training"
    assert (run["name"], run["params"]["arm"]) == (name, "denoise")
    assert len(run["metrics"]["learning/train_loss"]) == 2


def test_a_run_that_the_study_no_longer_asks_for_does_not_seem_to_run(plan: Plan) -> None:
    start(plan, 1)
    Tracker(plan).update()
    Tracker(Plan(plan.study, plan.store, plan.runs[:1])).update()
    assert shown(plan)[plan.runs[1].run_id]["status"] == "KILLED"


def test_an_imported_checkpoint_is_shown_with_its_model(
    plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = Imported("ab" * 32)
    folder = plan.folder.run(run_id(spec))
    slices = replace(slice_format(plan.store), slice_size=32)
    RunRecord(spec, plan.study.name, "imported dae", slices).write(folder)
    network = UNet(4, 4, 2, 2)
    save_model(folder.model, network, network.state_dict())
    Result(spec.kind, source="dae.pt").write(folder)
    write_json(plan.folder.imports, {"dae": folder.run_id})
    Tracker(plan).update()
    run = shown(plan)[folder.run_id]
    assert (run["name"], run["status"]) == ("imported dae", "FINISHED")
    assert len(run["models"]) == 1
    monkeypatch.setenv("MLFLOW_TRACKING_URI", database(plan))
    client = MlflowClient(database(plan))
    experiment = client.get_experiment_by_name(plan.study.name)
    (model,) = client.search_logged_models([experiment.experiment_id])
    assert load_logged(model.model_uri)[1]["slice_size"] == 32, "what it was trained on, not ours"


def test_a_damaged_folder_is_named_and_the_others_are_shown(plan: Plan) -> None:
    four_states(plan)
    plan.folder_of(plan.runs[0]).model.write_bytes(b"rot")
    plan.folder_of(plan.runs[1]).events.write_bytes(b"rot\n")
    tracker = Tracker(plan)
    with pytest.raises(TrackingError, match=r"pre-train dae: .*\n.*seed 0: ") as error:
        tracker.close(finished=False)
    assert "model.pt" in str(error.value)
    seen = shown(plan)
    assert [seen[run.run_id]["status"] for run in plan.runs[2:4]] == ["FAILED", "KILLED"]
    assert seen[""]["status"] == "KILLED"
