"""Ways of pre-training, each as small as can be, that ask of the seam what the planned ones will.

In a module of their own, because the processes of several ranks import it.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Generator, Tensor, distributed, nn
from torch.distributed.nn.functional import all_reduce

from fewscan.experiments.order import BatchOrder
from fewscan.experiments.schemes import SCHEMES
from fewscan.experiments.schemes.scheme import Scheme, SliceTable
from fewscan.experiments.seeds import generator_for
from fewscan.experiments.settings import Transfer
from fewscan.experiments.unet import UNet


@dataclass(frozen=True)
class TwoDraws:
    """Brightness factors of two views of each slice."""

    factors_N2: Tensor

    def __getitem__(self, slices: slice, /) -> "TwoDraws":
        return TwoDraws(self.factors_N2[slices])


class Projected(nn.Module):
    """The encoder of a body, pooled, and a head of its own: a vector of unit length an image."""

    def __init__(self, body: UNet) -> None:
        super().__init__()
        self.body = body
        for name, parameter in body.named_parameters():
            parameter.requires_grad_(name.startswith("down_path."))
        coarsest = body.shape.width * 2 ** (body.shape.depth - 1)
        self.head = nn.Linear(coarsest, 3)

    def forward(self, images_NCHW: Tensor) -> Tensor:
        first, *coarser = self.body.down_path
        x = first(images_NCHW)
        for block in coarser:
            x = block(F.avg_pool2d(x, 2))
        return F.normalize(self.head(x.mean(dim=(2, 3))), dim=1)


@dataclass(frozen=True)
class Contrast(Scheme):
    """Tell the other view of a slice from the views of all other slices of the batch."""

    kind: ClassVar[str] = "toy contrast"
    views: ClassVar[int] = 2
    transfer: ClassVar[Transfer] = "encoder"
    trains: ClassVar[Transfer] = "encoder"

    temperature: float = 0.5

    def network(self, body: UNet) -> nn.Module:
        return Projected(body)

    def draw(self, slices: SliceTable, generator: Generator) -> TwoDraws:
        return TwoDraws(0.5 + torch.rand((len(slices), 2), generator=generator))

    def pretext(self, images_NCHW: Tensor, draw: TwoDraws) -> tuple[Tensor, None]:  # type: ignore[override]
        factors_NV111 = draw.factors_N2.to(images_NCHW)[:, :, None, None, None]
        views_NVCHW = images_NCHW[:, None] * factors_NV111
        views_NVCHW = torch.stack([views_NVCHW[:, 0], views_NVCHW[:, 1].flip(-1)], dim=1)
        return views_NVCHW.flatten(0, 1), None

    def loss(self, outputs: Tensor, targets: None) -> Tensor:
        vectors_MD = of_all_ranks(outputs)
        alike_MM = vectors_MD @ vectors_MD.T / self.temperature
        alike_MM = alike_MM - torch.diag(torch.full_like(alike_MM.diagonal(), 1e3))
        other_view_M = torch.arange(len(vectors_MD)) ^ 1
        return F.cross_entropy(alike_MM, other_view_M)


def of_all_ranks(vectors_MD: Tensor) -> Tensor:
    """Those of the global batch, on every rank, differentiable; in validation those of the batch.

    Ranks do not validate the same number of batches, so there they must not wait for each other.
    """
    if not (torch.is_grad_enabled() and distributed.is_initialized()):
        return vectors_MD
    places = [torch.zeros_like(vectors_MD)] * distributed.get_world_size()
    places[distributed.get_rank()] = vectors_MD
    gathered: Tensor = all_reduce(torch.cat(places))
    return gathered


@dataclass(frozen=True)
class Boxes:
    """Where something is put into each slice, and how bright it is."""

    corner_N2: Tensor
    value_N: Tensor

    def __getitem__(self, slices: slice, /) -> "Boxes":
        return Boxes(self.corner_N2[slices], self.value_N[slices])

    def mask(self, images_NCHW: Tensor) -> Tensor:
        """mask_NHW of 4×4 pixels each."""
        mask_NHW = images_NCHW.new_zeros((len(images_NCHW), *images_NCHW.shape[2:]))
        for n, (row, column) in enumerate(self.corner_N2.tolist()):
            mask_NHW[n, row : row + 4, column : column + 4] = 1
        return mask_NHW


def drawn_boxes(slices: SliceTable, generator: Generator) -> Boxes:
    corner_N2 = torch.randint(slices.size[0] - 4, (len(slices), 2), generator=generator)
    return Boxes(corner_N2, torch.rand(len(slices), generator=generator))


@dataclass(frozen=True)
class Foreign(Scheme):
    """Find the box that was put into the slice: one channel, a label made from the draw."""

    kind: ClassVar[str] = "toy foreign"
    has_anomaly_score: ClassVar[bool] = True

    def out_channels(self, channels: int) -> int:
        return 1

    def draw(self, slices: SliceTable, generator: Generator) -> Boxes:
        return drawn_boxes(slices, generator)

    def pretext(self, images_NCHW: Tensor, draw: Boxes) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        label_NHW = draw.mask(images_NCHW)
        value_N111 = draw.value_N.to(images_NCHW)[:, None, None, None]
        return images_NCHW + value_N111 * label_NHW[:, None], label_NHW

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return F.binary_cross_entropy_with_logits(outputs[:, 0], targets)

    def anomaly_score(
        self, network: nn.Module, images_NCHW: Tensor, spacing_mm_HW: tuple[float, float]
    ) -> Tensor:
        score: Tensor = network(images_NCHW)[:, 0].float().sigmoid()
        return score


@dataclass(frozen=True)
class Masked(Scheme):
    """Fill in boxes that were taken away, without skip connections; the encoder is handed on."""

    kind: ClassVar[str] = "toy masked"
    transfer: ClassVar[Transfer] = "encoder"

    @property
    def skips(self) -> bool:
        return False

    def draw(self, slices: SliceTable, generator: Generator) -> Boxes:
        return drawn_boxes(slices, generator)

    def pretext(self, images_NCHW: Tensor, draw: Boxes) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        return images_NCHW * (1 - draw.mask(images_NCHW))[:, None], images_NCHW

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return F.mse_loss(outputs, targets)


@dataclass(frozen=True)
class InPairs(BatchOrder):
    """Slices in pairs that lie at the same height of two scans."""

    pairs_PN: tuple[tuple[int, ...], ...] = ()

    def indices(self, step: int) -> Tensor:
        generator = generator_for(self.seed, "pairs", step)
        found: list[int] = []
        while len(found) < self.batch_size:
            height = int(torch.randint(len(self.pairs_PN), (), generator=generator))
            alike = self.pairs_PN[height]
            first, second, *_ = torch.randperm(len(alike), generator=generator).tolist()
            found += [alike[first], alike[second]]
        return torch.tensor(found)


@dataclass(frozen=True)
class Neighbours(Scheme):
    """Predict the mixture's other half: of pairs of one height, each half of the other is added."""

    kind: ClassVar[str] = "toy neighbours"
    keeps: ClassVar[Literal["best", "last"]] = "last"

    def order(self, slices: SliceTable, batch_size: int, seed: int) -> BatchOrder:
        alike = [np.flatnonzero(slices.heights_N == h) for h in np.unique(slices.heights_N)]
        pairs = tuple(tuple(found.tolist()) for found in alike if len(found) > 1)
        return InPairs(len(slices), batch_size, seed, pairs_PN=pairs)

    def draw(self, slices: SliceTable, generator: Generator) -> "Heights":
        return Heights(torch.from_numpy(slices.heights_N), torch.from_numpy(slices.scans_N))

    def pretext(self, images_NCHW: Tensor, draw: "Heights") -> tuple[Tensor, Tensor]:  # type: ignore[override]
        partner_N = torch.arange(len(images_NCHW)) ^ 1
        if len(images_NCHW) % 2:  # in validation slices come in their own order
            partner_N[-1] = len(images_NCHW) - 1
        elif torch.is_grad_enabled():
            assert torch.equal(draw.heights_N[partner_N], draw.heights_N)
            assert (draw.scans_N[partner_N] != draw.scans_N).all()
        return (images_NCHW + images_NCHW[partner_N]) / 2, images_NCHW

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return F.l1_loss(outputs, targets)


@dataclass(frozen=True)
class Heights:
    """No random number: what is known of the slices."""

    heights_N: Tensor
    scans_N: Tensor

    def __getitem__(self, slices: slice, /) -> "Heights":
        return Heights(self.heights_N[slices], self.scans_N[slices])


TOYS: dict[str, Scheme] = {s.kind: s for s in (Contrast(), Foreign(), Masked(), Neighbours())}


def register() -> None:
    """Add them to the list, in a process that is for nothing else."""
    SCHEMES.update({kind: type(scheme) for kind, scheme in TOYS.items()})


@contextmanager
def registered() -> Iterator[None]:
    """For the block."""
    before: dict[str, Any] = dict(SCHEMES)
    register()
    try:
        yield
    finally:
        SCHEMES.clear()
        SCHEMES.update(before)
