"""Scans: read, and checked for whether their files fit together.

Any number of channels and classes, any grid; which files they are is known by the `conventions`.

Letters: X, Y, Z the array's own axes.
"""

import itertools
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fewscan.storage.catalog import ScanFiles
from fewscan.storage.errors import ScanError
from fewscan.storage.images import read_channels, read_labels
from fewscan.storage.labels import IGNORED
from fewscan.storage.nifti import Volume


@dataclass(frozen=True, eq=False)
class Scan:
    """One subject's images and labels, on one grid."""

    channels_XYZ: tuple[np.ndarray, ...]
    """one array a channel, in the file's own type"""
    labels_XYZ: np.ndarray | None
    """uint8: 0 outside, k in the k-th class, `IGNORED` where the truth is not known"""
    affine: np.ndarray
    """(4, 4) float64, voxel index → millimetres"""
    spacing_mm: tuple[float, float, float]
    """voxel size along X, Y, Z"""


def read_scan(files: ScanFiles) -> Scan:
    """Read a subject's files; the labels too if there is a file of them.

    Raises `ScanError` if a file is damaged, the grids differ, a channel is empty or not finite, or
    a label value is unknown.
    """
    volumes = read_channels(files)
    for path, volume in zip(files.channel_files, volumes, strict=True):
        _require_grid(volume, path, volumes[0], files.channel_files[0])
        _require_content(volume.voxels_XYZ, path)
    labels_XYZ = None
    if files.label_file is not None:
        labels = read_labels(files.label_file)
        _require_grid(labels, files.label_file, volumes[0], files.channel_files[0])
        labels_XYZ = _class_indices(labels.voxels_XYZ, files)
    channels_XYZ = tuple(volume.voxels_XYZ for volume in volumes)
    return Scan(channels_XYZ, labels_XYZ, volumes[0].affine, volumes[0].spacing_mm)


def _require_grid(volume: Volume, path: Path, first: Volume, first_path: Path) -> None:
    shape, first_shape = volume.voxels_XYZ.shape, first.voxels_XYZ.shape
    remedy = "resample the files of this subject to one grid"
    if shape != first_shape:
        expected = f"{first_shape}, as in {first_path.name}"
        raise ScanError(f"shape {shape}", where=path, expected=expected, remedy=remedy)
    if not np.allclose(volume.affine, first.affine, rtol=0, atol=1e-3):
        found = f"voxels up to {_farthest_mm(volume, first):.3g} mm from those of {first_path.name}"
        expected = f"the affine {_rounded(first.affine)}, not {_rounded(volume.affine)}"
        raise ScanError(found, where=path, expected=expected, remedy=remedy)


def _farthest_mm(volume: Volume, first: Volume) -> float:
    """Largest distance between voxels of the same index: at a corner, the maps being affine."""
    shape = volume.voxels_XYZ.shape
    corners_8 = np.array([(*c, 1) for c in itertools.product(*((0, n - 1) for n in shape))])
    apart_mm = corners_8 @ (volume.affine - first.affine).T
    return float(np.linalg.norm(apart_mm[:, :3], axis=1).max())


def _rounded(affine: np.ndarray) -> list[list[float]]:
    rows: list[list[float]] = np.round(affine[:3], 4).tolist()
    return rows


def _require_content(voxels_XYZ: np.ndarray, path: Path) -> None:
    if voxels_XYZ.dtype.kind == "f" and not np.isfinite(voxels_XYZ).all():
        count = int(np.count_nonzero(~np.isfinite(voxels_XYZ)))
        expected, remedy = "finite voxels", "repair or download the file again"
        raise ScanError(
            f"{count} NaN or infinite voxels", where=path, expected=expected, remedy=remedy
        )
    if voxels_XYZ.max() == voxels_XYZ.min():
        raise ScanError(
            f"every voxel is {voxels_XYZ.flat[0]:g}: an empty image",
            where=path,
            expected="an image",
            remedy="download the file again",
        )


def _class_indices(values_XYZ: np.ndarray, files: ScanFiles) -> np.ndarray:
    """Label values of the file → 0, 1..K."""
    flat = values_XYZ.ravel(order="K")
    index_of = {value: index for index, value in enumerate(files.label_values, start=1)}
    index_of |= {value: index_of[meant] for value, meant in files.aliases}
    if files.ignore_value is not None:
        index_of[files.ignore_value] = IGNORED
    unknown = set(np.unique(flat[flat != 0]).tolist()) - set(index_of)
    if unknown:
        raise ScanError(
            f"label values {sorted(unknown)}",
            where=files.label_file,
            expected=f"0 and {files.label_values}, as {files.naming} has them",
            remedy="map the labels, or name the files like the data set whose labels they have",
        )
    classes_XYZ = np.zeros_like(values_XYZ, dtype=np.uint8)
    for value, index in index_of.items():
        classes_XYZ[values_XYZ == value] = index
    return classes_XYZ
