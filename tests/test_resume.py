"""Kill a sweep with all its processes, again and again: nothing is lost, nothing is doubled."""

import hashlib
import random
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from mlflow import MlflowClient
from tiny import run_in_process

from fewscan.harness.loading import load_plan
from fewscan.harness.plan import Plan

KILLS = 1
DEADLINE_S = 240


@pytest.fixture
def document(tiny_document: dict[str, Any]) -> dict[str, Any]:
    """Long enough to be disturbed three times, with a checkpoint after every step."""
    for training in (
        tiny_document["pretrain"]["denoise"]["training"],
        tiny_document["finetune"]["training"],
    ):
        training |= {"iterations": 150, "validate_every": 25}
    tiny_document["finetune"] |= {"label_counts": [1], "targets": ["multiclass"]}
    tiny_document["baselines"] = ["unsupervised"]
    tiny_document["evaluation"] = {"nsd_tolerance_mm": None}  # MONAI takes seconds to load
    return tiny_document


def start_sweep(study: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "fewscan.harness.cli", "sweep", str(study)]
    with study.with_suffix(".log").open("ab") as log:
        return subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)


def kill_everything(sweep: subprocess.Popen[bytes]) -> None:
    """SIGKILL to the driver, Ray and the trials, in no order."""
    family = [*psutil.Process(sweep.pid).children(recursive=True), psutil.Process(sweep.pid)]
    random.shuffle(family)
    for process in family:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue
    sweep.wait()
    psutil.wait_procs(family, timeout=30)


def kill_one(sweep: subprocess.Popen[bytes], is_victim: Callable[[psutil.Process], bool]) -> None:
    """SIGKILL to one process of the sweep, as a kernel without memory does."""
    deadline = time.monotonic() + DEADLINE_S
    while time.monotonic() < deadline:
        for process in psutil.Process(sweep.pid).children(recursive=True):
            with suppress(psutil.Error):
                if is_victim(process):
                    process.kill()
                    return
        time.sleep(0.05)
    raise AssertionError("there was none")


def is_a_trial(process: psutil.Process) -> bool:
    words = " ".join(process.cmdline())
    return words.startswith("ray::") and ".train" in words


def is_raylet(process: psutil.Process) -> bool:
    return process.name() == "raylet"


def one_line(path: Path) -> str:
    return " ".join(path.read_text().split())


def wait_until_said(words: str, log: Path) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while words not in one_line(log):
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.05)


def wait_until_beyond(steps: int, plan: Plan, sweep: subprocess.Popen[bytes], study: Path) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while sum(committed_steps(plan).values()) <= steps:
        log = study.with_suffix(".log").read_text()
        assert sweep.poll() is None, log
        assert time.monotonic() < deadline, log
        time.sleep(0.05)


def results(plan: Plan) -> dict[str, bytes]:
    return {run.name: plan.folder_of(run).result.read_bytes() for run in plan.runs}


def committed_steps(plan: Plan) -> dict[str, int]:
    """Run → the step of the last event in its folder."""
    return {
        run.run_id: max([0, *(e.step for e in plan.folder_of(run).committed_events())])
        for run in plan.runs
    }


def check_mlflow(plan: Plan) -> None:
    """One finished run per spec, and no step twice."""
    client = MlflowClient(f"sqlite:///{plan.folder.mlflow_database}")
    experiment = client.get_experiment_by_name(plan.study.name)
    runs = client.search_runs([experiment.experiment_id])
    children = [run for run in runs if "mlflow.parentRunId" in run.data.tags]
    assert len(runs) == len(children) + 1
    ids = sorted(run.data.tags["fewscan.run_id"] for run in children)
    assert ids == sorted(run.run_id for run in plan.runs)
    assert {run.info.status for run in runs} == {"FINISHED"}
    for run in children:
        if run.data.params["stage"] != "score":
            history = client.get_metric_history(run.info.run_id, "learning/train_loss")
            assert [metric.step for metric in history] == [25, 50, 75, 100, 125, 150]


def check_shared_slices(plan: Plan) -> None:
    """All runs trained from slices that were decoded once, and those are gone with the sweep."""
    digest = hashlib.sha256(str(plan.folder.path).encode()).hexdigest()[:8]
    trained = [run for run in plan.runs if run.kind in ("pretrain", "finetune")]
    for run in trained:
        started = [e for e in plan.folder_of(run).committed_events() if e.kind == "started"]
        assert all(
            e.attempt["slices"].startswith("shared: ") and digest in e.attempt["slices"]
            for e in started
        )
    assert not [*Path("/dev/shm").glob(f"*{digest}*"), *Path("/tmp").glob(f"*{digest}*")]


@pytest.mark.usefixtures("made_database")
def test_a_killed_sweep_goes_on_and_ends_with_the_same_bits(
    document: dict[str, Any], tmp_path: Path
) -> None:
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump(document))
    plan = load_plan(path)
    finished: set[str] = set()
    for kill in range(KILLS):
        before = sum(committed_steps(plan).values())
        sweep = start_sweep(path)
        wait_until_beyond(before, plan, sweep, path)
        time.sleep(random.uniform(0, 1.0))
        kill_everything(sweep)
        still = {run.run_id for run in plan.runs if plan.folder_of(run).result.exists()}
        assert finished <= still, "a finished run stays finished"
        finished = still
        assert len(finished) < len(plan.runs), f"kill {kill} came after the end"
    sweep = start_sweep(path)
    said = path.with_suffix(".log")
    for victim, words in {
        is_a_trial: "its process was killed, for lack of memory, or by a crash; it goes on, try",
        is_raylet: "Ray's raylet has died; the sweep begins again where it was",
    }.items():
        before = sum(committed_steps(plan).values())
        wait_until_beyond(before, plan, sweep, path)
        kill_one(sweep, victim)
        wait_until_said(words, said)  # on a busy machine the second death hides the first
    assert sweep.wait(timeout=DEADLINE_S) == 0, said.read_text()
    assert "Traceback" not in said.read_text()

    undisturbed = load_plan(path, (f"folder={tmp_path / 'undisturbed'}",))
    run_in_process(undisturbed, undisturbed.runs)
    assert results(plan) == results(undisturbed)
    check_mlflow(plan)
    assert not list(tmp_path.rglob("*.partial"))
    check_shared_slices(plan)
