"""A scan → the slices that networks see, as Kascenas et al. (2022) prepare them.

Each channel is divided by the 0.99 quantile of its voxels above zero; the slices from the first to
the last with something in them are kept; each is interpolated to `size` x `size`. Pure functions of
arrays: preparing a store and predicting on a new scan share them.

Letters: N kept slices, C channels, H and W rows and columns of a slice, X, Y, Z the scan's axes
(H comes from X and W from Y, without transposition or flip).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from storage.errors import ScanError
from storage.scans import Scan

QUANTILE = 0.99
KEPT_SUM = 0.5
"""a slice counts if the mean over channels of the normalised voxels sums to more than this"""
_LARGEST_HALF = 65504.0


@dataclass(frozen=True, eq=False)
class ScanSlices:
    """The kept slices of one scan."""

    first: int
    """index along Z of the first one; the others follow without a gap"""
    images_NCHW: np.ndarray
    """float16, 1 = the channel's quantile"""
    labels_NHW: np.ndarray | None
    """uint8: 0 no lesion, k the k-th class; None for a scan without labels"""
    quantiles: tuple[float, ...]
    """what each channel was divided by, in units of its file"""


def preprocess(scan: Scan, size: int) -> ScanSlices:
    """Normalise, choose and interpolate the slices of `scan`.

    Raises `ScanError` if no slice has anything in it, or a voxel is beyond half precision.
    """
    quantiles = tuple(bright_quantile(channel) for channel in scan.channels_XYZ)
    _require_half_range(scan.channels_XYZ, quantiles)
    kept = kept_slices(scan.channels_XYZ, quantiles)
    images_NCHW = np.empty((len(kept), len(quantiles), size, size), np.float16)
    for channel, (voxels_XYZ, quantile) in enumerate(
        zip(scan.channels_XYZ, quantiles, strict=True)
    ):
        resize = Resize.exact_for(voxels_XYZ.dtype, voxels_XYZ.shape[:2], size)
        divisor = np.float64(quantile * resize.scale)  # a numpy scalar, so that float64 divides
        for n, z in enumerate(kept):
            images_NCHW[n, channel] = resize(voxels_XYZ[:, :, z]) / divisor
    labels_NHW = None
    if scan.labels_XYZ is not None:
        labels_NHW = resized_labels(scan.labels_XYZ[:, :, kept.start : kept.stop], size)
    return ScanSlices(kept.start, images_NCHW, labels_NHW, quantiles)


def bright_quantile(voxels_XYZ: np.ndarray) -> float:
    """The 0.99 quantile of the voxels above zero, linearly interpolated.

    Exactly `numpy.quantile(voxels[voxels > 0].astype(float), 0.99)`; of small integers it is found
    by counting, which costs a third.
    """
    flat = voxels_XYZ.ravel(order="K")
    bright = flat[flat > 0]
    assert bright.size, "an empty channel is refused when the scan is read"
    if bright.dtype.kind in "iu" and bright.dtype.itemsize <= 2:
        return counted_quantile(np.bincount(bright), QUANTILE)
    return float(np.quantile(bright.astype(np.float64), QUANTILE))


def counted_quantile(counts: np.ndarray, q: float) -> float:
    """The linearly interpolated quantile of integers, of which `counts[i]` have the value i."""
    up_to = np.cumsum(counts)
    position = (int(up_to[-1]) - 1) * q
    below = math.floor(position)
    above = min(below + 1, int(up_to[-1]) - 1)
    low, high = np.searchsorted(up_to, [below, above], side="right").astype(np.float64)
    part = position - below
    # As numpy interpolates: from the nearer end, so that rounding is the same.
    return float(high - (high - low) * (1 - part) if part >= 0.5 else low + (high - low) * part)


def kept_slices(channels_XYZ: Sequence[np.ndarray], quantiles: Sequence[float]) -> range:
    """Indices along Z from the first to the last slice with something in it."""
    sums_CZ = [channel.sum(axis=(0, 1), dtype=np.float64) for channel in channels_XYZ]
    means_Z = np.mean([s / q for s, q in zip(sums_CZ, quantiles, strict=True)], axis=0)
    filled = np.flatnonzero(means_Z > KEPT_SUM)
    if not filled.size:
        raise ScanError(
            "no slice has anything in it",
            expected=f"a slice whose normalised voxels sum to more than {KEPT_SUM}",
            remedy="leave this scan out",
        )
    return range(int(filled[0]), int(filled[-1]) + 1)


def resized_labels(labels_XYN: np.ndarray, size: int) -> np.ndarray:
    """Interpolate class labels to (N, size, size).

    The lesion is exactly the published binary mask: the interpolated mask above one half. Inside it
    a pixel gets the class with the largest interpolated share, the first of equal ones.
    """
    resize = Resize.exact_for(np.dtype(bool), labels_XYN.shape[:2], size)
    labels_NHW = np.zeros((labels_XYN.shape[2], size, size), np.uint8)
    for n in np.flatnonzero(labels_XYN.any(axis=(0, 1))):
        label_HW = labels_XYN[:, :, n]
        classes = np.arange(1, label_HW.max() + 1)
        shares_KHW = np.stack([resize(label_HW == k) for k in classes])
        lesion_HW = 2 * shares_KHW.sum(axis=0) > resize.scale
        labels_NHW[n] = np.where(lesion_HW, classes[shares_KHW.argmax(axis=0)], 0)
    return labels_NHW


@dataclass(frozen=True, eq=False)
class Taps:
    """Linear interpolation along one axis: the two inputs of each output, with integer weights."""

    lower: np.ndarray
    upper: np.ndarray
    lower_weights: np.ndarray
    upper_weights: np.ndarray
    scale: int
    """the two weights of an output sum to this"""

    @classmethod
    def half_pixel(cls, inputs: int, outputs: int, dtype: np.dtype) -> "Taps":
        """Half-pixel centres, edges clamped: torch's bilinear with `align_corners=False`."""
        # Output i lies at (2i + 1) inputs / (2 outputs) - 1/2; counted in steps of 1 / (2 outputs).
        divisor = math.gcd(2 * outputs, 2 * inputs, inputs - outputs)
        scale = 2 * outputs // divisor
        position = np.maximum((2 * np.arange(outputs) + 1) * inputs - outputs, 0) // divisor
        lower, part = np.divmod(position, scale)
        upper = np.minimum(lower + 1, inputs - 1)
        weights = (scale - part).astype(dtype), part.astype(dtype)
        return cls(lower, upper, weights[0][:, None], weights[1][:, None], scale)

    def __call__(self, image_HW: np.ndarray) -> np.ndarray:
        """Interpolate along the first axis; the result is `scale` times too large."""
        return image_HW[self.lower] * self.lower_weights + image_HW[self.upper] * self.upper_weights


@dataclass(frozen=True, eq=False)
class Resize:
    """Bilinear interpolation of a slice, without antialiasing, times `scale`.

    The weights are integers, so that integer voxels give an exact result: the same on every
    machine, and no rounding error decides whether a pixel is above the mask's threshold.
    """

    rows: Taps
    columns: Taps

    @classmethod
    def exact_for(cls, voxels: np.dtype, shape_HW: tuple[int, ...], size: int) -> "Resize":
        """For slices of type `voxels`: in float32 if that is exact, else in float64."""
        height, width = shape_HW
        single = cls._of(height, width, size, np.dtype(np.float32))
        largest = {"b": 1, "f": math.inf}.get(voxels.kind) or np.iinfo(voxels).max + 1
        if largest * single.scale <= 2**24:
            return single
        return cls._of(height, width, size, np.dtype(np.float64))

    @classmethod
    def _of(cls, height: int, width: int, size: int, dtype: np.dtype) -> "Resize":
        rows, columns = (Taps.half_pixel(length, size, dtype) for length in (height, width))
        return cls(rows, columns)

    @property
    def scale(self) -> int:
        """How many times too large the result is."""
        return self.rows.scale * self.columns.scale

    def __call__(self, image_HW: np.ndarray) -> np.ndarray:
        """Return (size, size) of a slice."""
        # Columns first: NIfTI stores X fastest, so this gathers whole runs of memory.
        return self.rows(self.columns(image_HW.T).T)


def _require_half_range(channels_XYZ: Sequence[np.ndarray], quantiles: Sequence[float]) -> None:
    for channel, (voxels_XYZ, quantile) in enumerate(zip(channels_XYZ, quantiles, strict=True)):
        largest = max(abs(float(voxels_XYZ.max())), abs(float(voxels_XYZ.min()))) / quantile
        if largest > _LARGEST_HALF:
            raise ScanError(
                f"a voxel of channel {channel + 1} is {largest:.3g} times the 0.99 quantile",
                expected=f"at most {_LARGEST_HALF:.0f} times, the range of half precision",
                remedy="repair the outlier voxels of this file",
            )
