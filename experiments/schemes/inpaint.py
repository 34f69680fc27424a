"""Context restoration and inpainting: parts of a slice are exchanged or painted over, restore them.

swap: pairs of square patches change places (Chen et al., "Self-supervised learning for medical
image analysis using image context restoration", MedIA 2019; with the constants of Dominic et al.
2023: patches of 32 of 512 pixels, on a quarter of the slice). Their patches lie at Poisson-disc
points of 100 masks that are used again; here (ours) they are blocks of a grid whose place is drawn
anew for each batch, so that none overlap, half of each or more is foreground, and the quarter is of
these blocks. noise, zero: boxes are filled with U(0, 1) (the inner boxes of Zhou et al., "Models
Genesis", MedIA 2021) or 0. Their centres, and what is painted, lie in the foreground (ours):
otherwise a block on black is all that there is to be seen.

Letters in names: N images, B blocks, C channels, H and W rows and columns of a slice.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from fewscan.experiments.schemes.restoration import Restoration
from fewscan.experiments.schemes.scheme import SliceTable
from fewscan.experiments.settings import require_at_least

if TYPE_CHECKING:
    from torch import Generator, Tensor, nn

    from fewscan.experiments.blocks import Blocks, Boxes

SCORE_SEED = 0
"""Of what fills the blocks that are hidden for the anomaly score: the same for every slice."""


@dataclass(frozen=True)
class BoxDraw:
    """The random numbers behind boxes that are painted over."""

    boxes: Boxes
    seed_N: Tensor
    """Of the noise."""

    def __getitem__(self, images: slice, /) -> BoxDraw:
        return BoxDraw(self.boxes[images], self.seed_N[images])


@dataclass(frozen=True)
class SwapDraw:
    """The random numbers behind blocks that change places."""

    blocks: Blocks
    key_NB: Tensor
    """Blocks are taken in the order of their keys; neighbours in it change places."""

    def __getitem__(self, images: slice, /) -> SwapDraw:
        return SwapDraw(self.blocks, self.key_NB[images])


@dataclass(frozen=True)
class Inpaint(Restoration):
    """Restore what was exchanged or painted over."""

    kind: ClassVar[str] = "inpaint"

    fill: Literal["zero", "noise", "swap"] = "swap"
    """What is there instead: 0 or U(0, 1) in boxes, or in blocks what another block had."""
    boxes: int = 5
    """At most; each with probability 0.95, if the one before it has come."""
    box_mm: float = 80.0
    """Longest side of a box, the shortest is half of it; at most a third of the slice, which it is
    on the published ones."""
    patch_mm: float = 15.0
    """Side of the blocks that change places: 8 pixels of the published slices."""
    share: float = 0.25
    """Of the blocks that change places, among those with half of their pixels in the foreground."""

    def __post_init__(self) -> None:
        if self.fill not in ("zero", "noise", "swap"):
            raise ValueError(f"fill is {self.fill!r}, expected zero, noise or swap")
        require_at_least(self, 1, "boxes")
        require_at_least(self, 0, "box_mm", "patch_mm", "share")
        if self.share > 1:
            raise ValueError(f"share is {self.share}, expected at most 1")

    def draw(self, slices: SliceTable, generator: Generator) -> BoxDraw | SwapDraw:
        """Boxes for each image; or a place of the grid for the batch, and keys of its blocks."""
        import torch

        from fewscan.experiments.blocks import Blocks, Boxes, pixels_of, seeds

        if self.fill != "swap":
            boxes = Boxes.drawn(len(slices), self.boxes, box_sides(self.box_mm, slices), generator)
            return BoxDraw(boxes, seeds(len(slices), generator))
        block_HW = pixels_of(self.patch_mm, slices.spacing_mm_HW, slices.size)
        above, left = (int(torch.randint(n, (), generator=generator)) for n in block_HW)
        blocks = Blocks(block_HW, slices.plane, (above, left))
        keys_NB = torch.rand((len(slices), blocks.number), generator=generator)
        return SwapDraw(blocks, keys_NB)

    def corrupted(
        self, images_NCHW: Tensor, foreground_NHW: Tensor, draw: BoxDraw | SwapDraw
    ) -> Tensor:
        """Slices with other things in some places."""
        from fewscan.experiments.blocks import uniform
        from fewscan.experiments.to_device import sent

        if isinstance(draw, BoxDraw):
            covered_N1HW = (draw.boxes.covered(foreground_NHW) & foreground_NHW).unsqueeze(1)
            if self.fill == "zero":
                return images_NCHW.masked_fill(covered_N1HW, 0)
            noise_NCHW = uniform(draw.seed_N, tuple(images_NCHW.shape[1:]), images_NCHW)
            return noise_NCHW.where(covered_N1HW, images_NCHW)
        blocks = draw.blocks
        half = blocks.block_HW[0] * blocks.block_HW[1] / 2
        eligible_NB = blocks.whole(images_NCHW.device) & (blocks.counted(foreground_NHW) >= half)
        pairs_N1 = (eligible_NB.sum(dim=1, keepdim=True) * (self.share / 2)).long()
        keys_NB = sent(draw.key_NB, images_NCHW.device)
        return blocks.exchanged(images_NCHW, partners(keys_NB, eligible_NB, 2 * pairs_N1))

    def anomaly_score(
        self, network: nn.Module, images_NCHW: Tensor, spacing_mm_HW: tuple[float, ...]
    ) -> Tensor:
        """What it does not restore where it was hidden (ours).

        Of a clean slice the network may copy everything. So a quarter of the blocks of 15 mm, a
        checkerboard, is hidden as in training, in four passes; each pixel counts where it is
        hidden. Of swapped blocks each has the content of the next one that is hidden with it; one
        that the border cuts, or that is alone, stays where it is.
        """
        import torch

        from fewscan.experiments.anomaly import anomaly_of, foreground, reconstruction_error
        from fewscan.experiments.blocks import BLOCK_MM, Blocks, pixels_of, seeds, uniform

        height, width = images_NCHW.shape[2:]
        block_HW = pixels_of(BLOCK_MM, spacing_mm_HW, (height, width))
        blocks, foreground_NHW = Blocks(block_HW, (height, width)), foreground(images_NCHW)
        quarter_B, whole_B = (it(images_NCHW.device) for it in (blocks.quarters, blocks.whole))
        seen_NB = blocks.counted(foreground_NHW) > 0
        generator = torch.Generator().manual_seed(SCORE_SEED)
        seed_1 = seeds(1, generator)
        keys_1B = torch.rand((1, blocks.number), generator=generator).to(images_NCHW.device)
        error_NHW = torch.zeros_like(images_NCHW[:, 0], dtype=torch.float32)
        for quarter in range(4):
            chosen_NB = seen_NB & (quarter_B == quarter)
            hidden_NHW = blocks.spread(chosen_NB)
            painted_N1HW = (hidden_NHW & foreground_NHW).unsqueeze(1)
            if self.fill == "swap":
                movable_NB = chosen_NB & whole_B
                number_N1 = movable_NB.sum(dim=1, keepdim=True)
                source_NB = partners(keys_1B, movable_NB, number_N1, in_pairs=False)
                inputs_NCHW = blocks.exchanged(images_NCHW, source_NB)
            elif self.fill == "noise":
                noise_1CHW = uniform(seed_1, tuple(images_NCHW.shape[1:]), images_NCHW)
                inputs_NCHW = noise_1CHW.where(painted_N1HW, images_NCHW)
            else:
                inputs_NCHW = images_NCHW.masked_fill(painted_N1HW, 0)
            missed_NHW = reconstruction_error(images_NCHW, network(inputs_NCHW))
            error_NHW = missed_NHW.where(hidden_NHW, error_NHW)
        return anomaly_of(error_NHW, images_NCHW, spacing_mm_HW)


def box_sides(
    longest_mm: float, slices: SliceTable
) -> tuple[tuple[float, float], tuple[float, float]]:
    """Shortest and longest sides of Models Genesis' inner boxes, of rows and columns, in pixels."""
    from fewscan.experiments.blocks import at_most

    rows, columns = at_most(longest_mm, 1 / 3, slices.spacing_mm_HW, slices.size)
    return (rows / 2, rows), (columns / 2, columns)


def partners(
    keys_NB: Tensor, eligible_NB: Tensor, number_N1: Tensor, in_pairs: bool = True
) -> Tensor:
    """For each block the one whose content it gets, itself unless it is among the first `number`.

    In pairs (their number must be even), or each from the next and the last from the first.
    """
    import torch

    from fewscan.experiments.blocks import ranks

    order_NB, rank_NB = ranks(keys_NB, eligible_NB)
    after_NB = rank_NB ^ 1 if in_pairs else (rank_NB + 1) % number_N1.clamp(min=1)
    return order_NB.gather(1, torch.where(rank_NB < number_N1, after_NB, rank_NB))
