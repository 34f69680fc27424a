"""The tiny study, its scans, and its runs without Ray."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fewscan.experiments.devices import Devices
from fewscan.experiments.stages import run_stage
from fewscan.harness.plan import Plan, PlannedRun
from fewscan.storage.nifti import write_nifti

SHAPE = (20, 20, 6)
AFFINE = np.diag([-1.0, -1.0, 1.0, 1.0])


def write_tiny_scan(folder: Path, index: int) -> None:
    """A BraTS-2021-shaped subject of 20×20×6 voxels: a ball of tissue, a lesion in three slices."""
    rng = np.random.default_rng(index)
    name = f"BraTS2021_{index:05d}"
    rows, columns = np.meshgrid(np.arange(20) - 9.5, np.arange(20) - 9.5, indexing="ij")
    brain = (rows**2 + columns**2 < 80)[..., None] & np.ones(SHAPE, bool)
    labels = np.zeros(SHAPE, np.uint8)
    row, column = rng.integers(5, 11, 2)
    labels[row : row + 5, column : column + 5, 2:5] = 2
    labels[row + 1 : row + 4, column + 1 : column + 4, 2:5] = 4
    labels[row + 2, column + 2, 2:5] = 1
    labels[~brain] = 0
    (folder / name).mkdir(parents=True)
    for modality, gain in (("flair", 3), ("t1", -1), ("t1ce", 2), ("t2", 3)):
        image = 500 + 60 * rng.standard_normal(SHAPE) + 100 * gain * (labels > 0)
        image = np.where(brain, image.clip(1), 0).astype(np.int16)
        write_nifti(folder / name / f"{name}_{modality}.nii.gz", image, AFFINE)
    write_nifti(folder / name / f"{name}_seg.nii.gz", labels, AFFINE)


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
