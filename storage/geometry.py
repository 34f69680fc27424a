"""How slices lie in a scan, and how a slice becomes the square that networks see, and back.

A slice keeps its aspect: its longer side, in millimetres, fills the square; the other side is
centred, with zeros on both sides of it. A slice that is as high as it is wide, such as those of
BraTS, fills the square.

Letters: X, Y, Z the scan's own axes; H and W rows and columns of a slice, Z the slices: the scan's
axes with the one through the slices moved to the end, the others in their order, none flipped.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

Plane = Literal["sagittal", "coronal", "axial"]
PLANES: tuple[Plane, ...] = ("sagittal", "coronal", "axial")
"""slices across the patient's left-right, back-front and feet-head axis"""
Axis = int | Plane
"""the axis of the array that runs through the slices, or how the slices lie in the patient"""
_PLUS, _MINUS = "RAS", "LPI"
_CLEARLY_LARGER = 1.01


def slice_axis(axis: Axis, affine: np.ndarray) -> int:
    """The axis of the array that runs through the slices, of a scan with this affine."""
    if isinstance(axis, int):
        return axis
    letters = _PLUS[PLANES.index(axis)] + _MINUS[PLANES.index(axis)]
    return next(k for k, letter in enumerate(orientation(affine)) if letter in letters)


def orientation(affine: np.ndarray) -> str:
    """Where each axis of the array points: "LPS" is to the patient's left, back and head.

    Of an oblique scan the nearest directions, each once.
    """
    directions = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    closeness = np.abs(directions)
    letters = ["", "", ""]
    for _ in range(3):
        patient, array = np.unravel_index(closeness.argmax(), (3, 3))
        letters[array] = (_PLUS if directions[patient, array] > 0 else _MINUS)[patient]
        closeness[patient] = closeness[:, array] = -1
    return "".join(letters)


@dataclass(frozen=True)
class Turn:
    """From one orientation of an array to another: axes permuted and flipped, nothing resampled."""

    axes: tuple[int, ...]
    """which axis becomes the first, second and third"""
    flipped: tuple[int, ...]
    """of the new axes"""

    @classmethod
    def between(cls, old: str, new: str) -> "Turn":
        """From orientation to orientation, as `orientation` names them."""
        opposite = dict(zip(_PLUS + _MINUS, _MINUS + _PLUS, strict=True))
        axes = tuple(old.index(k) if k in old else old.index(opposite[k]) for k in new)
        return cls(axes, tuple(k for k, letter in enumerate(new) if letter not in old))

    @property
    def changes_nothing(self) -> bool:
        """Whether both orientations are the same."""
        return self.axes == (0, 1, 2) and not self.flipped

    def shape(self, shape_XYZ: Sequence[int]) -> tuple[int, ...]:
        """Of the turned volume, from that of a volume."""
        return tuple(shape_XYZ[axis] for axis in self.axes)

    def there(self, volume: np.ndarray) -> np.ndarray:
        """A view of the volume, turned."""
        return np.flip(volume.transpose(self.axes), self.flipped)

    def back(self, volume: np.ndarray) -> np.ndarray:
        """The inverse of `there`; axes after the third stay."""
        extra = range(3, volume.ndim)
        inverse = [self.axes.index(k) for k in range(3)]
        return np.flip(volume, self.flipped).transpose(*inverse, *extra)

    def affine(self, affine: np.ndarray, shape_XYZ: Sequence[int]) -> np.ndarray:
        """Of the turned volume, from that of a volume of this shape."""
        old_of_new = np.zeros((4, 4))
        old_of_new[3, 3] = 1
        for new, old in enumerate(self.axes):
            old_of_new[old, new] = -1 if new in self.flipped else 1
            old_of_new[old, 3] = shape_XYZ[old] - 1 if new in self.flipped else 0
        return affine @ old_of_new


def single_slice_axis(shape_XYZ: Sequence[int]) -> int | None:
    """The axis of length 1, if there is exactly one: the image is a single slice across it."""
    found = [axis for axis, length in enumerate(shape_XYZ) if length == 1]
    return found[0] if len(found) == 1 else None


def usual_axis(shapes_XYZ: Sequence[Sequence[int]], spacings_mm: Sequence[Sequence[float]]) -> int:
    """The axis through the slices that suits scans of these shapes and spacings.

    If most are a single slice, the axis of length 1 that is the most frequent; else that with the
    largest voxels in the median scan; the third unless another clearly is.
    """
    singles = Counter(single_slice_axis(shape) for shape in shapes_XYZ)
    if 2 * singles[None] < len(shapes_XYZ):
        del singles[None]
        axis: int | None = singles.most_common(1)[0][0]
        assert axis is not None
        return axis
    return thickest_axis(spacings_mm)


def thickest_axis(spacings_mm: Sequence[Sequence[float]]) -> int:
    """The axis with the largest voxels in the median scan; the third unless another clearly is."""
    if not spacings_mm:
        return 2
    median_mm = np.median(spacings_mm, axis=0)
    largest = int(median_mm.argmax())
    return largest if median_mm[largest] > _CLEARLY_LARGER * median_mm[2] else 2


@dataclass(frozen=True)
class Frame:
    """Where the slices of one scan lie in the squares of `size` x `size` that networks see."""

    axis: int
    """of the scan's array, through the slices"""
    shape_HW: tuple[int, int]
    """of a slice of the scan"""
    inner_HW: tuple[int, int]
    """what it is scaled to"""
    size: int
    """rows and columns of the square around that"""

    @classmethod
    def of(
        cls, shape_XYZ: Sequence[int], spacing_mm: Sequence[float], axis: int, size: int
    ) -> "Frame":
        """The frame of a scan."""
        (height, row_mm), (width, column_mm) = (
            (shape_XYZ[k], spacing_mm[k]) for k in range(3) if k != axis
        )
        sides_mm = height * row_mm, width * column_mm
        scale = size / max(sides_mm)
        inner = [max(1, round(side * scale)) for side in sides_mm]
        return cls(axis, (height, width), (inner[0], inner[1]), size)

    @property
    def window(self) -> tuple[slice, slice]:
        """Rows and columns of the square that the slice fills."""
        corners = [(self.size - length) // 2 for length in self.inner_HW]
        rows, columns = (slice(c, c + n) for c, n in zip(corners, self.inner_HW, strict=True))
        return rows, columns

    def spacing_mm(self, scan_mm: Sequence[float]) -> tuple[float, float, float]:
        """Distance between slices, and between rows and columns of the square.

        `scan_mm` is the scan's own spacing along X, Y, Z.
        """
        plane_mm = [scan_mm[k] for k in range(3) if k != self.axis]
        row, column = (
            mm * of / to for mm, of, to in zip(plane_mm, self.shape_HW, self.inner_HW, strict=True)
        )
        return scan_mm[self.axis], row, column

    def as_slices(self, volume_XYZ: np.ndarray) -> np.ndarray:
        """A view of a volume of the scan with the axis through the slices at the end."""
        return np.moveaxis(volume_XYZ, self.axis, 2)

    def as_volume(self, volume_HWZ: np.ndarray) -> np.ndarray:
        """The inverse of `as_slices`."""
        return np.moveaxis(volume_HWZ, 2, self.axis)
