"""The view is complete, rebuildable, and never doubled by a kill."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fake_folders import (
    database,
    finish,
    finish_all,
    four_states,
    learn,
    make_plan,
    mlflow_id,
    shown,
    start,
)
from mlflow import MlflowClient

from fewscan.harness.plan import Plan
from fewscan.harness.tracking import stores
from fewscan.harness.tracking.tracker import Tracker, sync
from fewscan.storage.errors import TrackingError
from fewscan.storage.runs import RunFolder


class Calls:
    """Stands in for MlflowClient: counts the calls, and dies after the n-th."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, die_after: int | None = None) -> None:
        self.made: list[str] = []
        self.die_after = die_after
        monkeypatch.setattr(stores, "MlflowClient", self._client)

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
        folder.append_event("metrics", step, values=values)
    folder.append_event("checkpoint", 20)
    Tracker(plan).update()
    metrics = shown(plan)[folder.run_id]["metrics"]
    assert sum(len(points) for points in metrics.values()) == 2400


def test_killed_after_any_call_the_next_process_completes_the_view(
    plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    learn(start(plan, 0), range(3))
    finish(plan, 0)
    learn(start(plan, 1), range(3))
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
    ids = [run.run_id for run in plan.runs[:4]]
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
    statuses = [seen[run.run_id]["status"] for run in plan.runs[:4]]
    assert statuses == ["FINISHED", "RUNNING", "FAILED", "KILLED"]
    assert seen[""]["status"] == "RUNNING"
    for index, run in enumerate(plan.runs):
        if index < 4:
            plan.folder_of(run).error.unlink(missing_ok=True)
            finish(plan, index)
        else:
            finish_all(plan, index)
    sync(plan)
    assert {run["status"] for run in shown(plan).values()} == {"FINISHED"}


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
    assert len(shown(plan)[folder.run_id]["metrics"]["learning/train_loss"]) == 2


def test_the_report_lies_on_the_study_and_is_replaced(
    plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    figure = plan.folder.report / "figures" / "figure.csv"
    figure.parent.mkdir(parents=True)
    tracker = Tracker(plan)
    for text in ("old", "new"):
        figure.write_text(text)
        tracker.log_report()
    client = MlflowClient(database(plan))
    experiment = client.get_experiment_by_name(plan.study.name)
    (parent,) = client.search_runs([experiment.experiment_id])
    path = client.download_artifacts(parent.info.run_id, "report/figures/figure.csv")
    assert Path(path).read_text() == "new"
    assert (plan.folder.mlflow_artifacts / parent.info.run_id).is_dir()
    calls = Calls(monkeypatch)
    Tracker(plan).log_report()
    assert not any(call.startswith("log_artifact") for call in calls.made)


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


def test_told_which_runs_begin_an_update_looks_at_no_other(
    plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And ends with what a look at all of them shows, also after a server that was away."""
    looked: list[str] = []
    state = RunFolder.state
    monkeypatch.setattr(RunFolder, "state", lambda f: (looked.append(f.run_id), state(f))[1])
    ids = [run.run_id for run in plan.runs[:4]]
    tracker = Tracker(plan)
    tracker.update([])
    learn(start(plan, 0), range(3))
    start(plan, 1)
    looked.clear()
    tracker.update(ids[:3])  # the third is offered and has not begun
    assert sorted(looked) == sorted(ids[:3])
    assert {"", ids[0], ids[1]} == set(shown(plan))
    finish(plan, 0)
    plan.folder_of(plan.runs[1]).fail(ValueError("no"))
    tracker.update([])
    looked.clear()
    start(plan, 2)
    monkeypatch.setattr(stores, "MlflowClient", lambda uri: 1 / 0)
    tracker._study = None
    with pytest.raises(ZeroDivisionError):
        tracker.update([ids[3]])
    monkeypatch.setattr(stores, "MlflowClient", MlflowClient)
    start(plan, 3)
    tracker.update([])
    tracker.update([])
    seen = shown(plan)
    assert [seen[i]["status"] for i in ids] == ["FINISHED", "FAILED", "SCHEDULED", "SCHEDULED"]
    looked.clear()
    learn(plan.folder_of(plan.runs[3]), range(3))
    tracker.update([])
    assert sorted(looked) == sorted(ids[2:]), "those that are over are not looked at again"
    assert len(shown(plan)[ids[3]]["metrics"]["learning/train_loss"]) == 3
    seen = shown(plan)
    Tracker(plan).update()
    assert shown(plan) == seen


def test_a_damaged_run_costs_no_look_at_all_others(
    plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is tried again, and shown once it is fixed."""
    for index in range(3):
        learn(start(plan, index), range(3))
    good = plan.folder_of(plan.runs[1]).events.read_bytes()
    plan.folder_of(plan.runs[1]).events.write_text("no event\n")
    tracker = Tracker(plan)
    with pytest.raises(TrackingError, match="a line is not what it should be"):
        tracker.update()
    calls = Calls(monkeypatch)
    with pytest.raises(TrackingError, match="a line is not what it should be"):
        tracker.update([])
    assert calls.made == [], "the connection stands"
    plan.folder_of(plan.runs[1]).events.write_bytes(good)
    tracker.update([])
    assert len(shown(plan)) == 4
