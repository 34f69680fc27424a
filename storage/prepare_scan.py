"""One scan's way into a store.

The shards are written first, the record last: a subject with a record is done.
"""

import json
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fewscan.storage.atomic import write_bytes
from fewscan.storage.catalog import ScanFiles
from fewscan.storage.errors import FewscanError, ScanError
from fewscan.storage.manifest import Parameters, StoreFolder, Subject
from fewscan.storage.preprocess import ScanSlices, preprocess
from fewscan.storage.scans import Scan, read_scan, told_of_scan
from fewscan.storage.shards import encode_shard, mark_of
from fewscan.storage.slices import scan_labels_sha256, slices_sha256

_LONGEST_ID = 200
"""file systems take names of 255 bytes, and files that are being written have longer ones"""


@dataclass(frozen=True)
class ScanToPrepare:
    """One scan and its place in the store; goes to a worker process."""

    files: ScanFiles
    scans: Path
    """the folder that file names in the record are relative to; some may lie outside"""
    row: int
    """where the subject goes in the store"""
    folder: StoreFolder
    parameters: Parameters


def prepare_scan(work: ScanToPrepare) -> tuple[str, ScanError | None]:
    """Write one scan's shards, then its record; return its id and what is wrong with it."""
    try:
        files, parameters = work.files, work.parameters
        with told_of_scan(files):
            _require_short_id(files)
            scan = read_scan(files)
            if parameters.orientation:
                scan = scan.turned(scan.turn_to(parameters.orientation))
            slices = preprocess(
                scan,
                parameters.size,
                parameters.axis,
                parameters.normalisation,
                parameters.windows,
            )
            _require_room(scan, slices, files, parameters)
    except ScanError as error:
        return work.files.id, error
    folder, row = work.folder, work.row
    first, depth = slices.first, parameters.depth
    labels_NHW = slices.labels_NHW
    if labels_NHW is None:
        shape_NHW = (len(slices.images_NCHW), parameters.size, parameters.size)
        labels_NHW = np.zeros(shape_NHW, np.uint8)
    marks = (
        _write_shard(folder.images_shard(row), slices.images_NCHW, first, depth),
        _write_shard(folder.labels_shard(row), labels_NHW, first, depth),
    )
    scan_labels = _write_scan_labels(folder.scan_labels(row), scan, slices)
    record = json.dumps(_subject(work, scan, slices, labels_NHW, marks, scan_labels).to_json())
    write_bytes(folder.record(files.id), record.encode())
    return files.id, None


def killed_at(work: ScanToPrepare, error: FewscanError) -> tuple[str, ScanError]:
    """What `prepare_scan` would say of a scan at which its process was killed."""
    where = work.files.channel_files[0]
    return work.files.id, ScanError(error.found, where=where, remedy=error.remedy)


def _require_short_id(files: ScanFiles) -> None:
    length = len(os.fsencode(files.id))
    if length > _LONGEST_ID:
        raise ScanError(
            f"an id of {length} bytes",
            where=files.channel_files[0],
            expected=f"at most {_LONGEST_ID}, so that files can be named after it",
            remedy="rename the files of this scan",
        )


def _require_room(scan: Scan, slices: ScanSlices, files: ScanFiles, parameters: Parameters) -> None:
    count = scan.channels_XYZ[0].shape[slices.frame.axis]
    if count > parameters.depth:
        raise ScanError(
            f"{count} slices",
            where=files.channel_files[0],
            expected=f"at most {parameters.depth}, the most when this store was begun",
            remedy="prepare all scans into a new store",
        )


def _write_shard(path: Path, slices_N: np.ndarray, first: int, depth: int) -> str:
    """The shard's mark."""
    shard = encode_shard(slices_N, first, depth)
    if shard is None:  # nor one left by a killed run that gave this row to another subject
        path.unlink(missing_ok=True)
        return ""
    write_bytes(path, shard)
    return mark_of(shard)


def _write_scan_labels(path: Path, scan: Scan, slices: ScanSlices) -> str:
    """The labels on the scan's own grid, all slices of it; their SHA-256, empty without labels."""
    if scan.labels_XYZ is None:
        path.unlink(missing_ok=True)
        return ""
    labels_ZHW = np.moveaxis(slices.frame.as_slices(scan.labels_XYZ), 2, 0)
    _write_shard(path, labels_ZHW, 0, slices.depth)
    return scan_labels_sha256(labels_ZHW)


def _subject(
    work: ScanToPrepare,
    scan: Scan,
    slices: ScanSlices,
    labels_NHW: np.ndarray,
    marks: tuple[str, str],
    scan_labels: str,
) -> Subject:
    classes = range(1, len(work.parameters.classes) + 1)
    voxel_mm3 = abs(float(np.linalg.det(scan.affine[:3, :3])))
    pixels_NK = np.stack([(labels_NHW == k).sum(axis=(1, 2)) for k in classes], axis=1)
    x, y, z = scan.channels_XYZ[0].shape
    label_file = work.files.label_file
    files = (*work.files.channel_files, *([label_file] if label_file else []))
    volumes_mm3, meaning = [0.0 for _ in classes], work.parameters.meaning
    if slices.lesion_voxels_ZK is not None:
        volumes_mm3 = [n * voxel_mm3 for n in slices.lesion_voxels_ZK.sum(axis=0).tolist()]
    return Subject(
        id=work.files.id,
        row=work.row,
        first=slices.first,
        last=slices.first + len(labels_NHW) - 1,
        lesion_pixels_NK=pixels_NK.astype(np.int32),
        shape_XYZ=(x, y, z),
        affine=tuple(map(tuple, scan.affine.tolist())),
        spacing_mm=scan.spacing_mm,
        quantiles=slices.quantiles,
        naming=work.files.naming,
        label_values=work.files.label_values,
        files=tuple(Path(os.path.relpath(path, work.scans)).as_posix() for path in files),
        lesion_mm3=tuple(volumes_mm3),
        sha256=slices_sha256(slices.first, slices.images_NCHW, labels_NHW),
        patient=work.files.patient,
        marks=marks,
        labelled=label_file is not None,
        hidden_lesions=slices.faded(meaning.lesion_values),
        dropped_lesion_slices=slices.losses(meaning.lesion_values).lesion_slices,
        scan_labels=scan_labels,
        notes=(*scan.assumed.sentences(), *slices.sentences()),
    )
