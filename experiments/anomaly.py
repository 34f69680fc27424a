"""From a reconstruction to anomaly scores, and from a mask to a mask without specks.

A denoising auto-encoder reconstructs healthy tissue; where its output differs from its input, the
scan is anomalous (Kascenas et al., "Denoising Autoencoders for Unsupervised Anomaly Detection in
Brain MRI", MIDL 2022; the constants are those of their code). Their sizes in pixels and voxels are
lengths and volumes here, equal on their grid, so that they mean the same on another one.

Of a 3D network images are volumes, and the windows have a length through the slices, too.

Letters in names: N images, C modalities, Z slices of a scan, H and W rows and columns of a slice;
of volumes HW stands for ZHW.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F

FOREGROUND_ABOVE = 0.01
"""A pixel is foreground where its channels sum to more than this."""

ERODED_ABOVE = 0.95
"""… and is kept if more than this share of its window is foreground: 24 of 25 pixels."""

WINDOW_MM = 9.375
"""Side of the windows of erosion and median: published are 5 pixels of 1.875 mm (240 / 128)."""
PUBLISHED_MM = (1.875, 1.875)
"""Between the rows and between the columns of the published slices."""
PUBLISHED_WINDOW = (5, 5)

_OPENCV_WINDOWS = ((3, 3), (5, 5))
"""That its median of float32 can do."""
_VALUES_AT_ONCE = 2**26
"""The unfolding holds this many, 256 MiB, or those of one row."""

_VOXELS_AROUND_A_HOLE = 3**3 - 1  # a component with fewer has no hole
_OF_A_VOXEL = 1e-3
"""So much may rounding take from a volume: a header's lengths are in single precision."""


@torch.no_grad()
def reconstruction_anomaly(
    images_NCHW: torch.Tensor,
    outputs_NCHW: torch.Tensor,
    spacing_mm_HW: tuple[float, ...],
) -> torch.Tensor:
    """How anomalous each pixel is: a float32 tensor of shape NHW, on the device of the images.

    The mean over channels of |input − output| inside the eroded foreground, 0 outside, then the
    median filter with reflected borders. The input is the clean image. NaN in an output stays NaN.
    `spacing_mm_HW` is the distance between rows and between columns, which gives the windows.
    """
    return anomaly_of(reconstruction_error(images_NCHW, outputs_NCHW), images_NCHW, spacing_mm_HW)


@torch.no_grad()
def reconstruction_error(images_NCHW: torch.Tensor, outputs_NCHW: torch.Tensor) -> torch.Tensor:
    """The mean over channels of |input − output|: float32 NHW."""
    return (images_NCHW.float() - outputs_NCHW.float()).abs_().mean(dim=1)


@torch.no_grad()
def anomaly_of(
    error_NHW: torch.Tensor, images_NCHW: torch.Tensor, spacing_mm_HW: tuple[float, ...]
) -> torch.Tensor:
    """What `reconstruction_anomaly` makes of an error, however it was found."""
    window_HW = window_of(spacing_mm_HW, images_NCHW.shape[2:])
    kept_NHW = eroded(foreground(images_NCHW), window_HW)
    return median_filter(error_NHW * kept_NHW, window_HW)


def window_of(spacing_mm_HW: Sequence[float], size_HW: Sequence[int]) -> tuple[int, ...]:
    """Rows and columns of the windows of erosion and median on such slices.

    The odd numbers nearest to `WINDOW_MM`; 1, a pixel alone, where pixels are that large; never
    more than reflected borders can fill.
    """
    return tuple(
        min(2 * int(WINDOW_MM / mm / 2) + 1, 2 * size - 1)
        for mm, size in zip(spacing_mm_HW, size_HW, strict=True)
    )


@torch.no_grad()
def median_filter(
    images_NHW: torch.Tensor, window_HW: tuple[int, ...] = PUBLISHED_WINDOW
) -> torch.Tensor:
    """The median of each pixel's window, borders reflected: float32, on the same device.

    Exact. A window with a NaN in it is NaN, as torch's median has it. On a CPU it is OpenCV's for
    the windows that it knows. It sorts NaN anywhere, so that such images are left to unfolding.
    """
    if set(window_HW) == {1}:
        return images_NHW.float().clone()
    padding = [n // 2 for n in reversed(window_HW) for _ in range(2)]
    padded_NHW = F.pad(images_NHW.float()[:, None], padding, mode="reflect")[:, 0]
    by_opencv = images_NHW.device.type == "cpu" and window_HW in _OPENCV_WINDOWS
    if not by_opencv or bool(padded_NHW.isnan().any()):
        return _unfolded_median(padded_NHW, window_HW)
    import cv2

    side = window_HW[0]
    rim = slice(side // 2, -(side // 2))
    filtered = [cv2.medianBlur(image.numpy(), side)[rim, rim] for image in padded_NHW]
    return torch.from_numpy(np.stack(filtered)) if filtered else images_NHW.float()


def _unfolded_median(padded_NHW: torch.Tensor, window_HW: tuple[int, ...]) -> torch.Tensor:
    """Some rows at a time, as large windows take much memory."""
    windows = padded_NHW
    for axis, length in enumerate(window_HW, start=1):
        windows = windows.unfold(axis, length, 1)
    values_a_row = windows[:, :1].numel()
    rows = max(1, _VALUES_AT_ONCE // max(1, values_a_row))
    inner = padded_NHW.ndim
    parts = [
        part.flatten(start_dim=inner).median(dim=inner).values
        for part in windows.split(rows, dim=1)
    ]
    return torch.cat(parts, dim=1)


def foreground(images_NCHW: torch.Tensor) -> torch.Tensor:
    """Where there is something to see: a bool tensor of shape NHW."""
    return images_NCHW.sum(dim=1, dtype=torch.float32) > FOREGROUND_ABOVE


def eroded(
    foreground_NHW: torch.Tensor, window_HW: tuple[int, ...] = PUBLISHED_WINDOW
) -> torch.Tensor:
    """The foreground without its rim: where the average of the window, zero-padded, exceeds 0.95.

    What lies outside the image is background, so of 5×5 the two outermost rows and columns are
    cleared.
    """
    pixels = math.prod(window_HW)
    counted = torch.uint8 if pixels < 2**8 else torch.int32
    padding = [length // 2 for length in reversed(window_HW) for _ in range(2)]
    counts_NHW = F.pad(foreground_NHW.to(counted), padding)
    for axis, length in enumerate(window_HW, start=1):
        counts_NHW = _window_sum(counts_NHW, axis, length)
    return counts_NHW > ERODED_ABOVE * pixels


def _window_sum(counts: torch.Tensor, dim: int, length: int) -> torch.Tensor:
    size = counts.shape[dim] - length + 1
    total = counts.narrow(dim, 0, size).clone()
    for offset in range(1, length):
        total += counts.narrow(dim, offset, size)
    return total


def voxels_in(volume_mm3: float, spacing_mm_ZHW: tuple[float, float, float]) -> int:
    """The whole voxels that a volume holds."""
    return int(volume_mm3 / math.prod(spacing_mm_ZHW) + _OF_A_VOXEL)


def remove_small_components(mask_ZHW: np.ndarray, max_voxels: int) -> np.ndarray:
    """A copy of the bool mask without connected components of at most `max_voxels` voxels.

    Voxels are connected to their 26 neighbours, and so is the background: a hole, which counts
    as part of its component's size, is shut in on all sides, diagonals included (scikit-image's
    filled area, which the published code uses).
    """
    from scipy import ndimage

    neighbours = np.ones((3, 3, 3), bool)
    labels_ZHW, _ = ndimage.label(mask_ZHW, neighbours)
    sizes = np.bincount(labels_ZHW.ravel())
    sizes[0] = 0  # the background goes with what is small
    small = sizes <= max_voxels
    boxes = ndimage.find_objects(labels_ZHW)
    for label in np.flatnonzero(small & (sizes >= _VOXELS_AROUND_A_HOLE)):
        box = boxes[label - 1]
        filled = ndimage.binary_fill_holes(labels_ZHW[box] == label, neighbours)
        small[label] = filled.sum() <= max_voxels
    kept_ZHW: np.ndarray = ~small[labels_ZHW]
    return kept_ZHW
