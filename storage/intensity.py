"""Voxel values in units of the scan itself: 0 background, 1 bright.

`quantile` is the published rule, for skull-stripped images with nothing below zero: divide by the
0.99 quantile of the voxels above zero. Where tissue lies on both sides of a background of 0 (images
already z-scored) it would cancel itself out, for slices are kept whose voxels sum to more than a
half. So a channel is refused if its voxels below zero sum to more than 5 % of those above; what
interpolation leaves there is less, and BraTS has nothing.

`percentiles` is our choice for all others (CT, images with their background, images already
shifted): the 0.5 to 99.5 percentile of the foreground is mapped to 0 … 1 and what lies outside is
clipped, as nnU-Net clips CT; per scan and channel, and without labels, because an unlabelled scan
must be treated alike. Background is the one value that all eight corners of the volume share (what
was masked out or padded, air); if they differ, all is foreground.

`window` is for images in units of their own, such as CT in Hounsfield units: a window, the same for
all scans, is mapped to 0 … 1 and clipped. Air is below it and becomes 0, the background of every
network here; so choose a LOW above air. `labelled-percentiles` is the same with the window that
nnU-Net clips CT to: the 0.5 to 99.5 percentile of the labelled voxels of all training scans.
nnU-Net goes on to subtract their mean and to divide by their spread; here 0 has to stay background,
and a linear map is nothing that a first convolution cannot undo. That window is learnt from masks,
so how many they were is part of the label budget.

Letters: X, Y, Z the scan's own axes.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from fewscan.storage.errors import ScanError

Normalisation = Literal["quantile", "percentiles", "window", "labelled-percentiles"]
Window = tuple[float, float]
"""the values that become 0 and 1"""
FIXED: tuple[Normalisation, ...] = ("window", "labelled-percentiles")
"""those with the same windows for all scans of a store"""
QUANTILE = 0.99
LOW, HIGH = 0.005, 0.995
_LARGEST_HALF = 65504.0
_MOST_BELOW_ZERO = 0.05


@dataclass(frozen=True, eq=False)
class Normalised:
    """The channels of a scan, each in units of its own."""

    channels_XYZ: list[np.ndarray]
    divisors: tuple[float, ...]
    """what is left to divide each by"""
    tops: tuple[float, ...]
    """the value in each channel's file that becomes 1"""
    voxels_below_zero: int = 0
    """of all channels, under the published rule, which expects none"""


def normalised(
    channels_XYZ: Sequence[np.ndarray],
    normalisation: Normalisation,
    windows: Sequence[Window] = (),
) -> Normalised:
    """Bring each channel to units of its own; `windows` are the channels', if they are fixed.

    The published rule leaves the voxels as they are, so that small integers can be interpolated
    exactly before they are divided. Raises `ScanError` if a channel has nothing to scale by, or is
    of a kind that the rule is not for.
    """
    if normalisation == "quantile":
        ranges = [(float(c.min()), float(c.max())) for c in channels_XYZ]
        _require_bright(ranges)
        below = sum(
            _voxels_below_zero(channel, number)
            for number, (channel, (least, _)) in enumerate(
                zip(channels_XYZ, ranges, strict=True), start=1
            )
            if least < 0
        )
        quantiles = tuple(map(bright_quantile, channels_XYZ))
        _require_half_range(ranges, quantiles)
        return Normalised(list(channels_XYZ), quantiles, quantiles, below)
    if normalisation in FIXED:
        fixed = zip(channels_XYZ, windows, strict=True)
        volumes = [clipped(channel, *window) for channel, window in fixed]
        return Normalised(volumes, (1.0,) * len(volumes), tuple(high for _, high in windows))
    windows = [foreground_window(channel) for channel in channels_XYZ]
    _require_contrast(windows)
    volumes = [windowed(c, *window) for c, window in zip(channels_XYZ, windows, strict=True)]
    return Normalised(volumes, (1.0,) * len(volumes), tuple(high for _, high in windows))


def bright_quantile(voxels_XYZ: np.ndarray) -> float:
    """The 0.99 quantile of the voxels above zero, linearly interpolated.

    Exactly `numpy.quantile(voxels[voxels > 0].astype(float), 0.99)`; of small integers it is found
    by counting, which costs a third.
    """
    flat = voxels_XYZ.ravel(order="K")
    return _quantiles(flat[flat > 0], QUANTILE)[0]


def foreground_window(voxels_XYZ: np.ndarray) -> tuple[float, float]:
    """The 0.5 and the 99.5 percentile of the foreground; both nan if there is none."""
    flat = voxels_XYZ.ravel(order="K")
    background = background_value(voxels_XYZ)
    foreground = flat if background is None else flat[flat != background]
    if not foreground.size:
        return math.nan, math.nan
    low, high = _quantiles(foreground, LOW, HIGH)
    return low, high


def background_value(voxels_XYZ: np.ndarray) -> float | None:
    """The value that all eight corners share, or None."""
    corners = voxels_XYZ[:: max(voxels_XYZ.shape[0] - 1, 1)]
    corners = corners[:, :: max(voxels_XYZ.shape[1] - 1, 1), :: max(voxels_XYZ.shape[2] - 1, 1)]
    return float(corners.flat[0]) if (corners == corners.flat[0]).all() else None


def windowed(voxels_XYZ: np.ndarray, low: float, high: float) -> np.ndarray:
    """Map `low` … `high` to 0 … 1 (float32), clip the rest; the background becomes 0."""
    scaled_XYZ = clipped(voxels_XYZ, low, high)
    background = background_value(voxels_XYZ)
    if background is not None:
        scaled_XYZ[voxels_XYZ == background] = 0
    return scaled_XYZ


def clipped(voxels_XYZ: np.ndarray, low: float, high: float) -> np.ndarray:
    """Map `low` … `high` to 0 … 1 (float32), clip the rest."""
    scaled_XYZ = voxels_XYZ.astype(np.float32)
    scaled_XYZ -= np.float32(low)
    scaled_XYZ /= np.float32(high - low)
    return np.clip(scaled_XYZ, 0, 1, out=scaled_XYZ)


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


def _quantiles(values: np.ndarray, *quantiles: float) -> list[float]:
    assert values.size, "an empty channel is refused before"
    if values.dtype.kind in "iu" and values.dtype.itemsize <= 2:
        least = min(int(values.min()), 0)  # at 0 for the published rule: no shift, no rounding
        counts = np.bincount(values - np.int32(least) if least else values)
        return [counted_quantile(counts, q) + least for q in quantiles]
    found: list[float] = np.quantile(values.astype(np.float64), quantiles).tolist()
    return found


def _require_bright(ranges: Sequence[tuple[float, float]]) -> None:
    for number, (_, largest) in enumerate(ranges, start=1):
        if largest <= 0:
            raise ScanError(
                f"no voxel of channel {number} is above zero",
                expected="a skull-stripped image, whose tissue is above zero",
                remedy="leave this scan out, or prepare with --normalisation percentiles",
            )


def _voxels_below_zero(voxels_XYZ: np.ndarray, number: int) -> int:
    """How many there are in the channel of this number, if they are few enough."""
    below = voxels_XYZ[voxels_XYZ < 0]
    sum_below = -float(below.sum(dtype=np.float64))
    sum_above = float(voxels_XYZ.sum(dtype=np.float64)) + sum_below
    if sum_below > _MOST_BELOW_ZERO * sum_above:
        raise ScanError(
            f"channel {number} has {below.size / voxels_XYZ.size:.0%} of its voxels below zero, "
            f"which sum to {sum_below / sum_above:.0%} of those above",
            expected=f"at most {_MOST_BELOW_ZERO:.0%}: images that are not shifted, as published",
            remedy="prepare with --normalisation percentiles, or give the images as they were "
            "before they were z-scored",
        )
    return int(below.size)


def _require_contrast(windows: Sequence[tuple[float, float]]) -> None:
    for number, (low, high) in enumerate(windows, start=1):
        if not low < high:
            raise ScanError(
                f"channel {number} has no contrast: its foreground is all {low:g}",
                expected="an image whose 0.5 and 99.5 percentiles differ",
                remedy="leave this scan out",
            )


def _require_half_range(ranges: Sequence[tuple[float, float]], quantiles: Sequence[float]) -> None:
    for number, ((least, most), quantile) in enumerate(zip(ranges, quantiles, strict=True), 1):
        largest = max(abs(most), abs(least)) / quantile
        if largest > _LARGEST_HALF:
            raise ScanError(
                f"a voxel of channel {number} is {largest:.3g} times the 0.99 quantile",
                expected=f"at most {_LARGEST_HALF:.0f} times, the range of half precision",
                remedy="repair the outlier voxels of this file",
            )
