"""What a BraTS folder looks like: which file is whose, under the names of two editions."""

import os
import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from fewscan.storage.catalog import Catalog, ScanFiles
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


def find_brats(folder: Path) -> Catalog:
    """Find the scans in `folder` and its sub-folders, however deep.

    Raises `ScanError` if nothing in it is named like a scan.
    """
    files, strangers = _walk(folder)
    if not files:
        raise ScanError(
            "no scans",
            where=folder,
            expected=f"{_expected_names()}; or an nnU-Net raw data set with its dataset.json",
            remedy="check the path; for synthetic scans: fewscan phantom",
        )
    catalog = group_files(files)
    return replace(catalog, problems={**strangers, **catalog.problems})


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
    # The third axis and the quantile are the published preprocessing.
    return Catalog(CHANNELS, CLASSES, tuple(scans), problems, axis=2, normalisation="quantile")


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
