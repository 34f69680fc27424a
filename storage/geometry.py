"""How slices lie in a scan, and how a slice becomes the square that networks see, and back.

A slice keeps its aspect: its longer side, in millimetres, fills the square; the other side is
centred, with zeros on both sides of it. A slice that is as high as it is wide, such as those of
BraTS, fills the square.

Letters: X, Y, Z the scan's own axes; H and W rows and columns of a slice, Z the slices: the scan's
axes with the one through the slices moved to the end, the others in their order, none flipped.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

Plane = Literal["sagittal", "coronal", "axial"]
PLANES: tuple[Plane, ...] = ("sagittal", "coronal", "axial")
"""slices across the patient's left-right, back-front and feet-head axis"""
Axis = int | Plane
"""the axis of the array that runs through the slices, or how the slices lie in the patient"""
_CLEARLY_LARGER = 1.01


def slice_axis(axis: Axis, affine: np.ndarray) -> int:
    """The axis of the array that runs through the slices, of a scan with this affine."""
    if isinstance(axis, int):
        return axis
    directions = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    return int(np.abs(directions[PLANES.index(axis)]).argmax())


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
