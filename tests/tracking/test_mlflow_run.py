"""What MLflow shows of fake run folders."""

import json
import os
import shutil
from dataclasses import replace

import pytest
from fake_folders import DATA, T0, database, finish, four_states, learn, mlflow_id, shown, start
from mlflow import MlflowClient

from fewscan.experiments.checkpoint import save_model
from fewscan.experiments.results import Result, RunRecord
from fewscan.experiments.spec import Imported, run_id
from fewscan.experiments.unet import UNet
from fewscan.harness.arms import Arm
from fewscan.harness.plan import Plan, PlannedRun
from fewscan.harness.tracking.mlflow_run import view_of
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
    unsupervised = children[3]["params"]
    assert (unsupervised["target"], unsupervised["label_count"]) == ("binary", "0")


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
    thirty = [replace(it, place=replace(it.place, labels=30)) for it in plan.runs[1:5:3]]
    runs = (plan.runs[0], thirty[0], *plan.runs[2:4], thirty[1], plan.runs[5])
    plan = Plan(plan.study, plan.store, runs)
    for index in range(6):
        finish(start(plan, index), model=False)
    view = {r.run_id: view_of(plan, r, "finished", "FINISHED") for r in plan.runs}
    steps = [{point.step for point in view[run.run_id].results} for run in plan.runs]
    assert steps == [{0}, {30}, {1}, {1, 30}, {30}, {1}]  # unsupervised: a horizontal line
    ended_ms = (T0 + 100) * 1000
    trained, scored = ({p.key: p for p in view[run.run_id].results} for run in thirty)
    assert scored["test/ap"] == ("test/ap", 0.25, ended_ms, 30)
    assert scored["test/class_dice/core _1_"].value == 0.5
    assert scored["validation/threshold"].value == 0.1
    assert "test/best_dice" not in scored  # null: not defined
    assert trained["run/best_step"].value == 20
    assert trained["validation/loss"].value == 0.5
    for numbers in (trained, scored):
        assert numbers["run/seconds"].value == 12.5
        assert numbers["run/label_count"].value == 30
    assert not {key for key in trained if key.startswith("test/")}


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
    finish(start(plan, 1), model=False)
    finish(start(plan, 4))
    folder = plan.folder_of(plan.runs[4])
    folder.cases.write_text("subject,ap\nBraTS_1,0.5\n")
    tracker = Tracker(plan)
    with pytest.raises(TrackingError, match="model of a run is missing"):
        tracker.update()
    client = MlflowClient(database(plan))
    run = client.get_run(mlflow_id(plan, 4))
    assert {file.path for file in client.list_artifacts(run.info.run_id)} == {
        "cases.csv",
        "result.json",
    }
    (data,) = run.inputs.dataset_inputs
    assert (data.dataset.name, data.dataset.digest) == ("store", DATA)
    assert json.loads(data.dataset.profile)["fingerprint"] == DATA


def test_a_run_without_a_started_event_begins_with_its_spec(plan: Plan) -> None:
    folder = plan.folder_of(plan.runs[3])
    plan.record(plan.runs[3]).write(folder)
    os.utime(folder.spec, (T0, T0))
    finish(folder)
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
    folder.append_event("started", 3, T0 + 50, attempt={"host": "n2", "device": "cpu"})
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
    finish(folder)
    tracker.update()
    run = shown(plan)[folder.run_id]
    assert run["status"] == "FINISHED"
    assert "error" not in run["tags"]
    assert run["models"] == []


@pytest.mark.parametrize("same_process", [True, False])
def test_a_run_begun_anew_takes_the_place_of_the_old_one(plan: Plan, same_process: bool) -> None:
    folder = start(plan, 0)
    learn(folder, range(3))
    finish(folder)
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
    renamed = PlannedRun(plan.runs[1].spec, place, "", 1.0)
    Tracker(Plan(plan.study, plan.store, (renamed,))).update()
    run = shown(plan)[renamed.run_id]
    assert run["name"] == "1 scan · seed 0 · denoise · binary · training"
    assert run["params"]["arm"] == "denoise"
    assert len(run["metrics"]["learning/train_loss"]) == 2


def test_a_run_that_the_study_no_longer_asks_for_does_not_seem_to_run(plan: Plan) -> None:
    start(plan, 1)
    Tracker(plan).update()
    Tracker(Plan(plan.study, plan.store, plan.runs[:1])).update()
    assert shown(plan)[plan.runs[1].run_id]["status"] == "KILLED"


def test_an_imported_checkpoint_is_shown_with_its_model(plan: Plan) -> None:
    spec = Imported("ab" * 32)
    folder = plan.folder.run(run_id(spec))
    RunRecord(spec, plan.study.name, "imported dae", plan.slices).write(folder)
    network = UNet(4, 4, 2, 2)
    save_model(folder.model, network, network.state_dict())
    Result(spec.kind, source="dae.pt").write(folder)
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
    assert [seen[run.run_id]["status"] for run in plan.runs[2:4]] == ["FAILED", "KILLED"]
    assert seen[""]["status"] == "KILLED"
