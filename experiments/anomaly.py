"""From a reconstruction to anomaly scores, and from a mask to a mask without specks.

A denoising auto-encoder reconstructs healthy tissue; where its output differs from its input, the
scan is anomalous (Kascenas et al., "Denoising Autoencoders for Unsupervised Anomaly Detection in
Brain MRI", MIDL 2022; the constants are those of their code).

Letters in names: N images, C modalities, Z slices of a scan, H and W rows and columns of a slice.
"""

import numpy as np
import torch
import torch.nn.functional as F

FOREGROUND_ABOVE = 0.01
"""A pixel is foreground where its channels sum to more than this."""

ERODED_ABOVE = 0.95
"""… and is kept if more than this share of its 5×5 window is foreground: 24 of 25 pixels."""

_WINDOW = 5

SMALL_COMPONENT_VOXELS = 20
"""The largest connected component that is taken for noise, in voxels, holes filled."""

_VOXELS_AROUND_A_HOLE = 3**3 - 1  # a component with fewer has no hole


@torch.no_grad()
def reconstruction_anomaly(images_NCHW: torch.Tensor, outputs_NCHW: torch.Tensor) -> torch.Tensor:
    """How anomalous each pixel is: a float32 tensor of shape NHW, on the device of the images.

    The mean over channels of |input − output| inside the eroded foreground, 0 outside, then the
    5×5 median with reflected borders. The input is the clean image. NaN in an output stays NaN.
    """
    kept_NHW = eroded(foreground(images_NCHW))
    error_NHW = (images_NCHW.float() - outputs_NCHW.float()).abs_().mean(dim=1)
    return median_filter(error_NHW * kept_NHW)


@torch.no_grad()
def median_filter(images_NHW: torch.Tensor) -> torch.Tensor:
    """The median of each pixel's 5×5 window, borders reflected: float32, on the same device.

    Exact. A window with a NaN in it is NaN, as torch's median has it. On a CPU it is OpenCV's,
    which sorts NaN anywhere, so that such images are left to unfolding.
    """
    padded_NHW = F.pad(images_NHW.float()[:, None], (_WINDOW // 2,) * 4, mode="reflect")[:, 0]
    if images_NHW.device.type != "cpu" or bool(padded_NHW.isnan().any()):
        return _unfolded_median(padded_NHW)
    import cv2

    rim = slice(_WINDOW // 2, -(_WINDOW // 2))
    filtered = [cv2.medianBlur(image.numpy(), _WINDOW)[rim, rim] for image in padded_NHW]
    return torch.from_numpy(np.stack(filtered)) if filtered else images_NHW.float()


def _unfolded_median(padded_NHW: torch.Tensor) -> torch.Tensor:
    windows = padded_NHW.unfold(1, _WINDOW, 1).unfold(2, _WINDOW, 1)
    return windows.flatten(start_dim=3).median(dim=3).values


def foreground(images_NCHW: torch.Tensor) -> torch.Tensor:
    """Where there is something to see: a bool tensor of shape NHW."""
    return images_NCHW.sum(dim=1, dtype=torch.float32) > FOREGROUND_ABOVE


def eroded(foreground_NHW: torch.Tensor) -> torch.Tensor:
    """The foreground without its rim: where the 5×5 average, zero-padded by 2, exceeds 0.95.

    What lies outside the image is background, so the two outermost rows and columns are cleared.
    """
    padded = F.pad(foreground_NHW.to(torch.uint8), (_WINDOW // 2,) * 4)
    counts_NHW = _window_sum(_window_sum(padded, dim=1), dim=2)
    return counts_NHW > ERODED_ABOVE * _WINDOW**2


def _window_sum(counts: torch.Tensor, dim: int) -> torch.Tensor:
    size = counts.shape[dim] - _WINDOW + 1
    total = counts.narrow(dim, 0, size).clone()
    for offset in range(1, _WINDOW):
        total += counts.narrow(dim, offset, size)
    return total


def remove_small_components(
    mask_ZHW: np.ndarray, max_voxels: int = SMALL_COMPONENT_VOXELS
) -> np.ndarray:
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
