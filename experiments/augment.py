"""Random changes of labelled slices or patches, as in nnU-Net's training: draw, apply, tell.

`draw` decides on the CPU what happens to each image of a global batch, `apply` makes it happen on
the device that the images are on, and `Draws.describe` tells. An image's result depends on its own
draw alone, so each rank may apply its own slice of the draws.

The table is nnU-Net 2.8's (Isensee et al. 2021; batchgeneratorsv2). Its ranges assume z-scored
images; ours are scaled by the 99th percentile, so its noise is relatively stronger here. As nnU-Net
does with skull-stripped scans, what is outside the head is set to 0 again after the intensities
were changed. Where the table has BG(a, b), half of the values are from U(a, 1), half from U(1, b).

3D has the same table with rotations of at most 30° about each of the three axes, in voxels, and
mirrors along all axes. Of a flat patch, over 3 times as wide as deep, all slices are turned and
scaled together in their plane, by up to 180°, and lose resolution there alone. Both are nnU-Net's.
It turns larger patches than it cuts out, so that fewer zeros come in at the corners; here (ours)
what lies outside the patch is 0.

Letters in names: N images, C channels, H and W rows and columns; of patches HW stands for ZHW.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from torch import Generator, Tensor

from fewscan.experiments import transforms
from fewscan.experiments.anomaly import foreground
from fewscan.experiments.to_device import sent

Range = tuple[float, float]


@dataclass(frozen=True)
class AugmentationTable:
    """How often each transform happens to an image, and between which bounds; nnU-Net's values."""

    rotation_probability: float = 0.2
    rotation_deg: Range = (-180.0, 180.0)
    """About the centre of the slice; of patches about each of three axes through their centre."""
    scaling_probability: float = 0.2
    """Independent of rotation; one resampling does both."""
    scale: Range = (0.7, 1.4)
    """The same along all axes; above 1 things become smaller."""
    noise_probability: float = 0.1
    noise_sigma: Range = (0.0, 0.1)
    """Standard deviation, in units of the images; all channels get the same noise."""
    blur_probability: float = 0.2
    blur_channel_probability: float = 0.5
    """Of each channel, if the image is blurred at all."""
    blur_sigma_px: Range = (0.5, 1.0)
    """For each channel and axis."""
    brightness_probability: float = 0.15
    brightness: Range = (0.75, 1.25)
    """BG: the factor, for each channel."""
    contrast_probability: float = 0.15
    contrast: Range = (0.75, 1.25)
    """BG: the factor about the mean, for each channel."""
    low_resolution_probability: float = 0.25
    low_resolution_channel_probability: float = 0.5
    """Of each channel, if the image is degraded at all."""
    low_resolution: Range = (0.5, 1.0)
    """Share of the rows and columns that is left, for each channel."""
    inverted_gamma_probability: float = 0.1
    gamma_probability: float = 0.3
    gamma: Range = (0.7, 1.5)
    """BG: the exponent of both gamma transforms, for each channel."""
    mirror_probability: float = 0.5
    """Of each axis."""


NNUNET = AugmentationTable()
NNUNET_3D = AugmentationTable(rotation_deg=(-30.0, 30.0))
"""Of patches that are not flat; about each axis."""
FLAT_ABOVE = 3
"""Times as wide as deep."""


def is_flat(size: Sequence[int]) -> bool:
    """Whether patches of this size are changed slice by slice, as slices are."""
    return len(size) == 3 and max(size) > FLAT_ABOVE * size[0]


def table_of(size: Sequence[int]) -> AugmentationTable:
    """nnU-Net's for images of this size: rows and columns, or slices before them."""
    return NNUNET_3D if len(size) == 3 and not is_flat(size) else NNUNET


def _unless_drawn(identity: float) -> Any:
    return field(metadata={"identity": identity})


@dataclass(frozen=True)
class Draws:
    """What happens to each image of a batch; `draws[a:b]` is what happens to images a to b.

    Small tensors on the CPU, in the order of the table. Where a transform was not drawn, its value
    is the one that changes nothing.
    """

    rotation_rad_N: Tensor = _unless_drawn(0)
    scale_N: Tensor = _unless_drawn(1)
    noise_sigma_N: Tensor = _unless_drawn(0)
    noise_seed_N: Tensor = _unless_drawn(0)
    """int64 seed of the image's pixel noise, which is drawn where the image is."""
    blur_sigma_px_NC2: Tensor = _unless_drawn(0)
    """Along the rows' axis and along the columns'."""
    brightness_NC: Tensor = _unless_drawn(1)
    contrast_NC: Tensor = _unless_drawn(1)
    low_resolution_NC: Tensor = _unless_drawn(1)
    inverted_gamma_NC: Tensor = _unless_drawn(1)
    gamma_NC: Tensor = _unless_drawn(1)
    mirror_N2: Tensor = _unless_drawn(0)
    """Whether the order of rows, and of columns, is reversed (bool)."""

    def __len__(self) -> int:
        return len(self.scale_N)

    def __getitem__(self, images: slice) -> "Draws":
        return type(self)(**{f.name: getattr(self, f.name)[images] for f in fields(self)})

    def drawn(self, name: str) -> Tensor:
        """Where the transform of this field happens: a bool tensor of the field's shape."""
        identity = next(f.metadata["identity"] for f in fields(self) if f.name == name)
        drawn: Tensor = getattr(self, name) != identity
        return drawn

    def describe(self, image: int) -> dict[str, Any]:
        """The transforms that happen to one image, with their parameters as plain values.

        Lists are per channel (a channel whose value is the identity is left alone), mirroring is
        (rows, columns).
        """
        return {
            f.name.rpartition("_")[0]: getattr(self, f.name)[image].tolist()
            for f in fields(self)
            if self.drawn(f.name)[image].any()
        }


@dataclass(frozen=True)
class PatchDraws(Draws):
    """What happens to patches besides."""

    tilt_rad_N2: Tensor = _unless_drawn(0)
    """About the rows' axis and about the columns'; where patches are turned, and not flat."""
    blur_sigma_through_px_NC: Tensor = _unless_drawn(0)
    """Through the slices."""
    mirror_through_N: Tensor = _unless_drawn(0)
    """Whether the order of slices is reversed (bool)."""


def draw(
    spec: AugmentationTable,
    batch_size: int,
    channels: int,
    generator: Generator,
    size: Sequence[int] = (),
) -> Draws:
    """Draw what happens to each of `batch_size` images; `generator` is one of the CPU.

    Of patches, whose `size` has three lengths, what happens in their plane comes first, so that of
    a single slice the same is drawn as in 2D.
    """
    n, c, dice = batch_size, channels, _Dice(generator)
    rotated = dice.happens(spec.rotation_probability, n)
    scaled = dice.happens(spec.scaling_probability, n)
    noisy = dice.happens(spec.noise_probability, n)
    blurred = dice.happens(spec.blur_probability, n, 1)
    blurred = blurred & dice.happens(spec.blur_channel_probability, n, c)
    brightened = dice.happens(spec.brightness_probability, n, 1)
    contrasted = dice.happens(spec.contrast_probability, n, 1)
    lowered = dice.happens(spec.low_resolution_probability, n, 1)
    lowered = lowered & dice.happens(spec.low_resolution_channel_probability, n, c)
    inverted_curved = dice.happens(spec.inverted_gamma_probability, n, 1)
    curved = dice.happens(spec.gamma_probability, n, 1)
    in_plane = Draws(
        rotation_rad_N=dice.uniform(spec.rotation_deg, n).deg2rad().where(rotated, 0),
        scale_N=dice.uniform(spec.scale, n).where(scaled, 1),
        noise_sigma_N=dice.uniform(spec.noise_sigma, n).where(noisy, 0),
        noise_seed_N=dice.seeds(n).where(noisy, 0),
        blur_sigma_px_NC2=dice.uniform(spec.blur_sigma_px, n, c, 2).where(blurred[..., None], 0),
        brightness_NC=dice.around_one(spec.brightness, n, c).where(brightened, 1),
        contrast_NC=dice.around_one(spec.contrast, n, c).where(contrasted, 1),
        low_resolution_NC=dice.uniform(spec.low_resolution, n, c).where(lowered, 1),
        inverted_gamma_NC=dice.around_one(spec.gamma, n, c).where(inverted_curved, 1),
        gamma_NC=dice.around_one(spec.gamma, n, c).where(curved, 1),
        mirror_N2=dice.happens(spec.mirror_probability, n, 2),
    )
    if len(size) < 3:
        return in_plane
    tilted = torch.zeros_like(rotated) if is_flat(size) else rotated
    return PatchDraws(
        **vars(in_plane),
        tilt_rad_N2=dice.uniform(spec.rotation_deg, n, 2).deg2rad().where(tilted[:, None], 0),
        blur_sigma_through_px_NC=dice.uniform(spec.blur_sigma_px, n, c).where(blurred, 0),
        mirror_through_N=dice.happens(spec.mirror_probability, n),
    )


@dataclass(frozen=True)
class _Dice:
    """Random tensors from one generator."""

    generator: Generator

    def happens(self, probability: float, *shape: int) -> Tensor:
        return torch.rand(shape, generator=self.generator) < probability

    def uniform(self, bounds: Range, *shape: int) -> Tensor:
        low, high = bounds
        return low + (high - low) * torch.rand(shape, generator=self.generator)

    def around_one(self, bounds: Range, *shape: int) -> Tensor:
        low, high = bounds
        below = self.happens(0.5, *shape)
        return self.uniform((low, 1), *shape).where(below, self.uniform((1, high), *shape))

    def seeds(self, *shape: int) -> Tensor:
        return torch.randint(2**63 - 1, shape, generator=self.generator)


def apply(images_NCHW: Tensor, labels_NHW: Tensor, draws: Draws) -> tuple[Tensor, Tensor]:
    """New images and labels, changed as drawn, where the old ones are; those stay as they were.

    What was not drawn for an image leaves its bits untouched.
    """
    images = images_NCHW.clone(memory_format=torch.contiguous_format)
    labels = labels_NHW.clone()
    _warp(images, labels, draws)
    inside_NHW = foreground(images)
    _add_noise(images, draws)
    _change_planes(images, draws)
    _clear_outside(images, inside_NHW, draws)
    _mirror(images, labels, draws)
    return images, labels


_ON_PLANES: tuple[tuple[str, Callable[[Tensor, Tensor], Tensor]], ...] = (
    ("blur_sigma_px_NC2", transforms.blur),
    ("brightness_NC", transforms.change_brightness),
    ("contrast_NC", transforms.change_contrast),
    ("low_resolution_NC", transforms.lower_resolution),
    ("inverted_gamma_NC", transforms.change_inverted_gamma),
    ("gamma_NC", transforms.change_gamma),
)
_INTENSITIES = ("noise_sigma_N", *(name for name, _ in _ON_PLANES))


def _warp(images: Tensor, labels: Tensor, draws: Draws) -> None:
    chosen = _chosen_images(draws, "rotation_rad_N", "scale_N")
    if len(chosen):
        where = sent(chosen, images.device)
        parameters: tuple[Tensor, ...] = draws.rotation_rad_N[chosen], draws.scale_N[chosen]
        if isinstance(draws, PatchDraws) and not is_flat(images.shape[2:]):
            parameters = (*parameters, draws.tilt_rad_N2[chosen])
        images[where], labels[where] = transforms.warp(images[where], labels[where], *parameters)


def _add_noise(images: Tensor, draws: Draws) -> None:
    chosen = _chosen_images(draws, "noise_sigma_N")
    if len(chosen):
        where = sent(chosen, images.device)
        images[where] = transforms.add_noise(
            images[where], draws.noise_sigma_N[chosen], draws.noise_seed_N[chosen]
        )


def _change_planes(images: Tensor, draws: Draws) -> None:
    planes = images.flatten(0, 1)
    for name, change in _ON_PLANES:
        chosen = draws.drawn(name).view(len(planes), -1).any(dim=1).nonzero().flatten()
        if len(chosen):
            where = sent(chosen, images.device)
            parameters = getattr(draws, name)
            if isinstance(draws, PatchDraws) and change is transforms.blur:
                through = draws.blur_sigma_through_px_NC.unsqueeze(2)
                parameters = torch.cat([through, parameters], dim=2)
            if is_flat(images.shape[2:]) and change is transforms.lower_resolution:
                change = transforms.lower_resolution_of_slices
            planes[where] = change(planes[where], parameters.flatten(0, 1)[chosen])


def _clear_outside(images: Tensor, inside_NHW: Tensor, draws: Draws) -> None:
    where = sent(_chosen_images(draws, *_INTENSITIES), images.device)
    images[where] = images[where].masked_fill(~inside_NHW[where].unsqueeze(1), 0)


def _mirror(images: Tensor, labels: Tensor, draws: Draws) -> None:
    mirrored = dict(zip((-2, -1), draws.mirror_N2.unbind(dim=1), strict=True))
    if isinstance(draws, PatchDraws):
        mirrored[-3] = draws.mirror_through_N
    for axis, mirrored_N in mirrored.items():
        where = sent(mirrored_N.nonzero().flatten(), images.device)
        images[where], labels[where] = images[where].flip(axis), labels[where].flip(axis)


def _chosen_images(draws: Draws, *names: str) -> Tensor:
    """Indices (on the CPU) of the images to which one of these transforms happens."""
    happens = [draws.drawn(name).view(len(draws), -1).any(dim=1) for name in names]
    return torch.stack(happens).any(dim=0).nonzero().flatten()
