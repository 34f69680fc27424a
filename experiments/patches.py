"""Patches of volumes, made of the slices that a store has.

An item of a 3D training is a kept slice, as in 2D, so that order, subsets and healthy slices mean
what they do there; what the network sees of it is the patch around it. Along the slices it is
shifted to lie within the kept ones, which have no gaps; where a scan has fewer, zeros are on both
sides. In the plane it lies anywhere in training, and in the middle in validation.

Letters in names: N patches, Z slices of one, M slices of all patches, C channels, H and W rows and
columns.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Generator, Tensor

from fewscan.experiments.spec import Patch
from fewscan.experiments.to_device import sent
from fewscan.storage.slices import patch_starts


@dataclass(frozen=True, eq=False)
class Patches:
    """Where the patches of items lie, among all kept slices of their scans, one behind the other.

    Numbers of slices are int64, on the CPU.
    """

    size: Patch
    plane: tuple[int, int]
    """Rows and columns of a slice."""
    first_N: Tensor
    """The patch's first slice, which may be before the scan's."""
    scan_first_N: Tensor
    """The first slice of its scan."""
    scan_end_N: Tensor
    """The one after its last."""

    @classmethod
    def around(
        cls,
        size: Patch,
        plane: tuple[int, int],
        kept: Sequence[range],
        scans_N: np.ndarray,
        positions_N: np.ndarray,
    ) -> "Patches":
        """Around the slices at these positions of these scans, of which each has `kept` slices.

        Raises ValueError if a patch is larger than a slice.
        """
        if size[1] > plane[0] or size[2] > plane[1]:
            raise ValueError(f"patches of {size[1:]} pixels in slices of {plane}")
        ends = np.cumsum([len(own) for own in kept])
        first_N = np.zeros(len(scans_N), np.int64)
        for scan in np.unique(scans_N):
            where, own = scans_N == scan, kept[scan]
            starts_N = patch_starts(positions_N[where], own, size[0])
            first_N[where] = starts_N - own.start + ends[scan] - len(own)
        of_scan = np.array([len(own) for own in kept], np.int64)[scans_N]
        ends_N = ends[scans_N]
        return cls(size, plane, *map(torch.from_numpy, (first_N, ends_N - of_scan, ends_N)))

    def slices(self, indices: Tensor) -> Tensor:
        """The numbers of all slices of these patches: int64 M; instead of none, one of the scan."""
        numbers_NZ = self._numbers(indices)
        first, last = self.scan_first_N[indices, None], self.scan_end_N[indices, None] - 1
        return numbers_NZ.clamp(first, last).flatten()

    def _numbers(self, indices: Tensor) -> Tensor:
        return self.first_N[indices, None] + torch.arange(self.size[0])

    def cut(
        self,
        images_MCHW: Tensor,
        labels_MHW: Tensor,
        indices: Tensor,
        corners_N2: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Images NCZHW and labels NZHW from the slices of these patches.

        `corners_N2` are the first row and column of each (`corners`); None: they are in the middle.
        """
        depth, rows, columns = self.size
        numbers_NZ = self._numbers(indices)
        is_there_NZ = numbers_NZ >= self.scan_first_N[indices, None]
        is_there_NZ &= numbers_NZ < self.scan_end_N[indices, None]
        images = images_MCHW.unflatten(0, (-1, depth)).transpose(1, 2)
        labels = labels_MHW.unflatten(0, (-1, depth))
        if (rows, columns) != self.plane:
            if corners_N2 is None:
                middle = [(n - m) // 2 for n, m in zip(self.plane, (rows, columns), strict=True)]
                corners_N2 = torch.tensor([middle]).expand(len(indices), 2)
            places = [
                (..., slice(row, row + rows), slice(column, column + columns))
                for row, column in corners_N2.tolist()
            ]
            images = torch.stack([it[place] for it, place in zip(images, places, strict=True)])
            labels = torch.stack([it[place] for it, place in zip(labels, places, strict=True)])
        if not is_there_NZ.all():
            beyond_NZ11 = ~sent(is_there_NZ, images.device)[..., None, None]
            images = images.masked_fill(beyond_NZ11.unsqueeze(1), 0)
            labels = labels.masked_fill(beyond_NZ11, 0)
        return images.contiguous(), labels.contiguous()

    def corners(self, count: int, generator: Generator) -> Tensor | None:
        """Random first rows and columns for so many patches: int64 N2; None if a slice is no
        larger than a patch."""
        free = [n - m for n, m in zip(self.plane, self.size[1:], strict=True)]
        if not any(free):
            return None
        drawn = [torch.randint(n + 1, (count,), generator=generator) for n in free]
        return torch.stack(drawn, dim=1)
