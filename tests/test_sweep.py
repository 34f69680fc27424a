"""Sweeps through Ray, from the command line: DDP, failures, what a person reads."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from whole_sweep import NICENESS, WholeSweep

from fewscan.experiments.devices import Devices
from fewscan.experiments.stages import run_stage
from fewscan.harness.loading import load_plan
from fewscan.harness.plan import Plan
from fewscan.harness.schedule import run_all
from fewscan.storage.errors import StudyError
from fewscan.storage.runs import RunFolder


def fewscan(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "fewscan.harness.cli", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=500, check=False)


def write_study(document: dict[str, Any], folder: Path) -> tuple[Path, Plan]:
    document["evaluation"] = {
        "nsd_tolerance_mm": None
    }  # MONAI takes seconds to load, in each process
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump(document))
    return path, load_plan(path)


def result_alone(plan: Plan, index: int, folder: Path) -> dict[str, Any]:
    """The result of a run of the plan in this process, on one device."""
    run = plan.runs[index]
    alone = RunFolder(folder / "alone" / run.run_id)
    plan.record(run).write(alone)
    run_stage(alone, Devices())
    return alone.read_result()


@pytest.mark.usefixtures("made_database")
def test_a_failed_run_is_named_and_stops_nobody_else(
    tiny_document: dict[str, Any], tmp_path: Path
) -> None:
    """The pre-training diverges: its children are blocked, the others finish; then it is fixed.

    And goes through Ray Train on two CPU ranks, which gives the losses of one.
    """
    training = tiny_document["pretrain"]["denoise"]["training"]
    training |= {"lr": 1e30, "clip_norm": 1e30}
    tiny_document["finetune"] |= {"label_counts": [1], "targets": ["binary"]}
    tiny_document["baselines"] = ["unsupervised"]
    path, plan = write_study(tiny_document, tmp_path)
    done = fewscan("sweep", path)
    assert done.returncode == 1
    assert "failed: " in done.stderr
    assert "not finite at step" in done.stderr
    assert done.stderr.count("blocked by a failed parent") == 3
    states = {run.name: plan.folder_of(run).state() for run in plan.runs}
    assert states["pre-train denoise"] == "failed"
    assert states["score binary · scratch · 1 scan · seed 0"] == "finished"
    shown = fewscan("status", path)
    assert "lower the learning rate" in shown.stdout

    training |= {"lr": 0.01, "clip_norm": 0.5, "precision": "fp64"}
    tiny_document["resources"]["pretrain"] = {"devices": 2}
    path, plan = write_study(tiny_document, tmp_path)
    done = fewscan("sweep", path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "figure.png" in done.stdout.replace("\n", "")
    folder = plan.folder_of(plan.runs[0])
    started = [e for e in folder.committed_events() if e.kind == "started"]
    assert started[-1].attempt["ranks"] == 2
    found, expected = folder.read_result(), result_alone(plan, 0, tmp_path)
    assert found["best_step"] == expected["best_step"]
    assert found["validation_loss"] == pytest.approx(expected["validation_loss"], rel=1e-9)
    for name in ("figure.png", "figure.pdf", "figure.csv", "numbers.csv"):
        assert (plan.folder.report / name).stat().st_size > 0
    results = [json.loads(plan.folder_of(run).result.read_text()) for run in plan.runs]
    assert len(results) == 6


@pytest.mark.usefixtures("made_database")
def test_cuda_asked_for_and_absent(tiny_document: dict[str, Any], tmp_path: Path) -> None:
    tiny_document["resources"]["device"] = "cuda"
    path, _ = write_study(tiny_document, tmp_path)
    done = fewscan("sweep", path)
    assert done.returncode == 1
    assert "CUDA was asked for, and torch" in done.stderr
    assert "remedy: set resources.device to auto or cpu" in done.stderr
    assert "Traceback" not in done.stderr


def test_what_no_machine_like_this_has_is_refused(
    tiny_document: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny_document["resources"]["finetune"] = {"cpus": 10_000}
    _, plan = write_study(tiny_document, tmp_path)
    monkeypatch.setattr("ray.cluster_resources", lambda: {"CPU": 64.0})
    with pytest.raises(StudyError, match=r"asks for 10000 CPU, and there are 64: it would wait"):
        run_all(plan, tmp_path)


def test_runs_are_as_nice_as_the_study_asks(whole_sweep: WholeSweep) -> None:
    own = os.getpriority(os.PRIO_PROCESS, 0)
    assert max(NICENESS, own) in whole_sweep.niceness.values()
