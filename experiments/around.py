"""Modules that schemes put around the U-Net while it is pre-trained.

Letters in names: N images, C channels, H and W rows and columns; L levels, the finest first.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fewscan.experiments.unet import CONVOLUTION, UNet

TOKEN_STD = 0.02
"""Of the vectors for hidden cells at the start, cut at two of it, as in SparK."""


def _coarsest(body: UNet) -> int:
    """Channels of the coarsest map."""
    channels: int = body.shape.width * 2 ** (body.shape.depth - 1)
    return channels


class Narrow(nn.Module):
    """A body whose coarsest map passes through a few channels."""

    def __init__(self, body: UNet, channels: int) -> None:
        super().__init__()
        self.body = body
        convolution = CONVOLUTION[body.shape.dims]
        self.squeeze = convolution(_coarsest(body), channels, kernel_size=1)
        self.widen = convolution(channels, _coarsest(body), kernel_size=1)

    def forward(self, images_NCHW: Tensor) -> Tensor:
        """As the body."""
        *finer, coarsest = self.body.encoded(images_NCHW)
        return self.body.decoded([*finer, self.widen(self.squeeze(coarsest))])


class Sparse(nn.Module):
    """A body whose encoder sees visible pixels alone, as if its convolutions were sparse.

    After Tian et al., "Designing BERT for Convolutional Networks: Sparse and Hierarchical Masked
    Modeling" (ICLR 2023): hidden cells of every map are set to 0 after every convolution, norms
    have the statistics of the visible ones, and the decoder is given a learnt vector in their
    place. A cell of a coarser map is visible if any of its pixels is. Dense convolutions of masked
    maps compute the same as sparse ones.
    """

    def __init__(self, body: UNet) -> None:
        super().__init__()
        self.body = body
        widths = [body.shape.width * 2**level for level in range(body.shape.depth)]
        seen = widths if body.shape.skips else widths[-1:]
        self.tokens = nn.ParameterList(nn.Parameter(torch.empty(n)) for n in seen)
        for token in self.tokens:
            nn.init.trunc_normal_(token, std=TOKEN_STD, a=-2 * TOKEN_STD, b=2 * TOKEN_STD)

    def forward(self, inputs_NDHW: Tensor) -> Tensor:
        """The images' channels, and last a channel that is 1 where they are visible."""
        x, visible_N1HW = inputs_NDHW[:, :-1], inputs_NDHW[:, -1:]
        maps, masks = [], []
        for level, block in enumerate(self.body.down_path):
            if level:
                x, visible_N1HW = F.avg_pool2d(x, 2), F.max_pool2d(visible_N1HW, 2)
            x = visible_part(block, x, visible_N1HW)
            maps.append(x)
            masks.append(visible_N1HW)
        seen = len(self.tokens)
        for level, token in zip(range(len(maps) - seen, len(maps)), self.tokens, strict=True):
            maps[level] = maps[level] + (1 - masks[level]) * token.view(1, -1, 1, 1)
        return self.body.decoded(maps)


def visible_part(block: nn.Module, x_NCHW: Tensor, visible_N1HW: Tensor) -> Tensor:
    """What a block of the U-Net makes of the visible cells; 0 in the others."""
    x = x_NCHW * visible_N1HW
    for layer in block.get_submodule("block").children():
        x = _normalised(layer, x, visible_N1HW) if isinstance(layer, nn.GroupNorm) else layer(x)
        if isinstance(layer, nn.Conv2d | nn.GroupNorm):
            x = x * visible_N1HW
    return x


def _normalised(norm: nn.GroupNorm, x_NCHW: Tensor, visible_N1HW: Tensor) -> Tensor:
    """The group norm with the statistics of visible cells; all others are 0 before it."""
    precise: Any = torch.promote_types(x_NCHW.dtype, torch.float32)
    x_NGCHW = x_NCHW.to(precise).unflatten(1, (norm.num_groups, -1))
    visible = visible_N1HW.to(precise).unsqueeze(2)
    values = (visible.sum(dim=(2, 3, 4), keepdim=True) * x_NGCHW.shape[2]).clamp(min=1)
    centred = x_NGCHW - x_NGCHW.sum(dim=(2, 3, 4), keepdim=True) / values
    squares = (centred * visible).square().sum(dim=(2, 3, 4), keepdim=True)
    scaled = (centred * (squares / values + norm.eps).rsqrt()).flatten(1, 2)
    output: Tensor = scaled * norm.weight.view(1, -1, 1, 1) + norm.bias.view(1, -1, 1, 1)
    return output
