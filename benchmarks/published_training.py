"""A stand-in for the published training step, written here: fp32, eager, plain torch modules.

Network, noise and optimiser are those that Kascenas et al. (MIDL 2022) describe; no line of theirs
is in here. Needs nothing but torch, so that a bare GPU machine can run it.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fewscan.experiments import unet

STD, RESOLUTION, CLIP_NORM = 0.2, 16, 0.5


class StandardisedConv2d(nn.Conv2d):
    """Weight standardisation by `torch.std`."""

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """Convolve with the standardised filters."""
        centred = self.weight - self.weight.mean(dim=(1, 2, 3), keepdim=True)
        std = self.weight.std(dim=(1, 2, 3), keepdim=True) + unet.WEIGHT_STD_EPSILON
        output: Tensor = self._conv_forward(x_NCHW, centred / std, self.bias)
        return output


def network(width: int) -> nn.Module:
    """The U-Net of plain modules, with the weights that torch gives it."""
    model = unet.UNet(width=width)
    for sequence in [m for m in model.modules() if isinstance(m, nn.Sequential)]:
        for n, module in enumerate(sequence):
            if isinstance(module, unet.ReflectionPad):
                sequence[n] = nn.ReflectionPad2d(1)
            elif isinstance(module, unet.StandardisedConv2d):
                plain = StandardisedConv2d(module.in_channels, module.out_channels, 3)
                plain.load_state_dict(module.state_dict())
                sequence[n] = plain
    return model


def training_step(model: nn.Module, batches: list[Tensor], device: str) -> Callable[[int], Tensor]:
    """A function of the step that trains `model` on `batches[step]`, images_NCHW on the CPU."""
    optimiser = torch.optim.Adam(model.parameters(), 1e-4, weight_decay=1e-5, amsgrad=True)

    def step(number: int) -> Tensor:
        clean = batches[number % len(batches)].to(device)
        seen_N1HW = clean.sum(dim=1, keepdim=True) > 0.01
        optimiser.zero_grad()
        output = model(clean + _noise(clean) * seen_N1HW)
        loss: Tensor = ((output - clean).square() * seen_N1HW).mean()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), CLIP_NORM)
        optimiser.step()
        return loss.detach()

    return step


def _noise(images_NCHW: Tensor) -> Tensor:
    coarse = torch.randn(
        (*images_NCHW.shape[:2], RESOLUTION, RESOLUTION), device=images_NCHW.device
    )
    size = images_NCHW.shape[-2:]
    noise = F.interpolate(STD * coarse, size, mode="bilinear", align_corners=True)
    shift = [int(torch.randint(length, ())) for length in size]
    return noise.roll(shift, dims=(-2, -1))
