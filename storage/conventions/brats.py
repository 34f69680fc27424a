"""BraTS: which file is whose, in folders however deep, under the names of two editions."""

import os
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from fewscan.storage.catalog import Catalog, ScanFiles, Selection, patient_in_name
from fewscan.storage.conventions.convention import (
    Convention,
    files_in,
    require_channels,
    require_one,
)
from fewscan.storage.errors import ScanError

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


_FIRST_SCAN_2021 = re.compile(r"BraTS2021_(\d{5})")
_TIME_POINT = re.compile(r"(BraTS-(?:[A-Za-z]+-)+\d+)-\d+")
"""ID of a patient, number of the scan, since BraTS 2023"""


class Brats(Convention):
    """The BraTS challenges."""

    name = "BraTS"
    layout = "a folder of files with BraTS 2021 or 2023 names, however deep"
    expected = " or ".join(
        f"ID{naming.separator}{{{','.join((*naming.parts, LABELS))}}}.nii.gz" for naming in NAMINGS
    )
    labels = f"{LABELS}, beside the channels"
    endings = (".nii", ".nii.gz")
    axis = 2
    """as published"""
    normalisation = "quantile"
    """as published"""

    def looks_like(self, folder: Path) -> bool:
        """Whether some file in it, however deep, is named like part of a scan."""
        return any(_is_known(name) for _, _, names in _visible(folder) for name in names)

    def find(self, folder: Path, selection: Selection) -> Catalog:
        """All scans in `folder` and its sub-folders; a folder of strange images is a problem."""
        files, strangers = _walk(folder)
        catalog = self.group(files)
        return replace(catalog, problems={**strangers, **catalog.problems})

    def find_one(
        self, paths: Sequence[Path], channels: Sequence[str], classes: Sequence[str]
    ) -> ScanFiles | None:
        """The one scan; with the edition's label values if the model has BraTS's classes."""
        catalog = self.group(files_in(paths, self.endings))
        for problem in catalog.problems.values():
            raise problem
        if not catalog.scans:
            return None
        scan = catalog.scans[0]
        require_one([scan.id for scan in catalog.scans], scan.channel_files[0].parent)
        require_channels(CHANNELS, channels, scan.naming, paths[0])
        known = tuple(classes) == CLASSES
        values = scan.label_values if known else tuple(range(1, len(classes) + 1))
        return replace(scan, label_file=None, label_values=values)

    def patient_of(self, scan_id: str) -> str:
        """BraTS-GLI-02062-100 and -101 are two scans of BraTS-GLI-02062."""
        match = _TIME_POINT.fullmatch(scan_id)
        return match[1] if match else patient_in_name(scan_id)

    def same_scan(self, scan_id: str) -> str:
        """The scans of BraTS 2021 are the patients' first ones in BraTS 2023."""
        match = _FIRST_SCAN_2021.fullmatch(scan_id)
        return f"BraTS-GLI-{match[1]}-000" if match else scan_id

    def group(self, paths: Iterable[Path]) -> Catalog:
        """Group files by scan; one whose files do not fit together is among the problems.

        Labels may be missing. Files that are named otherwise are left out.
        """
        groups: dict[tuple[str, Naming], dict[str, list[Path]]] = defaultdict(
            lambda: defaultdict(list)
        )
        for path in paths:
            for naming in NAMINGS:
                if found := naming.recognise(path.name):
                    groups[found[0], naming][found[1]].append(path)
        ids_of = defaultdict(list)
        for scan_id, _ in groups:
            ids_of[self.same_scan(scan_id)].append(scan_id)
        scans, problems = [], {}
        for (scan_id, naming), files in sorted(groups.items(), key=lambda item: item[0][0]):
            try:
                _refuse_twice(scan_id, ids_of[self.same_scan(scan_id)], files)
                scan = _scan_files(scan_id, naming, files)
                scans.append(replace(scan, patient=self.patient_of(scan_id)))
            except ScanError as error:
                problems[scan_id] = error
        return Catalog(CHANNELS, CLASSES, tuple(scans), problems, self.axis, self.normalisation)


def _visible(folder: Path) -> Iterator[tuple[Path, list[str], list[str]]]:
    """Each folder with its sub-folders and files, sorted; hidden ones are left out."""
    for place, subfolders, names in os.walk(folder, followlinks=True):
        subfolders[:] = sorted(name for name in subfolders if name[0] != ".")
        yield Path(place), subfolders, sorted(names)


def _is_known(file_name: str) -> bool:
    return any(naming.recognise(file_name) for naming in NAMINGS)


def _walk(folder: Path) -> tuple[list[Path], dict[str, ScanError]]:
    """All files named like parts of a scan, and the folders where one would expect some."""
    files, strangers = [], {}
    for place, subfolders, names in _visible(folder):
        images = [n for n in names if n.endswith(Brats.endings) and n[0] != "."]
        known = [n for n in images if _is_known(n)]
        files += [place / name for name in known]
        if not known and (images or not (names or subfolders)):
            found = f"no known file name ({images[0]}, ...)" if images else "an empty folder"
            error = ScanError(found, where=place, expected=Brats.expected)
            strangers[place.relative_to(folder).as_posix()] = error
    return files, strangers


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
