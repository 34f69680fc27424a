"""What a store is made with: what is asked for, what is there already, what suits the scans."""

import json
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from fewscan.storage.catalog import Catalog, ScanFiles
from fewscan.storage.errors import ScanError, StoreError, StudyError, named
from fewscan.storage.geometry import Axis, Turn, orientation, slice_axis, usual_axis
from fewscan.storage.images import grid_of
from fewscan.storage.intensity import Normalisation, Window
from fewscan.storage.labelled_window import labelled_windows
from fewscan.storage.labels import require_classes
from fewscan.storage.manifest import STORE_PROTOCOL, Manifest, Parameters, StoreFolder, Subject
from fewscan.storage.nifti import Grid
from fewscan.storage.splits import FEWEST_VALIDATED, PARTS, Split, read_split, split_by_rule


def settled_parameters(
    folder: StoreFolder,
    catalog: Catalog,
    size: int,
    axis: Axis | None,
    normalisation: Normalisation | None,
    windows: Sequence[Window] = (),
    fewest_validated: int | None = None,
) -> Parameters:
    """The parameters of the store, which must be those asked for.

    How many patients validate at least may change. Windows that are to be learnt from labels are
    not there yet. Raises `StoreError`, or
    `StudyError` if the windows do not fit the normalisation.
    """
    if windows:
        normalisation = normalisation or "window"
    try:
        present = _oriented(_present_parameters(folder), folder, catalog)
    except FileNotFoundError:
        found = _new_parameters(folder, catalog, size, axis, normalisation)
        return replace(
            found,
            windows=_a_channel(windows, catalog, found.normalisation),
            fewest_validated=fewest_validated or FEWEST_VALIDATED,
        )
    if windows:
        windows = _a_channel(windows, catalog, normalisation or present.normalisation)
    wanted = {
        "protocol": STORE_PROTOCOL,
        "size": size,
        "channels": catalog.channels,
        "classes": catalog.classes,
        "axis": present.axis if axis is None else axis,
        "normalisation": normalisation or present.normalisation,
        "windows": tuple(windows) or present.windows,
        "lesion": catalog.lesion or present.lesion,
        "ignored": _has_ignored(catalog) or present.ignored,
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
    return replace(
        present,
        regions=catalog.regions or present.regions,
        fewest_validated=fewest_validated or present.fewest_validated,
    )


def _a_channel(
    windows: Sequence[Window], catalog: Catalog, normalisation: Normalisation
) -> tuple[Window, ...]:
    """A window for each channel; one alone is for all."""
    count = len(catalog.channels)
    bad = [f"{low:g} {high:g}" for low, high in windows if not low < high]
    needed = normalisation == "window"
    if bad or bool(windows) != needed or len(windows) not in (0, 1, count):
        raise StudyError(
            f"the window {bad[0]}"
            if bad
            else f"{len(windows)} windows for {count} channels, "
            f"with the normalisation {normalisation}",
            where="--window",
            expected="LOW below HIGH, once for all channels or once for each, with the "
            "normalisation `window`, which needs it",
            remedy="for soft tissue in CT: --normalisation window --window -160 240",
        )
    return tuple(windows) * count if len(windows) == 1 else tuple(windows)


def windows_learnt(
    parameters: Parameters, catalog: Catalog, split: Split | None, workers: int
) -> Parameters:
    """The same, with the windows that the labels of the training scans tell, if they are to.

    Without a given split the published rule is applied to the labelled scans as they are found;
    with too few for it, all of them are looked at. Raises `ScanError`.
    """
    if parameters.normalisation != "labelled-percentiles" or parameters.windows:
        return parameters
    labelled = {files.id: files for files in catalog.scans if files.label_file is not None}
    train: Collection[str] = labelled
    with suppress(StudyError):
        patients = {id_: files.patient for id_, files in labelled.items()}
        if split is None:
            split = split_by_rule(labelled, patients, parameters.fewest_validated)
        train = split.train
    chosen = [files for id_, files in labelled.items() if id_ in train]
    windows, masks = labelled_windows(chosen, catalog.channels, workers)
    return replace(parameters, windows=windows, window_masks=masks)


def _has_ignored(catalog: Catalog) -> bool:
    return any(files.ignore_value is not None for files in catalog.scans)


def _present_parameters(folder: StoreFolder) -> Parameters:
    if folder.manifest.exists():
        return Manifest.read(folder.manifest).parameters
    return Parameters.from_json(json.loads(folder.parameters.read_bytes()))


def _new_parameters(
    folder: StoreFolder,
    catalog: Catalog,
    size: int,
    axis: Axis | None,
    normalisation: Normalisation | None,
) -> Parameters:
    grids = [grid for files in catalog.scans if (grid := _grid_of(files))]
    towards = _orientation_if_mixed(grids)
    grids = [_turned(grid, towards) for grid in grids]
    shapes_XYZ = [grid.shape for grid in grids]
    if axis is None:
        axis = catalog.axis
    if axis is None:
        axis = usual_axis(shapes_XYZ, [grid.spacing_mm for grid in grids])
    depth = max((grid.shape[slice_axis(axis, grid.affine)] for grid in grids), default=1)
    normalisation = normalisation or catalog.normalisation
    require_classes(catalog.classes, catalog.lesion, catalog.regions, folder.path)
    return Parameters(
        STORE_PROTOCOL,
        size,
        depth,
        catalog.channels,
        catalog.classes,
        axis,
        normalisation,
        lesion=() if set(catalog.lesion) == set(catalog.classes) else catalog.lesion,
        regions=tuple(it for it in catalog.regions if it[1] != (it[0],)),
        ignored=_has_ignored(catalog),
        orientation=towards,
    )


def _grid_of(files: ScanFiles) -> Grid | None:
    """By the first file's header; None if it is damaged, which the worker will find."""
    try:
        grid = grid_of(files)
    except ScanError:
        return None
    return grid if len(grid.shape) == 3 else None


def _orientation_if_mixed(grids: Sequence[Grid]) -> str:
    """The most frequent orientation, of equal ones the first; "" if all have the same, or none."""
    known = Counter(orientation(grid.affine) for grid in grids if grid.has_orientation)
    if not known or known.total() == len(grids) == known.most_common(1)[0][1]:
        return ""
    return known.most_common(1)[0][0]


def _turned(grid: Grid, towards: str) -> Grid:
    if not (towards and grid.has_orientation):
        return grid
    turn = Turn.between(orientation(grid.affine), towards)
    affine = turn.affine(grid.affine, grid.shape)
    return replace(grid, shape=turn.shape(grid.shape), affine=affine)


def _oriented(present: Parameters, folder: StoreFolder, catalog: Catalog) -> Parameters:
    """The same, with the orientation of the scans in the store if new ones have another.

    It is not noted where all had the same; it is where scans are turned to it.
    """
    if present.orientation:
        return present
    affines = _affines_in(folder)
    grids = [
        grid
        for files in catalog.scans
        if files.id not in affines and (grid := _grid_of(files)) and grid.has_orientation
    ]
    found = Counter(orientation(np.array(affine)) for affine in affines.values())
    if not grids or not found:
        return present
    usual = found.most_common(1)[0][0]
    others = any(orientation(grid.affine) != usual for grid in grids)
    return replace(present, orientation=usual) if others else present


def _affines_in(folder: StoreFolder) -> dict[str, Any]:
    """The affine of each subject that is in the store, finished or not."""
    if folder.manifest.exists():
        return {i: s.affine for i, s in Manifest.read(folder.manifest).subjects.items()}
    records = (json.loads(path.read_bytes()) for path in folder.records.glob("*.json"))
    return {record["id"]: record["affine"] for record in records}


def settled_split(
    folder: StoreFolder,
    file: Path | None,
    catalog: Catalog,
    known: Collection[str],
    patient_of: Mapping[str, str],
    by_rule: bool = False,
) -> Split | None:
    """The split that is asked for, else the data set's own, else the one that the store has.

    None: the rule, which `by_rule` asks for. Raises `StudyError` if the file is wrong, a scan
    without labels is in it, or a patient's scans would be in two parts.
    """
    if file is not None and by_rule:
        raise StudyError(
            "both lists of the parts and a number of patients for validation",
            where="--split, --validation",
            expected="one of them",
            remedy="leave --validation out: the lists say who validates",
        )
    if file is not None:
        split: Split | None = read_split(file, known)
    elif by_rule:
        split = None
    else:
        split = _split_of(catalog) or _present_split(folder)
    if split is not None:
        where = file or folder.path
        _require_labelled(split, catalog, where)
        split.require_whole_patients(patient_of, where)
    return split


def _split_of(catalog: Catalog) -> Split | None:
    """The parts that the data set itself gives its labelled scans."""
    parts: dict[str, list[str]] = {part: [] for part in PARTS}
    for files in catalog.scans:
        if files.part and files.label_file is not None:
            parts[files.part].append(files.id)
    return Split.from_json(parts) if any(parts.values()) else None


def _require_labelled(split: Split, catalog: Catalog, where: Path) -> None:
    unlabelled = [it.id for it in catalog.scans if it.label_file is None and it.id in split.ids]
    if unlabelled:
        raise StudyError(
            f"{len(unlabelled)} scans of the split have no labels: {named(unlabelled)}",
            where=where,
            expected="labelled scans in train, validation and test",
            remedy="take them out of the lists: unlabelled scans are pre-trained on without them",
        )


def _present_split(folder: StoreFolder) -> Split | None:
    if folder.manifest.exists():
        return Manifest.read(folder.manifest).given_split
    begun = json.loads(folder.parameters.read_bytes()) if folder.parameters.exists() else {}
    return Split.from_json(begun["split"]) if "split" in begun else None


def split_to_keep(
    given: Split | None, subjects: Mapping[str, Subject], fewest_validated: int
) -> Split | None:
    """The given split; None if it is the one that the rule gives. Raises `StudyError`."""
    if given is None:
        return None
    present = given.among(subjects).to_json()
    for part, ids in present.items():
        if not ids:
            found = f"none of the scans in the part {part} of the split can be used"
            raise StudyError(found, expected="at least one", remedy="fix the scans or the split")
    with suppress(StudyError):  # too few subjects for the rule
        labelled = {i: s.patient for i, s in subjects.items() if s.labelled}
        by_rule = split_by_rule(labelled, labelled, fewest_validated)
        if given.to_json() == by_rule.to_json():
            return None
    return given
