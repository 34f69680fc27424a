"""The windows that nnU-Net clips CT to, learnt from the labelled voxels of the training scans."""

import logging
from collections.abc import Sequence

import numpy as np

from fewscan.storage.catalog import ScanFiles
from fewscan.storage.errors import FewscanError, ScanError
from fewscan.storage.intensity import HIGH, LOW, Window
from fewscan.storage.labels import IGNORED
from fewscan.storage.scans import read_scan, told_of_scan
from fewscan.storage.system.workers import in_processes

_VOXELS_A_SCAN = 10_000
"""a large lesion shall not outweigh all others; nnU-Net as well takes a sample of each scan"""
Sample = list[np.ndarray]
"""of each channel, values of labelled voxels, float64"""


def labelled_windows(
    scans: Sequence[ScanFiles], channels: Sequence[str], workers: int
) -> tuple[tuple[Window, ...], int]:
    """The window of each channel, and how many scans' masks told it.

    It is the 0.5 and the 99.5 percentile of the voxels with any label, at most 10,000 of a scan,
    evenly spaced. Scans that cannot be read are passed over; whoever prepares them says why.

    Raises `ScanError` if no scan has a label, or a channel no contrast there.
    """
    samples = [s for s in in_processes(_labelled_voxels, scans, workers, _nothing) if s]
    if not samples:
        raise ScanError(
            f"no labelled voxel in {len(scans)} training scans",
            expected="labels that tell the window",
            remedy="give it: --normalisation window --window LOW HIGH",
        )
    windows = []
    for name, values in zip(channels, zip(*samples, strict=True), strict=True):
        low, high = np.quantile(np.concatenate(values), (LOW, HIGH)).tolist()
        if not low < high:
            raise ScanError(
                f"channel {name} has no contrast: its labelled voxels are all {low:g}",
                expected="an image whose 0.5 and 99.5 percentiles differ",
                remedy="give the window: --normalisation window --window LOW HIGH",
            )
        windows.append((low, high))
    return tuple(windows), len(samples)


def _labelled_voxels(files: ScanFiles) -> Sample:
    """Empty if there are none, or the scan cannot be read."""
    try:
        with told_of_scan(files):
            scan = read_scan(files)
            assert scan.labels_XYZ is not None
            labelled_XYZ = (scan.labels_XYZ > 0) & (scan.labels_XYZ != IGNORED)
            step = -(-np.count_nonzero(labelled_XYZ) // _VOXELS_A_SCAN)
            if not step:
                return []
            return [voxels[labelled_XYZ][::step].astype(np.float64) for voxels in scan.channels_XYZ]
    except ScanError:
        logging.getLogger(__name__).debug("no labels of %s", files.id, exc_info=True)
        return []


def _nothing(files: ScanFiles, error: FewscanError) -> Sample:
    return []
