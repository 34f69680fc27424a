"""The files of one new scan: a folder or the files themselves, under either convention or none."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from fewscan.storage.brats import CHANNELS, CLASSES, NAMINGS, group_files
from fewscan.storage.catalog import ScanFiles
from fewscan.storage.errors import ScanError
from fewscan.storage.nnunet import DATASET, NAME, read_description, recognise

_ENDINGS = (".nii", ".nii.gz")


def find_scan(paths: Sequence[Path], channels: Sequence[str], classes: Sequence[str]) -> ScanFiles:
    """The files of the one scan in `paths`, a folder or files, for a model of these channels.

    BraTS names are known by their parts, nnU-Net's by their numbers (and by `dataset.json`, if it
    is beside them or a folder above). Files with other names, given one by one, are taken in the
    order given. Label values are those of the scan's convention: its edition's in BraTS, else
    1, 2, …. A segmentation beside the channels is not looked at.

    Raises `ScanError` if files are missing, belong to several scans, or are of other channels.
    """
    files = _files(paths)
    as_folder = len(paths) == 1 and paths[0].is_dir()
    numbers = tuple(range(1, len(classes) + 1))
    if any(naming.recognise(path.name) for path in files for naming in NAMINGS):
        scan = _brats_scan(files)
        _require_channels(CHANNELS, channels, scan.naming, paths[0])
        known = tuple(classes) == CLASSES
        return replace(scan, label_values=scan.label_values if known else numbers)
    if any(recognise(path.name) for path in files):
        return _nnunet_scan(files, channels, numbers, paths[0])
    if as_folder:
        raise ScanError(
            f"no file name of BraTS or nnU-Net among {len(files)} NIfTI files",
            where=paths[0],
            expected=f"one scan with the channels {', '.join(channels)}",
            remedy="give the channels' files one by one, in this order",
        )
    _require_channels(["unnamed"] * len(files), channels, "files", paths[0], by_name=False)
    return ScanFiles(files[0].name.partition(".")[0], "files", tuple(files), None, numbers)


def _files(paths: Sequence[Path]) -> list[Path]:
    for path in paths:
        if not path.exists() or (path.is_dir() and len(paths) > 1):
            found = "a folder among files" if path.exists() else "no such file or folder"
            expected = "the folder of one scan, or its channels' files"
            raise ScanError(found, where=path, expected=expected)
    if not paths[0].is_dir():
        return list(paths)
    inside = sorted(p for p in paths[0].iterdir() if p.name[0] != "." and p.is_file())
    return [path for path in inside if path.name.endswith(_ENDINGS)]


def _brats_scan(files: Sequence[Path]) -> ScanFiles:
    catalog = group_files(files)
    for problem in catalog.problems.values():
        raise problem
    _require_one([scan.id for scan in catalog.scans], files)
    return replace(catalog.scans[0], label_file=None)


def _nnunet_scan(
    files: Sequence[Path], channels: Sequence[str], values: tuple[int, ...], where: Path
) -> ScanFiles:
    found = {path: case for path in files if (case := recognise(path.name))}
    _require_one(sorted({case for case, _ in found.values()}), files)
    numbered = {number: path for path, (_, number) in found.items()}
    described = [folder / DATASET for path in found for folder in path.absolute().parents[:2]]
    names = next((read_description(f).channels for f in described if f.is_file()), None)
    if names:
        _require_channels(names, channels, NAME, where)
    missing = [f"_{k:04d}" for k in range(len(channels)) if k not in numbered]
    if missing:
        expected = f"the channels {', '.join(channels)} as _0000, _0001, ..."
        raise ScanError(f"missing: {', '.join(missing)}", where=where, expected=expected)
    _require_channels([f"_{k:04d}" for k in numbered], channels, NAME, where, by_name=False)
    ordered = tuple(numbered[k] for k in range(len(channels)))
    return ScanFiles(next(iter(found.values()))[0], NAME, ordered, None, values)


def _require_one(ids: Sequence[str], files: Sequence[Path]) -> None:
    if len(ids) > 1:
        raise ScanError(
            f"{len(ids)} scans: {', '.join(ids[:5])}{', ...' if len(ids) > 5 else ''}",
            where=files[0].parent,
            expected="one scan",
            remedy="give the files of one of them, such as FOLDER/CASE_*.nii.gz",
        )


def _require_channels(
    found: Sequence[str], wanted: Sequence[str], what: str, where: Path, by_name: bool = True
) -> None:
    if len(found) != len(wanted) or (by_name and tuple(found) != tuple(wanted)):
        raise ScanError(
            f"a scan with {len(found)} channels: {', '.join(found)} ({what})",
            where=where,
            expected=f"the model's {len(wanted)} channels: {', '.join(wanted)}",
            remedy="choose a run that was trained on such scans",
        )
