"""A trained model on a new scan: from the scan's files to a segmentation on the scan's own grid.

Preprocessing is that of the store, and is undone as for a score (`experiments.scan_grid`). Slices
in which there is nothing get 0.

Letters: X, Y, Z the scan's axes; N slices, K maps, H and W rows and columns of a slice; a volume in
HWZ has the axis through the slices third.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fewscan.experiments.devices import require_cuda
from fewscan.experiments.postprocess import Rule, apply
from fewscan.experiments.predictor import Predictor
from fewscan.experiments.scan_grid import labelled_on_the_scan, spacing_on_the_scan
from fewscan.harness.named_runs import named_runs
from fewscan.harness.trained import Trained, load_together
from fewscan.storage.catalog import ScanFiles
from fewscan.storage.errors import ScanError
from fewscan.storage.find import IN_ORDER, find_scan
from fewscan.storage.geometry import orientation
from fewscan.storage.images import write_like
from fewscan.storage.nifti import require_nifti_name
from fewscan.storage.preprocess import ScanSlices, preprocess
from fewscan.storage.scans import Scan, read_scan, told_of_scan


@dataclass(frozen=True, eq=False)
class ScanPrediction:
    """What a model says of a scan, on the scan's own grid."""

    files: ScanFiles
    """what it was made from; the first channel's file has the grid and its header"""
    labels_XYZ: np.ndarray | None
    """classes in the values of the scan's convention, or 1 for any lesion, of the smallest unsigned
    type that holds them; None from a pre-training, which knows no threshold"""
    maps_XYZK: np.ndarray
    """float32: the probability of each class or of any lesion, or the anomaly score"""
    map_names: tuple[str, ...]
    """of the maps: the classes, "lesion" or "anomaly" """
    volumes_ml: dict[str, float]
    """of each class, or of the lesion"""
    assumed: tuple[str, ...]
    """what had to be assumed or was turned, as sentences; nothing if all is as usual"""


@dataclass(frozen=True, eq=False)
class ScanPredictor:
    """The networks of finished runs, loaded once, for any number of scans."""

    trained: Trained
    predictor: Predictor
    """on its device"""
    threshold: float | None
    """of a model without classes; None as well for a pre-training that makes maps alone"""
    rules: tuple[Rule, ...] = ()
    """that change the mask, of a score that fitted some"""

    @classmethod
    def load(
        cls,
        run: str | Path | Sequence[str | Path],
        *,
        mirror: bool = False,
        threshold: float | None = None,
        device: str = "cpu",
    ) -> "ScanPredictor":
        """Load them; the arguments are those of `predict`.

        Raises `RunError`, `TrackingError` or `DeviceError`.
        """
        if device.startswith("cuda"):
            require_cuda()
        named = named_runs(run).runs if isinstance(run, str) else run
        trained = load_together([named] if isinstance(named, Path) else named)
        rules = trained.rules_at(threshold)
        threshold = trained.threshold_or(threshold)
        predictor = replace(trained.predictor, mirror=mirror or trained.predictor.mirror)
        return cls(trained, predictor.to(device), threshold, rules)

    def predict(self, scan: str | Path | Sequence[str | Path]) -> ScanPrediction:
        """What the model says of a scan, a folder or files (see `find_scan`).

        Raises `ScanError`.
        """
        paths = [scan] if isinstance(scan, (str, Path)) else scan
        made = self.trained.slices
        return self.of(find_scan([Path(path) for path in paths], made.channels, made.classes))

    def of(self, files: ScanFiles) -> ScanPrediction:
        """The same of a scan whose files are known. Raises `ScanError`."""
        trained, made = self.trained, self.trained.slices
        with told_of_scan(files):
            original = read_scan(files)
            turn = original.turn_to(_orientation(trained, original))
            turned = original.turned(turn)
            slices = preprocess(
                turned, made.slice_size, made.axis, made.normalisation, made.windows
            )
        depth = turned.channels_XYZ[0].shape[slices.frame.axis]
        spacing_mm_ZHW = slices.frame.spacing_mm(turned.spacing_mm)
        images = torch.from_numpy(slices.images_NCHW)
        maps = self.predictor.in_batches(images, spacing_mm_ZHW)
        maps_HWZK, classes_HWZ = _volumes(trained, slices, depth, maps, self.threshold)
        own_mm_ZHW = spacing_on_the_scan(turned.spacing_mm, slices.frame)
        classes_ZHW = apply(self.rules, classes_HWZ.transpose(2, 0, 1), own_mm_ZHW)
        volumes = maps_HWZK, classes_ZHW.transpose(1, 2, 0)
        maps_XYZK, classes_XYZ = (turn.back(slices.frame.as_volume(volume)) for volume in volumes)
        assumed = _assumed(files, turned, made.channels)
        if not self.predictor.has_classes and self.threshold is None:
            return ScanPrediction(files, None, maps_XYZK, trained.map_names, {}, assumed)
        values = np.array([0, *(files.label_values if self.predictor.has_classes else (1,))])
        labels_XYZ = values.astype(np.min_scalar_type(values.max()))[classes_XYZ]
        voxel_ml = abs(float(np.linalg.det(original.affine[:3, :3]))) / 1000
        volumes_ml: dict[str, float] = {
            name: np.count_nonzero(classes_XYZ == k) * voxel_ml
            for k, name in enumerate(trained.mask_names, start=1)
        }
        return ScanPrediction(files, labels_XYZ, maps_XYZK, trained.map_names, volumes_ml, assumed)


def predict(
    run: str | Path | Sequence[str | Path],
    scan: str | Path | Sequence[str | Path],
    *,
    mirror: bool = False,
    threshold: float | None = None,
    device: str = "cpu",
) -> ScanPrediction:
    """Use the networks of finished runs on a scan.

    `run` is a run folder, an MLflow model URI (see `load_trained`) or, as a text, what `named_runs`
    understands; of several the probabilities are averaged (`load_together`). `scan` is a folder or
    files (see `find_scan`). `mirror` averages over mirror images, as is done anyway with runs that
    were scored so. `threshold` is for models without classes, by default the one that validation
    chose. A score that was post-processed changes the mask by the rules that it fitted, unless
    another threshold is given. `device` is as torch writes it.

    A scan that is stored in another orientation than those of the training is turned first, and the
    prediction turned back. Raises `RunError`, `TrackingError`, `ScanError` or `DeviceError`.
    """
    loaded = ScanPredictor.load(run, mirror=mirror, threshold=threshold, device=device)
    return loaded.predict(scan)


def is_folder(out: Path) -> bool:
    """Whether `out` is meant as a folder for many segmentations: it is one, or has no ending."""
    return out.is_dir() or not (out.exists() or out.suffix)


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
    write_like(out, maps if labels is None else labels, template)
    if maps_out is not None:
        write_like(maps_out, maps, template)


def _orientation(trained: Trained, scan: Scan) -> str:
    """The scan's own if some of the training had it, else the most frequent one there."""
    own = orientation(scan.affine)
    known = trained.slices.orientations
    return own if own in known else known[0]


def _assumed(files: ScanFiles, turned: Scan, channels: Sequence[str]) -> tuple[str, ...]:
    said = turned.assumed.sentences()
    if files.naming == IN_ORDER and len(channels) > 1:
        pairs = zip(channels, files.channel_files, strict=True)
        order = ", ".join(f"{name} {path.name}" for name, path in pairs)
        said.append(f"files taken in the order given: {order}")
    return tuple(said)


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
        found = labelled_on_the_scan(trained.predictor, batch, slices.frame, threshold)
        maps_NKHW, labels_NHW = found
        kept = slice(first, first + len(maps_NKHW))
        first = kept.stop
        shown_NKHW = maps_NKHW[:, 1:] if maps_NKHW.shape[1] > 1 else maps_NKHW  # no background
        maps_HWZK[:, :, kept] = shown_NKHW.permute(2, 3, 0, 1).cpu().numpy()
        if labels_NHW is not None:
            classes_HWZ[:, :, kept] = labels_NHW.permute(1, 2, 0).cpu().numpy()
    return maps_HWZK, classes_HWZ
