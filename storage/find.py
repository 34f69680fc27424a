"""Scans are found: all in a folder, or the one new scan that somebody points at.

What names mean is known by the conventions alone (`conventions`); here they are asked in turn.
"""

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from fewscan.storage.catalog import Catalog, ScanFiles, Selection
from fewscan.storage.conventions.convention import (
    ends_with,
    entries_of,
    files_in,
    require_channels,
)
from fewscan.storage.conventions.registry import CONVENTIONS, ENDINGS, EXPECTED, NAMES
from fewscan.storage.errors import ScanError
from fewscan.storage.labels import require_classes

ALL_LABELLED = Selection()
IN_ORDER = "files"
"""`ScanFiles.naming` of files whose names are of no convention"""


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

    Files given one by one, as many as there are channels, are the channels in the order given,
    unless the names of all say another order by a convention; one file for several channels has
    them along its fourth axis. Their label values are 1, 2, … if names do not tell. A segmentation
    beside the channels is not looked at.

    Raises `ScanError` if files are missing, belong to several scans, or are of other channels.
    """
    for path in paths:
        if not path.exists() or (path.is_dir() and len(paths) > 1):
            found = "a folder among files" if path.exists() else "no such file or folder"
            expected = "the folder of one scan, or its channels' files"
            raise ScanError(found, where=path, expected=expected)
    images = all(ends_with(path.name, ENDINGS) and not path.is_dir() for path in paths)
    as_many = images and len(paths) == len(channels)
    try:
        scans = (convention.find_one(paths, channels, classes) for convention in CONVENTIONS)
        named = next((scan for scan in scans if scan is not None), None)
    except ScanError:
        if not as_many:
            raise
        named = None  # names that only look like a convention's
    if named is not None and (not as_many or set(named.channel_files) == set(paths)):
        return named
    if paths[0].is_dir():
        raise ScanError(
            f"no file name of {NAMES} among {len(files_in(paths, ENDINGS))} images",
            where=paths[0],
            expected=f"one scan with the channels {', '.join(channels)}",
            remedy="give the channels' files one by one, in this order",
        )
    values = tuple(range(1, len(classes) + 1))
    scan_id = _stem(paths[0])
    if len(paths) == 1 < len(channels):
        from fewscan.storage.images import count_channels  # numpy would slow every `--help`

        count = count_channels(paths[0])
        unnamed = ["unnamed"] * count
        require_channels(unnamed, channels, "one file", paths[0], by_name=False)
        files, volumes = tuple(paths) * count, tuple(range(count))
        return ScanFiles(scan_id, "one file", files, None, values, volumes=volumes)
    require_channels(["unnamed"] * len(paths), channels, "files", paths[0], by_name=False)
    return ScanFiles(scan_id, IN_ORDER, tuple(paths), None, values)


def find_new_scans(place: Path, channels: Sequence[str], classes: Sequence[str]) -> Catalog:
    """All scans in a folder or table, labelled or not, for a model of these channels and classes.

    The folder may be a data set, or hold images alone: with nnU-Net's CASE_0000 names, or any names
    if the model has one channel. Label values are those of a data set with the model's classes,
    else 1, 2, …. What cannot be used is among the problems.

    Raises `ScanError` if there is nothing, or the data set has other channels.
    """
    images = files_in([place], ENDINGS) if place.is_dir() else []
    if images and not any(convention.looks_like(place) for convention in CONVENTIONS):
        return _loose_scans(images, channels, classes)
    wanted, values = Selection(unlabelled=True), tuple(range(1, len(classes) + 1))
    try:
        catalog, clear = find_scans(place, wanted), True
    except ScanError:  # perhaps over what its labels mean, which are not looked at
        names = ",".join(f"{k}={name}" for k, name in enumerate(classes or ("lesion",), start=1))
        wanted, clear = replace(wanted, labels=names), False
        catalog = find_scans(place, wanted)
    if catalog.channels != tuple(channels):
        catalog = find_scans(place, replace(wanted, channels=tuple(channels)))
    scans = []
    for files in catalog.scans:
        own = files.label_values
        if not clear and not files.volumes:
            own = find_scan(files.channel_files, channels, classes).label_values
        elif catalog.classes != tuple(classes) or min(own) < 1:
            own = values
        scans.append(replace(files, label_file=None, label_values=own))
    return replace(catalog, scans=tuple(scans))


def _loose_scans(
    images: Sequence[Path], channels: Sequence[str], classes: Sequence[str]
) -> Catalog:
    """The scans that images of no data set are; a scan is a file, or what shares a case's name."""
    groups: dict[str, list[Path]] = defaultdict(list)
    for path in images:
        stem = _stem(path)
        numbered = re.fullmatch(r"(.+)_\d{4}", stem)
        alone = len(channels) == 1 and not stem.endswith("_0000")
        groups[numbered[1] if numbered and not alone else stem].append(path)
    scans, problems = [], {}
    for case, paths in sorted(groups.items()):
        try:
            scans.append(replace(find_scan(paths, channels, classes), id=case))
        except ScanError as error:
            problems[case] = error
    return Catalog(tuple(channels), tuple(classes), tuple(scans), problems, None, "percentiles")


def _stem(path: Path) -> str:
    """The file's name without the ending of an image."""
    endings = sorted(ENDINGS, key=len, reverse=True)
    found = next((e for e in endings if path.name.lower().endswith(e)), path.suffix)
    return path.name[: len(path.name) - len(found)]
