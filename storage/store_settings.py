"""What a store is made with: what is asked for, what is there already, what suits the scans."""

import json
from collections.abc import Collection, Mapping
from contextlib import suppress
from pathlib import Path

from fewscan.storage.catalog import Catalog, ScanFiles
from fewscan.storage.errors import ScanError, StoreError, StudyError
from fewscan.storage.geometry import Axis, slice_axis, thickest_axis
from fewscan.storage.intensity import Normalisation
from fewscan.storage.manifest import STORE_PROTOCOL, Manifest, Parameters, StoreFolder, Subject
from fewscan.storage.nifti import Grid, read_grid
from fewscan.storage.splits import Split, published_split, read_split


def settled_parameters(
    folder: StoreFolder,
    catalog: Catalog,
    size: int,
    axis: Axis | None,
    normalisation: Normalisation | None,
) -> Parameters:
    """The parameters of the store, which must be those asked for. Raises `StoreError`."""
    try:
        present = _present_parameters(folder)
    except FileNotFoundError:
        return _new_parameters(catalog, size, axis, normalisation)
    wanted = {
        "protocol": STORE_PROTOCOL,
        "size": size,
        "channels": catalog.channels,
        "classes": catalog.classes,
        "axis": present.axis if axis is None else axis,
        "normalisation": normalisation or present.normalisation,
    }
    for key, value in wanted.items():
        found = getattr(present, key)
        if found != value:
            raise StoreError(
                f"a store with {key} {found}",
                where=folder.path,
                expected=f"{key} {value}, as asked for",
                remedy="ask for what is there, choose another path, or delete this folder",
            )
    return present


def _present_parameters(folder: StoreFolder) -> Parameters:
    if folder.manifest.exists():
        return Manifest.read(folder.manifest).parameters
    return Parameters.from_json(json.loads(folder.parameters.read_bytes()))


def _new_parameters(
    catalog: Catalog, size: int, axis: Axis | None, normalisation: Normalisation | None
) -> Parameters:
    grids = [grid for files in catalog.scans if (grid := _grid_of(files))]
    if axis is None:
        axis = catalog.axis
    if axis is None:
        axis = thickest_axis([grid.spacing_mm for grid in grids])
    depth = max((grid.shape[slice_axis(axis, grid.affine)] for grid in grids), default=1)
    normalisation = normalisation or catalog.normalisation
    names = catalog.channels, catalog.classes
    return Parameters(STORE_PROTOCOL, size, depth, *names, axis, normalisation)


def _grid_of(files: ScanFiles) -> Grid | None:
    """By the first file's header; None if it is damaged, which the worker will find."""
    try:
        grid = read_grid(files.channel_files[0])
    except ScanError:
        return None
    return grid if len(grid.shape) == 3 else None


def settled_split(
    folder: StoreFolder, file: Path | None, known: Collection[str], patient_of: Mapping[str, str]
) -> Split | None:
    """The split that is asked for, or the one that the store has; None: the published rule.

    Raises `StudyError` if the file is wrong, or a patient's scans would be in two parts.
    """
    split = _present_split(folder) if file is None else read_split(file, known)
    if split is not None:
        split.require_whole_patients(patient_of, where=file or folder.path)
    return split


def _present_split(folder: StoreFolder) -> Split | None:
    if folder.manifest.exists():
        return Manifest.read(folder.manifest).given_split
    begun = json.loads(folder.parameters.read_bytes()) if folder.parameters.exists() else {}
    return Split.from_json(begun["split"]) if "split" in begun else None


def split_to_keep(given: Split | None, subjects: Mapping[str, Subject]) -> Split | None:
    """The given split; None if it is the one that the rule gives. Raises `StudyError`."""
    if given is None:
        return None
    present = given.among(subjects).to_json()
    for part, ids in present.items():
        if not ids:
            found = f"none of the scans in the part {part} of the split can be used"
            raise StudyError(found, expected="at least one", remedy="fix the scans or the split")
    with suppress(StudyError):  # too few subjects for the rule
        by_rule = published_split(subjects, {i: s.patient for i, s in subjects.items()})
        if given.to_json() == by_rule.to_json():
            return None
    return given
