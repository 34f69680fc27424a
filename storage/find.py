"""Scans are found: all in a folder, or the one new scan that somebody points at.

What names mean is known by the conventions alone (`conventions`); here they are asked in turn.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from fewscan.storage.catalog import Catalog, ScanFiles, Selection
from fewscan.storage.conventions.convention import entries_of, files_in, require_channels
from fewscan.storage.conventions.registry import CONVENTIONS, ENDINGS, EXPECTED, NAMES
from fewscan.storage.errors import ScanError
from fewscan.storage.labels import require_classes

ALL_LABELLED = Selection()


def find_scans(folder: Path, selection: Selection = ALL_LABELLED) -> Catalog:
    """Find the wanted scans in `folder`, by the first convention that it looks like.

    `folder` may be a table of scans. Raises `ScanError` if it does not exist, looks like none of
    them, is of a kind that is not supported, or does not have what is wanted.
    """
    if not folder.exists():
        raise ScanError(
            "no such folder",
            where=folder,
            expected="a folder of scans, or a table of them",
            remedy="check the path; for synthetic scans: fewscan phantom",
        )
    if folder.is_dir():
        entries_of(folder)
    for convention in CONVENTIONS:
        if convention.looks_like(folder):
            return _with_lesions(convention.find(folder, selection), selection, folder)
    raise ScanError(
        "no scans",
        where=folder,
        expected=EXPECTED,
        remedy="check the path; write a table of the scans (fewscan table); for synthetic scans: "
        "fewscan phantom",
    )


def _with_lesions(catalog: Catalog, selection: Selection, folder: Path) -> Catalog:
    """What is said of lesions and regions is added, instead of what the data set says."""
    catalog = replace(
        catalog,
        lesion=selection.lesion or catalog.lesion,
        regions=selection.regions or catalog.regions,
    )
    require_classes(catalog.classes, catalog.lesion, catalog.regions, folder)
    clash = [name for name, _ in catalog.regions if name in catalog.classes]
    if clash or len(dict(catalog.regions)) < len(catalog.regions):
        found = f"regions {', '.join(name for name, _ in catalog.regions)}"
        expected = "names that differ from each other and from the classes'"
        raise ScanError(found, where=folder, expected=expected)
    return catalog


def find_scan(paths: Sequence[Path], channels: Sequence[str], classes: Sequence[str]) -> ScanFiles:
    """The files of the one scan in `paths`, a folder or files, for a model of these channels.

    Files with names of no convention, given one by one, are taken in the order given; one file for
    several channels has them along its fourth axis. Their label values are 1, 2, …. A segmentation
    beside the channels is not looked at.

    Raises `ScanError` if files are missing, belong to several scans, or are of other channels.
    """
    for path in paths:
        if not path.exists() or (path.is_dir() and len(paths) > 1):
            found = "a folder among files" if path.exists() else "no such file or folder"
            expected = "the folder of one scan, or its channels' files"
            raise ScanError(found, where=path, expected=expected)
    for convention in CONVENTIONS:
        scan = convention.find_one(paths, channels, classes)
        if scan is not None:
            return scan
    if paths[0].is_dir():
        raise ScanError(
            f"no file name of {NAMES} among {len(files_in(paths, ENDINGS))} images",
            where=paths[0],
            expected=f"one scan with the channels {', '.join(channels)}",
            remedy="give the channels' files one by one, in this order",
        )
    values = tuple(range(1, len(classes) + 1))
    scan_id = paths[0].name.partition(".")[0]
    if len(paths) == 1 < len(channels):
        count = len(channels)
        files, volumes = tuple(paths) * count, tuple(range(count))
        return ScanFiles(scan_id, "one file", files, None, values, volumes=volumes)
    require_channels(["unnamed"] * len(paths), channels, "files", paths[0], by_name=False)
    return ScanFiles(scan_id, "files", tuple(paths), None, values)
