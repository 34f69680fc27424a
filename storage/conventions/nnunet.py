"""An nnU-Net v2 raw data set: `dataset.json`, `imagesTr/CASE_0000.nii.gz`, `labelsTr/CASE.nii.gz`.

Channels and classes are those of `dataset.json`, in the order of their numbers. Labels that are
regions (lists of values) become classes that do not overlap, and regions of those: a voxel of the
files has one value. Files may be NIfTI, or PNG and TIFF.
"""

import itertools
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fewscan.storage.catalog import Catalog, ScanFiles, Selection
from fewscan.storage.conventions.convention import (
    NIFTI,
    PICTURES,
    UNLABELLED,
    Convention,
    Labels,
    chosen,
    class_names,
    ends_with,
    entries_of,
    files_in,
    files_left_out,
    is_file,
    is_image,
    not_readable,
    places_of,
    read_json,
    require_channels,
    require_map,
    require_one,
    whole_number,
)
from fewscan.storage.errors import ScanError

NAME = "nnU-Net"
DATASET = "dataset.json"
IMAGES, LABELS = "imagesTr", "labelsTr"
UNLABELLED_IMAGES = ("imagesTs", "imagesVal")
_ENDINGS = (".nii.gz", ".nii", *PICTURES)
_CHANNEL_FILE = re.compile(r"([^.].*)_(\d{4})(\.nii(?:\.gz)?|\.png|\.tiff?|\.bmp)", re.IGNORECASE)
_TURNED = "turn labels round, in the file: from {'1': 'tumour'} to {'tumour': 1}"

Regions = tuple[tuple[str, tuple[str, ...]], ...]


@dataclass(frozen=True)
class Description:
    """What `dataset.json` says."""

    channels: tuple[str, ...]
    """names, in the order of their numbers; nnU-Net lets several have the same"""
    labels: Labels
    regions: Regions
    """name → classes, of those that are no class"""
    ending: str
    """of the file names, in small letters"""
    cases: Any
    """numTraining, how many there should be; None if it is not said"""
    files: Mapping[str, Any] | None
    """case → its images and label, if the file lists them"""


def recognise(file_name: str) -> tuple[str, int] | None:
    """Return the case and the channel's number of an image file's name, or None."""
    match = _CHANNEL_FILE.fullmatch(file_name)
    return (match[1], int(match[2])) if match else None


class NnUNet(Convention):
    """nnU-Net v2."""

    name = NAME
    layout = "an nnU-Net v2 raw data set (dataset.json, imagesTr, labelsTr)"
    expected = f"an nnU-Net raw data set with its {DATASET}"
    labels = f"in {LABELS}"
    endings = _ENDINGS
    axis = None
    normalisation = "percentiles"

    def looks_like(self, folder: Path) -> bool:
        """Whether there is a `dataset.json` in it."""
        return is_file(folder / DATASET)

    def find(self, folder: Path, selection: Selection) -> Catalog:
        """The cases of the raw data set in `folder`. Raises `ScanError`."""
        description = read_description(folder / DATASET, require_map(selection.labels))
        wanted = chosen(selection.channels, description.channels, folder / DATASET)
        found = _Files(folder, description)
        scans: list[ScanFiles] = []
        left_out: dict[str, str] = {}
        for case in sorted(found.images):
            label = found.labels.get(case)
            if label is None and not selection.unlabelled:
                left_out[case] = UNLABELLED
                continue
            try:
                scans.append(_scan_files(case, found.images[case], label, description, wanted))
            except ScanError as error:
                found.problems[case] = error
        for case in sorted(set(found.labels) - set(found.images) - set(found.problems)):
            found.problems[case] = _missing(case, wanted, description)
        _compare_count(found, description, folder)
        return Catalog(
            tuple(description.channels[k] for k in wanted),
            description.labels.classes,
            tuple(scans),
            found.problems,
            2 if description.ending in PICTURES else self.axis,
            self.normalisation,
            regions=description.regions,
            left_out={**left_out, **found.left_out},
        )

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
        numbers = _numbers_of(tuple(channels), list(found), where)
        one_picture = len(numbers) > 1 and set(numbered) == {0} and _is_picture(numbered[0])
        if one_picture:
            ordered, volumes = (numbered[0],) * len(numbers), numbers
        else:
            missing = [f"_{k:04d}" for k in numbers if k not in numbered]
            if missing:
                expected = f"the channels {', '.join(channels)} as _0000, _0001, ..."
                raise ScanError(f"missing: {', '.join(missing)}", where=where, expected=expected)
            ordered, volumes = tuple(numbered[k] for k in numbers), ()
        values = tuple(range(1, len(classes) + 1))
        scan_id = next(iter(found.values()))[0]
        return ScanFiles(scan_id, NAME, ordered, None, values, volumes=volumes)


def _numbers_of(wanted: tuple[str, ...], files: Sequence[Path], where: Path) -> tuple[int, ...]:
    """The numbers of the model's channels: by the names in `dataset.json`, or all there are."""
    described = [folder / DATASET for path in files for folder in path.absolute().parents[:2]]
    names = next((_channels_in(path) for path in described if is_file(path)), None)
    if names is not None:
        return places_of(wanted, names, NAME, where)
    if not (len(files) == 1 and _is_picture(files[0])):
        numbers = sorted(found[1] for path in files if (found := recognise(path.name)))
        too_many = [k for k in numbers if k >= len(wanted)]
        if too_many:
            shown = [f"_{k:04d}" for k in numbers]
            require_channels(shown, wanted, NAME, where, by_name=False)
    return tuple(range(len(wanted)))


def _channels_in(path: Path) -> tuple[str, ...] | None:
    """The channels' names; None for the description of a data set of another kind."""
    value = read_json(path)
    return _channel_names(value, path) if "channel_names" in value else None


def _is_picture(path: Path) -> bool:
    return ends_with(path.name, PICTURES)


def read_description(path: Path, given: Labels | None = None) -> Description:
    """Read a `dataset.json`; `given` is what the labels mean instead of what it says.

    Raises `ScanError` if it is damaged or asks for what is not here.
    """
    value = read_json(path)
    channels = _channel_names(value, path)
    labels, regions = (given, ()) if given else _labels(value.get("labels"), path)
    ending = str(value.get("file_ending", NIFTI[1])).lower()
    files = value.get("dataset")
    if ending not in _ENDINGS or not (files is None or isinstance(files, dict)):
        raise ScanError(
            f"file_ending {ending[:40]!r}" if ending not in _ENDINGS else "a `dataset` of no cases",
            where=path,
            expected=f"files that end in {', '.join(_ENDINGS)}, in {IMAGES} and {LABELS}",
            remedy="convert the files, for example with SimpleITK",
        )
    return Description(channels, labels, regions, ending, value.get("numTraining"), files)


def _channel_names(value: Mapping[str, Any], path: Path) -> tuple[str, ...]:
    names = value.get("channel_names")
    numbers = [str(number) for number in range(len(names))] if isinstance(names, dict) else []
    if not isinstance(names, dict) or not numbers or set(names) != set(numbers):
        old = "modality" in value
        raise ScanError(
            f"channel_names {str(names)[:80]}" if names is not None else "no channel_names",
            where=path,
            expected="channel_names {'0': name, '1': name, …}, as nnU-Net v2 has them",
            remedy="this is the format of nnU-Net v1 and the Decathlon, with its list `training` "
            "missing or damaged: nnUNetv2_convert_MSD_dataset converts it"
            if old
            else "correct the file",
        )
    return tuple(str(names[number]) for number in numbers)


def _labels(labels: Any, path: Path) -> tuple[Labels, Regions]:
    """What the values mean, and the regions."""
    values = {name: _values(value) for name, value in labels.items()} if _is_map(labels) else {}
    if values and all(found is None for found in values.values()):
        values = _turned_round(labels)
    if not values or any(found is None for found in values.values()):
        wrong = [name for name, found in values.items() if found is None][:5]
        turned = _is_map(labels) and any(whole_number(name) is not None for name in labels)
        raise ScanError(
            f"labels that have no numbers: {', '.join(wrong)}" if wrong else "no labels",
            where=path,
            expected="a number or a list of them for each name: {'background': 0, 'tumour': 1}",
            remedy=_TURNED if turned else "correct the file",
        )
    sets = {name: frozenset(found or ()) for name, found in values.items()}
    ignored = next(iter(sets.pop("ignore", ())), None)
    named = {value for found in sets.values() for value in found}
    everything = sorted(named if ignored is None else named | {ignored})
    if everything != list(range(len(everything))) or len(everything) < 2:
        raise ScanError(
            f"label values {str(everything)[:80]}",
            where=path,
            expected="0 for the background, then 1, 2, ... without a gap, as nnU-Net has them",
            remedy="renumber the labels, here and in the files; or say what they mean: "
            "--labels VALUE=CLASS,…",
        )
    sets = {name: found for name, found in sets.items() if found != {0}}
    plain = dict(zip(sets, class_names(sets, path), strict=True))
    sets = {plain[name]: found - {0} for name, found in sets.items()}
    names = _disjoint(sets)
    of_ignored = {} if ignored is None else {ignored: "ignore"}
    found_labels = Labels.of({**names, **of_ignored}, path)
    regions = tuple(
        (name, tuple(c for c in found_labels.classes if any(names[v] == c for v in found)))
        for name, found in sets.items()
        if name not in found_labels.classes
    )
    return found_labels, regions


def _is_map(labels: Any) -> bool:
    return isinstance(labels, dict)


def _values(value: Any) -> list[int] | None:
    """The values of a label: of a number, of a list of them; None for anything else."""
    numbers = [whole_number(v) for v in (value if isinstance(value, list) else [value])]
    found = [number for number in numbers if number is not None]
    return found if found and len(found) == len(numbers) else None


def _turned_round(labels: Mapping[str, Any]) -> dict[str, list[int] | None]:
    """{'1': 'tumour'} as {'tumour': [1]}; empty if it is not that."""
    names = [name for name in labels.values() if isinstance(name, str)]
    numbers = [whole_number(value) for value in labels]
    if len(set(names)) < len(labels) or None in numbers:
        return {}
    return {name: [n] for name, n in zip(names, numbers, strict=True) if n is not None}


def _disjoint(regions: Mapping[str, frozenset[int]]) -> dict[int, str]:
    """Value → class: values of the same regions are one class.

    A class that is a whole region has its name. What the regions inside of a region r leave of it
    is `r_rest`; where regions overlap otherwise, the class is named after all that hold it.
    """
    everything = sorted(frozenset().union(*regions.values()))
    held_by = {value: _from_the_inside(value, regions) for value in everything}
    classes: dict[int, str] = {}
    for value, holding in held_by.items():
        alike = {other for other in everything if held_by[other] == holding}
        nested = all(regions[a] <= regions[b] for a, b in itertools.pairwise(holding))
        if regions[holding[0]] == alike:
            classes[value] = holding[0]
        else:
            classes[value] = f"{holding[0]}_rest" if nested else "_and_".join(holding)
    return classes


def _from_the_inside(value: int, regions: Mapping[str, frozenset[int]]) -> list[str]:
    """The regions that hold the value, the smallest first."""
    holding = sorted(name for name in regions if value in regions[name])
    return sorted(holding, key=lambda name: len(regions[name]))


class _Files:
    """What lies in the folders of a data set."""

    def __init__(self, folder: Path, description: Description) -> None:
        self.images: dict[str, dict[int, Path]] = {}
        """case → channel's number → file"""
        self.labels: dict[str, Path] = {}
        self.problems: dict[str, ScanError] = {}
        self.left_out: dict[str, str] = {}
        self._others: list[str] = []
        self._ending = description.ending
        if description.files is None:
            self._read_images(folder / IMAGES)
            self._read_labels(folder / LABELS)
        else:
            self._read_list(folder, description.files)
        for name in UNLABELLED_IMAGES:
            if (folder / name).is_dir():
                self._read_images(folder / name)
        for labels in ("labelsTs", "labelsVal"):
            if (folder / labels).is_dir():
                why = f"only {LABELS} is read; a table can name these (fewscan table)"
                self.left_out[labels] = why
        self.left_out |= files_left_out(self._others, "no images")

    def _read_images(self, folder: Path) -> None:
        cases: dict[str, dict[int, Path]] = defaultdict(dict)
        for path in self._images_in(folder):
            found = recognise(path.name) if ends_with(path.name, (self._ending,)) else None
            if found:
                cases[found[0]][found[1]] = path
            else:
                self.problems[path.name] = self._no_name(path, f"CASE_0000{self._ending}")
        for case in sorted(set(cases) & set(self.images)):
            found_at = " and ".join(str(next(iter(c[case].values()))) for c in (self.images, cases))
            remedy = "remove one, so that no scan is in two parts of the split"
            self.problems[case] = ScanError(f"the same case twice: {found_at}", remedy=remedy)
            del cases[case], self.images[case]
        self.images |= cases

    def _read_labels(self, folder: Path) -> None:
        for path in self._images_in(folder):
            if ends_with(path.name, (self._ending,)):
                self.labels[path.name[: -len(self._ending)]] = path
            else:
                self.problems[path.name] = self._no_name(path, f"CASE{self._ending}")

    def _read_list(self, folder: Path, files: Mapping[str, Any]) -> None:
        for case, entry in files.items():
            images = entry.get("images") if isinstance(entry, dict) else None
            label = entry.get("label") if isinstance(entry, dict) else None
            if not isinstance(images, list) or not all(isinstance(p, str) for p in images):
                expected = "{'images': [file, …], 'label': file} for each case"
                error = ScanError(f"{str(entry)[:80]}", where=folder / DATASET, expected=expected)
                self.problems[case] = error
                continue
            self.images[case] = {k: folder / path for k, path in enumerate(images)}
            if isinstance(label, str):
                self.labels[case] = folder / label

    def _images_in(self, folder: Path) -> list[Path]:
        if not folder.is_dir():
            expected = f"the folders {IMAGES} and {LABELS} beside {DATASET}"
            raise ScanError("no such folder", where=folder, expected=expected)
        entries = entries_of(folder)
        for path in (path for path in entries if path.is_dir()):
            self.left_out[f"{folder.name}/{path.name}"] = (
                f"a folder; files of {folder.name} are read"
            )
        files = [path for path in entries if not path.is_dir()]
        self._others += [path.name for path in files if not is_image(path.name)]
        return [path for path in files if is_image(path.name)]

    def _no_name(self, path: Path, expected: str) -> ScanError:
        if not ends_with(path.name, (self._ending, *NIFTI)):
            return not_readable(path, (self._ending,))
        remedy = f"rename it, or correct file_ending in {DATASET}"
        return ScanError("no known file name", where=path, expected=expected, remedy=remedy)


def _compare_count(found: _Files, description: Description, folder: Path) -> None:
    """numTraining that is wrong is worth a word; a mistake only if something is missing."""
    count = len(found.labels)
    if description.cases is None or whole_number(description.cases) == count:
        return
    said = f"numTraining, {str(description.cases)[:40]}"
    if count and not found.problems and set(found.labels) <= set(found.images):
        found.left_out[DATASET] = f"its {said} is not what is there: {count} labelled cases"
        return
    found.problems[DATASET] = ScanError(
        f"{count} files in {LABELS}",
        where=folder / DATASET,
        expected=said,
        remedy="copy the missing cases, or correct numTraining",
    )


def _missing(case: str, wanted: Sequence[int], description: Description) -> ScanError:
    names = [f"{case}_{k:04d}{description.ending}" for k in wanted]
    return ScanError(
        f"missing: {', '.join(names[:5])}",
        where=IMAGES,
        expected=f"one file for each channel: {', '.join(description.channels)}",
        remedy=f"copy the images, or remove the file in {LABELS}",
    )


def _scan_files(
    case: str,
    images: Mapping[int, Path],
    label: Path | None,
    description: Description,
    wanted: Sequence[int],
) -> ScanFiles:
    known = range(len(description.channels))
    missing = [f"{case}_{k:04d}{description.ending}" for k in wanted if k not in images]
    surplus = [path.name for k, path in sorted(images.items()) if k not in known]
    colours = description.ending in PICTURES and set(images) == {0} and len(known) > 1
    if surplus or (missing and not colours):
        raise ScanError(
            f"missing: {', '.join(missing)}" if missing else f"too many: {', '.join(surplus)}",
            where=next(iter(images.values())).parent,
            expected=f"one file for each channel: {', '.join(description.channels)}",
            remedy=f"correct the folder, or channel_names in {DATASET}",
        )
    labels = description.labels
    return ScanFiles(
        case,
        NAME,
        tuple(images[0 if colours else k] for k in wanted),
        label,
        labels.values,
        volumes=tuple(wanted) if colours else (),
        ignore_value=labels.ignore,
        aliases=labels.aliases,
    )
