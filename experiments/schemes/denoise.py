"""Denoising auto-encoder: add coarse noise to a slice, reconstruct the clean one.

Kascenas et al., "Denoising Autoencoders for Unsupervised Anomaly Detection in Brain MRI" (MIDL
2022): Gaussian noise on a coarse grid, interpolated to the slice, so that it looks like lesions
rather than like grain; squared error inside the foreground. Where the output differs from a clean
input the scan is anomalous.

Letters in names: N images, C channels, R the grid's side, H and W rows and columns of a slice.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, NamedTuple

from fewscan.experiments.schemes.scheme import Scheme, SliceTable
from fewscan.experiments.settings import require_at_least

if TYPE_CHECKING:
    from torch import Generator, Tensor, nn


@dataclass(frozen=True)
class Noise:
    """The coarse noise that the auto-encoder removes."""

    resolution: int = 16
    """Side of the grid that the noise is drawn on, before it is interpolated to the slice."""
    std: float = 0.2
    """Standard deviation on that grid, in units of the images' 99th percentile."""

    def __post_init__(self) -> None:
        require_at_least(self, 1, "resolution")
        require_at_least(self, 0, "std")


@dataclass(frozen=True)
class NoiseDraw:
    """The random numbers behind the noise of a batch."""

    coarse_NCRR: Tensor
    """Noise on the coarse grid, on the CPU, in units of the images."""
    shift: tuple[int, int]
    """Rows and columns by which the interpolated noise is rolled, the same for the whole batch."""

    def __getitem__(self, images: slice, /) -> NoiseDraw:
        return NoiseDraw(self.coarse_NCRR[images], self.shift)


class Clean(NamedTuple):
    """What is asked for: the clean slices, inside their foreground."""

    images_NCHW: Tensor
    foreground_NHW: Tensor


@dataclass(frozen=True)
class Denoise(Scheme):
    """Remove coarse noise. The defaults are the published constants."""

    kind: ClassVar[str] = "denoise"
    has_anomaly_score: ClassVar[bool] = True

    noise: Noise = Noise()

    def draw(self, slices: SliceTable, generator: Generator) -> NoiseDraw:
        """N(0, std) on the grid for each image and channel, and one shift for all of them."""
        import torch

        shape = (len(slices), slices.channels, self.noise.resolution, self.noise.resolution)
        coarse_NCRR = torch.randn(shape, generator=generator) * self.noise.std
        rows, columns = (int(torch.randint(n, (), generator=generator)) for n in slices.size)
        return NoiseDraw(coarse_NCRR, (rows, columns))

    def pretext(self, images_NCHW: Tensor, draw: NoiseDraw) -> tuple[Tensor, Clean]:  # type: ignore[override]
        """Noisy slices, and the clean ones to reconstruct."""
        from fewscan.experiments.anomaly import foreground

        foreground_NHW = foreground(images_NCHW)
        noisy_NCHW = images_NCHW + masked_noise(images_NCHW, foreground_NHW, draw)
        return noisy_NCHW, Clean(images_NCHW, foreground_NHW)

    def loss(self, outputs: Tensor, targets: Clean) -> Tensor:
        """Squared error in the foreground; the mean is over all pixels."""
        from fewscan.experiments.losses import reconstruction_loss

        return reconstruction_loss(outputs, *targets)

    def anomaly_score(
        self, network: nn.Module, images_NCHW: Tensor, spacing_mm_HW: tuple[float, float]
    ) -> Tensor:
        """What it cannot reconstruct of a clean slice."""
        from fewscan.experiments.anomaly import reconstruction_anomaly

        return reconstruction_anomaly(images_NCHW, network(images_NCHW), spacing_mm_HW)


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
