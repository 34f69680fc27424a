"""A scan → the slices that networks see, as Kascenas et al. (2022) prepare them.

Each channel is brought to units of its own (`intensity`; published: divided by the 0.99 quantile of
its voxels above zero); the slices from the first to the last with something in them are kept; each
is interpolated into `size` x `size` (`geometry`). Pure functions of arrays: preparing a store and
predicting on a new scan share them.

Letters: N kept slices, C channels, H and W rows and columns of a slice, X, Y, Z the scan's axes;
a volume in HWZ has the axis through the slices at its end (Z itself in BraTS, where H is X and W is
Y; never transposed otherwise, never flipped).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fewscan.storage.errors import ScanError
from fewscan.storage.geometry import Axis, Frame, single_slice_axis, slice_axis
from fewscan.storage.intensity import Normalisation, Window, normalised
from fewscan.storage.labels import IGNORED
from fewscan.storage.scans import Scan

KEPT_SUM = 0.5
"""a slice counts if the mean over channels of the normalised voxels sums to more than this"""


@dataclass(frozen=True)
class Losses:
    """What of a scan is not in its kept slices."""

    slices: int = 0
    """that are not kept: there is too little in them"""
    lesion_slices: int = 0
    """of them, those with a lesion in the file"""
    lesion_voxels: int = 0
    """in them"""
    faded_slices: int = 0
    """kept slices with a lesion in the file, too small to be seen at the size of the slices"""
    faded_voxels: int = 0
    """in them"""


@dataclass(frozen=True, eq=False)
class ScanSlices:
    """The kept slices of one scan."""

    first: int
    """index through the slices of the first one; the others follow without a gap"""
    images_NCHW: np.ndarray
    """float16, 1 = the channel's quantile (`quantiles`)"""
    labels_NHW: np.ndarray | None
    """uint8: 0 no lesion, k the k-th class; None for a scan without labels"""
    quantiles: tuple[float, ...]
    """the value of each channel's file that became 1"""
    frame: Frame
    """where they lie in the scan"""
    depth: int
    """slices of the scan, kept or not"""
    lesion_voxels_ZK: np.ndarray | None
    """int64 (depth, classes): voxels of each class in each slice of the scan, kept or not, at the
    scan's own resolution; None for a scan without labels"""
    voxels_below_zero: int
    """of all channels, under the published rule, which expects none"""

    @property
    def lesion_voxels_NK(self) -> np.ndarray | None:
        """Of the kept slices. A slice is healthy if it has none; its pixels here may have lost them
        all."""
        counts_ZK = self.lesion_voxels_ZK
        kept = slice(self.first, self.first + len(self.images_NCHW))
        return None if counts_ZK is None else counts_ZK[kept]

    def faded(self, lesion: Sequence[int]) -> tuple[int, ...]:
        """Indices of the kept slices whose lesions in the file no pixel shows here."""
        return tuple(self.first + int(n) for n in np.flatnonzero(self._is_faded_N(lesion)))

    def _is_faded_N(self, lesion: Sequence[int]) -> np.ndarray:
        counts_NK = self.lesion_voxels_NK
        if counts_NK is None or self.labels_NHW is None:
            return np.zeros(len(self.images_NCHW), bool)
        has_lesion_N = counts_NK[:, [k - 1 for k in lesion]].any(axis=1)
        shown_N = np.isin(self.labels_NHW, list(lesion)).any(axis=(1, 2))
        return np.asarray(has_lesion_N & ~shown_N)

    def sentences(self) -> list[str]:
        """For people: what is not as the normalisation expects it."""
        if not self.voxels_below_zero:
            return []
        return ["some voxels are below zero, where the published rule expects none"]

    def losses(self, lesion: Sequence[int] = ()) -> Losses:
        """What of the scan is not in the kept slices.

        `lesion` are the labels of the lesion classes; empty: all classes are.
        """
        dropped = self.depth - len(self.images_NCHW)
        if self.lesion_voxels_ZK is None or self.labels_NHW is None:
            return Losses(slices=dropped)
        values = lesion or range(1, self.lesion_voxels_ZK.shape[1] + 1)
        voxels_Z = self.lesion_voxels_ZK[:, [k - 1 for k in values]].sum(axis=1)
        voxels_N = voxels_Z[self.first : self.first + len(self.labels_NHW)]
        faded_N = self._is_faded_N(values)
        return Losses(
            slices=dropped,
            lesion_slices=int((voxels_Z > 0).sum() - (voxels_N > 0).sum()),
            lesion_voxels=int(voxels_Z.sum() - voxels_N.sum()),
            faded_slices=int(faded_N.sum()),
            faded_voxels=int(voxels_N[faded_N].sum()),
        )


def preprocess(
    scan: Scan,
    size: int,
    axis: Axis = 2,
    normalisation: Normalisation = "quantile",
    windows: Sequence[Window] = (),
) -> ScanSlices:
    """Normalise, choose and interpolate the slices of `scan`.

    `windows` are those of the channels, if the normalisation has fixed ones.

    Raises `ScanError` if no slice has anything in it, a channel has no contrast or is of a kind
    that the normalisation is not for, a voxel is beyond half precision, or the scan is a single
    slice across another axis.
    """
    units = normalised(scan.channels_XYZ, normalisation, windows)
    divisors, shape_XYZ = units.divisors, scan.channels_XYZ[0].shape
    frame = Frame.of(shape_XYZ, scan.spacing_mm, _axis_through(scan, axis), size)
    channels_HWZ = [frame.as_slices(channel) for channel in units.channels_XYZ]
    seen = filled_window(channels_HWZ)
    kept = kept_slices([channel[seen] for channel in channels_HWZ], divisors)
    images_NCHW = np.zeros((len(kept), len(divisors), size, size), np.float16)
    inner_NCHW = images_NCHW[:, :, *frame.window]
    for channel, (voxels_HWZ, divisor) in enumerate(zip(channels_HWZ, divisors, strict=True)):
        resize = Resize.exact_for(voxels_HWZ.dtype, frame, seen)
        scale = np.float64(divisor * resize.scale)  # a numpy scalar, so that float64 divides
        seen_NHW = inner_NCHW[:, channel, *resize.outputs]
        for n, z in enumerate(kept):
            seen_NHW[n] = resize(voxels_HWZ[:, :, z]) / scale
    labels_NHW = counts_ZK = None
    if scan.labels_XYZ is not None:
        labels_HWZ = frame.as_slices(scan.labels_XYZ)
        labels_NHW = resized_labels(labels_HWZ[:, :, kept.start : kept.stop], frame)
        counts_ZK = class_counts(labels_HWZ, scan.class_count or int(scan.labels_XYZ.max()))
    return ScanSlices(
        first=kept.start,
        images_NCHW=images_NCHW,
        labels_NHW=labels_NHW,
        quantiles=units.tops,
        frame=frame,
        depth=shape_XYZ[frame.axis],
        lesion_voxels_ZK=counts_ZK,
        voxels_below_zero=units.voxels_below_zero,
    )


def _axis_through(scan: Scan, axis: Axis) -> int:
    shape_XYZ = scan.channels_XYZ[0].shape
    through, single = slice_axis(axis, scan.affine), single_slice_axis(shape_XYZ)
    if single not in (None, through):  # it would be cut into lines
        raise ScanError(
            f"shape {shape_XYZ}: a single slice across axis {single}",
            expected=f"slices across axis {through}, as those of the other scans",
            remedy=f"prepare such images into a store of their own, with --axis {single}",
        )
    return through


def kept_slices(channels_HWZ: Sequence[np.ndarray], divisors: Sequence[float]) -> range:
    """Indices along Z from the first to the last slice with something in it."""
    sums_CZ = [channel.sum(axis=(0, 1), dtype=np.float64) for channel in channels_HWZ]
    means_Z = np.mean([s / d for s, d in zip(sums_CZ, divisors, strict=True)], axis=0)
    filled = np.flatnonzero(means_Z > KEPT_SUM)
    if not filled.size:
        raise ScanError(
            "no slice has anything in it",
            expected=f"a slice whose normalised voxels sum to more than {KEPT_SUM}",
            remedy="leave this scan out",
        )
    return range(int(filled[0]), int(filled[-1]) + 1)


def filled_window(volumes_HWZ: Sequence[np.ndarray]) -> tuple[slice, slice]:
    """Rows and columns outside which everything is zero."""
    seen_HW = np.any([volume.any(axis=2) for volume in volumes_HWZ], axis=0)
    places = [np.flatnonzero(seen_HW.any(axis=axis)) for axis in (1, 0)]
    rows, columns = (slice(int(p[0]), int(p[-1]) + 1) if p.size else slice(0, 0) for p in places)
    return rows, columns


def resized_labels(labels_HWN: np.ndarray, frame: Frame) -> np.ndarray:
    """Interpolate class labels to (N, size, size).

    The lesion is exactly the published binary mask: the interpolated mask above one half. Inside it
    a pixel gets the class with the largest interpolated share, the first of equal ones. Pixels to
    be ignored count as a class, the last.
    """
    resize = Resize.exact_for(np.dtype(bool), frame, filled_window([labels_HWN]))
    labels_NHW = np.zeros((labels_HWN.shape[2], frame.size, frame.size), np.uint8)
    seen_NHW = labels_NHW[:, *frame.window][:, *resize.outputs]
    for n in np.flatnonzero(labels_HWN.any(axis=(0, 1))):
        label_HW = labels_HWN[:, :, n]
        classes = _values_of(label_HW)
        shares_KHW = np.stack([resize(label_HW == k) for k in classes])
        lesion_HW = 2 * shares_KHW.sum(axis=0) > resize.scale
        seen_NHW[n] = np.where(lesion_HW, classes[shares_KHW.argmax(axis=0)], 0)
    return labels_NHW


def _values_of(label_HW: np.ndarray) -> np.ndarray:
    """1, 2, … up to the last class that is there, and `IGNORED` if that is."""
    ignored_HW = label_HW == IGNORED
    last = int(label_HW[~ignored_HW].max(initial=0)) if ignored_HW.any() else int(label_HW.max())
    return np.array([*range(1, last + 1), *([IGNORED] if ignored_HW.any() else [])])


def class_counts(labels_HWZ: np.ndarray, classes: int) -> np.ndarray:
    """int64 (Z, classes): the voxels of each class in each slice."""
    counts_ZK = np.zeros((labels_HWZ.shape[2], classes), np.int64)
    for z in np.flatnonzero(labels_HWZ.any(axis=(0, 1))):
        counts = np.bincount(labels_HWZ[:, :, z].ravel(order="K"), minlength=classes + 1)
        counts_ZK[z] = counts[1 : classes + 1]
    return counts_ZK


@dataclass(frozen=True, eq=False)
class Taps:
    """Linear interpolation along one axis: the two inputs of each output, with integer weights."""

    inputs: slice
    """the part of the axis that is looked at"""
    outputs: slice
    """the part of the result that depends on it"""
    lower: np.ndarray
    """counted from the start of `inputs`"""
    upper: np.ndarray
    lower_weights: np.ndarray
    upper_weights: np.ndarray
    scale: int
    """the two weights of an output sum to this"""

    @classmethod
    def half_pixel(cls, inputs: int, outputs: int, dtype: np.dtype, seen: slice) -> "Taps":
        """Half-pixel centres, edges clamped: torch's bilinear with `align_corners=False`.

        Inputs outside `seen` are zeros, and outputs that depend on none of the others are left out.
        """
        # Output i lies at (2i + 1) inputs / (2 outputs) - 1/2; counted in steps of 1 / (2 outputs).
        divisor = math.gcd(2 * outputs, 2 * inputs, inputs - outputs)
        scale = 2 * outputs // divisor
        position = np.maximum((2 * np.arange(outputs) + 1) * inputs - outputs, 0) // divisor
        lower, part = np.divmod(position, scale)
        upper = np.minimum(lower + 1, inputs - 1)
        touched = np.flatnonzero((upper >= seen.start) & (lower < seen.stop))
        if not touched.size:
            touched = np.arange(1)
        lower, upper, part = lower[touched], upper[touched], part[touched]
        weights = (scale - part).astype(dtype)[:, None], part.astype(dtype)[:, None]
        start, stop = int(lower[0]), int(upper[-1]) + 1
        kept = slice(int(touched[0]), int(touched[-1]) + 1)
        return cls(slice(start, stop), kept, lower - start, upper - start, *weights, scale)

    def __call__(self, image_HW: np.ndarray) -> np.ndarray:
        """Interpolate along the first axis; the result is `scale` times too large."""
        lower_HW = image_HW[self.lower] * self.lower_weights
        both_HW: np.ndarray = lower_HW + image_HW[self.upper] * self.upper_weights
        return both_HW


@dataclass(frozen=True, eq=False)
class Resize:
    """Bilinear interpolation of a slice, without antialiasing, times `scale`.

    The weights are integers, so that integer voxels give an exact result: the same on every
    machine, and no rounding error decides whether a pixel is above the mask's threshold.
    """

    rows: Taps
    columns: Taps

    @classmethod
    def exact_for(cls, voxels: np.dtype, frame: Frame, seen: tuple[slice, slice]) -> "Resize":
        """For slices of type `voxels`: in float32 if that is exact, else in float64.

        Outside the rows and columns `seen` they are zeros.
        """
        single = cls._of(frame, seen, np.dtype(np.float32))
        largest = {"b": 1, "f": math.inf}.get(voxels.kind) or np.iinfo(voxels).max + 1
        if largest * single.scale <= 2**24:
            return single
        return cls._of(frame, seen, np.dtype(np.float64))

    @classmethod
    def _of(cls, frame: Frame, seen: tuple[slice, slice], dtype: np.dtype) -> "Resize":
        rows, columns = (
            Taps.half_pixel(inputs, outputs, dtype, part)
            for inputs, outputs, part in zip(frame.shape_HW, frame.inner_HW, seen, strict=True)
        )
        return cls(rows, columns)

    @property
    def outputs(self) -> tuple[slice, slice]:
        """Rows and columns of the result that are computed; the others are zeros."""
        return self.rows.outputs, self.columns.outputs

    @property
    def scale(self) -> int:
        """How many times too large the result is."""
        return self.rows.scale * self.columns.scale

    def __call__(self, image_HW: np.ndarray) -> np.ndarray:
        """Return the `outputs` of a slice at its new size."""
        seen_HW = image_HW[self.rows.inputs, self.columns.inputs]
        # Columns first: NIfTI stores X fastest, so this gathers whole runs of memory.
        return self.rows(self.columns(seen_HW.T).T)
