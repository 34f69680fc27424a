"""Synthetic anomalies: spoil a part of a healthy slice, and find it, or take it back.

`fpi`: foreign patch interpolation (Tan et al., "Detecting Outliers with Foreign Patch
Interpolation", MELBA 2022). Two slices of the same height of two scans exchange a share α of a box;
the network says α. `multitask`: after Baugh et al., "Many Tasks Make Light Work" (MICCAI 2023), up
to four ellipses that are blended with the other slice, brightened or darkened, drawn together or
blown up; the network says how much has changed. `restore`: the input of `fpi`, of which the clean
slice is asked, after Naval Marimon and Cipolla, "DISYRE" (2023), in one step.

Published lengths are shares of a slice's side. They are meant here of 240 mm, BraTS's side, or of
the slice's shorter side where that is less, so that they are the published ones on BraTS and mean
the same at another size and on another organ. Ours too: nothing is changed outside the foreground
of a slice, or "something on black" would be the task; a slice has several channels, which share a
place. Of `multitask` ours are: pixels are blended as in `fpi` (published: gradients, which takes a
solver), ellipses alone, their centres in the foreground (published: half of them inside), bilinear
deformation (cubic), holes in labels are not filled, and intensities are in units of `tissue_std`,
as the published data were scaled to a standard deviation of 1 and ours are not.

Letters in names: N images, K anomalies of an image, C channels, H and W rows and columns.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, ClassVar, Literal, Self

from fewscan.experiments.schemes.restoration import Clean
from fewscan.experiments.schemes.scheme import Scheme, SliceTable
from fewscan.experiments.settings import require_at_least
from fewscan.storage.errors import DeviceError

if TYPE_CHECKING:
    from torch import Generator, Tensor, nn

    from fewscan.experiments.order import BatchOrder

Bounds = tuple[float, float]
Task = Literal["fpi", "multitask", "restore"]

FIELD_MM = 240.0
"""The side that published shares of a side are meant of."""
SAME_HEIGHT = 0.02
"""How far apart the heights of a pair may be: three of 155 slices; our choice."""
CORE = 0.8
"""Share of each side that the centres of boxes lie in [FPI]."""
MOST_ANOMALIES = 4
"""Of `multitask`: one, and each further one with probability ½."""
KINDS = ("blend", "intensity", "sink", "source")
HALF_AXIS = (0.03, 0.1)
"""Of an ellipse, as a share of the side: this, and so much times Γ(2, 1) …"""
HALF_AXES = (0.03, 0.4)
"""… but not outside these."""
RAMP = (0.02, 0.01)
"""Over which a change of intensity grows: this, and so much times Γ(3, 1)."""
CHANGE = 0.2
"""Of intensity: ± this × (½ + Γ(3, 1)), in standard deviations of the tissue; and the width of the
label 1 − exp(−d² / (2 width²)) for a mean change of d."""
EXPONENT = (0.5, 2.0)
"""Sinks and sources raise relative distances to the power 2^U(these)."""


@dataclass(frozen=True)
class PairedDraw:
    """Tensors on the CPU with a row a slice, whose slices 0 and 1, 2 and 3, … are pairs."""

    def __getitem__(self, images: slice, /) -> Self:
        """Raises `DeviceError` if that would part a pair."""
        rows = len(getattr(self, fields(self)[0].name))
        start, stop, _ = images.indices(rows)
        if start % 2 or (stop % 2 and stop < rows):
            raise DeviceError(
                f"slices {start} to {stop} of the batch part a pair",
                where="pretrain.training.batch_size",
                expected="an even number of slices for each device",
                remedy="change batch_size or resources.*.devices",
            )
        return type(self)(**{f.name: getattr(self, f.name)[images] for f in fields(self)})


@dataclass(frozen=True)
class ForeignBoxes(PairedDraw):
    """Where two slices are mixed, and how: the same for both of a pair."""

    edges_N4: Tensor
    """First row, row after the last, first column, column after the last; may lie outside."""
    alpha_N: Tensor
    """Share of the other slice."""


@dataclass(frozen=True)
class Anomalies(PairedDraw):
    """What happens to each slice, one after the other."""

    kind_NK: Tensor
    """Place in `KINDS`; −1: nothing."""
    centre_NK: Tensor
    """Where in the foreground the centre lies, pixel by pixel, from 0 to 1."""
    to_disc_NK22: Tensor
    """From rows and columns off the centre to the unit disc, which the ellipse becomes."""
    shortest_NK: Tensor
    """The shorter half axis, in mm."""
    alpha_NK: Tensor
    """Of blending: share of the other slice."""
    ramp_NK: Tensor
    """Of intensity, in mm from the edge."""
    change_NKC: Tensor
    """Of intensity, in units of the images."""
    pole_NK2: Tensor
    """Of sinks and sources: what all is drawn to or pushed from, in the unit disc."""
    exponent_NK: Tensor
    """Of sinks and sources."""


@dataclass(frozen=True)
class Synthetic(Scheme):
    """Find, or take back, what was done to a part of a slice. The defaults are as published."""

    kind: ClassVar[str] = "synthetic"
    has_anomaly_score: ClassVar[bool] = True

    task: Task = "fpi"
    """What was done, and what is asked: docs/schemes.md."""
    half_width: Bounds = (0.05, 0.2)
    """Of the box of `fpi` and `restore`, as a share of 240 mm: 12 to 48 mm."""
    alpha: Bounds = (0.05, 0.95)
    """Share of the other slice where two are mixed; DISYRE's is (0, 1)."""
    tissue_std: float = 0.2
    """Of `multitask`: standard deviation of intensities inside the foreground, in units of the
    images. Measured: 0.17 in the phantom's scans, 0.25 in MR of the hippocampus (Decathlon)."""

    def __post_init__(self) -> None:
        for name, most in (("half_width", 0.5), ("alpha", 1)):
            low, high = getattr(self, name)
            if not 0 <= low <= high <= most:
                raise ValueError(f"{name} is {low} to {high}, expected 0 ≤ low ≤ high ≤ {most}")
        require_at_least(self, 1e-3, "tissue_std")

    def out_channels(self, channels: int) -> int:
        """One map that says where, or the slice."""
        return channels if self.task == "restore" else 1

    def order(self, slices: SliceTable, batch_size: int, seed: int) -> BatchOrder:
        """Pairs at the same height of two scans. Raises `DeviceError`, `RunError` as it does."""
        from fewscan.experiments.order import PairedOrder

        return PairedOrder(
            *(len(slices), batch_size, seed),
            scans_N=slices.scans_N,
            heights_N=slices.heights_N,
            reach=SAME_HEIGHT,
        )

    def validation_order(self, slices: SliceTable) -> Tensor:
        """Pairs of two scans as far as there are two, then pairs of two slices of one."""
        from fewscan.experiments.order import paired

        return paired(slices.scans_N, slices.heights_N)

    def draw(self, slices: SliceTable, generator: Generator) -> PairedDraw:
        """ForeignBoxes for pairs, or anomalies for slices."""
        if self.task == "multitask":
            return self._anomalies(slices, generator)
        return self._boxes(slices, generator)

    def _boxes(self, slices: SliceTable, generator: Generator) -> ForeignBoxes:
        import torch

        pairs = (len(slices) + 1) // 2
        low, high = (share * _field_mm(slices) for share in self.half_width)
        half_mm_P = low + (high - low) * torch.rand(pairs, generator=generator)
        edges = []
        for length, mm in zip(slices.size, slices.spacing_mm_HW, strict=True):
            place_P = (1 - CORE) / 2 + CORE * torch.rand(pairs, generator=generator)
            centre_P = (place_P * length).long()
            half_P = (half_mm_P / mm).round().long().clamp(min=1)
            edges += [centre_P - half_P, centre_P + half_P]
        alpha_P = _uniform(self.alpha, (pairs,), generator)
        both_N = torch.arange(len(slices)) // 2
        return ForeignBoxes(torch.stack(edges, dim=1)[both_N], alpha_P[both_N])

    def _anomalies(self, slices: SliceTable, generator: Generator) -> Anomalies:
        import torch

        shape, field_mm = (len(slices), MOST_ANOMALIES), _field_mm(slices)
        go_on_NK = torch.rand(shape, generator=generator) < 0.5
        go_on_NK[:, 0] = True
        kind_NK = torch.randint(len(KINDS), shape, generator=generator)
        share_NK2 = HALF_AXIS[0] + HALF_AXIS[1] * _gamma(2, (*shape, 2), generator)
        half_axes_mm_NK2 = share_NK2.clamp(*HALF_AXES) * field_mm
        turn_NK = 2 * math.pi * torch.rand(shape, generator=generator)
        sign_NKC = torch.randint(2, (*shape, slices.channels), generator=generator) * 2 - 1
        size_NK = CHANGE * self.tissue_std * (0.5 + _gamma(3, shape, generator))
        away_NK = torch.rand(shape, generator=generator).sqrt()
        towards_NK = 2 * math.pi * torch.rand(shape, generator=generator)
        direction_NK2 = torch.stack([towards_NK.sin(), towards_NK.cos()], dim=-1)
        return Anomalies(
            kind_NK=kind_NK.where(go_on_NK.long().cumprod(dim=1).bool(), -1),
            centre_NK=torch.rand(shape, generator=generator),
            to_disc_NK22=_to_disc(half_axes_mm_NK2, turn_NK, slices.spacing_mm_HW),
            shortest_NK=half_axes_mm_NK2.amin(dim=-1),
            alpha_NK=_uniform(self.alpha, shape, generator),
            ramp_NK=(RAMP[0] + RAMP[1] * _gamma(3, shape, generator)) * field_mm,
            change_NKC=sign_NKC * size_NK[..., None],
            pole_NK2=away_NK[..., None] * direction_NK2,
            exponent_NK=2 ** _uniform(EXPONENT, shape, generator),
        )

    def pretext(self, images_NCHW: Tensor, draw: PairedDraw) -> tuple[Tensor, Tensor | Clean]:  # type: ignore[override]
        """Spoilt slices, and what is asked: labels_NHW from 0 to 1, or the clean slices."""
        from fewscan.experiments.anomaly import foreground
        from fewscan.experiments.to_device import sent

        inside_NHW = foreground(images_NCHW)
        others_NCHW = images_NCHW[sent(_partners(len(images_NCHW)), images_NCHW.device)]
        if isinstance(draw, Anomalies):
            spoilt_NCHW = images_NCHW.clone()
            for number in range(MOST_ANOMALIES):
                _spoil(spoilt_NCHW, others_NCHW, inside_NHW, draw, number)
            change_NHW = (spoilt_NCHW - images_NCHW).abs().mean(dim=1)
            width = CHANGE * self.tissue_std
            return spoilt_NCHW, 1 - (change_NHW.square() / (-2 * width**2)).exp()
        assert isinstance(draw, ForeignBoxes)
        mixed_NCHW, label_NHW = _mixed(images_NCHW, others_NCHW, inside_NHW, draw)
        if self.task == "restore":
            return mixed_NCHW, Clean(images_NCHW, inside_NHW)
        return mixed_NCHW, label_NHW

    def loss(self, outputs: Tensor, targets: Tensor | Clean) -> Tensor:
        """Of `fpi` cross-entropy with α [FPI], of the others the squared error.

        The mean is over all pixels; of `restore` errors outside the foreground are none.
        """
        import torch.nn.functional as F

        from fewscan.experiments.losses import reconstruction_loss

        if isinstance(targets, Clean):
            return reconstruction_loss(outputs, *targets)
        output_NHW = outputs[:, 0].to(targets.dtype)
        if self.task == "fpi":
            return F.binary_cross_entropy_with_logits(output_NHW, targets)
        return (output_NHW - targets).square().mean()

    def anomaly_score(
        self, network: nn.Module, images_NCHW: Tensor, spacing_mm_HW: tuple[float, ...]
    ) -> Tensor:
        """What the network says, or of `restore` what it changes, smoothed as other scores are."""
        from fewscan.experiments.anomaly import anomaly_of, reconstruction_anomaly

        outputs_NCHW = network(images_NCHW)
        if self.task == "restore":
            return reconstruction_anomaly(images_NCHW, outputs_NCHW, spacing_mm_HW)
        says_NHW = outputs_NCHW[:, 0].float()
        says_NHW = says_NHW.sigmoid() if self.task == "fpi" else says_NHW.clamp(min=0)
        return anomaly_of(says_NHW, images_NCHW, spacing_mm_HW)


def _field_mm(slices: SliceTable) -> float:
    """The length that published shares of a side are meant of."""
    sides_mm = (n * mm for n, mm in zip(slices.size, slices.spacing_mm_HW, strict=True))
    return min(FIELD_MM, *sides_mm)


def _uniform(bounds: Bounds, shape: tuple[int, ...], generator: Generator) -> Tensor:
    import torch

    low, high = bounds
    return low + (high - low) * torch.rand(shape, generator=generator)


def _gamma(order: int, shape: tuple[int, ...], generator: Generator) -> Tensor:
    """Γ(order, 1): a sum of so many exponential numbers."""
    import torch

    uniform = torch.rand((order, *shape), generator=generator)
    exponential: Tensor = torch.log1p(-uniform).neg()
    return exponential.sum(dim=0)


def _to_disc(half_axes_mm_NK2: Tensor, turn_NK: Tensor, spacing_mm_HW: tuple[float, ...]) -> Tensor:
    """Pixels to millimetres, along the axes of the ellipse, in parts of them."""
    import torch

    sine, cosine = turn_NK.sin(), turn_NK.cos()
    along_NK22 = torch.stack([cosine, sine, -sine, cosine], dim=-1).unflatten(-1, (2, 2))
    in_mm_NK22: Tensor = along_NK22 * torch.tensor(spacing_mm_HW)
    return in_mm_NK22 / half_axes_mm_NK2[..., None]


def _partners(count: int) -> Tensor:
    """The other one of each pair; of an odd one out its neighbour."""
    import torch

    partners_N = torch.arange(count) ^ 1
    if count % 2:
        partners_N[-1] = max(count - 2, 0)
    return partners_N


def _mixed(
    images_NCHW: Tensor, others_NCHW: Tensor, inside_NHW: Tensor, draw: ForeignBoxes
) -> tuple[Tensor, Tensor]:
    """Slices mixed with others in a box, and α where the two differ."""
    import torch

    from fewscan.experiments.to_device import sent

    device, (height, width) = images_NCHW.device, images_NCHW.shape[2:]
    top, bottom, left, right = sent(draw.edges_N4, device)[..., None].unbind(dim=1)
    row_H, column_W = torch.arange(height, device=device), torch.arange(width, device=device)
    in_rows_NH = (row_H >= top) & (row_H < bottom)
    in_columns_NW = (column_W >= left) & (column_W < right)
    box_NHW = in_rows_NH[:, :, None] & in_columns_NW[:, None, :] & inside_NHW
    alpha_NHW = sent(draw.alpha_N, device, images_NCHW.dtype)[:, None, None] * box_NHW
    mixed_NCHW = images_NCHW + alpha_NHW[:, None] * (others_NCHW - images_NCHW)
    return mixed_NCHW, alpha_NHW * (others_NCHW != images_NCHW).any(dim=1)


def _spoil(
    images_NCHW: Tensor, others_NCHW: Tensor, inside_NHW: Tensor, draw: Anomalies, number: int
) -> None:
    """Put one anomaly into each slice that has so many."""
    from fewscan.experiments.to_device import sent

    kind_N, device = draw.kind_NK[:, number], images_NCHW.device
    for kind, name in enumerate(KINDS):
        chosen = (kind_N == kind).nonzero().flatten()
        if not len(chosen):
            continue
        where = sent(chosen, device)

        def drawn(tensor_NK: Tensor, chosen: Tensor = chosen) -> Tensor:
            return sent(tensor_NK[chosen, number], device, images_NCHW.dtype)

        before = images_NCHW[where]
        to_disc_N22 = drawn(draw.to_disc_NK22)
        disc_N2HW = _in_disc(before, inside_NHW[where], drawn(draw.centre_NK), to_disc_N22)
        away_NHW = disc_N2HW.square().sum(dim=1).sqrt()
        if name == "blend":
            alpha = drawn(draw.alpha_NK).view(-1, 1, 1, 1)
            after = before + alpha * (others_NCHW[where] - before)
        elif name == "intensity":
            shortest, ramp = drawn(draw.shortest_NK), drawn(draw.ramp_NK)
            ramp = ramp.minimum(shortest).view(-1, 1, 1)
            share_NHW = ((1 - away_NHW) * shortest.view(-1, 1, 1) / ramp).clamp(0, 1)
            change_NC11 = drawn(draw.change_NKC)[..., None, None]
            low, high = before.amin((2, 3), True), before.amax((2, 3), True)
            after = (before + change_NC11 * share_NHW[:, None]).clamp(low, high)
        else:
            pole, exponent = drawn(draw.pole_NK2), drawn(draw.exponent_NK)
            after = _deformed(before, disc_N2HW, to_disc_N22, pole, exponent, name == "sink")
        changed_N1HW = ((away_NHW < 1) & inside_NHW[where])[:, None]
        images_NCHW[where] = after.where(changed_N1HW, before)


def _in_disc(
    images_NCHW: Tensor, inside_NHW: Tensor, centre_N: Tensor, to_disc_N22: Tensor
) -> Tensor:
    """Each pixel in the coordinates in which the ellipse is the unit disc, N2HW.

    Its centre is the pixel of the foreground that so large a share of it comes before.
    """
    import torch

    height, width = images_NCHW.shape[2:]
    seen_NP = inside_NHW.flatten(1).cumsum(dim=1)
    rank_N = (centre_N * seen_NP[:, -1]).long() + 1
    pixel_N = (seen_NP < rank_N[:, None]).sum(dim=1).clamp(max=height * width - 1)
    row = torch.arange(height, device=images_NCHW.device).view(1, -1, 1)
    column = torch.arange(width, device=images_NCHW.device).view(1, 1, -1)
    rows_NHW = (row - (pixel_N // width).view(-1, 1, 1)).to(images_NCHW)
    columns_NHW = (column - (pixel_N % width).view(-1, 1, 1)).to(images_NCHW)
    matrix = to_disc_N22[..., None, None]
    return matrix[:, :, 0] * rows_NHW[:, None] + matrix[:, :, 1] * columns_NHW[:, None]


def _deformed(
    images_NCHW: Tensor,
    disc_N2HW: Tensor,
    to_disc_N22: Tensor,
    pole_N2: Tensor,
    exponent_N: Tensor,
    is_sink: bool,
) -> Tensor:
    """Slices drawn towards the pole (sink) or pushed away from it (source) in the unit disc.

    On the ray from the pole to the edge a pixel at the relative distance ρ is fetched from
    1 − (1 − ρ)^e (sink) or ρ^e (source) [Baugh]. What comes for pixels outside is not meant.
    """
    import torch
    import torch.nn.functional as F

    ray_N2HW = disc_N2HW - pole_N2[..., None, None]
    length_NHW = ray_N2HW.square().sum(dim=1).clamp(min=1e-12)
    along_NHW = (ray_N2HW * pole_N2[..., None, None]).sum(dim=1)
    room_N = (1 - pole_N2.square().sum(dim=1)).view(-1, 1, 1).clamp(min=0)
    to_edge_NHW = (along_NHW.square() + length_NHW * room_N).sqrt() - along_NHW
    rho_NHW = (length_NHW / to_edge_NHW.clamp(min=1e-6)).clamp(1e-6, 1)
    exponent = exponent_N.view(-1, 1, 1)
    fetched_NHW = 1 - (1 - rho_NHW) ** exponent if is_sink else rho_NHW**exponent
    shift_N2HW = ray_N2HW * (fetched_NHW / rho_NHW - 1)[:, None]
    (a, b), (c, d) = (row.unbind(1) for row in to_disc_N22[..., None, None].unbind(1))
    down_NHW, right_NHW = shift_N2HW.unbind(1)
    rows_NHW = (d * down_NHW - b * right_NHW) / (a * d - b * c)
    columns_NHW = (a * right_NHW - c * down_NHW) / (a * d - b * c)
    height, width = images_NCHW.shape[2:]
    row = torch.arange(height, device=images_NCHW.device).view(1, -1, 1)
    column = torch.arange(width, device=images_NCHW.device).view(1, 1, -1)
    grid_NHW2 = torch.stack(
        [
            (2 * (column + columns_NHW) + 1) / width - 1,
            (2 * (row + rows_NHW) + 1) / height - 1,
        ],
        dim=-1,
    )
    return F.grid_sample(images_NCHW, grid_NHW2, "bilinear", "border", align_corners=False)
