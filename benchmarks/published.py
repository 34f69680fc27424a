"""A stand-in for the published way, written here: the same steps by the plain means that it uses.

What it does and what that costs is described in Kascenas et al., "Denoising Autoencoders for
Unsupervised Anomaly Detection in Brain MRI" (MIDL 2022) and Holzschuh et al. (MIDL 2023); no line
of theirs is in here. It is no straw man: nothing is slower than the obvious way of writing it.

Letters: N slices, C channels, H and W rows and columns of a slice, X, Y, Z the scan's axes.
"""

from collections.abc import Sequence
from pathlib import Path

import nibabel
import numpy as np
import torch
import torch.nn.functional as F
from sklearn.metrics import average_precision_score
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from fewscan.storage.catalog import ScanFiles
from fewscan.storage.find import find_scans


def prepare_all(scans: Path, folder: Path, size: int) -> None:
    """Every scan under `scans` as slices in `folder`."""
    for files in find_scans(scans).scans:
        prepare(files, folder, size)


def prepare(files: ScanFiles, folder: Path, size: int) -> None:
    """A scan → a compressed float64 `.npz` for each slice with something in it."""
    assert files.label_file is not None
    channels_CXYZ = np.stack([_normalised(path) for path in files.channel_files])
    labels_XYZ = nibabel.load(files.label_file).get_fdata()
    filled = np.flatnonzero(channels_CXYZ.mean(axis=0).sum(axis=(0, 1)) > 0.5)
    for z in range(filled[0], filled[-1] + 1):
        mask_HW = _resized((labels_XYZ[None, :, :, z] > 0.5).astype(np.float64), size)[0] > 0.5
        np.savez_compressed(
            folder / f"{files.id}_{z:03d}.npz",
            image=_resized(channels_CXYZ[..., z], size),
            mask=mask_HW,
        )


def _normalised(path: Path) -> np.ndarray:
    voxels_XYZ = nibabel.load(path).get_fdata()
    normalised_XYZ: np.ndarray = voxels_XYZ / np.quantile(voxels_XYZ[voxels_XYZ > 0], 0.99)
    return normalised_XYZ


def _resized(image_CHW: np.ndarray, size: int) -> np.ndarray:
    image_NCHW = torch.from_numpy(image_CHW)[None]
    resized_NCHW = F.interpolate(image_NCHW, (size, size), mode="bilinear", align_corners=False)
    return resized_NCHW[0].numpy()


class SliceFiles(Dataset[tuple[Tensor, Tensor]]):
    """The slices that `prepare` wrote, one file each, in the order of subjects and positions."""

    def __init__(self, folder: Path) -> None:
        self.paths = sorted(folder.glob("*.npz"))

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, n: int) -> tuple[Tensor, Tensor]:
        with np.load(self.paths[n]) as arrays:
            return torch.from_numpy(arrays["image"]).float(), torch.from_numpy(arrays["mask"])


def batches(
    slices: SliceFiles, batch_size: int, workers: int, order: Sequence[int] | None = None
) -> DataLoader[tuple[Tensor, Tensor]]:
    """Batches of images (NCHW) and masks (NHW), in turn or in the given order."""
    return DataLoader(slices, batch_size, sampler=order, num_workers=workers)


def average_precision(scores: np.ndarray, mask: np.ndarray) -> float:
    """AP of pooled pixels, whose scores are rounded to half precision."""
    return float(average_precision_score(mask, scores.astype(np.float16)))


def best_dice(scores: np.ndarray, mask: np.ndarray, thresholds: Sequence[float]) -> float:
    """The largest Dice of score > threshold over pooled pixels, in half precision."""
    half = scores.astype(np.float16)  # in numpy: torch takes four times as long on a CPU
    positives, best = int(mask.sum()), 0.0
    for threshold in thresholds:
        predicted = half > np.float16(threshold)
        hits = int((predicted & mask).sum())
        best = max(best, 2 * hits / (int(predicted.sum()) + positives))
    return best


@torch.no_grad()
def anomaly_score(images_NCHW: Tensor, outputs_NCHW: Tensor) -> Tensor:
    """Mean error inside the eroded foreground, 5×5 median by unfolding: float32, NHW."""
    seen_N1HW = images_NCHW.sum(dim=1, keepdim=True) > 0.01
    kept_N1HW = F.avg_pool2d(seen_N1HW.float(), kernel_size=5, stride=1, padding=2) > 0.95
    error_NHW = ((images_NCHW - outputs_NCHW) * kept_N1HW).abs().mean(dim=1)
    padded_NHW = F.pad(error_NHW, (2, 2, 2, 2), mode="reflect")
    return padded_NHW.unfold(1, 5, 1).unfold(2, 5, 1).flatten(3).median(dim=3).values
