"""An nnU-Net v2 raw data set: `dataset.json`, `imagesTr/CASE_0000.nii.gz`, `labelsTr/CASE.nii.gz`.

Channels and classes are those of `dataset.json`, in the order of their numbers. `imagesTs` is not
read: a store holds labelled scans only. Regions (a label that is a list) and the ignore label are
refused: the study's losses and metrics know one class a voxel.
"""

import json
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fewscan.storage.catalog import Catalog, ScanFiles, Selection
from fewscan.storage.conventions.convention import (
    Convention,
    files_in,
    require_channels,
    require_one,
)
from fewscan.storage.errors import ScanError

NAME = "nnU-Net"
DATASET = "dataset.json"
IMAGES, LABELS = "imagesTr", "labelsTr"
_ENDINGS = (".nii.gz", ".nii")
_CHANNEL_FILE = re.compile(r"([^.].*)_(\d{4})\.nii(?:\.gz)?")


@dataclass(frozen=True)
class Description:
    """What `dataset.json` says."""

    channels: tuple[str, ...]
    """names, in the order of their numbers; nnU-Net lets several have the same"""
    classes: tuple[str, ...]
    """names without the background, made of letters, digits, - and _"""
    label_values: tuple[int, ...]
    """the value of each class"""
    ending: str
    """of the file names: .nii.gz or .nii"""
    cases: int | None
    """how many there should be"""


def recognise(file_name: str) -> tuple[str, int] | None:
    """Return the case and the channel's number of an image file's name, or None."""
    match = _CHANNEL_FILE.fullmatch(file_name)
    return (match[1], int(match[2])) if match else None


class NnUNet(Convention):
    """nnU-Net v2."""

    name = NAME
    layout = "an nnU-Net v2 raw data set (dataset.json, imagesTr, labelsTr; imagesTs is not read)"
    expected = f"an nnU-Net raw data set with its {DATASET}"
    labels = f"in {LABELS}"
    endings = _ENDINGS
    axis = None
    normalisation = "percentiles"

    def looks_like(self, folder: Path) -> bool:
        """Whether there is a `dataset.json` in it."""
        return (folder / DATASET).is_file()

    def find(self, folder: Path, selection: Selection) -> Catalog:
        """The labelled cases of the raw data set in `folder`. Raises `ScanError`."""
        description = read_description(folder / DATASET)
        images, strangers = _images(folder / IMAGES, description)
        labels = {
            path.name.removesuffix(description.ending): path
            for path in _files(folder / LABELS)
            if path.name.endswith(description.ending)
        }
        scans, problems = [], strangers
        for case in sorted({*images, *labels}):
            try:
                files = _scan_files(case, images.get(case, {}), labels.get(case), description)
                scans.append(files)
            except ScanError as error:
                problems[case] = error
        if description.cases is not None and len(labels) != description.cases:
            problems[DATASET] = ScanError(
                f"{len(labels)} files in {LABELS}",
                where=folder / DATASET,
                expected=f"numTraining, {description.cases}",
                remedy="copy the missing cases, or correct numTraining",
            )
        found = description.channels, description.classes, tuple(scans), problems
        return Catalog(*found, self.axis, self.normalisation)

    def find_one(
        self, paths: Sequence[Path], channels: Sequence[str], classes: Sequence[str]
    ) -> ScanFiles | None:
        """The one case, by the numbers in its files' names.

        The channels' names are looked at if `dataset.json` is beside the files or a folder above.
        """
        where = paths[0]
        files = files_in(paths, self.endings)
        found = {path: case for path in files if (case := recognise(path.name))}
        if not found:
            return None
        require_one(sorted({case for case, _ in found.values()}), files[0].parent)
        numbered = {number: path for path, (_, number) in found.items()}
        described = [folder / DATASET for path in found for folder in path.absolute().parents[:2]]
        names = next((read_description(f).channels for f in described if f.is_file()), None)
        if names:
            require_channels(names, channels, NAME, where)
        missing = [f"_{k:04d}" for k in range(len(channels)) if k not in numbered]
        if missing:
            expected = f"the channels {', '.join(channels)} as _0000, _0001, ..."
            raise ScanError(f"missing: {', '.join(missing)}", where=where, expected=expected)
        require_channels([f"_{k:04d}" for k in numbered], channels, NAME, where, by_name=False)
        ordered = tuple(numbered[k] for k in range(len(channels)))
        values = tuple(range(1, len(classes) + 1))
        return ScanFiles(next(iter(found.values()))[0], NAME, ordered, None, values)


def read_description(path: Path) -> Description:
    """Read a `dataset.json`. Raises `ScanError` if it is damaged or asks for what is not here."""
    try:
        value = json.loads(path.read_bytes())
        names, labels = value["channel_names"], value["labels"]
        channels = tuple(names[str(number)] for number in range(len(names)))
        cases = value.get("numTraining")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ScanError(
            f"the file cannot be used ({type(error).__name__}: {error})",
            where=path,
            expected="nnU-Net v2's channel_names {'0': name}, labels {name: value}, file_ending",
            remedy="convert data of nnU-Net v1 or the Decathlon with nnUNetv2_convert_MSD_dataset",
        ) from error
    ending = value.get("file_ending", _ENDINGS[0])
    if ending not in _ENDINGS or "dataset" in value:
        found = "a list of files in 'dataset'" if "dataset" in value else f"file_ending {ending!r}"
        expected = f"NIfTI files ({' or '.join(_ENDINGS)}) in {IMAGES} and {LABELS}"
        remedy = "convert or copy the files"
        raise ScanError(found, where=path, expected=expected, remedy=remedy)
    values = _label_values(labels, path)
    return Description(channels, _class_names(values, path), tuple(values.values()), ending, cases)


def _label_values(labels: Mapping[str, Any], path: Path) -> dict[str, int]:
    """Class → value, ascending, without the background."""
    regions = [name for name, value in labels.items() if not _is_whole_number(value)]
    if regions or "ignore" in labels:
        raise ScanError(
            f"labels that are regions: {', '.join(regions)}" if regions else "an ignore label",
            where=path,
            expected="one number a class, such as {'background': 0, 'tumour': 1}",
            remedy="write label files with one value a class; leave out what is to be ignored",
        )
    values = {name: int(value) for name, value in labels.items()}
    ordered = dict(sorted(values.items(), key=lambda item: item[1]))
    if list(ordered.values()) != list(range(len(ordered))) or len(ordered) < 2:
        raise ScanError(
            f"label values {list(ordered.values())}",
            where=path,
            expected="0 for the background, then 1, 2, ... without a gap, as nnU-Net has them",
            remedy="renumber the labels, here and in the files",
        )
    return {name: value for name, value in ordered.items() if value}


def _is_whole_number(value: Any) -> bool:
    return isinstance(value, int) or (isinstance(value, str) and value.isdecimal())


def _class_names(classes: Iterable[str], path: Path) -> tuple[str, ...]:
    """Names that can stand in a file's header, a metric's key and a table."""
    names = tuple(re.sub(r"[^\w-]+", "_", name).strip("_") for name in classes)
    if len(set(names)) < len(names) or not all(names):
        raise ScanError(
            f"class names {', '.join(names)}",
            where=path,
            expected="names that differ in letters and digits",
            remedy="rename the labels",
        )
    return names


def _files(folder: Path) -> list[Path]:
    if not folder.is_dir():
        expected = f"the folders {IMAGES} and {LABELS} beside {DATASET}"
        raise ScanError("no such folder", where=folder, expected=expected)
    return sorted(p for p in folder.iterdir() if p.is_file() and p.name[0] != ".")


def _images(
    folder: Path, description: Description
) -> tuple[dict[str, dict[int, Path]], dict[str, ScanError]]:
    """Case → channel's number → file; and the files that are no image of a case."""
    images: dict[str, dict[int, Path]] = defaultdict(dict)
    strangers: dict[str, ScanError] = {}
    for path in _files(folder):
        found = recognise(path.name) if path.name.endswith(description.ending) else None
        if found:
            images[found[0]][found[1]] = path
        else:
            expected = f"CASE_0000{description.ending}"
            strangers[path.name] = ScanError("no known file name", where=path, expected=expected)
    return images, strangers


def _scan_files(
    case: str, images: Mapping[int, Path], label: Path | None, description: Description
) -> ScanFiles:
    wanted = range(len(description.channels))
    if set(images) != set(wanted):
        missing = [f"{case}_{k:04d}{description.ending}" for k in wanted if k not in images]
        surplus = [path.name for k, path in sorted(images.items()) if k not in wanted]
        raise ScanError(
            f"missing: {', '.join(missing)}" if missing else f"too many: {', '.join(surplus)}",
            where=IMAGES,
            expected=f"one file for each channel: {', '.join(description.channels)}",
            remedy=f"correct {IMAGES}, or channel_names in {DATASET}",
        )
    files = tuple(images[k] for k in wanted)
    return ScanFiles(case, NAME, files, label, description.label_values)
