"""The network of every stage: a U-Net that reconstructs a slice or segments it.

It is the network of Kascenas et al. ("Denoising Autoencoders for Unsupervised Anomaly Detection in
Brain MRI", MIDL 2022). Its parameters are named as in their checkpoints, which so need no key map.

Letters in shapes: N images, C channels, H and W rows and columns.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fewscan.experiments.settings import Transfer
from fewscan.storage.errors import RunError

WEIGHT_STD_EPSILON = 1e-5
"""Added to the standard deviation of a filter before dividing by it."""

TRANSFERRED: Mapping[Transfer, tuple[str, ...]] = {
    "all": ("down_path.", "up_path."),
    "encoder": ("down_path.",),
}
"""How the names of the parameters begin that a fine-tuning takes over."""


@dataclass(frozen=True)
class UNetShape:
    """What decides the shapes of all parameters."""

    in_channels: int = 4
    out_channels: int = 4
    width: int = 64
    """Channels of the first level; each level below doubles them."""
    depth: int = 4
    """Levels, one more than there are poolings."""
    skips: bool = True
    """Whether the decoder sees the encoder's maps; if not, it sees zeros in their place."""
    head_level: int = 0
    """Which map the head sees: the decoder's last (0), or the encoder's at a level from 1, the
    finest, to `depth`. From a coarser one its output is interpolated to the size of the images."""


class UNet(nn.Module):
    """U-Net with weight standardisation, average pooling and a 1×1 convolution as head.

    Maps (N, in_channels, H, W) to (N, out_channels, H, W); H and W are multiples of
    2^(depth − 1) and at least 2^depth. The default has 7,703,748 parameters.
    """

    def __init__(
        self,
        in_channels: int = 4,
        out_channels: int = 4,
        width: int = 64,
        depth: int = 4,
        skips: bool = True,
        head_level: int = 0,
    ) -> None:
        if min(in_channels, out_channels, width) < 1 or depth < 2 or head_level > depth:
            raise ValueError(
                f"a U-Net of {in_channels} to {out_channels} channels, width {width} and depth "
                f"{depth}, its head at level {head_level}; expected at least 1 channel, width 1, "
                "depth 2, and no level below the last"
            )
        super().__init__()
        self.shape = UNetShape(in_channels, out_channels, width, depth, skips, head_level)
        widths = [width * 2**level for level in range(depth)]
        self.down_path = nn.ModuleList(
            map(ConvBlock, [in_channels, *widths[:-1]], widths)  # coarser with each
        )
        self.up_path = nn.ModuleList(map(UpBlock, reversed(widths[:-1])))
        seen = widths[head_level - 1] if head_level else width
        self.last = nn.Conv2d(seen, out_channels, kernel_size=1)

    def forward(self, images_NCHW: Tensor) -> Tensor:
        """The head's output at every pixel. Raises ValueError for a size that cannot be halved."""
        if self.shape.head_level:
            return self._from_the_encoder(images_NCHW)
        return self.decoded(self.encoded(images_NCHW))

    def encoded(self, images_NCHW: Tensor) -> list[Tensor]:
        """The encoder's maps, the finest first. Raises as `forward`."""
        self._require_divisible(images_NCHW)
        finest, *coarser = self.down_path
        maps = [finest(images_NCHW)]
        for block in coarser:
            maps.append(block(F.avg_pool2d(maps[-1], 2)))
        return maps

    def decoded(self, maps: list[Tensor]) -> Tensor:
        """The head's output from the encoder's maps, the finest first."""
        *skips, x = maps
        for block in self.up_path:
            skip = skips.pop()
            x = block(x, skip if self.shape.skips else torch.zeros_like(skip))
        output: Tensor = self.last(x)
        return output

    def _from_the_encoder(self, images_NCHW: Tensor) -> Tensor:
        """The head on one of the encoder's maps. Interpolation comes last: it is the same, 1×1."""
        self._require_divisible(images_NCHW)
        x = self.down_path[0](images_NCHW)
        for block in list(self.down_path)[1 : self.shape.head_level]:
            x = block(F.avg_pool2d(x, 2))
        output_NCHW: Tensor = self.last(x)
        size = images_NCHW.shape[2:]
        return F.interpolate(output_NCHW, size, mode="bilinear", align_corners=False)

    def _require_divisible(self, images_NCHW: Tensor) -> None:
        factor = 2 ** (self.shape.depth - 1)
        for name, length in zip(("height", "width"), images_NCHW.shape[-2:], strict=True):
            if length % factor or length < 2 * factor:
                raise ValueError(
                    f"images of {name} {length} in a U-Net of depth {self.shape.depth}; "
                    f"expected a multiple of {factor}, and at least {2 * factor}"
                )


class ConvBlock(nn.Module):
    """Twice: reflection padding, 3×3 convolution, SiLU, group normalisation."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.block = nn.Sequential(
            *_convolution(in_channels, out_channels), *_convolution(out_channels, out_channels)
        )

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """(N, in_channels, H, W) to (N, out_channels, H, W)."""
        output: Tensor = self.block(x_NCHW)
        return output


class UpBlock(nn.Module):
    """From 2 × `channels` at half the resolution, and a skip, to `channels`."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(2 * channels, channels, kernel_size=2, stride=2)
        self.conv_block = ConvBlock(2 * channels, channels)

    def forward(self, x_NCHW: Tensor, skip_NCHW: Tensor) -> Tensor:
        """Upsample, put the skip's channels behind, convolve."""
        output: Tensor = self.conv_block(torch.cat([self.up(x_NCHW), skip_NCHW], dim=1))
        return output


def _convolution(in_channels: int, out_channels: int) -> list[nn.Module]:
    return [
        ReflectionPad(),
        StandardisedConv2d(in_channels, out_channels, kernel_size=3),
        nn.SiLU(),
        nn.GroupNorm(middle_divisor(out_channels), out_channels),
    ]


def middle_divisor(channels: int) -> int:
    """The median of the divisors, the upper one if there are two: 8 of 64, 16 of 128 and of 256."""
    divisors = [d for d in range(1, channels + 1) if channels % d == 0]
    return divisors[len(divisors) // 2]


class StandardisedConv2d(nn.Conv2d):
    """A convolution whose filters have mean 0 and standard deviation 1, up to the epsilon.

    Weight standardisation (Qiao et al. 2019), with the unbiased standard deviation. It is computed
    in the precision of the weights, also under autocast.
    """

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """Convolve with the standardised filters."""
        centred = self.weight - self.weight.mean(dim=(1, 2, 3), keepdim=True)
        # Five times as fast on a CPU as torch.std; its gradient at a constant filter is 0, not NaN.
        length = torch.linalg.vector_norm(centred, dim=(1, 2, 3), keepdim=True)
        std = length / math.sqrt(centred[0].numel() - 1)
        weight = centred / (std + WEIGHT_STD_EPSILON)
        output: Tensor = self._conv_forward(x_NCHW, weight, self.bias)
        return output


class ReflectionPad(nn.Module):
    """Reflection padding by one pixel whose gradient has the same bits every time."""

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """(N, C, H, W) to (N, C, H + 2, W + 2)."""
        pad: Any = _PadByOne  # torch has no types for it
        padded: Tensor = pad.apply(x_NCHW)
        return padded


class _PadByOne(torch.autograd.Function):
    """On CUDA the gradient that torch has for this adds with atomics, in any order.

    Folding the border back in a fixed order is reproducible there, and on a CPU twice as fast.
    """

    @staticmethod
    def forward(ctx: Any, x_NCHW: Tensor) -> Tensor:
        return F.pad(x_NCHW, (1, 1, 1, 1), mode="reflect")

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return _fold(_fold(gradients[0], dim=2), dim=3)


def _fold(gradient_NCHW: Tensor, dim: int) -> Tensor:
    """Drop the two border lines along `dim`, adding each to the line that it mirrors."""
    length = gradient_NCHW.shape[dim] - 2
    folded = gradient_NCHW.narrow(dim, 1, length).clone()
    folded.select(dim, 1).add_(gradient_NCHW.select(dim, 0))
    folded.select(dim, length - 2).add_(gradient_NCHW.select(dim, length + 1))
    return folded


@dataclass(frozen=True)
class TransferReport:
    """What a network took over from another one."""

    loaded: tuple[str, ...]
    """Names of the parameters that now have the other's values."""
    replaced: tuple[str, ...]
    """Names of the parameters that stay as they were initialised: at least the head."""


def load_for_transfer(
    model: UNet, weights: Mapping[str, Tensor], transfer: Transfer = "all"
) -> TransferReport:
    """Load what is transferred from a pre-trained network, never the head; say what was loaded.

    The head is new even if its shape is the same: channels and classes have nothing in common.
    Raises `RunError` if what is transferred differs in name or shape, or the other network has what
    this one has not; the model is then as it was.
    """
    parts = TRANSFERRED[transfer]
    own = model.state_dict()
    body = {n: tensor for n, tensor in weights.items() if n.startswith(parts) or n not in own}
    head = tuple(name for name in own if not name.startswith(parts))
    require_same_tensors(
        {name: tensor for name, tensor in own.items() if name not in head},
        body,
        remedy="start from a run with the same network (width, depth) and the same modalities",
    )
    model.load_state_dict(body, strict=False)
    return TransferReport(loaded=tuple(body), replaced=head)


def require_same_tensors(
    expected: Mapping[str, Tensor],
    found: Mapping[str, Tensor],
    *,
    remedy: str,
    where: Path | None = None,
) -> None:
    """Raise `RunError` that names the first difference, unless names and shapes are the same.

    `where` is the file that the tensors were found in, if they come from one.
    """
    for name in [*expected, *found]:
        shapes = [_shape_text(tensors.get(name)) for tensors in (found, expected)]
        if shapes[0] != shapes[1]:
            raise RunError(
                f"the weights do not fit the network: {shapes[0]}",
                where=name if where is None else f"{name} in {where}",
                expected=shapes[1],
                remedy=remedy,
            )


def _shape_text(tensor: Tensor | None) -> str:
    return "no such tensor" if tensor is None else f"shape {tuple(tensor.shape)}"
