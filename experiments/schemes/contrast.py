"""Contrastive learning by position: slices of one height look alike, whosever they are.

Positional contrastive learning (PCL; Zeng et al., MICCAI 2021): two views of each slice, and an
encoder that tells those of similar heights from those of others. With a `reach` of 0 the other view
of a slice is all that is like it: SimCLR (Chen et al., ICML 2020), its special case. The encoder's
coarsest map is averaged over the slice; two layers make of it what is compared, by its cosine
[PCL, and Chaitanya et al., NeurIPS 2020, whose brightness and contrast the views have too].

Ours: views are made by the nine transforms of nnU-Net's training, with the probability and the
scales of PCL for rotation and scaling; of its table PCL has neither elastic deformation nor random
crops here. A batch has slices of as many different scans as it has room for. InfoNCE lives of
what a slice is told from, and there are 7 others in a batch of 16 views, not 31: that is little,
and VICReg (Bardes et al., ICLR 2022; weights 25, 25 and 1), which compares dimensions, is the
objective that needs none, but it knows no position. An image has no anomaly score.

Letters in names: N slices, M views, two of each slice behind each other, D dimensions, C channels,
H and W rows and columns of a slice.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from fewscan.experiments.schemes.scheme import Scheme, SliceTable
from fewscan.experiments.settings import Transfer, require_at_least

if TYPE_CHECKING:
    from torch import Generator, Tensor, nn

    from fewscan.experiments.augment import Draws
    from fewscan.experiments.order import BatchOrder
    from fewscan.experiments.unet import UNet

WARPED, SCALES = 0.67, (0.7, 1.3)
"""How often a view is turned, and scaled, and how much [PCL]."""
BRIGHTER, STEEPER = 0.3, 0.3
"""Added, at most; and how far the factor about the mean is from 1, at most [Chaitanya et al.]."""
BRIGHTEST = 1.5
"""Intensities are cut to 0 … this [Chaitanya et al.]."""
VARIANCE, INVARIANCE, COVARIANCE, EPSILON = 25.0, 25.0, 1.0, 1e-4
"""Weights of VICReg, and what is added to variances."""


@dataclass(frozen=True)
class Views:
    """What happens to the two views of each slice, and where it lies."""

    heights_N: Tensor
    draws_M: Draws
    brightness_M: Tensor
    """Added inside the foreground, to all channels."""
    contrast_M: Tensor
    """Factor about the mean of a channel's foreground."""

    def __getitem__(self, slices: slice, /) -> Views:
        start, stop, _ = slices.indices(len(self.heights_N))
        views = slice(2 * start, 2 * stop)
        return Views(
            self.heights_N[slices],
            self.draws_M[views],
            self.brightness_M[views],
            self.contrast_M[views],
        )


@dataclass(frozen=True)
class Contrast(Scheme):
    """Tell slices of one height, or views of one slice, from others."""

    kind: ClassVar[str] = "contrast"
    views: ClassVar[int] = 2
    transfer: ClassVar[Transfer] = "encoder"
    keeps: ClassVar[Literal["best", "last"]] = "last"
    trains: ClassVar[Transfer] = "encoder"
    watches: ClassVar[tuple[str, ...]] = ("projection_std",)

    reach: float = 0.1
    """Slices are alike whose heights differ by less than this part of the scan [PCL: 0.1 and 0.35];
    0: only the two views of one slice, SimCLR."""
    temperature: float = 0.1
    """Of the cosines."""
    objective: Literal["infonce", "vicreg"] = "infonce"
    """What is minimised; vicreg needs a `reach` of 0."""

    def __post_init__(self) -> None:
        require_at_least(self, 0, "reach")
        require_at_least(self, 1e-3, "temperature")
        if self.objective == "vicreg" and self.reach:
            raise ValueError(f"reach is {self.reach}, expected 0: vicreg knows no positions")

    @property
    def skips(self) -> bool:
        """There is no decoder to hand on."""
        return False

    def network(self, body: UNet) -> nn.Module:
        """The body's encoder, with a head of two layers in place of the decoder."""
        from fewscan.experiments.projection import Projection

        return Projection(body)

    def order(self, slices: SliceTable, batch_size: int, seed: int) -> BatchOrder:
        """Slices of different scans."""
        from fewscan.experiments.order import ManyScansOrder

        return ManyScansOrder(len(slices), batch_size, seed, scans_N=slices.scans_N)

    def validation_order(self, slices: SliceTable) -> Tensor:
        """A random one, the same every time: slices in their own order are of one scan."""
        import torch

        from fewscan.experiments.seeds import generator_for

        return torch.randperm(len(slices), generator=generator_for(self.kind, "validation order"))

    def draw(self, slices: SliceTable, generator: Generator) -> Views:
        """Two views of each slice."""
        import torch

        from fewscan.experiments import augment

        views = 2 * len(slices)
        table = augment.AugmentationTable(
            rotation_probability=WARPED, scaling_probability=WARPED, scale=SCALES
        )
        draws_M = augment.draw(table, views, slices.channels, generator)
        brightness_M, contrast_M = torch.rand((2, views), generator=generator) * 2 - 1
        return Views(
            torch.from_numpy(slices.heights_N),
            draws_M,
            BRIGHTER * brightness_M,
            1 + STEEPER * contrast_M,
        )

    def pretext(self, images_NCHW: Tensor, draw: Views) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        """The views, and the height of each."""
        import torch

        from fewscan.experiments import augment
        from fewscan.experiments.to_device import sent

        twice_MCHW = images_NCHW.repeat_interleave(2, dim=0)
        no_labels_MHW = torch.zeros_like(twice_MCHW[:, 0], dtype=torch.uint8)
        views_MCHW, _ = augment.apply(twice_MCHW, no_labels_MHW, draw.draws_M)
        heights_M = sent(draw.heights_N, images_NCHW.device).repeat_interleave(2)
        return _recoloured(views_MCHW, draw), heights_M

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Over the views of all ranks; in validation over those of the batch."""
        import torch

        precise = torch.promote_types(outputs.dtype, torch.float32)
        with torch.autocast(outputs.device.type, enabled=False):
            projections_MD = _of_all_ranks(outputs.to(precise))
            if self.objective == "vicreg":
                return vicreg_loss(projections_MD)
            heights_M = _of_all_ranks(targets)
            return infonce_loss(projections_MD, heights_M, self.reach, self.temperature)

    def watched(self, outputs: Tensor) -> Tensor:
        """Standard deviation over views of the directions, 1 if they point everywhere alike.

        Near 0 the network says the same of every slice: it has collapsed.
        """
        import torch
        import torch.nn.functional as F

        directions_MD = F.normalize(outputs.to(torch.float32), dim=1)
        std_D = directions_MD.std(dim=0, correction=0)
        return std_D.mean().mul(math.sqrt(outputs.shape[1])).reshape(1)


def _recoloured(views_MCHW: Tensor, draw: Views) -> Tensor:
    """Brightness and contrast changed inside the foreground; outside stays as it is."""
    from fewscan.experiments.anomaly import foreground
    from fewscan.experiments.to_device import sent

    device, dtype = views_MCHW.device, views_MCHW.dtype
    shift, factor = (
        sent(it, device, dtype).view(-1, 1, 1, 1) for it in (draw.brightness_M, draw.contrast_M)
    )
    inside_M1HW = foreground(views_MCHW).unsqueeze(1)
    pixels_M111 = inside_M1HW.sum(dim=(2, 3), keepdim=True).clamp(min=1)
    mean_MC11 = (views_MCHW * inside_M1HW).sum(dim=(2, 3), keepdim=True) / pixels_M111
    changed_MCHW = (views_MCHW - mean_MC11) * factor + mean_MC11 + shift
    return changed_MCHW.clamp(0, BRIGHTEST).where(inside_M1HW, views_MCHW)


def infonce_loss(
    projections_MD: Tensor, heights_M: Tensor, reach: float, temperature: float
) -> Tensor:
    """Mean over views of −log the probability of what is like it, by the cosines.

    Views 0 and 1, 2 and 3, … are of one slice. With several that are like it the mean of the
    logarithms, as in supervised contrastive learning (Khosla et al., NeurIPS 2020) [PCL].
    """
    import torch
    import torch.nn.functional as F

    directions_MD = F.normalize(projections_MD, dim=1)
    views_M = torch.arange(len(directions_MD), device=directions_MD.device)
    itself_MM = views_M[:, None] == views_M
    of_one_slice_MM = views_M[:, None] // 2 == views_M // 2
    alike_MM = of_one_slice_MM | ((heights_M[:, None] - heights_M).abs() < reach)
    alike_MM = alike_MM & ~itself_MM
    cosines_MM = (directions_MD @ directions_MD.T / temperature).masked_fill(itself_MM, -math.inf)
    log_probability_MM = cosines_MM - cosines_MM.logsumexp(dim=1, keepdim=True)
    log_probability_MM = log_probability_MM.masked_fill(~alike_MM, 0)
    return -(log_probability_MM.sum(dim=1) / alike_MM.sum(dim=1)).mean()


def vicreg_loss(projections_MD: Tensor) -> Tensor:
    """25 × invariance + 25 × variance + covariance of the two views (Bardes et al., ICLR 2022).

    Mean squared difference of the views; how far standard deviations of dimensions are below 1, the
    mean over dimensions and views; squared covariances of two dimensions, summed, over D.
    """
    one_ND, two_ND = projections_MD[0::2], projections_MD[1::2]
    loss = INVARIANCE * (one_ND - two_ND).square().mean()
    for view_ND in (one_ND, two_ND):
        slices, dimensions = view_ND.shape
        centred_ND = view_ND - view_ND.mean(dim=0)
        covariance_DD = centred_ND.T @ centred_ND / max(slices - 1, 1)
        variance_D = covariance_DD.diagonal()
        below_D = (1 - (variance_D + EPSILON).sqrt()).relu()
        others = covariance_DD.square().sum() - variance_D.square().sum()
        loss = loss + VARIANCE * below_D.mean() / 2 + COVARIANCE * others / dimensions
    return loss


def _of_all_ranks(own: Tensor) -> Tensor:
    """Those of the global batch, on every rank, differentiable; in validation those of the batch.

    Ranks do not validate the same number of batches, so there they must not wait for each other.
    The gradient adds up over ranks, and DDP's mean over them divides by their number.
    """
    import torch
    from torch import distributed
    from torch.distributed.nn.functional import all_reduce

    if not (torch.is_grad_enabled() and distributed.is_initialized()):
        return own
    places = [torch.zeros_like(own)] * distributed.get_world_size()
    places[distributed.get_rank()] = own
    gathered: Tensor = all_reduce(torch.cat(places))
    return gathered
