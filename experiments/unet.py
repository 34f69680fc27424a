"""The network of every stage: a U-Net that reconstructs a slice or segments it, or a 3D patch.

It is the network of Kascenas et al. ("Denoising Autoencoders for Unsupervised Anomaly Detection in
Brain MRI", MIDL 2022). Its parameters are named as in their checkpoints, which so need no key map.
In 3D (ours) it is the same with one axis more, under the same names. Where slices are much thicker
than pixels its finest levels look at each slice by itself, as nnU-Net's do.

Letters in shapes: N images, C channels, H and W rows and columns; in 3D HW stands for ZHW, the
slices before them.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
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
    "inflate": ("down_path.", "up_path."),
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
    dims: int = 2
    """Axes of its convolutions: 2, or 3."""
    flat_levels: int = 0
    """In 3D, so many of the finest levels have kernels and poolings of depth 1."""
    patch: tuple[int, int, int] | None = None
    """In 3D, slices, rows and columns of the patches that it learns from, and predicts in."""

    def to_json(self) -> dict[str, Any]:
        """Plain values; of a 2D network those that files of earlier versions have."""
        found = asdict(self)
        return found if self.dims == 3 else {k: found[k] for k in _OF_2D}

    @property
    def kernels(self) -> list[tuple[int, ...]]:
        """Of the convolutions, level by level."""
        return [self._flat(level, 3) for level in range(self.depth)]

    @property
    def pools(self) -> list[tuple[int, ...]]:
        """How many pixels of a level make one of the next, along each axis."""
        return [self._flat(level, 2) for level in range(self.depth - 1)]

    def _flat(self, level: int, length: int) -> tuple[int, ...]:
        plane = (length, length)
        if self.dims == 2:
            return plane
        return (1 if level < self.flat_levels else length, *plane)


_OF_2D = ("in_channels", "out_channels", "width", "depth", "skips", "head_level")

AXES = {2: ("height", "width"), 3: ("depth", "height", "width")}
"""What the axes of images are called."""


def require_divisible(
    size: Sequence[int],
    depth: int,
    pools: Sequence[Sequence[int]],
    kernels: Sequence[Sequence[int]],
) -> None:
    """Raise ValueError that names the first axis of images which the network cannot halve.

    The reflection at the border of a convolution needs two pixels along each of its axes, down to
    the coarsest level.
    """
    for axis, (name, length) in enumerate(zip(AXES[len(size)], size, strict=True)):
        factor = math.prod(pool[axis] for pool in pools)
        least = factor * (2 if kernels[-1][axis] > 1 else 1)
        if length % factor or length < least:
            raise ValueError(
                f"images of {name} {length} in a U-Net of depth {depth}; expected a multiple of "
                f"{factor}, and at least {least}: reflected borders need two pixels, also in the "
                "coarsest level"
            )


class UNet(nn.Module):
    """U-Net with weight standardisation, average pooling and a 1×1 convolution as head.

    Maps (N, in_channels, H, W) to (N, out_channels, H, W); H and W are multiples of
    2^(depth − 1) and at least 2^depth. The default has 7,703,748 parameters. In 3D it maps
    (N, in_channels, Z, H, W); Z is halved as often as there are poolings of depth 2, and at the
    coarsest level at least 2, or 1 if all levels are flat.
    """

    def __init__(
        self,
        in_channels: int = 4,
        out_channels: int = 4,
        width: int = 64,
        depth: int = 4,
        skips: bool = True,
        head_level: int = 0,
        dims: int = 2,
        flat_levels: int = 0,
        patch: Sequence[int] | None = None,
    ) -> None:
        if dims not in AXES or not 0 <= flat_levels <= (depth if dims == 3 else 0):
            raise ValueError(
                f"a U-Net of {dims} dims with {flat_levels} flat levels; expected 2, or 3 with at "
                f"most {depth} flat levels"
            )
        if min(in_channels, out_channels, width) < 1 or depth < 2 or head_level > depth:
            raise ValueError(
                f"a U-Net of {in_channels} to {out_channels} channels, width {width} and depth "
                f"{depth}, its head at level {head_level}; expected at least 1 channel, width 1, "
                "depth 2, and no level below the last"
            )
        super().__init__()
        of_patch = None if patch is None else (patch[0], patch[1], patch[2])
        self.shape = UNetShape(
            in_channels, out_channels, width, depth, skips, head_level, dims, flat_levels, of_patch
        )
        widths = [width * 2**level for level in range(depth)]
        kernels, pools = self.shape.kernels, self.shape.pools
        self.down_path = nn.ModuleList(
            map(ConvBlock, [in_channels, *widths[:-1]], widths, kernels)  # coarser with each
        )
        self.up_path = nn.ModuleList(map(UpBlock, widths[-2::-1], kernels[-2::-1], pools[::-1]))
        seen = widths[head_level - 1] if head_level else width
        self.last = CONVOLUTION[dims](seen, out_channels, kernel_size=1)

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
        for block, pool in zip(coarser, self.shape.pools, strict=True):
            maps.append(block(pooled(maps[-1], pool)))
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
        for number in range(1, self.shape.head_level):
            x = self.down_path[number](pooled(x, self.shape.pools[number - 1]))
        output_NCHW: Tensor = self.last(x)
        return enlarged(output_NCHW, images_NCHW.shape[2:])

    def _require_divisible(self, images_NCHW: Tensor) -> None:
        shape = self.shape
        size = images_NCHW.shape[-shape.dims :]
        require_divisible(size, shape.depth, shape.pools, shape.kernels)


def pooled(x_NCHW: Tensor, pool: Sequence[int]) -> Tensor:
    """The averages of so many pixels along each axis.

    Of volumes in the plane, and then through the slices: on CUDA the gradient of torch's 3D pooling
    adds in any order, as does that of its trilinear interpolation (`enlarged`).
    """
    if len(pool) == 2:
        return F.avg_pool2d(x_NCHW, (pool[0], pool[1]))
    through, rows, columns = pool
    in_plane = F.avg_pool2d(x_NCHW.flatten(1, 2), (rows, columns))
    volume: Tensor = in_plane.unflatten(1, x_NCHW.shape[1:3])
    if through == 1:
        return volume
    averages: Tensor = volume.unflatten(2, (-1, through)).mean(dim=3)
    return averages


def enlarged(x_NCHW: Tensor, size: Sequence[int]) -> Tensor:
    """Interpolated (tri)linearly to a size, half-pixel centres, edges clamped."""

    def bilinear(x: Tensor, to: tuple[int, ...]) -> Tensor:
        return F.interpolate(x, to, mode="bilinear", align_corners=False)

    if len(size) == 2:
        return bilinear(x_NCHW, tuple(size))
    in_plane = bilinear(x_NCHW.flatten(1, 2), tuple(size[1:])).unflatten(1, x_NCHW.shape[1:3])
    through = bilinear(in_plane.flatten(-2), (size[0], size[1] * size[2]))
    volume: Tensor = through.unflatten(-1, tuple(size[1:]))
    return volume


class ConvBlock(nn.Module):
    """Twice: reflection padding, 3×3 convolution, SiLU, group normalisation.

    `kernel` has a length for each axis, 1 or 3: along an axis of 1 nothing is padded.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel: Sequence[int] = (3, 3)) -> None:
        super().__init__()
        self.block = nn.Sequential(
            *_convolution(in_channels, out_channels, kernel),
            *_convolution(out_channels, out_channels, kernel),
        )

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """(N, in_channels, H, W) to (N, out_channels, H, W)."""
        output: Tensor = self.block(x_NCHW)
        return output


class UpBlock(nn.Module):
    """From 2 × `channels` at half the resolution, and a skip, to `channels`."""

    def __init__(
        self, channels: int, kernel: Sequence[int] = (3, 3), pool: Sequence[int] = (2, 2)
    ) -> None:
        super().__init__()
        transposed = nn.ConvTranspose2d if len(pool) == 2 else nn.ConvTranspose3d
        each: Any = tuple(pool)  # two numbers or three
        self.up = transposed(2 * channels, channels, kernel_size=each, stride=each)
        self.conv_block = ConvBlock(2 * channels, channels, kernel)

    def forward(self, x_NCHW: Tensor, skip_NCHW: Tensor) -> Tensor:
        """Upsample, put the skip's channels behind, convolve."""
        output: Tensor = self.conv_block(torch.cat([self.up(x_NCHW), skip_NCHW], dim=1))
        return output


def _convolution(in_channels: int, out_channels: int, kernel: Sequence[int]) -> list[nn.Module]:
    convolution: Any = StandardisedConv2d if len(kernel) == 2 else StandardisedConv3d
    return [
        ReflectionPad([length > 1 for length in kernel]),
        convolution(in_channels, out_channels, kernel_size=tuple(kernel)),
        nn.SiLU(),
        nn.GroupNorm(middle_divisor(out_channels), out_channels),
    ]


def middle_divisor(channels: int) -> int:
    """The median of the divisors, the upper one if there are two: 8 of 64, 16 of 128 and of 256."""
    divisors = [d for d in range(1, channels + 1) if channels % d == 0]
    return divisors[len(divisors) // 2]


CONVOLUTION: Mapping[int, type[nn.Conv2d] | type[nn.Conv3d]] = {2: nn.Conv2d, 3: nn.Conv3d}
"""By the axes of images."""


def standardised(weight: Tensor) -> Tensor:
    """Filters with mean 0 and standard deviation 1 over all but the first axis, up to the epsilon.

    Weight standardisation (Qiao et al. 2019), with the unbiased standard deviation.
    """
    axes = tuple(range(1, weight.ndim))
    centred = weight - weight.mean(dim=axes, keepdim=True)
    # Five times as fast on a CPU as torch.std; its gradient at a constant filter is 0, not NaN.
    length = torch.linalg.vector_norm(centred, dim=axes, keepdim=True)
    std = length / math.sqrt(centred[0].numel() - 1)
    filters: Tensor = centred / (std + WEIGHT_STD_EPSILON)
    return filters


class StandardisedConv2d(nn.Conv2d):
    """A convolution with `standardised` filters.

    They are computed in the precision of the weights, also under autocast.
    """

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """Convolve with the standardised filters."""
        output: Tensor = self._conv_forward(x_NCHW, standardised(self.weight), self.bias)
        return output


class StandardisedConv3d(nn.Conv3d):
    """The same of volumes."""

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """Convolve with the standardised filters."""
        output: Tensor = self._conv_forward(x_NCHW, standardised(self.weight), self.bias)
        return output


class ReflectionPad(nn.Module):
    """Reflection padding by one pixel whose gradient has the same bits every time."""

    along: tuple[bool, ...] = (True, True)  # of models that were pickled before there was 3D

    def __init__(self, along: Sequence[bool] = (True, True)) -> None:
        """`along` says of each axis of an image whether it is padded."""
        super().__init__()
        self.along = tuple(along)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """(N, C, H, W) to (N, C, H + 2, W + 2); an axis that is not padded keeps its length."""
        pad: Any = _PadByOne  # torch has no types for it
        padded: Tensor = pad.apply(x_NCHW, self.along)
        return padded


class _PadByOne(torch.autograd.Function):
    """On CUDA the gradient that torch has for this adds with atomics, in any order.

    Folding the border back in a fixed order is reproducible there, and on a CPU twice as fast.
    """

    @staticmethod
    def forward(ctx: Any, x_NCHW: Tensor, along: tuple[bool, ...]) -> Tensor:
        ctx.along = along
        sides = [int(is_padded) for is_padded in reversed(along) for _ in range(2)]
        return F.pad(x_NCHW, sides, mode="reflect")

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        gradient = gradients[0]
        for axis, is_padded in enumerate(ctx.along):
            if is_padded:
                gradient = _fold(gradient, dim=2 + axis)
        return gradient, None


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
    if transfer == "inflate":
        weights = inflated(weights, own)
    body = {n: tensor for n, tensor in weights.items() if n.startswith(parts) or n not in own}
    head = tuple(name for name in own if not name.startswith(parts))
    require_same_tensors(
        {name: tensor for name, tensor in own.items() if name not in head},
        body,
        remedy="start from a run with the same network (width, depth) and the same modalities",
    )
    model.load_state_dict(body, strict=False)
    return TransferReport(loaded=tuple(body), replaced=head)


def inflated(weights: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights of a 2D network as those of the 3D one whose weights are `own`.

    As in I3D (Carreira and Zisserman, CVPR 2017): filters are repeated through the slices and
    divided by their depth. Weight standardisation undoes the division: on a volume whose slices are
    all alike a filter of depth 3 then answers 3 times as strongly (but for the unbiased deviation),
    and its bias is multiplied by 3 to keep their proportion (ours). The group norm that follows
    takes the factor out again, but for the bend of SiLU. In flat levels nothing changes. Upsampling
    is not divided, as each voxel has one tap of its filter.
    """
    found = dict(weights)
    for name, tensor in weights.items():
        shape = own[name].shape if name in own else tensor.shape
        if not (tensor.ndim == 4 and len(shape) == 5):
            continue
        depth = shape[2]
        found[name] = tensor.unsqueeze(2).repeat(1, 1, depth, 1, 1)
        if not name.endswith(".up.weight"):
            found[name] /= depth
            bias = name.removesuffix("weight") + "bias"
            found[bias] = weights[bias] * depth
    return found


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
