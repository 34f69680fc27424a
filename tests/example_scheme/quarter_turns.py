"""Say by how many quarters a slice is turned (Gidaris et al., ICLR 2018)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from fewscan.experiments.schemes.scheme import Scheme, SliceTable
from fewscan.experiments.settings import Transfer

if TYPE_CHECKING:
    from torch import Generator, Tensor


@dataclass(frozen=True)
class Turns:
    """By how many quarters each slice of a batch is turned."""

    quarters_N: Tensor

    def __getitem__(self, slices: slice, /) -> Turns:
        return Turns(self.quarters_N[slices])


@dataclass(frozen=True)
class QuarterTurns(Scheme):
    """Four channels, whose mean over the slice says the turn."""

    kind: ClassVar[str] = "quarter_turns"
    transfer: ClassVar[Transfer] = "encoder"

    smoothing: float = 0.0
    """Of the labels."""

    def out_channels(self, channels: int) -> int:
        """One for each turn."""
        return 4

    def draw(self, slices: SliceTable, generator: Generator) -> Turns:
        """A turn for each slice, on the CPU."""
        import torch

        return Turns(torch.randint(4, (len(slices),), generator=generator))

    def pretext(self, images_NCHW: Tensor, draw: Turns) -> tuple[Tensor, Tensor]:
        """Turned slices, and their turns."""
        quarters_N = draw.quarters_N.to(images_NCHW.device)
        turned_NCHW = images_NCHW.clone()
        for quarters in range(1, 4):
            chosen = quarters_N == quarters
            turned_NCHW[chosen] = images_NCHW[chosen].rot90(quarters, dims=(2, 3))
        return turned_NCHW, quarters_N

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Cross-entropy."""
        import torch.nn.functional as F

        logits_N4 = outputs.mean(dim=(2, 3))
        return F.cross_entropy(logits_N4, targets, label_smoothing=self.smoothing)
