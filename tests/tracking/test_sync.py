"""A study that was made elsewhere, copied into another MLflow: a real server, a real kill."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from fake_folders import free_port, mlflow_server, shown
from mlflow import MlflowClient

from fewscan.harness.loading import load_plan
from fewscan.harness.tracking.tracker import sync


def test_a_sync_that_is_killed_goes_on_and_twice_is_once(
    small_study: Path, empty_database: Path, tmp_path: Path
) -> None:
    plan = load_plan(small_study)
    here, there = (f"sqlite:///{tmp_path / name}" for name in ("here.db", "there.db"))
    for uri in (here, there):
        Path(uri.removeprefix("sqlite:///")).write_bytes(empty_database.read_bytes())
    sync(plan, here)
    port = free_port()
    address = f"http://127.0.0.1:{port}"
    with mlflow_server(there, port):
        command = [sys.executable, "-m", "fewscan.harness.cli", "sync", str(small_study)]
        process = subprocess.Popen([*command, "--to", address])
        wait_for_runs(address, plan.study.name, 4)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert shown(plan, address) != shown(plan, here), "killed too late to test anything"
        sync(plan, address)
        once = shown(plan, address)
        sync(plan, address)
        assert shown(plan, address) == once == shown(plan, here)
    parent = once[""]
    assert parent["status"] == "FINISHED"
    assert "report" in parent["artifacts"]
    assert len(once) == 1 + len(plan.runs)
    assert sum(len(run["models"]) for run in once.values()) == 5


def wait_for_runs(address: str, study: str, count: int) -> None:
    client = MlflowClient(address)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        experiment = client.get_experiment_by_name(study)
        if experiment and len(client.search_runs([experiment.experiment_id])) >= count:
            return
        time.sleep(0.05)
    pytest.fail(f"no {count} runs in two minutes")
