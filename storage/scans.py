"""Scans: read, and checked for whether their files fit together.

Any number of channels and classes, any grid; which files they are is known by the `conventions`.

The files of a scan are on one grid if the headers put their first voxels within 0.05 of a voxel of
each other, and every other one within half a voxel, so that resampling to the nearest voxels would
change nothing. (A rotation that is stored as a quaternion in single precision may be off by 0.3
voxels at the far end of 512.) Label values within 0.001 of a whole number are that number.

Letters: X, Y, Z the array's own axes.
"""

import itertools
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from fewscan.storage.catalog import ScanFiles
from fewscan.storage.errors import DiskFullError, FewscanError, NotWritableError, ScanError
from fewscan.storage.geometry import Turn, orientation
from fewscan.storage.images import read_channels, read_labels
from fewscan.storage.labels import IGNORED, MOST_CLASSES
from fewscan.storage.nifti import Grid, spacing_of

_FIRST_VOXEL_APART, _VOXELS_APART = 0.05, 0.5
_LABEL_ROUNDING = 1e-3
_MOST_SHOWN = 10


@dataclass(frozen=True)
class Assumptions:
    """What had to be assumed about where the voxels of a scan lie, and what was done about it."""

    unit: str = "mm"
    """of the lengths in its files, which are millimetres here"""
    has_orientation: bool = True
    """whether the files say how the patient lies; if not, the array was taken as it is"""
    turned_from: str = ""
    """the orientation that it has in its files, if it was turned to another; see `orientation`"""

    def sentences(self) -> list[str]:
        """For people; nothing to say if all is as usual."""
        said = []
        if self.unit != "mm":
            said.append(f"its lengths are in {self.unit}s, and were made millimetres")
        if not self.has_orientation:
            said.append("its files do not say how the patient lies (codes 0): not turned")
        if self.turned_from:
            said.append(f"stored in the orientation {self.turned_from}: turned")
        return said


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
    class_count: int = 0
    """how many classes there are, whether or not this scan shows them; 0: those that it shows"""
    assumed: Assumptions = Assumptions()

    def turn_to(self, to: str) -> Turn:
        """From its orientation to another; one whose orientation is not known stays as it is."""
        own = orientation(self.affine)
        return Turn.between(own, to if self.assumed.has_orientation else own)

    def turned(self, turn: Turn) -> "Scan":
        """The scan with its axes permuted and flipped, nothing resampled."""
        if turn.changes_nothing:
            return self
        affine = turn.affine(self.affine, self.channels_XYZ[0].shape)
        return replace(
            self,
            channels_XYZ=tuple(turn.there(channel) for channel in self.channels_XYZ),
            labels_XYZ=None if self.labels_XYZ is None else turn.there(self.labels_XYZ),
            affine=affine,
            spacing_mm=spacing_of(affine),
            assumed=replace(self.assumed, turned_from=orientation(self.affine)),
        )


def read_scan(files: ScanFiles) -> Scan:
    """Read a subject's files; the labels too if there is a file of them.

    Raises `ScanError` if a file is damaged, the grids differ, a channel is empty or not finite, a
    label value is unknown, or there are more classes than a byte can tell apart.
    """
    volumes = read_channels(files)
    first, first_path = volumes[0].grid, files.channel_files[0]
    for path, volume in zip(files.channel_files, volumes, strict=True):
        _require_grid(volume.grid, path, first, first_path)
        _require_content(volume.voxels_XYZ, path)
    labels_XYZ = None
    if files.label_file is not None:
        labels = read_labels(files.label_file)
        _require_grid(labels.grid, files.label_file, first, first_path)
        labels_XYZ = _class_indices(labels.voxels_XYZ, files)
    channels_XYZ = tuple(volume.voxels_XYZ for volume in volumes)
    assumed = Assumptions(first.unit, first.has_orientation)
    classes = len(files.label_values)
    return Scan(channels_XYZ, labels_XYZ, first.affine, first.spacing_mm, classes, assumed)


@contextmanager
def told_of_scan(files: ScanFiles) -> Iterator[None]:
    """Make of whatever is raised a `ScanError` that names the scan's file or folder.

    So that no file, however strange, ends the work on others. Full disks and places that cannot be
    written to are no fault of a scan and pass.
    """
    more = " and the other channels" if len(files.channel_files) > 1 else ""
    where = f"{files.channel_files[0]}{more}"
    try:
        yield
    except (DiskFullError, NotWritableError):
        raise
    except FewscanError as error:
        if error.where is not None:
            raise
        raise ScanError(
            error.found,
            where=where,
            expected=error.expected,
            remedy=error.remedy,
        ) from error
    except MemoryError as error:
        raise ScanError(
            "not enough memory for this scan",
            where=where,
            expected="room for all its channels at once",
            remedy="run the same command again with fewer workers, or on a larger machine",
        ) from error
    except Exception as error:
        logging.getLogger(__name__).debug("%s cannot be used", files.id, exc_info=True)
        raise ScanError(
            f"{type(error).__name__} at this scan: {str(error)[:200]}",
            where=where,
            expected="a scan that can be read",
            remedy="look at its files with another program; FEWSCAN_LOG=DEBUG shows more",
        ) from error


def _require_grid(grid: Grid, path: Path, first: Grid, first_path: Path) -> None:
    resample = "resample the files of this subject to one grid"
    if grid.shape != first.shape:
        expected = f"{first.shape}, as in {first_path.name}"
        raise ScanError(f"shape {grid.shape}", where=path, expected=expected, remedy=resample)
    apart_8 = _corners_apart(grid, first)
    if apart_8[0] <= _FIRST_VOXEL_APART and apart_8.max() < _VOXELS_APART:
        return
    copy = f"copy the header of {first_path.name} onto this file (FSL: fslcpgeom)"
    no_header = not grid.has_orientation or np.array_equal(grid.affine, np.eye(4))
    raise ScanError(
        f"voxels up to {_farthest_mm(grid, first):.3g} mm from those of {first_path.name}",
        where=path,
        expected=f"the affine {_rounded(first.affine)}, not {_rounded(grid.affine)}",
        remedy=f"same shape, but a header that says nothing: {copy}"
        if no_header
        else f"{resample}; or, if only the header is wrong, {copy}",
    )


def _corners_apart(grid: Grid, first: Grid) -> np.ndarray:
    """How many voxels lie between the corners of two grids, along the axis where it is most.

    The maps being affine, no voxel is farther off than a corner; the first one is voxel 0, 0, 0.
    """
    moved = np.linalg.inv(first.affine) @ grid.affine - np.eye(4)
    apart_8 = np.abs(_corners(first.shape) @ moved.T)[:, :3]
    return np.asarray(apart_8.max(axis=1))


def _farthest_mm(grid: Grid, first: Grid) -> float:
    """Largest distance between voxels of the same index: at a corner, the maps being affine."""
    apart_mm = _corners(first.shape) @ (grid.affine - first.affine).T
    return float(np.linalg.norm(apart_mm[:, :3], axis=1).max())


def _corners(shape: Sequence[int]) -> np.ndarray:
    """(8, 4): the indices of the corner voxels, and 1."""
    return np.array([(*c, 1) for c in itertools.product(*((0, n - 1) for n in shape))])


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
    if len(files.label_values) > MOST_CLASSES:
        raise ScanError(
            f"{len(files.label_values)} classes",
            where=files.label_file,
            expected=f"at most {MOST_CLASSES}, which a byte a pixel can tell apart",
            remedy="merge classes, or leave out those that are not studied",
        )
    if values_XYZ.dtype.kind == "f":
        values_XYZ = _whole_numbers(values_XYZ)
    flat = values_XYZ.ravel(order="K")
    index_of = {value: index for index, value in enumerate(files.label_values, start=1)}
    index_of |= {value: index_of[meant] for value, meant in files.aliases}
    if files.ignore_value is not None:
        index_of[files.ignore_value] = IGNORED
    unknown = set(np.unique(flat[flat != 0]).tolist()) - set(index_of)
    if unknown:
        raise ScanError(
            f"label values {_some(sorted(unknown))}",
            where=files.label_file,
            expected=f"0 and {_some(files.label_values)}, as {files.naming} has them",
            remedy="say what they mean: `prepare --labels 1=CLASS,2=CLASS,…`; or correct the file",
        )
    classes_XYZ = np.zeros_like(values_XYZ, dtype=np.uint8)
    for value, index in index_of.items():
        classes_XYZ[values_XYZ == value] = index
    return classes_XYZ


def _whole_numbers(values_XYZ: np.ndarray) -> np.ndarray:
    """The values, those that rounding took a little away from a whole number put back there."""
    with np.errstate(invalid="ignore"):  # infinite ones, which are no class
        rounded_XYZ = np.rint(values_XYZ)
        near_XYZ = np.abs(values_XYZ - rounded_XYZ) <= _LABEL_ROUNDING
    return np.where(near_XYZ, rounded_XYZ, values_XYZ)


def _some(values: Sequence[float]) -> str:
    """The first few, and how many there are."""
    shown = ", ".join(f"{value:g}" for value in values[:_MOST_SHOWN])
    return f"[{shown}]" if len(values) <= _MOST_SHOWN else f"[{shown}, …], {len(values)} of them"
