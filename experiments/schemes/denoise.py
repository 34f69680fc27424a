"""Denoising auto-encoder: add noise to a slice, coarse or fine, reconstruct the clean one.

Kascenas et al., "Denoising Autoencoders for Unsupervised Anomaly Detection in Brain MRI" (MIDL
2022): Gaussian noise on a coarse grid, interpolated to the slice, so that it looks like lesions
rather than like grain; squared error inside the foreground. Where the output differs from a clean
input the scan is anomalous. In 3D (ours; no constants are published) the grid has an axis through
the slices, too, and interpolation is trilinear.

Letters in names: N images, C channels, R the grid's side, H and W rows and columns of a slice; of
patches HW stands for ZHW.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from fewscan.experiments.schemes.restoration import Restoration
from fewscan.experiments.schemes.scheme import SliceTable
from fewscan.experiments.settings import require_at_least

if TYPE_CHECKING:
    from torch import Generator, Tensor


@dataclass(frozen=True)
class Noise:
    """The noise that the auto-encoder removes.

    Interpolation between nodes that are several pixels apart leaves two thirds of their standard
    deviation (√⅔ an axis; 0.668 from 16 nodes to 128 pixels). Fine noise of the same energy as the
    published coarse one is therefore `{resolution: 128, std: 0.134}` on slices of 128², or on any
    `{pitch_mm: …, std: 0.134}` with the distance between pixels; at the same `std` it would differ
    in energy too. Which σ the publication gave its pixel noise is not known.

    In 3D each axis takes √⅔ of the standard deviation, so that the energy of the published noise is
    that of `std: 0.245` with `pitch_mm: 16` (0.2 · √1.5).
    """

    resolution: int = 16
    """Side of the grid that the noise is drawn on, before it is interpolated to the slice. Through
    the slices of a patch nodes are, in mm, as far apart as along its rows."""
    std: float = 0.2
    """Standard deviation on that grid, in units of the images' 99th percentile."""
    pitch_mm: float | None = None
    """Distance of the grid's nodes instead of their number, so that noise means the same on slices
    of another size and organ: published are 16 mm (15.9). None: as `resolution` says."""

    def __post_init__(self) -> None:
        require_at_least(self, 1, "resolution")
        require_at_least(self, 0, "std", "pitch_mm")
        if self.pitch_mm == 0:
            raise ValueError("pitch_mm is 0, expected a distance")

    def nodes(self, slices: SliceTable) -> tuple[int, ...]:
        """Rows and columns of the grid, slices before them; its corners are centres of pixels, and
        no pixel has two."""
        pitch_mm, plane = self.pitch_mm, (self.resolution, self.resolution)
        if pitch_mm is None and len(slices.size) == 2:
            return plane
        if pitch_mm is None:
            rows_mm = (slices.size[-2] - 1) * slices.spacing_mm_HW[-2]
            pitch_mm = rows_mm / max(self.resolution - 1, 1)
        found = tuple(
            min(round((size - 1) * mm / pitch_mm) + 1, size)
            for size, mm in zip(slices.size, slices.spacing_mm_HW, strict=True)
        )
        return found if self.pitch_mm is not None else (found[0], *plane)


@dataclass(frozen=True)
class NoiseDraw:
    """The random numbers behind the noise of a batch."""

    coarse_NCRR: Tensor
    """Noise on the coarse grid, on the CPU, in units of the images."""
    shift: tuple[int, ...]
    """Rows and columns, slices before them, by which the interpolated noise is rolled, the same for
    the whole batch."""

    def __getitem__(self, images: slice, /) -> NoiseDraw:
        return NoiseDraw(self.coarse_NCRR[images], self.shift)


@dataclass(frozen=True)
class Denoise(Restoration):
    """Remove noise. The defaults are the published constants."""

    kind: ClassVar[str] = "denoise"
    dims: ClassVar[tuple[int, ...]] = (2, 3)

    noise: Noise = Noise()

    def draw(self, slices: SliceTable, generator: Generator) -> NoiseDraw:
        """N(0, std) on the grid for each image and channel, and one shift for all of them."""
        import torch

        shape = (len(slices), slices.channels, *self.noise.nodes(slices))
        coarse_NCRR = torch.randn(shape, generator=generator) * self.noise.std
        plane, through = slices.size[-2:], slices.size[:-2]  # rows and columns first, as in 2D
        drawn = [int(torch.randint(n, (), generator=generator)) for n in (*plane, *through)]
        return NoiseDraw(coarse_NCRR, (*drawn[2:], *drawn[:2]))

    def corrupted(self, images_NCHW: Tensor, foreground_NHW: Tensor, draw: NoiseDraw) -> Tensor:
        """Noise where there is tissue."""
        return images_NCHW + masked_noise(images_NCHW, foreground_NHW, draw)


def masked_noise(images_NCHW: Tensor, foreground_NHW: Tensor, draw: NoiseDraw) -> Tensor:
    """The noise to add to the images: NCHW, in their dtype, 0 where there is no tissue.

    From the coarse grid to H×W by (tri)linear interpolation, corners aligned, then rolled.
    """
    from fewscan.experiments.to_device import sent

    coarse = sent(draw.coarse_NCRR, images_NCHW.device, images_NCHW.dtype)
    noise_NCHW = interpolated(coarse, images_NCHW.shape[2:])
    axes = tuple(range(-len(draw.shift), 0))
    rolled_NCHW = noise_NCHW.roll(draw.shift, dims=axes)
    return rolled_NCHW * foreground_NHW.unsqueeze(1)


def interpolated(coarse_NCRR: Tensor, size: Sequence[int]) -> Tensor:
    """A coarse grid brought to a size, its corners onto the corners: NCHW.

    In the plane, and then through the slices, which together is trilinear; and of a single slice
    it has the bits of the 2D interpolation.
    """
    import torch.nn.functional as F

    plane = coarse_NCRR if len(size) == 2 else coarse_NCRR.flatten(1, 2)
    in_plane = F.interpolate(plane, tuple(size[-2:]), mode="bilinear", align_corners=True)
    if len(size) == 2:
        return in_plane
    nodes = coarse_NCRR.shape[2]
    lines: Tensor = in_plane.unflatten(1, (-1, nodes))
    if nodes == size[0]:
        return lines
    pixels = size[1] * size[2]
    through = F.interpolate(
        lines.flatten(-2), (size[0], pixels), mode="bilinear", align_corners=True
    )
    volume: Tensor = through.unflatten(-1, tuple(size[1:]))
    return volume
