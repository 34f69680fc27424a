"""The coarse noise that the denoising auto-encoder learns to remove.

Kascenas et al., "Denoising Autoencoders for Unsupervised Anomaly Detection in Brain MRI" (MIDL
2022): Gaussian noise on a coarse grid, interpolated to the slice, so that it looks like lesions
rather than like grain. It is drawn for the global batch, on the CPU, and each rank adds its share
on its own device: so the result does not depend on the number of devices.

Letters in names: N images, C channels, R the grid's side, H and W rows and columns of a slice.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from fewscan.experiments.scoring import foreground
from fewscan.experiments.transfer import sent


@dataclass(frozen=True)
class NoiseDraw:
    """The random numbers behind the noise of a batch; `draw[a:b]` is that of images a to b."""

    coarse_NCRR: Tensor
    """Noise on the coarse grid, on the CPU, in units of the images."""
    shift: tuple[int, int]
    """Rows and columns by which the interpolated noise is rolled, the same for the whole batch."""
    size: tuple[int, int]
    """Rows and columns of the images."""

    def __len__(self) -> int:
        return len(self.coarse_NCRR)

    def __getitem__(self, images: slice) -> "NoiseDraw":
        return NoiseDraw(self.coarse_NCRR[images], self.shift, self.size)


def draw_noise(
    count: int,
    channels: int,
    resolution: int,
    std: float,
    size: tuple[int, int],
    generator: Generator,
) -> NoiseDraw:
    """Draw noise for `count` images of `size` (H, W): N(0, std) at `resolution`², and one shift."""
    shape = (count, channels, resolution, resolution)
    coarse_NCRR = torch.randn(shape, generator=generator) * std
    rows, columns = (int(torch.randint(length, (), generator=generator)) for length in size)
    return NoiseDraw(coarse_NCRR, (rows, columns), size)


def masked_noise(images_NCHW: Tensor, draw: NoiseDraw) -> Tensor:
    """The noise to add to the images: NCHW, in their dtype, 0 where there is no tissue."""
    coarse = sent(draw.coarse_NCRR, images_NCHW.device, images_NCHW.dtype)
    noise_NCHW = F.interpolate(coarse, draw.size, mode="bilinear", align_corners=True)
    rolled_NCHW = noise_NCHW.roll(draw.shift, dims=(-2, -1))
    return rolled_NCHW * foreground(images_NCHW).unsqueeze(1)


def coarse_noise(
    images_NCHW: Tensor, resolution: int = 16, std: float = 0.2, *, generator: Generator
) -> Tensor:
    """Draw noise and return what to add to the images (NCHW, 0 outside the foreground).

    Per image and channel N(0, `std`) on `resolution`², interpolated to H×W (bilinear, corners
    aligned), rolled by one random shift a call. The defaults are the published ones; `generator`
    is one of the CPU.
    """
    count, channels, height, width = images_NCHW.shape
    draw = draw_noise(count, channels, resolution, std, (height, width), generator)
    return masked_noise(images_NCHW, draw)
