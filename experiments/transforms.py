"""The transforms of nnU-Net's training, as functions of images and parameters.

Nothing is decided in here: `experiments.augment` draws the parameters. What the transforms mean is
what they mean in nnU-Net 2.8 with batchgeneratorsv2 (Isensee et al. 2021); the code is our own.

Letters in names: N images, C channels, P planes (one channel of one image each), H and W rows and
columns; of patches HW stands for ZHW. Parameters have one value an image (N), or one a plane (P).
"""

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from fewscan.experiments.to_device import sent

_TINY = 1e-7
"""Keeps a constant plane from being divided by 0."""

_KERNEL_SIGMAS = 3
"""Blurring kernels end at the first pixel that is this many standard deviations away."""


def warp(
    images_NCHW: Tensor,
    labels_NHW: Tensor,
    angles_rad_N: Tensor,
    scales_N: Tensor,
    tilts_rad_N2: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Rotate and scale about the centre: (tri)linear for images, nearest for labels, 0 outside.

    A positive angle turns counter-clockwise (rows shown downwards). The scale is nnU-Net's: what is
    multiplied is the place that a pixel is fetched from, so a scale above 1 makes things smaller.
    Patches are tilted about the rows' axis and the columns', and then turned, all in voxels;
    without tilts each slice is changed in its plane.
    """
    slices = labels_NHW.shape[1:-2]
    if tilts_rad_N2 is None and slices:  # all slices of a patch as channels
        planes_NCHW = images_NCHW.flatten(1, 2)
        planes_NCHW, labels_NCHW = _sampled(
            planes_NCHW, labels_NHW, _sampling_grid(planes_NCHW, angles_rad_N, scales_N)
        )
        return planes_NCHW.unflatten(1, images_NCHW.shape[1:3]), labels_NCHW
    if tilts_rad_N2 is None:
        grid = _sampling_grid(images_NCHW, angles_rad_N, scales_N)
    else:
        grid = _tilted_grid(images_NCHW, angles_rad_N, scales_N, tilts_rad_N2)
    images, labels_N1HW = _sampled(images_NCHW, labels_NHW.unsqueeze(1), grid)
    return images, labels_N1HW.squeeze(1)


def _sampled(images_NCHW: Tensor, labels_NCHW: Tensor, grid: Tensor) -> tuple[Tensor, Tensor]:
    images = F.grid_sample(images_NCHW, grid, "bilinear", "zeros", align_corners=False)
    labels = labels_NCHW.to(images)
    labels = F.grid_sample(labels, grid, "nearest", "zeros", align_corners=False)
    return images, labels.to(labels_NCHW.dtype)


def _sampling_grid(images_NCHW: Tensor, angles_rad_N: Tensor, scales_N: Tensor) -> Tensor:
    height, width = images_NCHW.shape[-2:]
    dtype, device = images_NCHW.dtype, images_NCHW.device
    y = torch.arange(height, dtype=dtype, device=device).sub((height - 1) / 2).view(1, -1, 1)
    x = torch.arange(width, dtype=dtype, device=device).sub((width - 1) / 2).view(1, 1, -1)
    cosine = _per_plane(angles_rad_N.cos() * scales_N, images_NCHW[:, 0])
    sine = _per_plane(angles_rad_N.sin() * scales_N, images_NCHW[:, 0])
    from_x, from_y = cosine * x - sine * y, sine * x + cosine * y
    return torch.stack([from_x * (2 / width), from_y * (2 / height)], dim=-1)


def _tilted_grid(
    images_NCZHW: Tensor, angles_rad_N: Tensor, scales_N: Tensor, tilts_rad_N2: Tensor
) -> Tensor:
    """N × Z × H × W × 3: column, row and slice that each voxel is fetched from, as torch wants."""
    size = images_NCZHW.shape[:1:-1]  # columns, rows, slices
    centred = [torch.arange(n, dtype=torch.float64).sub((n - 1) / 2) for n in size]
    x, y, z = torch.meshgrid(*centred, indexing="ij")
    places_ZHW3 = torch.stack([x, y, z], dim=-1).transpose(0, 2)
    about_rows, about_columns = tilts_rad_N2.double().unbind(dim=1)
    turn_N33 = (
        _turn(angles_rad_N.double(), 0, 1) @ _turn(about_columns, 2, 1) @ _turn(about_rows, 0, 2)
    )
    turn_N33 = turn_N33 * scales_N.double().view(-1, 1, 1) * (2 / torch.tensor(size)).view(3, 1)
    from_N33 = sent(turn_N33, images_NCZHW.device, images_NCZHW.dtype)
    places_ZHW3 = sent(places_ZHW3, images_NCZHW.device, images_NCZHW.dtype)
    # A sum rather than a matrix product: no TF32, no bf16 under autocast.
    parts = [places_ZHW3[..., None, k] * from_N33[:, None, None, None, :, k] for k in range(3)]
    return parts[0] + parts[1] + parts[2]


def _turn(angles_rad_N: Tensor, one: int, other: int) -> Tensor:
    """N33: from (x, y, z) to them turned in the plane of two axes."""
    turn_N33 = torch.eye(3, dtype=angles_rad_N.dtype).repeat(len(angles_rad_N), 1, 1)
    turn_N33[:, one, one] = turn_N33[:, other, other] = angles_rad_N.cos()
    turn_N33[:, one, other], turn_N33[:, other, one] = -angles_rad_N.sin(), angles_rad_N.sin()
    return turn_N33


def add_noise(images_NCHW: Tensor, sigmas_N: Tensor, seeds_N: Tensor) -> Tensor:
    """Add Gaussian noise, the same to all channels of an image; each image has its own seed."""
    size, device = images_NCHW.shape[2:], images_NCHW.device
    generators = [Generator(device).manual_seed(seed) for seed in seeds_N.tolist()]
    noise_NHW = torch.stack([torch.randn(size, generator=g, device=device) for g in generators])
    return images_NCHW + (noise_NHW * _per_plane(sigmas_N, noise_NHW)).unsqueeze(1).to(images_NCHW)


def blur(planes_PHW: Tensor, sigmas_px_P2: Tensor) -> Tensor:
    """Gaussian blur with a standard deviation along the rows' axis and one along the columns'.

    Of patches there are three, the first one through the slices.
    """
    for axis, sigmas_px_P in enumerate(sigmas_px_P2.unbind(dim=1), start=1):
        swapped = planes_PHW.transpose(axis, -1)
        lines_PLW = swapped.flatten(1, -2)
        blurred = _blur_last_axis(lines_PLW, sigmas_px_P)
        planes_PHW = blurred.unflatten(1, swapped.shape[1:-1]).transpose(axis, -1)
    return planes_PHW


def _blur_last_axis(planes_PHW: Tensor, sigmas_px_P: Tensor) -> Tensor:
    # A sum of shifted planes rather than a convolution: no TF32, no bf16 under autocast.
    radii_P = (_KERNEL_SIGMAS * sigmas_px_P).ceil()
    radius = min(int(radii_P.max()), planes_PHW.shape[-1] - 1)  # all that can be reflected
    offsets_K = torch.arange(-radius, radius + 1)
    weights_PK = (offsets_K / sigmas_px_P[:, None]).square().div(-2).exp()
    weights_PK *= offsets_K.abs() <= radii_P[:, None]
    weights_PK /= weights_PK.sum(dim=1, keepdim=True)
    weights_PK = sent(weights_PK, planes_PHW.device, planes_PHW.dtype)
    padded = F.pad(planes_PHW, (radius, radius), mode="reflect")
    blurred = torch.zeros_like(planes_PHW)
    for k, weights_P in enumerate(weights_PK.unbind(dim=1)):
        blurred += padded.narrow(-1, k, planes_PHW.shape[-1]) * weights_P.view(-1, 1, 1)
    return blurred


def change_brightness(planes_PHW: Tensor, factors_P: Tensor) -> Tensor:
    """Multiply each plane by its factor."""
    return planes_PHW * _per_plane(factors_P, planes_PHW)


def change_contrast(planes_PHW: Tensor, factors_P: Tensor) -> Tensor:
    """Stretch each plane about its mean, clipped to the range that it had."""
    mean, low, high = _mean(planes_PHW), _min(planes_PHW), _max(planes_PHW)
    stretched = (planes_PHW - mean) * _per_plane(factors_P, planes_PHW) + mean
    return stretched.clamp(low, high)


def lower_resolution(planes_PHW: Tensor, scales_P: Tensor) -> Tensor:
    """Shrink each plane to its scale by taking nearest pixels, and enlarge it (tri)linearly."""
    return _lowered(planes_PHW.unsqueeze(1), scales_P)[:, 0]


def lower_resolution_of_slices(patches_PZHW: Tensor, scales_P: Tensor) -> Tensor:
    """The same of each slice of a patch, in its plane."""
    return _lowered(patches_PZHW, scales_P)


def _lowered(planes_PCHW: Tensor, scales_P: Tensor) -> Tensor:
    size = planes_PCHW.shape[2:]
    mode = "bilinear" if len(size) == 2 else "trilinear"
    lowered = []
    for plane_CHW, scale in zip(planes_PCHW, scales_P.tolist(), strict=True):
        shrunk = [max(1, round(length * scale)) for length in size]
        coarse = F.interpolate(plane_CHW[None], shrunk, mode="nearest-exact")
        lowered.append(F.interpolate(coarse, size, mode=mode, align_corners=False)[0])
    return torch.stack(lowered)


def change_gamma(planes_PHW: Tensor, gammas_P: Tensor) -> Tensor:
    """Raise each plane, rescaled to [0, 1], to its power; then restore its mean and deviation."""
    low = _min(planes_PHW)
    spread = _max(planes_PHW) - low
    rescaled = (planes_PHW - low) / spread.clamp(min=_TINY)
    curved = rescaled.pow(_per_plane(gammas_P, planes_PHW)) * spread + low
    factor = _std(planes_PHW) / _std(curved).clamp(min=_TINY)
    return (curved - _mean(curved)) * factor + _mean(planes_PHW)


def change_inverted_gamma(planes_PHW: Tensor, gammas_P: Tensor) -> Tensor:
    """`change_gamma` of the negative: it acts on the bright end instead of the dark one."""
    return -change_gamma(-planes_PHW, gammas_P)


def _per_plane(parameters_P: Tensor, planes: Tensor) -> Tensor:
    axes = (1 for _ in planes.shape[1:])
    return sent(parameters_P, planes.device, planes.dtype).view(-1, *axes)


def _mean(planes_PHW: Tensor) -> Tensor:
    return planes_PHW.mean(dim=_inner(planes_PHW), keepdim=True)


def _std(planes_PHW: Tensor) -> Tensor:
    return planes_PHW.std(dim=_inner(planes_PHW), keepdim=True)


def _min(planes_PHW: Tensor) -> Tensor:
    return planes_PHW.amin(dim=_inner(planes_PHW), keepdim=True)


def _max(planes_PHW: Tensor) -> Tensor:
    return planes_PHW.amax(dim=_inner(planes_PHW), keepdim=True)


def _inner(planes_PHW: Tensor) -> tuple[int, ...]:
    """The axes of a plane."""
    return tuple(range(1, planes_PHW.ndim))
