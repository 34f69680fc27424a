"""Scans: which files belong to one subject, what they mean, and whether they fit together.

The only module that knows what a BraTS folder looks like. Everything after it works with any number
of channels and classes, and any grid whose third axis runs through the slices.

Letters: X, Y, Z the array's own axes, Z through the slices.
"""

import os
import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from storage.errors import ScanError
from storage.nifti import Volume, read_nifti

CHANNELS = ("flair", "t1", "t1ce", "t2")
CLASSES = ("necrotic_core", "oedema", "enhancing")
LABELS = "seg"


@dataclass(frozen=True)
class Naming:
    """How one edition of BraTS names its files and its labels."""

    name: str
    """"BraTS 2021" """
    separator: str
    """between the subject's id and the part"""
    parts: tuple[str, ...]
    """file name parts of `CHANNELS`, in that order"""
    label_values: tuple[int, ...]
    """the values of `CLASSES` in the segmentation file, in that order"""

    def recognise(self, file_name: str) -> tuple[str, str] | None:
        """Return the subject's id and the part of the file's name, or None."""
        parts = "|".join((*self.parts, LABELS))
        match = re.fullmatch(rf"([^.].*){self.separator}({parts})\.nii(?:\.gz)?", file_name)
        return (match[1], match[2]) if match else None


NAMINGS = (
    Naming("BraTS 2021", "_", ("flair", "t1", "t1ce", "t2"), (1, 2, 4)),
    Naming("BraTS 2023", "-", ("t2f", "t1n", "t1c", "t2w"), (1, 2, 3)),
)


@dataclass(frozen=True)
class ScanFiles:
    """The files of one subject."""

    id: str
    """the part that all its file names share"""
    naming: str
    """the edition of BraTS that it follows"""
    channel_files: tuple[Path, ...]
    """in the order of the channels"""
    label_file: Path | None
    """the segmentation; None for a scan without one"""
    label_values: tuple[int, ...]
    """the value in `label_file` of each class, in the order of the classes"""


@dataclass(frozen=True)
class Catalog:
    """What a folder holds."""

    channels: tuple[str, ...]
    """names, in the order in which networks see them"""
    classes: tuple[str, ...]
    """names of the lesion classes; label k is the k-th, 0 is none of them"""
    scans: tuple[ScanFiles, ...]
    """usable as far as names tell, sorted by id"""
    problems: dict[str, ScanError]
    """the others: id (or folder) → reason"""


@dataclass(frozen=True, eq=False)
class Scan:
    """One subject's images and labels, on one grid."""

    channels_XYZ: tuple[np.ndarray, ...]
    """one array a channel, in the file's own type"""
    labels_XYZ: np.ndarray | None
    """uint8: 0 outside, k in the k-th class"""
    affine: np.ndarray
    """(4, 4) float64, voxel index → millimetres"""
    spacing_mm: tuple[float, float, float]
    """voxel size along X, Y, Z"""


def find_scans(folder: Path) -> Catalog:
    """Find the scans in `folder` and its sub-folders, however deep.

    Raises `ScanError` if the folder does not exist or nothing in it is named like a scan.
    """
    if not folder.is_dir():
        raise ScanError(
            "no such folder",
            where=folder,
            expected="a folder of scans",
            remedy="check the path; for synthetic scans: fewscan phantom",
        )
    files, strangers = _walk(folder)
    if not files:
        expected, remedy = _expected_names(), "check the path; for synthetic scans: fewscan phantom"
        raise ScanError("no scans", where=folder, expected=expected, remedy=remedy)
    catalog = group_files(files)
    return Catalog(CHANNELS, CLASSES, catalog.scans, {**strangers, **catalog.problems})


def group_files(paths: Iterable[Path]) -> Catalog:
    """Group files by subject; a subject whose files do not make a scan is among the problems.

    Labels may be missing. Files that are named otherwise are left out.
    """
    groups: dict[tuple[str, Naming], dict[str, list[Path]]] = defaultdict(lambda: defaultdict(list))
    for path in paths:
        for naming in NAMINGS:
            if found := naming.recognise(path.name):
                groups[found[0], naming][found[1]].append(path)
    ids_of = defaultdict(list)
    for subject, _ in groups:
        ids_of[person(subject)].append(subject)
    scans, problems = [], {}
    for (subject, naming), files in sorted(groups.items(), key=lambda item: item[0][0]):
        try:
            _refuse_twice(subject, ids_of[person(subject)], files)
            scans.append(_scan_files(subject, naming, files))
        except ScanError as error:
            problems[subject] = error
    return Catalog(CHANNELS, CLASSES, tuple(scans), problems)


def read_scan(files: ScanFiles) -> Scan:
    """Read a subject's files; the labels too if there is a file of them.

    Raises `ScanError` if a file is damaged, the grids differ, a channel is empty or not finite, or
    a label value is unknown.
    """
    volumes = [read_nifti(path) for path in files.channel_files]
    for path, volume in zip(files.channel_files, volumes, strict=True):
        _require_grid(volume, path, volumes[0], files.channel_files[0])
        _require_content(volume.voxels_XYZ, path)
    labels_XYZ = None
    if files.label_file is not None:
        labels = read_nifti(files.label_file)
        _require_grid(labels, files.label_file, volumes[0], files.channel_files[0])
        labels_XYZ = _class_indices(labels.voxels_XYZ, files)
    channels_XYZ = tuple(volume.voxels_XYZ for volume in volumes)
    return Scan(channels_XYZ, labels_XYZ, volumes[0].affine, volumes[0].spacing_mm)


def person(subject: str) -> str:
    """The same for a person's first scan in BraTS 2021 and in BraTS 2023, else the subject's id."""
    match = re.fullmatch(r"BraTS(?:2021_(\d{5})|-GLI-(\d{5})-000)", subject)
    return (match[1] or match[2]) if match else subject


def _walk(folder: Path) -> tuple[list[Path], dict[str, ScanError]]:
    """All files named like parts of a scan, and the folders where one would expect some."""
    files, strangers = [], {}
    for place, subfolders, names in os.walk(folder, followlinks=True):
        subfolders[:] = sorted(name for name in subfolders if name[0] != ".")
        images = [n for n in sorted(names) if n.endswith((".nii", ".nii.gz")) and n[0] != "."]
        known = [n for n in images if any(naming.recognise(n) for naming in NAMINGS)]
        files += [Path(place, name) for name in known]
        if not known and (images or not (names or subfolders)):
            found = f"no known file name ({images[0]}, ...)" if images else "an empty folder"
            error = ScanError(found, where=place, expected=_expected_names())
            strangers[Path(place).relative_to(folder).as_posix()] = error
    return files, strangers


def _expected_names() -> str:
    return " or ".join(
        f"ID{naming.separator}{{{','.join((*naming.parts, LABELS))}}}.nii.gz" for naming in NAMINGS
    )


def _refuse_twice(subject: str, ids: list[str], files: dict[str, list[Path]]) -> None:
    copies = next((paths for paths in files.values() if len(paths) > 1), None)
    if copies is None and len(ids) == 1:
        return
    found = " and ".join(str(path) for path in copies) if copies else " and ".join(sorted(ids))
    remedy = "remove one, so that no scan is in two parts of the split"
    raise ScanError(f"the same subject twice: {found}", expected="each once", remedy=remedy)


def _scan_files(subject: str, naming: Naming, files: dict[str, list[Path]]) -> ScanFiles:
    missing = [part for part in naming.parts if part not in files]
    if missing:
        names = ", ".join(f"{subject}{naming.separator}{part}.nii.gz" for part in missing)
        raise ScanError(
            f"missing: {names}",
            where=next(iter(files.values()))[0].parent,
            expected=f"{naming.name}'s files {', '.join(naming.parts)} and {LABELS}",
            remedy="copy or download the missing file",
        )
    channel_files = tuple(files[part][0] for part in naming.parts)
    label_file = files[LABELS][0] if LABELS in files else None
    return ScanFiles(subject, naming.name, channel_files, label_file, naming.label_values)


def _require_grid(volume: Volume, path: Path, first: Volume, first_path: Path) -> None:
    shape, first_shape = volume.voxels_XYZ.shape, first.voxels_XYZ.shape
    remedy = "resample the files of this subject to one grid"
    if shape != first_shape:
        expected = f"{first_shape}, as in {first_path.name}"
        raise ScanError(f"shape {shape}", where=path, expected=expected, remedy=remedy)
    if not np.allclose(volume.affine, first.affine, rtol=0, atol=1e-3):
        expected = f"{first.affine.tolist()}, as in {first_path.name}"
        found = f"affine {volume.affine.tolist()}"
        raise ScanError(found, where=path, expected=expected, remedy=remedy)


def _require_content(voxels_XYZ: np.ndarray, path: Path) -> None:
    if voxels_XYZ.dtype.kind == "f" and not np.isfinite(voxels_XYZ).all():
        count = int(np.count_nonzero(~np.isfinite(voxels_XYZ)))
        expected, remedy = "finite voxels", "repair or download the file again"
        raise ScanError(
            f"{count} NaN or infinite voxels", where=path, expected=expected, remedy=remedy
        )
    if voxels_XYZ.max() <= 0:
        expected, remedy = "an image of the head", "download the file again"
        raise ScanError(
            "no voxel is above zero: an empty image", where=path, expected=expected, remedy=remedy
        )


def _class_indices(values_XYZ: np.ndarray, files: ScanFiles) -> np.ndarray:
    """Label values of the file → 0, 1..K."""
    flat = values_XYZ.ravel(order="K")
    unknown = set(np.unique(flat[flat != 0]).tolist()) - set(files.label_values)
    if unknown:
        raise ScanError(
            f"label values {sorted(unknown)}",
            where=files.label_file,
            expected=f"0 and {files.label_values}, as {files.naming} has them",
            remedy="map the labels, or name the files like the edition whose labels they have",
        )
    classes_XYZ = np.zeros_like(values_XYZ, dtype=np.uint8)
    for index, value in enumerate(files.label_values, start=1):
        classes_XYZ[values_XYZ == value] = index
    return classes_XYZ
