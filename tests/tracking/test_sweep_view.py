"""MLflow under a sweep: a real server that is stopped and started again, one that hangs."""

import io
import shutil
import socket
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from fake_folders import free_port, mlflow_server, shown
from rich.console import Console
from tiny import run_in_process

from fewscan.harness import sweep as sweeping
from fewscan.harness.plan import Plan, PlannedRun
from fewscan.harness.planner import make_plan
from fewscan.harness.study import Study
from fewscan.harness.sweep import sweep
from fewscan.harness.tracking.tracker import Tracker

SOON_S = 0.2


@pytest.fixture
def tiny_plan(
    tiny_study: Callable[..., Study],
    tiny_document: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> Plan:
    """A pre-training, its unsupervised score, two scored fine-tunings; MLflow is looked after
    often."""
    monkeypatch.setattr(sweeping, "LOOK_EVERY_S", SOON_S)
    monkeypatch.setattr(sweeping, "TRY_AGAIN_AFTER_S", SOON_S)
    finetune = tiny_document["finetune"] | {"label_counts": [1], "targets": ["binary"]}
    return make_plan(tiny_study(finetune=finetune, baselines=["unsupervised"]))


def test_a_server_is_stopped_and_started_during_a_sweep(
    tiny_plan: Plan, empty_database: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = free_port()
    address = f"http://127.0.0.1:{port}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    said = io.StringIO()
    databases = [f"sqlite:///{tmp_path / name}" for name in ("served.db", "rebuilt.db")]
    for uri in databases:
        shutil.copy(empty_database, uri.removeprefix("sqlite:///"))
    with ExitStack() as second:

        def run_all(
            plan: Plan, on_offer: Callable[[str], object], stage: object, *_: object
        ) -> None:
            """What Ray does in a sweep, in this process; only the runs' places differ."""
            with mlflow_server(databases[0], port):
                offer(plan, plan.runs[:1], on_offer)
                wait_until(lambda: plan.runs[0].run_id in shown(plan, address))
            offer(plan, plan.runs[1:2], on_offer)
            wait_until(lambda: "MLflow lags behind" in said.getvalue())
            second.enter_context(mlflow_server(databases[0], port))
            offer(plan, plan.runs[2:], on_offer)

        monkeypatch.setattr(sweeping, "_run_on_ray", run_all)
        status = sweep(tiny_plan, Console(file=said))
        assert status.is_finished
        tracker = Tracker(tiny_plan, databases[1])
        tracker.close(finished=True)
        tracker.log_report()
        assert shown(tiny_plan, address) == shown(tiny_plan, databases[1])


def test_a_server_that_hangs_holds_up_neither_the_sweep_nor_its_progress(
    tiny_plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    looks: list[float] = []
    look = sweeping.announce

    def announce(*arguments: object) -> None:
        looks.append(time.monotonic())
        look(*arguments)  # type: ignore[arg-type]

    def run_all(plan: Plan, on_offer: Callable[[str], object], stage: object, *_: object) -> None:
        offer(plan, plan.runs, on_offer)
        wait_until(lambda: "timed out" in said.getvalue())

    said = io.StringIO()
    monkeypatch.setattr(sweeping, "announce", announce)
    monkeypatch.setattr(sweeping, "_run_on_ray", run_all)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        uri = f"http://127.0.0.1:{silent.getsockname()[1]}"
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        status = sweep(tiny_plan, Console(file=said))
    assert status.is_finished
    assert len(looks) > 2, "the progress waited for MLflow"


def offer(plan: Plan, runs: Sequence[PlannedRun], on_offer: Callable[[str], object]) -> None:
    for run in runs:
        on_offer(run.run_id)
        run_in_process(plan, [run])


def wait_until(condition: Callable[[], bool], within_s: float = 120) -> None:
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)
