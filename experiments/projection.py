"""The encoder of a U-Net with a head for a whole slice in place of the decoder."""

from typing import cast

import torch.nn.functional as F
from torch import Tensor, nn

from fewscan.experiments.unet import UNet


class Projection(nn.Module):
    """Images NCHW to vectors ND: the coarsest map averaged, then linear, ReLU, linear.

    D and the layer between have as many numbers as the map has channels: 512 in the published
    network [Zeng et al., MICCAI 2021]. The decoder, which no gradient reaches, is frozen.
    """

    def __init__(self, body: UNet) -> None:
        super().__init__()
        self.body = body
        for name, parameter in body.named_parameters():
            parameter.requires_grad_(name.startswith("down_path."))
        channels = body.shape.width * 2 ** (body.shape.depth - 1)
        self.head = nn.Sequential(
            nn.Linear(channels, channels), nn.ReLU(), nn.Linear(channels, channels)
        )

    def forward(self, images_NCHW: Tensor) -> Tensor:
        """The projection of each image, of any length."""
        finest, *coarser = self.body.down_path
        x = finest(images_NCHW)
        for block in coarser:
            x = block(F.avg_pool2d(x, 2))
        return cast(Tensor, self.head(x.mean(dim=(2, 3))))
