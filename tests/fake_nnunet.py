"""A tiny nnU-Net raw data set: two channels, two classes, thick slices along the second axis."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fewscan.storage.nifti import read_nifti, write_nifti

SHAPE_XYZ = (20, 6, 28)
AFFINE = np.array([[-1.5, 0, 0, 14], [0, -4, 0, 10], [0, 0, 1, -14], [0, 0, 0, 1]], float)
DESCRIPTION: dict[str, Any] = {
    "channel_names": {"0": "T2", "1": "CT"},
    "labels": {"background": 0, "whole gland (outer)": 1, "tumour": 2},
    "numTraining": 0,
    "file_ending": ".nii.gz",
}


def fake_case(seed: int) -> tuple[list[np.ndarray], np.ndarray]:
    """Two channels of an ellipsoid, the second with air at −1000; labels that spare some slices."""
    rng = np.random.default_rng(seed)
    place = np.moveaxis(np.indices(SHAPE_XYZ), 0, -1) / (np.array(SHAPE_XYZ) - 1) * 2 - 1
    body = (place**2).sum(-1) < 0.95
    centre = np.array([0.1, 0.3, 0.0]) + rng.uniform(-0.15, 0.15, 3)
    distance = np.linalg.norm(place - centre, axis=-1)
    labels = (np.select([distance < 0.25, distance < 0.5], [2, 1], 0) * body).astype(np.uint8)
    t2 = body * (400 + 40 * rng.standard_normal(SHAPE_XYZ) + 150 * labels)
    ct = np.where(body, 40 + 10 * rng.standard_normal(SHAPE_XYZ) - 60 * labels, -1000)
    return [t2.astype(np.int16), ct.astype(np.int16)], labels


def write_simplest(folder: Path, cases: int) -> list[str]:
    """The same with its first channel alone, and one class: any lesion."""
    labels = {"background": 0, "lesion": 1}
    ids = write_nnunet(folder, cases, channel_names={"0": "T2"}, labels=labels)
    for case in ids:
        (folder / "imagesTr" / f"{case}_0001.nii.gz").unlink()
        path = folder / "labelsTr" / f"{case}.nii.gz"
        write_nifti(path, (read_nifti(path).voxels_XYZ > 0).astype(np.uint8), AFFINE)
    return ids


def write_nnunet(folder: Path, cases: int, **changes: Any) -> list[str]:
    """Write `cases` cases and the description with `changes`; return the ids."""
    ids = [f"case_{number:03d}" for number in range(cases)]
    write_cases(folder, ids, **changes)
    return ids


def write_cases(folder: Path, ids: Sequence[str], **changes: Any) -> None:
    """The same with these ids."""
    for name in ("imagesTr", "labelsTr"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for seed, case in enumerate(ids):
        channels, labels = fake_case(seed)
        for k, voxels in enumerate(channels):
            write_nifti(folder / "imagesTr" / f"{case}_{k:04d}.nii.gz", voxels, AFFINE)
        write_nifti(folder / "labelsTr" / f"{case}.nii.gz", labels, AFFINE)
    description = {**DESCRIPTION, "numTraining": len(ids), **changes}
    (folder / "dataset.json").write_text(json.dumps(description))
