"""A trained model on a new scan: from the scan's files to a segmentation on the scan's own grid.

Preprocessing is that of the store. It is undone by interpolating probabilities, bilinearly as the
images were, and choosing afterwards. Slices in which there is nothing get 0.

Letters: X, Y, Z the scan's axes; N slices, K maps, H and W rows and columns of a slice; a volume in
HWZ has the axis through the slices third.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fewscan.experiments.devices import require_cuda
from fewscan.harness.trained import Trained, load_trained
from fewscan.storage.catalog import ScanFiles
from fewscan.storage.errors import ScanError
from fewscan.storage.find import find_scan
from fewscan.storage.geometry import Frame, orientation
from fewscan.storage.nifti import require_nifti_name, write_nifti_like
from fewscan.storage.preprocess import ScanSlices, preprocess
from fewscan.storage.scans import Scan, read_scan, told_of_scan


@dataclass(frozen=True, eq=False)
class ScanPrediction:
    """What a model says of a scan, on the scan's own grid."""

    files: ScanFiles
    """what it was made from; the first channel's file has the grid and its header"""
    labels_XYZ: np.ndarray | None
    """uint8: classes in the values of the scan's convention, or 1 for any lesion; None from a
    pre-training, which knows no threshold"""
    maps_XYZK: np.ndarray
    """float32: the probability of each class or of any lesion, or the anomaly score"""
    map_names: tuple[str, ...]
    """of the maps: the classes, "lesion" or "anomaly" """
    volumes_ml: dict[str, float]
    """of each class, or of the lesion"""


def predict(
    run: str | Path,
    scan: str | Path | Sequence[str | Path],
    *,
    mirror: bool = False,
    threshold: float | None = None,
    device: str = "cpu",
) -> ScanPrediction:
    """Use the model of a finished run on a scan.

    `run` is a run folder or an MLflow model URI (see `load_trained`), `scan` a folder or files (see
    `find_scan`). `mirror` averages over mirror images. `threshold` is for models without classes,
    by default the one that validation chose. `device` is as torch writes it.

    A scan that is stored in another orientation than those of the training is turned first, and the
    prediction turned back. Raises `RunError`, `TrackingError`, `ScanError` or `DeviceError`.
    """
    if device.startswith("cuda"):
        require_cuda()
    trained = load_trained(run)
    threshold = trained.threshold_or(threshold)
    paths = [scan] if isinstance(scan, (str, Path)) else scan
    files = find_scan(
        [Path(path) for path in paths], trained.slices.channels, trained.slices.classes
    )
    made = trained.slices
    with told_of_scan(files):
        original = read_scan(files)
        turn = original.turn_to(_orientation(trained, original))
        turned = original.turned(turn)
        slices = preprocess(turned, made.slice_size, made.axis, made.normalisation)
    depth = turned.channels_XYZ[0].shape[slices.frame.axis]
    predictor = replace(trained.predictor, mirror=mirror).to(device)
    maps = predictor.in_batches(torch.from_numpy(slices.images_NCHW))
    volumes = _volumes(trained, slices, depth, maps, threshold)
    maps_XYZK, classes_XYZ = (turn.back(slices.frame.as_volume(volume)) for volume in volumes)
    if not predictor.has_classes and threshold is None:
        return ScanPrediction(files, None, maps_XYZK, trained.map_names, {})
    values = np.array([0, *(files.label_values if predictor.has_classes else (1,))], np.uint8)
    voxel_ml = abs(float(np.linalg.det(original.affine[:3, :3]))) / 1000
    volumes_ml: dict[str, float] = {
        name: np.count_nonzero(classes_XYZ == k) * voxel_ml
        for k, name in enumerate(trained.mask_names, start=1)
    }
    return ScanPrediction(files, values[classes_XYZ], maps_XYZK, trained.map_names, volumes_ml)


def on_the_scan(maps_NKHW: Tensor, frame: Frame) -> Tensor:
    """Cut out what the slice fills, and bring it to the size that it has in the scan."""
    inner_NKHW = maps_NKHW[:, :, *frame.window]
    if frame.inner_HW == frame.shape_HW:
        return inner_NKHW
    return F.interpolate(inner_NKHW, frame.shape_HW, mode="bilinear", align_corners=False)


def require_writable(path: Path, scan: Sequence[Path], overwrite: bool) -> None:
    """Raise `ScanError` unless a NIfTI file can be written to `path` and replaces nothing.

    Nor does it with `overwrite` if it is, or lies in, the scan.
    """
    require_nifti_name(path)
    if not path.absolute().parent.is_dir():
        expected = "a folder that exists"
        raise ScanError("no such folder", where=path.absolute().parent, expected=expected)
    if not path.exists():
        return
    places = {place.resolve() for place in scan}
    if not overwrite or places & {path.resolve(), path.resolve().parent}:
        raise ScanError(
            "the file exists" if not overwrite else "the file belongs to the scan",
            where=path,
            expected="a new file",
            remedy="choose another name" + ("" if overwrite else ", or add --overwrite"),
        )


def write_prediction(prediction: ScanPrediction, out: Path, maps_out: Path | None = None) -> None:
    """Write the segmentation (of a pre-training: its anomaly map), and the maps on request.

    Both on the scan's own grid and with its header's affines. Several maps are volumes of one 4D
    file, in the order of `map_names`.
    """
    template = prediction.files.channel_files[0]
    maps = prediction.maps_XYZK
    maps = maps[..., 0] if maps.shape[3] == 1 else maps
    labels = prediction.labels_XYZ
    write_nifti_like(out, maps if labels is None else labels, template)
    if maps_out is not None:
        write_nifti_like(maps_out, maps, template)


def _orientation(trained: Trained, scan: Scan) -> str:
    """The scan's own if some of the training had it, else the most frequent one there."""
    own = orientation(scan.affine)
    known = trained.slices.orientations
    return own if own in known else known[0]


def _volumes(
    trained: Trained,
    slices: ScanSlices,
    depth: int,
    batches: Iterator[Tensor],
    threshold: float | None,
) -> tuple[np.ndarray, np.ndarray]:
    """Maps (H, W, Z, K) float32 and classes (H, W, Z) uint8 of all slices, 0 where none is kept."""
    shape_HWZ = (*slices.frame.shape_HW, depth)
    maps_HWZK = np.zeros((*shape_HWZ, len(trained.map_names)), np.float32)
    classes_HWZ = np.zeros(shape_HWZ, np.uint8)
    first = slices.first
    for batch in batches:
        maps_NKHW = on_the_scan(batch, slices.frame).cpu()
        kept = slice(first, first + len(maps_NKHW))
        first = kept.stop
        shown_NKHW = maps_NKHW[:, 1:] if maps_NKHW.shape[1] > 1 else maps_NKHW  # no background
        maps_HWZK[:, :, kept] = shown_NKHW.permute(2, 3, 0, 1).numpy()
        labels_NHW = trained.predictor.labels(maps_NKHW, threshold)
        if labels_NHW is not None:
            classes_HWZ[:, :, kept] = labels_NHW.permute(1, 2, 0).numpy()
    return maps_HWZK, classes_HWZ
