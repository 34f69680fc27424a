"""Masked auto-encoder: blocks of a slice are hidden, predict what they show.

He et al., "Masked Autoencoders Are Scalable Vision Learners" (CVPR 2022), for convolutions: hidden
values are 0 in all channels, and only what is hidden counts. Blocks of 15 mm: 16 mm in nnssl's
BaseMAETrainer, whose ratio 0.75 is for volumes; 0.6 is that of SimMIM (Xie et al., CVPR 2022),
SparK (Tian et al., ICLR 2023) and AMAES (Munk et al. 2024), and suits slices, which are less
redundant (ours). Blocks without foreground are not hidden, and the ratio is of the others (ours).

Letters in names: N images, B blocks, C channels, H and W rows and columns of a slice.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, NamedTuple

from fewscan.experiments.schemes.scheme import Scheme, SliceTable
from fewscan.experiments.settings import Transfer, require_at_least

if TYPE_CHECKING:
    from torch import Generator, Tensor, nn

    from fewscan.experiments.blocks import Blocks
    from fewscan.experiments.unet import UNet


@dataclass(frozen=True)
class MaskDraw:
    """The random numbers behind the hidden blocks of a batch."""

    blocks: Blocks
    key_NB: Tensor
    """Those with the lowest keys are hidden."""

    def __getitem__(self, images: slice, /) -> MaskDraw:
        return MaskDraw(self.blocks, self.key_NB[images])


class Hidden(NamedTuple):
    """What is asked for: the clean slices, where tissue was hidden."""

    images_NCHW: Tensor
    hidden_NHW: Tensor


@dataclass(frozen=True)
class Mae(Scheme):
    """Predict hidden blocks."""

    kind: ClassVar[str] = "mae"
    transfer: ClassVar[Transfer] = "encoder"
    has_anomaly_score: ClassVar[bool] = True

    ratio: float = 0.6
    """Share of the blocks with foreground that is hidden."""
    block_mm: float = 15.0
    """Side of a block: 8 pixels of the published slices, a cell of the coarsest map."""
    sparse: bool = False
    """Whether hidden cells are kept out of the encoder's convolutions and norms, as in SparK, so
    that their zeros do not shift the statistics of the norms. False: they are plain zeros."""
    skips: bool = False
    """Whether the network has its skip connections: AMAES trains without, nnssl with."""

    def __post_init__(self) -> None:
        require_at_least(self, 0, "ratio", "block_mm")
        if not 0 < self.ratio < 1:
            raise ValueError(f"ratio is {self.ratio}, expected between 0 and 1")

    def network(self, body: UNet) -> nn.Module:
        """The body, or one whose encoder is told what is hidden."""
        if not self.sparse:
            return body
        from fewscan.experiments.around import Sparse

        return Sparse(body)

    def draw(self, slices: SliceTable, generator: Generator) -> MaskDraw:
        """A key for each block of each image."""
        import torch

        from fewscan.experiments.blocks import Blocks, pixels_of

        block_HW = pixels_of(self.block_mm, slices.spacing_mm_HW, slices.size)
        blocks = Blocks(block_HW, slices.plane)
        keys_NB = torch.rand((len(slices), blocks.number), generator=generator)
        return MaskDraw(blocks, keys_NB)

    def pretext(self, images_NCHW: Tensor, draw: MaskDraw) -> tuple[Tensor, Hidden]:  # type: ignore[override]
        """Slices with zeros in the hidden blocks, and the clean ones."""
        from fewscan.experiments.anomaly import foreground
        from fewscan.experiments.blocks import ranks
        from fewscan.experiments.to_device import sent

        foreground_NHW = foreground(images_NCHW)
        seen_NB = draw.blocks.counted(foreground_NHW) > 0
        _, rank_NB = ranks(sent(draw.key_NB, images_NCHW.device), seen_NB)
        hidden_N1 = (seen_NB.sum(dim=1, keepdim=True) * self.ratio).round()
        hidden_NHW = draw.blocks.spread(rank_NB < hidden_N1)
        inputs = self._inputs(images_NCHW, hidden_NHW)
        return inputs, Hidden(images_NCHW, hidden_NHW & foreground_NHW)

    def loss(self, outputs: Tensor, targets: Hidden) -> Tensor:
        """Mean squared error over the hidden values."""
        from fewscan.experiments.losses import masked_reconstruction_loss

        return masked_reconstruction_loss(outputs, *targets)

    def anomaly_score(
        self, network: nn.Module, images_NCHW: Tensor, spacing_mm_HW: tuple[float, ...]
    ) -> Tensor:
        """What it does not predict (ours, as is the ratio of 0.75 for it).

        Four complementary masks, each of which shows another quarter of the blocks, a checkerboard:
        each pixel is hidden in three passes, whose errors are averaged.
        """
        import torch

        from fewscan.experiments.anomaly import anomaly_of, reconstruction_error
        from fewscan.experiments.blocks import Blocks, pixels_of

        height, width = images_NCHW.shape[2:]
        blocks = Blocks(pixels_of(self.block_mm, spacing_mm_HW, (height, width)), (height, width))
        quarter_1B = blocks.quarters(images_NCHW.device).unsqueeze(0)
        error_NHW = torch.zeros_like(images_NCHW[:, 0], dtype=torch.float32)
        for quarter in range(4):
            hidden_1HW = blocks.spread(quarter_1B != quarter)
            hidden_NHW = hidden_1HW.expand(len(images_NCHW), -1, -1)
            outputs_NCHW = network(self._inputs(images_NCHW, hidden_NHW))
            error_NHW += reconstruction_error(images_NCHW, outputs_NCHW) * hidden_NHW / 3
        return anomaly_of(error_NHW, images_NCHW, spacing_mm_HW)

    def _inputs(self, images_NCHW: Tensor, hidden_NHW: Tensor) -> Tensor:
        """What the network is fed; a sparse one is told what is visible by a channel more."""
        import torch

        hidden_N1HW = hidden_NHW.unsqueeze(1)
        shown_NCHW = images_NCHW.masked_fill(hidden_N1HW, 0)
        if not self.sparse:
            return shown_NCHW
        return torch.cat([shown_NCHW, (~hidden_N1HW).to(shown_NCHW)], dim=1)
