"""Boxes and blocks of so many millimetres in the foreground of slices, for schemes that hide them.

Boxes lie anywhere; blocks are the cells of a grid. Random numbers are drawn on the CPU for the
global batch; where something lies is found out on the device, which knows the foreground.

Letters in names: N images, K boxes of an image, R and S rows and columns of blocks, B all blocks,
C channels, H and W rows and columns of pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from fewscan.experiments.to_device import sent

Pair = tuple[int, int]
Lengths = tuple[float, float]

BLOCK_MM = 15.0
"""Side of a block: 8 pixels of 1.875 mm, a cell of the published network's coarsest map; 16 mm in
nnssl's masked auto-encoder, 15.9 mm between the nodes of the coarse noise."""

GO_ON = 0.95
"""Probability of another box after one, in Models Genesis."""


def pixels_of(length_mm: float, spacing_mm_HW: Sequence[float], size_HW: Sequence[int]) -> Pair:
    """Rows and columns of a square of this side: at least one, at most all."""
    rows, columns = (
        min(max(1, round(length_mm / mm)), size)
        for mm, size in zip(spacing_mm_HW, size_HW, strict=True)
    )
    return rows, columns


def at_most(
    length_mm: float, share: float, spacing_mm_HW: Sequence[float], size_HW: Sequence[int]
) -> Lengths:
    """A length along rows' and columns' axes in pixels, cut to a share of the slice.

    Ours: publications give shares of the slice. A length says the same of a larger slice, and on a
    smaller one, of a small organ, it would leave nothing to restore from.
    """
    rows, columns = (
        min(length_mm / mm, size * share) for mm, size in zip(spacing_mm_HW, size_HW, strict=True)
    )
    return rows, columns


@dataclass(frozen=True)
class Boxes:
    """Boxes whose centres lie in the foreground, wherever it is; small tensors on the CPU."""

    happens_NK: Tensor
    """Whether there is such a box (bool)."""
    centre_NK: Tensor
    """Which pixel of the foreground is its centre, as a share of them in reading order."""
    sides_NK2: Tensor
    """int64 rows and columns."""

    @classmethod
    def drawn(
        cls,
        count: int,
        number: int,
        sides_HW: tuple[Lengths, Lengths],
        generator: Generator,
        certain: int = 0,
    ) -> Boxes:
        """At most `number` for each of `count` images, with sides U(low, high) in pixels.

        After `certain` ones that are always there, each comes with probability 0.95 if the one
        before it has come.
        """
        comes_NK = torch.rand((count, number), generator=generator) < GO_ON
        comes_NK[:, :certain] = True
        centre_NK = torch.rand((count, number), generator=generator)
        low_2, high_2 = torch.tensor(sides_HW).T
        sides = low_2 + (high_2 - low_2) * torch.rand((count, number, 2), generator=generator)
        return cls(comes_NK.cummin(dim=1).values, centre_NK, sides.round().long().clamp(min=1))

    def __getitem__(self, images: slice, /) -> Boxes:
        return Boxes(self.happens_NK[images], self.centre_NK[images], self.sides_NK2[images])

    def covered(self, foreground_NHW: Tensor) -> Tensor:
        """The pixels that some box covers: bool, NHW, also outside the foreground."""
        height, width = foreground_NHW.shape[1:]
        device = foreground_NHW.device
        seen_NP = foreground_NHW.flatten(1).cumsum(dim=1)
        number_NK = (sent(self.centre_NK, device) * seen_NP[:, -1:]).long() + 1
        pixel_NK = torch.searchsorted(seen_NP, number_NK).clamp(max=height * width - 1)
        rows_NK, columns_NK = sent(self.sides_NK2, device).unbind(dim=2)
        inside_NKH = _spans(pixel_NK // width, rows_NK, height)
        inside_NKW = _spans(pixel_NK % width, columns_NK, width)
        inside_NKH = inside_NKH & sent(self.happens_NK, device).unsqueeze(2)
        return (inside_NKH.unsqueeze(3) & inside_NKW.unsqueeze(2)).any(dim=1)


def _spans(centre_NK: Tensor, length_NK: Tensor, size: int) -> Tensor:
    """NK × size: which places lie in an interval about its centre."""
    place = torch.arange(size, device=centre_NK.device)
    first = (centre_NK - length_NK // 2).unsqueeze(2)
    return (place >= first) & (place < first + length_NK.unsqueeze(2))


@dataclass(frozen=True)
class Blocks:
    """A grid over slices: blocks, row by row; those at the border may be cut."""

    block_HW: Pair
    """Pixels of a block."""
    size_HW: Pair
    """Pixels of a slice."""
    offset_HW: Pair = (0, 0)
    """How many pixels the grid begins before the slice; fewer than a block has."""

    @property
    def shape(self) -> Pair:
        """Rows and columns of blocks."""
        rows, columns = (
            -(-(size + offset) // block)
            for block, size, offset in zip(self.block_HW, self.size_HW, self.offset_HW, strict=True)
        )
        return rows, columns

    @property
    def number(self) -> int:
        """Of all blocks."""
        return self.shape[0] * self.shape[1]

    def counted(self, mask_NHW: Tensor) -> Tensor:
        """How many pixels of a mask each block has: counts_NB."""
        (rows, columns), (above, left) = self.shape, self.offset_HW
        (height, width), (size_rows, size_columns) = self.block_HW, self.size_HW
        whole = mask_NHW.new_zeros((len(mask_NHW), rows * height, columns * width))
        whole[:, above : above + size_rows, left : left + size_columns] = mask_NHW
        cells = whole.view(-1, rows, height, columns, width)
        return cells.sum(dim=(2, 4)).flatten(1)

    def whole(self, device: torch.device | str) -> Tensor:
        """whole_B: which blocks the border does not cut."""
        full_NHW = torch.ones((1, *self.size_HW), dtype=torch.bool, device=device)
        whole_B: Tensor = self.counted(full_NHW)[0] == self.block_HW[0] * self.block_HW[1]
        return whole_B

    def spread(self, values_NB: Tensor) -> Tensor:
        """The value of each pixel's block: NHW."""
        rows_NRS = values_NB.unflatten(1, self.shape)
        (above, left), (height, width) = self.offset_HW, self.size_HW
        pixels = rows_NRS.repeat_interleave(self.block_HW[0], dim=1)
        pixels = pixels.repeat_interleave(self.block_HW[1], dim=2)
        inside_NHW: Tensor = pixels[:, above : above + height, left : left + width]
        return inside_NHW

    def quarters(self, device: torch.device | str) -> Tensor:
        """quarter_B: 0 to 3, a checkerboard of 2×2: no neighbours have the same."""
        rows, columns = (torch.arange(n, device=device) % 2 for n in self.shape)
        return (2 * rows[:, None] + columns).flatten()

    def exchanged(self, images_NCHW: Tensor, source_NB: Tensor) -> Tensor:
        """Each block with the content of another, or its own; those that move must be whole."""
        columns, (height, width) = self.shape[1], self.block_HW
        here_B = torch.arange(self.number, device=source_NB.device)
        down_NB = (source_NB // columns - here_B // columns) * height
        right_NB = (source_NB % columns - here_B % columns) * width
        moved_NHW = self.spread(down_NB * self.size_HW[1] + right_NB)
        pixel_NP = torch.arange(moved_NHW[0].numel(), device=source_NB.device) + moved_NHW.flatten(
            1
        )
        channels = images_NCHW.shape[1]
        from_NCP = pixel_NP.unsqueeze(1).expand(-1, channels, -1)
        return images_NCHW.flatten(2).gather(2, from_NCP).view_as(images_NCHW)


def ranks(keys_NB: Tensor, eligible_NB: Tensor) -> tuple[Tensor, Tensor]:
    """The blocks in the order of their keys, those that are not eligible last, and the inverse."""
    order_NB = keys_NB.masked_fill(~eligible_NB, torch.inf).argsort(dim=1, stable=True)
    return order_NB, order_NB.argsort(dim=1)


def uniform(seeds_N: Tensor, shape: tuple[int, ...], like: Tensor) -> Tensor:
    """U(0, 1) of this shape for each image, drawn where `like` is: each image has its own seed."""
    generators = [Generator(like.device).manual_seed(seed) for seed in seeds_N.tolist()]
    drawn = [torch.rand(shape, generator=g, device=like.device) for g in generators]
    return torch.stack(drawn).to(like)


def seeds(count: int, generator: Generator) -> Tensor:
    """int64 seeds for `uniform`."""
    return torch.randint(2**62, (count,), generator=generator)
