"""Tiny BraTS-shaped scans for tests: a noisy ellipsoid with a lesion of three classes."""

from pathlib import Path

import numpy as np

from fewscan.storage.nifti import write_nifti

SHAPE_XYZ = (24, 20, 10)
AFFINE = np.diag([-1.0, -1.0, 1.5, 1.0])
PARTS_2021 = ("flair", "t1", "t1ce", "t2")
PARTS_2023 = ("t2f", "t1n", "t1c", "t2w")


def fake_images(
    seed: int, shape_XYZ: tuple[int, int, int] = SHAPE_XYZ
) -> tuple[list[np.ndarray], np.ndarray]:
    """Return four int16 channels and the class index (0..3) of each voxel.

    The outermost slices are empty; the lesion spares the lower half of the others.
    """
    draw = np.random.default_rng(seed)
    place_XYZ3 = np.moveaxis(np.indices(shape_XYZ), 0, -1) / (np.array(shape_XYZ) - 1) * 2 - 1
    brain = (place_XYZ3**2).sum(-1) < 0.95
    channels = [(brain * draw.integers(50, 900, shape_XYZ)).astype(np.int16) for _ in PARTS_2021]
    centre = np.array([0.2, -0.1, 0.4]) + draw.uniform(-0.1, 0.1, 3)
    distance = np.linalg.norm(place_XYZ3 - centre, axis=-1)
    classes = np.select([distance < 0.15, distance < 0.3, distance < 0.4], [1, 3, 2], 0)
    return channels, (classes * brain).astype(np.uint8)


def write_subject(folder: Path, subject: str, seed: int = 0, suffix: str = ".nii.gz") -> Path:
    """Write a subject into `folder/subject`, in BraTS 2023's naming if its id is of that kind."""
    channels, classes = fake_images(seed)
    new = subject.startswith("BraTS-")
    separator, parts, enhancing = ("-", PARTS_2023, 3) if new else ("_", PARTS_2021, 4)
    place = folder / subject
    place.mkdir(parents=True, exist_ok=True)
    for part, voxels in zip(parts, channels, strict=True):
        write_nifti(place / f"{subject}{separator}{part}{suffix}", voxels, AFFINE)
    labels = np.array([0, 1, 2, enhancing], np.uint8)[classes]
    write_nifti(place / f"{subject}{separator}seg{suffix}", labels, AFFINE)
    return place


def write_subjects(folder: Path, count: int) -> list[str]:
    """Write `count` subjects of BraTS 2021's naming; return their ids."""
    ids = [f"BraTS2021_{number:05d}" for number in range(count)]
    for seed, subject in enumerate(ids):
        write_subject(folder, subject, seed)
    return ids
