"""The tiny study, and its runs without Ray."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fewscan.experiments.devices import Devices
from fewscan.experiments.stages import run_stage
from fewscan.harness.plan import Plan, PlannedRun


def tiny_values(store_path: Path, folder: Path) -> dict[str, Any]:
    """Its study file as plain values, for a folder of its own."""
    training = {
        "iterations": 4,
        "validate_every": 2,
        "batch_size": 4,
        "lr": 0.01,
        "precision": "fp32",
    }
    scheme = {"kind": "denoise", "noise": {"resolution": 4}}
    return {
        "name": "tiny",
        "store": str(store_path),
        "folder": str(folder),
        "network": {"width": 4, "depth": 2},
        "pretrain": {"denoise": {"scheme": scheme, "training": dict(training)}},
        "finetune": {
            "label_counts": [1, "all"],
            "seeds": [0],
            "inits": ["scratch", "denoise"],
            "training": dict(training),
        },
        "resources": {"device": "cpu", "checkpoint_every_s": 0.0},
    }


def run_in_process(plan: Plan, runs: Sequence[PlannedRun]) -> None:
    """Run these, trainings and scores, in this order: a plan has parents before children."""
    every_s = plan.study.resources.system_metrics_every_s
    for run in runs:
        folder = plan.folder_of(run)
        plan.record(run).write(folder)
        run_stage(folder, Devices(checkpoint_every_s=0.0, sample_every_s=every_s))
