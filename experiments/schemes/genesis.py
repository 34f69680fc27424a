"""Models Genesis in 2D: shuffle, bend and paint a slice in turn, restore it.

Zhou et al., "Models Genesis" (MedIA 2021), with the constants of their code. In this order: each
axis is flipped (input and target) with probability 0.4; pixels are shuffled within small windows,
0.5; each channel is bent by a curve of its own, 0.9; parts are painted over with U(0, 1), 0.9:
outer ones (all but a few windows) in 80 of 100 cases, else inner ones (a few boxes).

What is different here: nothing is done outside the foreground, and windows and boxes have their
centres in it. Windows of shuffling are the cells of a grid, drawn for each image, rather than
10,000 that overlap: one sort instead of as many loops. All channels share windows and boxes, as
they share anatomy, and each keeps its own values (the published multi-channel code fills all of
them with those of the first). The curves go on with slope ±1 where values leave [0, 1], which ours
do. The head is linear and the loss that of the denoising auto-encoder.

Letters in names: N images (M of them that are shuffled), C channels, P pixels or planes, T points
of a curve, H and W rows and columns of a slice.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, ClassVar

from fewscan.experiments.schemes.inpaint import box_sides
from fewscan.experiments.schemes.restoration import Clean, Restoration
from fewscan.experiments.schemes.scheme import SliceTable
from fewscan.experiments.settings import require_at_least

if TYPE_CHECKING:
    from torch import Generator, Tensor

    from fewscan.experiments.blocks import Boxes

FLIP, SHUFFLE, BEND, PAINT, INNER = 0.4, 0.5, 0.9, 0.9, 0.2
"""Probabilities: of each axis, of the three changes, and that what is painted is inside."""
INVERTED = 0.5
"""Probability that a curve falls instead of rising."""
MOST_BOXES = 5
OUTER = (3 / 7, 4 / 7)
"""Rows, or columns, that a window of outer painting is short of the slice, as a share of it."""
POINTS = 1000
"""Of a curve, evenly spaced in its parameter, as published for slices."""
TABLE = 2049
"""Values of a curve, evenly spaced in x; an intensity has the nearest one. Slices are kept in half
precision, whose steps just below 1 are 1 / 2048."""
_KEYS = 2**24
"""So many random numbers a float32 in [0, 1) can tell apart."""


@dataclass(frozen=True)
class GenesisDraw:
    """What happens to each image of a batch; small tensors on the CPU."""

    flip_N2: Tensor
    """Whether the order of rows, and of columns, is reversed (bool)."""
    shuffle_N: Tensor
    """Whether pixels are shuffled (bool)."""
    pitch_N2: Tensor
    """int64 rows and columns of the windows of shuffling."""
    place_N2: Tensor
    """How much of a window the grid begins before the slice."""
    shuffle_seed_N: Tensor
    bend_N: Tensor
    """Whether intensities are bent (bool)."""
    points_NC22: Tensor
    """Inner control points of each channel's curve: two of (x, y)."""
    falls_NC: Tensor
    """Whether the curve falls (bool)."""
    paint_N: Tensor
    """Whether parts are painted over (bool)."""
    is_inner_N: Tensor
    """Whether those in the boxes, rather than those outside the windows (bool)."""
    boxes: Boxes
    windows: Boxes
    paint_seed_N: Tensor

    def __getitem__(self, images: slice, /) -> GenesisDraw:
        parts: dict[str, Any] = {f.name: getattr(self, f.name)[images] for f in fields(self)}
        return GenesisDraw(**parts)


@dataclass(frozen=True)
class Genesis(Restoration):
    """Restore a slice that was shuffled, bent and painted over.

    It has no anomaly score: one slice in 200 is fed as it is, so that what the network makes of a
    clean one is not what it was taught.
    """

    kind: ClassVar[str] = "genesis"
    has_anomaly_score: ClassVar[bool] = False

    window_mm: float = 24.0
    """Longest side of the windows of shuffling; at most a tenth of the slice, which it is on the
    published ones."""
    box_mm: float = 80.0
    """Longest side of an inner box, the shortest is half of it; at most a third of the slice."""

    def __post_init__(self) -> None:
        require_at_least(self, 0, "window_mm", "box_mm")

    def draw(self, slices: SliceTable, generator: Generator) -> GenesisDraw:
        """All of it, for each image, whether it happens or not."""
        import torch

        from fewscan.experiments.blocks import Boxes, at_most, seeds

        n, channels = len(slices), slices.channels

        def rand(*shape: int) -> Tensor:
            return torch.rand(shape, generator=generator)

        size_2 = torch.tensor(slices.size)
        longest = at_most(self.window_mm, 1 / 10, slices.spacing_mm_HW, slices.size)
        longest_2 = torch.tensor([max(1, int(pixels)) for pixels in longest])
        short, narrow = ((size * (1 - OUTER[1]), size * (1 - OUTER[0])) for size in size_2.tolist())
        return GenesisDraw(
            flip_N2=rand(n, 2) < FLIP,
            shuffle_N=rand(n) < SHUFFLE,
            pitch_N2=1 + (rand(n, 2) * longest_2).long(),
            place_N2=rand(n, 2),
            shuffle_seed_N=seeds(n, generator),
            bend_N=rand(n) < BEND,
            points_NC22=rand(n, channels, 2, 2),
            falls_NC=rand(n, channels) < INVERTED,
            paint_N=rand(n) < PAINT,
            is_inner_N=rand(n) < INNER,
            boxes=Boxes.drawn(n, MOST_BOXES, box_sides(self.box_mm, slices), generator),
            windows=Boxes.drawn(n, MOST_BOXES, (short, narrow), generator, certain=1),
            paint_seed_N=seeds(n, generator),
        )

    def pretext(self, images_NCHW: Tensor, draw: Any) -> tuple[Tensor, Clean]:
        """Spoilt slices, and the clean ones to restore; both flipped."""
        from fewscan.experiments.to_device import sent

        flip_N2 = sent(draw.flip_N2, images_NCHW.device)
        for axis, flips_N in zip((-2, -1), flip_N2.unbind(dim=1), strict=True):
            images_NCHW = images_NCHW.flip(axis).where(flips_N.view(-1, 1, 1, 1), images_NCHW)
        return super().pretext(images_NCHW, draw)

    def corrupted(self, images_NCHW: Tensor, foreground_NHW: Tensor, draw: GenesisDraw) -> Tensor:
        """Shuffled, bent and painted over, in the foreground."""
        shuffled = shuffle(images_NCHW, foreground_NHW, draw)
        return paint(bend(shuffled, foreground_NHW, draw), foreground_NHW, draw)


def shuffle(images_NCHW: Tensor, foreground_NHW: Tensor, draw: GenesisDraw) -> Tensor:
    """The foreground's pixels in each window change places at random; background stays.

    Two sorts, by window alone and by window and random key, say which pixel goes where.
    """
    import torch

    from fewscan.experiments.blocks import uniform
    from fewscan.experiments.to_device import sent

    chosen_M = draw.shuffle_N.nonzero().flatten()
    if not len(chosen_M):
        return images_NCHW
    device, (height, width) = images_NCHW.device, images_NCHW.shape[2:]
    pitch_M2 = draw.pitch_N2[chosen_M]
    offset_M2 = (draw.place_N2[chosen_M] * pitch_M2).long()
    rows_MH, columns_MW = (
        (torch.arange(size) + offset_M.unsqueeze(1)) // pitch_M.unsqueeze(1)
        for size, offset_M, pitch_M in zip(
            (height, width), offset_M2.unbind(dim=1), pitch_M2.unbind(dim=1), strict=True
        )
    )
    where = sent(chosen_M, device)
    window_MHW = sent(rows_MH * (width + 1), device).unsqueeze(2)
    window_MHW = window_MHW + sent(columns_MW, device).unsqueeze(1)
    # Of a window on the rim, background and foreground are windows of their own.
    window_MP = (2 * window_MHW + foreground_NHW[where]).flatten(1)
    like = images_NCHW.new_empty(0, dtype=torch.float32)
    keys_MP = uniform(draw.shuffle_seed_N[chosen_M], (height * width,), like)
    in_place_MP = window_MP.argsort(dim=1, stable=True)
    at_random_MP = (window_MP * _KEYS + (keys_MP * _KEYS).long()).argsort(dim=1, stable=True)
    source_MP = torch.empty_like(in_place_MP).scatter_(1, in_place_MP, at_random_MP)
    found_NCHW = images_NCHW.clone()
    pixels_MCP = images_NCHW[where].flatten(2)
    source_MCP = source_MP.unsqueeze(1).expand_as(pixels_MCP)
    found_NCHW[where] = pixels_MCP.gather(2, source_MCP).unflatten(2, (height, width))
    return found_NCHW


def bend(images_NCHW: Tensor, foreground_NHW: Tensor, draw: GenesisDraw) -> Tensor:
    """Each channel of the foreground through its curve, a cubic Bézier from (0, 0) to (1, 1)."""
    import torch

    from fewscan.experiments.to_device import sent

    device = images_NCHW.device
    table_PT = curves(
        sent(draw.points_NC22, device).flatten(0, 1), sent(draw.falls_NC, device).flatten()
    )
    values_PP = images_NCHW.flatten(0, 1).flatten(1)
    inside_PP = values_PP.clamp(0, 1)
    bent_PP = table_PT.to(values_PP).gather(1, (inside_PP * (TABLE - 1)).round().long())
    sign_P1 = 1 - 2 * sent(draw.falls_NC, device).flatten().unsqueeze(1).to(values_PP)
    bent_NCHW = torch.addcmul(bent_PP, sign_P1, values_PP - inside_PP).view_as(images_NCHW)
    chosen_N111 = sent(draw.bend_N, device).view(-1, 1, 1, 1)
    return bent_NCHW.where(chosen_N111 & foreground_NHW.unsqueeze(1), images_NCHW)


def curves(points_P22: Tensor, falls_P: Tensor) -> Tensor:
    """Values of each curve at x = 0 … 1, evenly spaced: table_PT, float64.

    x and y are polynomials in a parameter and need not be monotone, so both are sorted; in a curve
    that falls the order of y is that of the parameter from its end, as published.
    """
    import torch

    t_T = torch.linspace(0, 1, POINTS, dtype=torch.float64, device=points_P22.device)
    basis_2T = torch.stack([3 * (1 - t_T) ** 2 * t_T, 3 * (1 - t_T) * t_T**2])
    x_PT, y_PT = (points_P22.double().unbind(dim=2)[axis] @ basis_2T + t_T**3 for axis in (0, 1))
    x_PT = x_PT.sort(dim=1).values
    y_PT = torch.where(falls_P.unsqueeze(1), y_PT.flip(1), y_PT.sort(dim=1).values)
    asked_T = torch.linspace(0, 1, TABLE, dtype=torch.float64, device=x_PT.device)
    asked_PT = asked_T.expand(len(x_PT), -1).contiguous()
    right_PT = torch.searchsorted(x_PT, asked_PT).clamp(1, POINTS - 1)
    x0, x1 = x_PT.gather(1, right_PT - 1), x_PT.gather(1, right_PT)
    y0, y1 = y_PT.gather(1, right_PT - 1), y_PT.gather(1, right_PT)
    return y0 + (y1 - y0) * ((asked_PT - x0) / (x1 - x0).clamp(min=1e-12)).clamp(0, 1)


def paint(images_NCHW: Tensor, foreground_NHW: Tensor, draw: GenesisDraw) -> Tensor:
    """U(0, 1) in the boxes, or everywhere but in the windows."""
    from fewscan.experiments.blocks import uniform
    from fewscan.experiments.to_device import sent

    is_inner_N11, chosen_N11 = (
        sent(it, images_NCHW.device).view(-1, 1, 1) for it in (draw.is_inner_N, draw.paint_N)
    )
    inner_NHW = draw.boxes.covered(foreground_NHW)
    outer_NHW = ~draw.windows.covered(foreground_NHW)
    painted_NHW = inner_NHW.where(is_inner_N11, outer_NHW) & chosen_N11 & foreground_NHW
    noise_NCHW = uniform(draw.paint_seed_N, tuple(images_NCHW.shape[1:]), images_NCHW)
    return noise_NCHW.where(painted_NHW.unsqueeze(1), images_NCHW)
