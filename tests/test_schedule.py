"""What the searcher offers, without a cluster."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import ray
from ray import train
from ray.train.v2._internal.exceptions import (
    UserExceptionWithTraceback,
    WorkerHealthCheckFailedError,
)
from ray.tune.search import Searcher

from fewscan.experiments.devices import PeerLost
from fewscan.experiments.results import RunRecord
from fewscan.harness.plan import Plan, PlannedRun
from fewscan.harness.planner import make_plan
from fewscan.harness.schedule import SILENT_AT_MOST, ReadyRuns
from fewscan.harness.study import Study
from fewscan.harness.trial import HEAD, config_of, errors_of_ranks, placement
from fewscan.slurm import session
from fewscan.storage.runs import RunFolder

ROOM = {"CPU": 100.0, "GPU": 100.0}


@pytest.fixture
def plan(tiny_study: Callable[..., Study]) -> Plan:
    return make_plan(tiny_study())


def by_folder(plan: Plan) -> dict[str, PlannedRun]:
    return {str(plan.folder_of(run).path): run for run in plan.runs}


def finish(folder: RunFolder) -> None:
    folder.path.mkdir(parents=True, exist_ok=True)
    folder.result.write_text("{}")


def offered(ready: ReadyRuns, plan: Plan, start: int = 0) -> list[tuple[str, PlannedRun]]:
    """Ask until nothing more is ready; (trial id, run)."""
    found = []
    while isinstance(config := ready.suggest(f"trial {start + len(found)}"), dict):
        found.append((f"trial {start + len(found)}", by_folder(plan)[config["folder"]]))
    return found


def test_children_wait_for_their_parent_and_nobody_else_does(plan: Plan) -> None:
    ready = ReadyRuns(plan, False, Path(), lambda: ROOM)
    first = offered(ready, plan)
    assert first[0][1].kind == "pretrain", "the longest chain comes first"
    assert {run.place.arm.key for _, run in first[1:]} == {"scratch"}
    assert {run.kind for _, run in first[1:]} == {"finetune"}
    assert len(first) == 5
    assert ready.suggest("later") is None
    for trial_id, run in first:
        finish(plan.folder_of(run))
        ready.on_trial_complete(trial_id)
    second = offered(ready, plan, start=5)
    kinds = Counter((run.kind, run.place.arm.key) for _, run in second)
    assert kinds == {
        ("score", "unsupervised: denoise"): 1,
        ("finetune", "denoise"): 4,
        ("score", "scratch"): 4,
    }
    assert ready.suggest("early") is None, "those under way may come back"
    for trial_id, run in second:
        finish(plan.folder_of(run))
        ready.on_trial_complete(trial_id)
    third = offered(ready, plan, start=14)
    assert Counter((run.kind, run.place.arm.key) for _, run in third) == {("score", "denoise"): 4}
    assert len(first) + len(second) + len(third) == len(plan.runs)
    for trial_id, run in third:
        finish(plan.folder_of(run))
        ready.on_trial_complete(trial_id)
    assert ready.suggest("end") == Searcher.FINISHED


def test_finished_runs_are_not_offered(plan: Plan) -> None:
    for run in plan.runs:
        if run not in plan.scores or run in plan.grid:
            finish(plan.folder_of(run))
    ready = ReadyRuns(plan, False, Path(), lambda: ROOM)
    assert [run.name for _, run in offered(ready, plan)] == ["unsupervised · denoise"]


def test_a_failed_run_blocks_its_children_only(plan: Plan) -> None:
    ready = ReadyRuns(plan, False, Path(), lambda: ROOM)
    for trial_id, run in offered(ready, plan):
        if run.kind == "finetune":
            finish(plan.folder_of(run))
        else:
            plan.folder_of(run).fail(ValueError("it diverged"))
        ready.on_trial_complete(trial_id)
    scores = offered(ready, plan, start=5)
    assert {(run.kind, run.place.arm.key) for _, run in scores} == {("score", "scratch")}
    for trial_id, run in scores:
        finish(plan.folder_of(run))
        ready.on_trial_complete(trial_id)
    assert ready.suggest("end") == Searcher.FINISHED


def test_a_preempted_run_is_offered_again(plan: Plan) -> None:
    ready = ReadyRuns(plan, False, Path(), lambda: ROOM)
    first = offered(ready, plan)
    trial_id, run = first[0]
    ready.on_trial_complete(trial_id, {"finished": 0.0, "preempted": 1.0})
    again = offered(ready, plan, start=len(first))
    assert [run.run_id for _, run in again] == [run.run_id]
    assert plan.folder_of(run).state() == "missing"


def test_a_run_whose_process_keeps_dying_says_so(plan: Plan) -> None:
    ready = ReadyRuns(plan, False, Path(), lambda: ROOM)
    trial_id, run = offered(ready, plan)[0]
    plan.record(run).write(plan.folder_of(run))
    ready.on_trial_complete(trial_id, error=True)
    assert plan.folder_of(run).state() == "failed"
    assert "process died 4 times" in plan.folder_of(run).read_error()["message"]


def test_no_more_is_offered_than_there_is_room_for(tiny_study: Callable[..., Study]) -> None:
    share = {"pretrain": {"cpus": 3}, "finetune": {"cpus": 2}}
    plan = make_plan(tiny_study(resources=share))
    cluster = {"CPU": 6.0}
    ready = ReadyRuns(plan, False, Path(), lambda: cluster)
    first = offered(ready, plan)
    assert [run.kind for _, run in first] == ["pretrain", "finetune"], "5 of 6 cores"
    assert plan.folder.read_waiting().startswith("fine-tune binary · scratch")
    assert plan.folder.read_waiting().endswith("wants 2 CPUs, 1 is free")
    cluster["CPU"] = 7.0
    assert len(offered(ready, plan, start=2)) == 1, "a node has joined"
    assert plan.folder.read_waiting() == "", "all cores are in use, and each end makes room"
    cluster["CPU"] = 1.0
    assert ready.suggest("more") is None
    assert plan.folder.read_waiting() == "pre-train denoise wants 3 CPUs, 1 is there"
    for trial_id, run in first:
        finish(plan.folder_of(run))
        ready.on_trial_complete(trial_id)
    assert ready.suggest("still one under way") is None
    ready.on_trial_complete("trial 2", {"finished": 1.0})
    assert isinstance(ready.suggest("alone"), dict), "it waits for a node rather than for ever"


def test_a_run_has_its_folder_and_is_announced_before_it_starts(plan: Plan) -> None:
    announced: list[str] = []
    plan.record(plan.runs[0]).write(plan.folder_of(plan.runs[0]))
    plan.folder_of(plan.runs[0]).fail(ValueError("of an earlier sweep"))
    ready = ReadyRuns(plan, False, Path(), lambda: ROOM, announced.append)
    _, run = offered(ready, plan)[0]
    assert announced[0] == run.run_id == plan.runs[0].run_id
    assert plan.folder_of(run).state() == "missing", "not failed any more"
    assert RunRecord.read(plan.folder_of(run)) == plan.record(run)
    assert not plan.folder_of(plan.runs[1]).path.exists(), "it is not its turn yet"


def test_the_trial_is_believed_before_the_shared_disk(plan: Plan) -> None:
    ready = ReadyRuns(plan, False, Path(), lambda: ROOM)
    first = offered(ready, plan)
    ready.on_trial_complete(first[0][0], {"finished": 1.0})
    assert {run.place.arm.init for _, run in offered(ready, plan, start=9)} == {"denoise"}


def test_resources_follow_the_study(tiny_study: Callable[..., Study]) -> None:
    resources = {
        "pretrain": {"devices": 2, "cpus": 3},
        "finetune": {"cpus": 4, "gpu_share": 0.25},
    }
    plan = make_plan(tiny_study(resources=resources))
    for use_gpu, expected in ((True, {"CPU": 4.0, "GPU": 0.25}), (False, {"CPU": 4.0})):
        for run in plan.runs:
            bundles = placement(config_of(plan, run, use_gpu, Path())).bundles
            assert bundles == ([HEAD] if run.kind == "pretrain" else [expected])


def test_ranks_that_wait_for_workers_keep_nobody_waiting(tiny_study: Callable[..., Study]) -> None:
    plan = make_plan(tiny_study(resources={"pretrain": {"devices": 2}}))
    room = {"CPU": 1.0}
    ready = ReadyRuns(plan, False, Path(), lambda: room)
    first = offered(ready, plan)
    assert first[0][1].kind == "pretrain", "it waits for the second worker"
    assert len(first) == 2, "the one worker that is there has something to do"
    room["CPU"] = 2.0
    assert offered(ready, plan, start=2) == [], "now both workers are for the ranks"
    ready.on_trial_complete("trial 0", {"finished": 0.0, "preempted": 1.0})
    room["CPU"] = 1.0
    ready.on_trial_complete("trial 1", {"finished": 1.0})
    again = offered(ready, plan, start=2)
    assert [run.kind == "pretrain" for _, run in again] == [True, False]


def test_what_waits_for_several_to_end_is_said_although_all_is_in_use(
    tiny_study: Callable[..., Study],
) -> None:
    """Two fine-tunings, on a core each, hold what the pre-training wants."""
    plan = make_plan(tiny_study(resources={"pretrain": {"devices": 2}}))
    room = {"CPU": 1.0}
    ready = ReadyRuns(plan, False, Path(), lambda: room)
    (ranks, _), *_ = offered(ready, plan)
    assert plan.folder.read_waiting() == "pre-train denoise wants 2 CPUs, 1 is there"
    ready.on_trial_complete(ranks, {"finished": 0.0, "preempted": 1.0})
    pretraining = ready._queue.take()
    room["CPU"] = 2.0
    assert len(offered(ready, plan, start=2)) == 1
    assert plan.folder.read_waiting() == "", "an ordinary queue"
    assert pretraining is not None
    ready._queue.put_back(pretraining)
    assert ready.suggest("none") is None
    assert plan.folder.read_waiting() == "pre-train denoise wants 2 CPUs, 0 are free"


def test_a_head_that_leaves_or_ends_soon_starts_nothing(
    plan: Plan, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    ready = ReadyRuns(plan, False, Path(), lambda: ROOM)
    monkeypatch.setenv(session.CLOSES_UNIX, "0")
    assert ready.suggest("late") is None
    monkeypatch.delenv(session.CLOSES_UNIX)
    assert isinstance(ready.suggest("trial 0"), dict)
    monkeypatch.setenv(session.STOP_FILE, str(tmp_path))  # it is there
    assert ready.suggest("trial 1") is None
    ready.on_trial_complete("trial 0", {"finished": 0.0, "preempted": 1.0})
    assert ready.suggest("trial 1") == Searcher.FINISHED


def test_only_what_a_rank_raised_itself_is_an_error_of_the_run() -> None:
    def wrapped(error: BaseException) -> Exception:
        return UserExceptionWithTraceback(error, "")

    for gone in (ray.exceptions.ActorDiedError(), WorkerHealthCheckFailedError("", OSError())):
        lost = {0: wrapped(PeerLost("gloo")), 1: gone}
        assert not list(errors_of_ranks(train.WorkerGroupError("", lost)))
    own = {0: wrapped(PeerLost("gloo")), 1: wrapped(MemoryError("CUDA"))}
    assert [str(e) for e in errors_of_ranks(train.WorkerGroupError("", own))] == ["CUDA"]


def test_a_run_whose_reason_found_no_room_is_offered_again_but_not_for_ever(plan: Plan) -> None:
    """On a full disk neither a result nor an error can be written."""
    ready = ReadyRuns(plan, False, Path(), lambda: ROOM)
    config = ready.suggest("trial 0")
    assert isinstance(config, dict)
    first = config["folder"]
    for trial in range(SILENT_AT_MOST):
        ready.on_trial_complete(f"trial {trial}", {"finished": 0.0})
        again = ready.suggest(f"trial {trial + 1}")
        assert isinstance(again, dict)
        assert again["folder"] == first
    ready.on_trial_complete(f"trial {SILENT_AT_MOST}", {"finished": 0.0})
    following = ready.suggest("later")
    assert isinstance(following, dict)
    assert following["folder"] != first
