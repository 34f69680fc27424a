"""A 3D network on whole volumes: overlapping windows, weighted by a Gaussian.

As nnU-Net (Isensee et al. 2021) and MONAI's `sliding_window_inference` do it: windows of the size
of the training's patches, half of one apart at most, and outputs weighted by a Gaussian whose
standard deviation is an eighth of the window, so that what a network says near a window's border
counts for little. The windows of an axis are evenly spaced, as nnU-Net's; the weights are MONAI's.
Outputs are averaged before any softmax.

Letters in names: N volumes, C channels, K outputs, Z slices, H and W rows and columns.
"""

import math
from collections.abc import Sequence
from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fewscan.experiments.spec import Patch
from fewscan.experiments.tiling import window_starts
from fewscan.experiments.unet import UNet

SIGMA = 1 / 8
"""Of the Gaussian, as a share of a window's side."""
VOXELS_AT_ONCE = 1 << 18
"""Of windows that go through the network together, at least one window. On one thread of a CPU a
convolution of one small window alone took ten times as long as one of two, each."""
LEAST_WEIGHT = 1e-3
"""Of a voxel in the corner of a window: every voxel is seen by some window."""


def patch_of(network: nn.Module) -> Patch | None:
    """What a network, or the U-Net within it, learnt from; None in 2D."""
    bodies = (module.shape.patch for module in network.modules() if isinstance(module, UNet))
    return next(bodies, None)


class Windowed(nn.Module):
    """A network of patches as a network of volumes of any size."""

    def __init__(self, network: nn.Module, patch: Patch) -> None:
        super().__init__()
        self.network = network
        self.patch = patch

    def forward(self, volume_NCZHW: Tensor) -> Tensor:
        """NCZHW to NKZHW. Where a volume is smaller than a window there are zeros on both sides of
        it, as there are in training; one that a single window covers is passed through as it is."""
        size = volume_NCZHW.shape[2:]
        lacking = [max(0, m - n) for n, m in zip(size, self.patch, strict=True)]
        sides = [side for n in reversed(lacking) for side in (n // 2, n - n // 2)]
        padded = F.pad(volume_NCZHW, sides) if any(sides) else volume_NCZHW
        output = self._of(padded)
        for axis, (n, length) in enumerate(zip(lacking, size, strict=True), start=2):
            output = output.narrow(axis, n // 2, length)
        return output

    def _of(self, volume_NCZHW: Tensor) -> Tensor:
        size = volume_NCZHW.shape[2:]
        places = list(product(*map(window_starts, size, self.patch)))
        if len(places) == 1:
            only: Tensor = self.network(volume_NCZHW)
            return only
        weights_ZHW = importance(self.patch).to(volume_NCZHW)
        seen_ZHW = volume_NCZHW.new_zeros(size)
        total: Tensor | None = None
        at_once = max(1, VOXELS_AT_ONCE // math.prod(self.patch))
        for first in range(0, len(places), at_once):
            windows = [self._slices(place) for place in places[first : first + at_once]]
            seen = torch.cat([volume_NCZHW[..., z, y, x] for z, y, x in windows])
            outputs = self.network(seen).split(len(volume_NCZHW))
            for (z, y, x), output in zip(windows, outputs, strict=True):
                if total is None:
                    total = output.new_zeros(*output.shape[:2], *size)
                total[..., z, y, x] += output * weights_ZHW
                seen_ZHW[z, y, x] += weights_ZHW
        assert total is not None
        return total / seen_ZHW

    def _slices(self, place: Sequence[int]) -> list[slice]:
        """Of a window that begins there."""
        return [slice(start, start + n) for start, n in zip(place, self.patch, strict=True)]


def importance(patch: Sequence[int]) -> Tensor:
    """Weights of a window's voxels, float32 ZHW: 1 in the middle."""
    weights = torch.ones(())
    for n in patch:
        place = torch.arange(n, dtype=torch.float32) - (n - 1) / 2
        weights = weights[..., None] * (place / (SIGMA * n)).square().div(-2).exp()
    return weights.clamp(min=max(LEAST_WEIGHT, weights.min().item()))
