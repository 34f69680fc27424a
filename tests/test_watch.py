"""A sweep's view of its runs equals a look at all of them, and looks at few."""

import io
import random
import threading
import time
from collections.abc import Callable

import pytest
from rich.console import Console

from fewscan.harness.plan import Plan
from fewscan.harness.planner import make_plan
from fewscan.harness.status import read_status
from fewscan.harness.study import Study
from fewscan.harness.sweep import MlflowUpdates, Watch, watched
from fewscan.slurm.session import Session
from fewscan.storage.atomic import write_json
from fewscan.storage.runs import RunFolder


def test_the_incremental_status_is_the_full_one(tiny_study: Callable[..., Study]) -> None:
    plan = make_plan(tiny_study())
    numbers = random.Random(1)
    left_running = plan.folder_of(plan.runs[1])
    plan.record(plan.runs[1]).write(left_running)
    left_running.beat(1, 4)
    watch = Watch(read_status(plan))
    waiting, under_way = list(plan.runs), []
    for _ in range(100):
        if waiting and numbers.random() < 0.3:
            run = waiting.pop(0)
            plan.record(run).write(plan.folder_of(run))
            plan.folder_of(run).error.unlink(missing_ok=True)
            watch.on_offer(run.run_id)
            under_way.append(run)
        for run in list(under_way):
            if change(plan.folder_of(run), numbers):
                under_way.remove(run)
                waiting += [run] if plan.folder_of(run).state() == "failed" else []
        assert watch.look() == read_status(plan)


def change(folder: RunFolder, numbers: random.Random) -> bool:
    """Something that happens to a run; whether it is over."""
    what = numbers.random()
    if what < 0.5:
        folder.append_event("started", step=0)
        folder.beat(numbers.randrange(4), 4)
    elif what < 0.6:
        folder.progress.unlink(missing_ok=True)
    elif what < 0.7:
        folder.fail(ValueError("no"))
        return True
    elif what < 0.8:
        write_json(folder.result, {"validation_loss": 0.5})
        return True
    return False


def test_only_runs_that_may_have_changed_are_looked_at(
    tiny_study: Callable[..., Study], monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = make_plan(tiny_study())
    watch = Watch(read_status(plan))
    asked: list[str] = []
    state = RunFolder.state
    monkeypatch.setattr(RunFolder, "state", lambda f: (asked.append(f.run_id), state(f))[1])
    watch.look()
    assert asked == []
    first, second = plan.runs[0].run_id, plan.runs[1].run_id
    watch.on_offer(first)
    watch.on_offer(second)
    write_json(made(plan, first).result, {})
    watch.look()
    assert sorted(asked) == sorted([first, second])
    asked.clear()
    watch.look()
    assert asked == [second], "a finished run is not looked at again"


def made(plan: Plan, run_id: str) -> RunFolder:
    folder = plan.folder.run(run_id)
    folder.path.mkdir(parents=True)
    return folder


def test_a_slow_server_holds_up_neither_bar_nor_cluster(
    tiny_study: Callable[..., Study], monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = make_plan(tiny_study())
    monkeypatch.setattr("fewscan.harness.sweep.LOOK_EVERY_S", 0.01)
    asked, hung = [], threading.Event()
    monkeypatch.setattr(Session, "ask_for_workers", lambda _, count: asked.append(count))
    view = MlflowUpdates(plan, Console(quiet=True))

    def update() -> None:
        hung.wait(20)

    monkeypatch.setattr(view, "update", update)
    with watched(read_status(plan), Console(quiet=True), view):
        deadline = time.monotonic() + 10
        while len(asked) < 3 and time.monotonic() < deadline:
            time.sleep(0.01)
        looks_meanwhile = len(asked)
        hung.set()
    assert looks_meanwhile >= 3


def test_what_is_waited_for_stands_under_the_bar(
    tiny_study: Callable[..., Study], monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, shown = make_plan(tiny_study()), io.StringIO()
    monkeypatch.setattr("fewscan.harness.sweep.LOOK_EVERY_S", 0.01)
    plan.folder.prepare()
    plan.folder.say_waiting("a run wants 2 CPUs, 1 is free")
    console = Console(file=shown, force_terminal=True, width=160)
    view = MlflowUpdates(plan, console)
    monkeypatch.setattr(view, "update", lambda: None)
    with watched(read_status(plan), console, view) as on_offer:
        time.sleep(0.05)
        assert "waiting" not in shown.getvalue(), "left by a sweep that was killed"
        on_offer(plan.runs[0].run_id)
    assert "waiting: a run wants 2 CPUs, 1 is free" in shown.getvalue()


def test_mlflow_is_not_loaded_before_a_run_is_offered(
    tiny_study: Callable[..., Study], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Until then another thread loads torch, which two threads cannot load at once."""
    view = MlflowUpdates(make_plan(tiny_study()), Console(quiet=True))
    tried: list[object] = []
    monkeypatch.setattr(view, "_try", tried.append)
    view.update()
    assert not tried
    view.on_offer("a run")
    view.update()
    assert len(tried) == 1
