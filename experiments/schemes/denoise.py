"""Denoising auto-encoder: add noise to a slice, coarse or fine, reconstruct the clean one.

Kascenas et al., "Denoising Autoencoders for Unsupervised Anomaly Detection in Brain MRI" (MIDL
2022): Gaussian noise on a coarse grid, interpolated to the slice, so that it looks like lesions
rather than like grain; squared error inside the foreground. Where the output differs from a clean
input the scan is anomalous.

Letters in names: N images, C channels, R the grid's side, H and W rows and columns of a slice.
"""

from __future__ import annotations

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
    """

    resolution: int = 16
    """Side of the grid that the noise is drawn on, before it is interpolated to the slice."""
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

    def nodes(self, slices: SliceTable) -> tuple[int, int]:
        """Rows and columns of the grid; its corners are centres of pixels, and no pixel has two."""
        if self.pitch_mm is None:
            return self.resolution, self.resolution
        rows, columns = (
            min(round((size - 1) * mm / self.pitch_mm) + 1, size)
            for size, mm in zip(slices.size, slices.spacing_mm_HW, strict=True)
        )
        return rows, columns


@dataclass(frozen=True)
class NoiseDraw:
    """The random numbers behind the noise of a batch."""

    coarse_NCRR: Tensor
    """Noise on the coarse grid, on the CPU, in units of the images."""
    shift: tuple[int, int]
    """Rows and columns by which the interpolated noise is rolled, the same for the whole batch."""

    def __getitem__(self, images: slice, /) -> NoiseDraw:
        return NoiseDraw(self.coarse_NCRR[images], self.shift)


@dataclass(frozen=True)
class Denoise(Restoration):
    """Remove noise. The defaults are the published constants."""

    kind: ClassVar[str] = "denoise"

    noise: Noise = Noise()

    def draw(self, slices: SliceTable, generator: Generator) -> NoiseDraw:
        """N(0, std) on the grid for each image and channel, and one shift for all of them."""
        import torch

        shape = (len(slices), slices.channels, *self.noise.nodes(slices))
        coarse_NCRR = torch.randn(shape, generator=generator) * self.noise.std
        rows, columns = (int(torch.randint(n, (), generator=generator)) for n in slices.size)
        return NoiseDraw(coarse_NCRR, (rows, columns))

    def corrupted(self, images_NCHW: Tensor, foreground_NHW: Tensor, draw: NoiseDraw) -> Tensor:
        """Noise where there is tissue."""
        return images_NCHW + masked_noise(images_NCHW, foreground_NHW, draw)


def masked_noise(images_NCHW: Tensor, foreground_NHW: Tensor, draw: NoiseDraw) -> Tensor:
    """The noise to add to the images: NCHW, in their dtype, 0 where there is no tissue.

    From the coarse grid to H×W by bilinear interpolation, corners aligned, then rolled.
    """
    import torch.nn.functional as F

    from fewscan.experiments.to_device import sent

    coarse = sent(draw.coarse_NCRR, images_NCHW.device, images_NCHW.dtype)
    noise_NCHW = F.interpolate(coarse, images_NCHW.shape[2:], mode="bilinear", align_corners=True)
    rolled_NCHW = noise_NCHW.roll(draw.shift, dims=(-2, -1))
    return rolled_NCHW * foreground_NHW.unsqueeze(1)
