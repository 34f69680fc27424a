"""The Medical Segmentation Decathlon as it is downloaded, and data sets of nnU-Net v1.

`dataset.json` lists the files and names the channels (`modality`) and the label values. An image
of several channels is one file with four axes; nnU-Net v1 has the same description, and a file a
channel.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

from fewscan.storage.catalog import Catalog, ScanFiles, Selection
from fewscan.storage.conventions.convention import (
    NIFTI,
    UNLABELLED,
    Convention,
    Labels,
    chosen,
    ends_with,
    files_in,
    files_left_out,
    is_file,
    is_image,
    not_readable,
    places_of,
    read_json,
    require_map,
    require_one,
    whole_number,
)
from fewscan.storage.errors import FewscanError, ScanError

NAME = "Medical Segmentation Decathlon"
DATASET = "dataset.json"


@dataclass(frozen=True)
class TaskDescription:
    """What `dataset.json` says."""

    channels: tuple[str, ...]
    labels: Labels
    training: tuple[Any, ...]
    """an image and its label each, as far as the file is right"""
    test: tuple[Any, ...]
    """images"""
    count: Any
    """numTraining, how many there should be; None if it is not said"""


class Decathlon(Convention):
    """The Medical Segmentation Decathlon."""

    name = NAME
    layout = (
        "a task of the Medical Segmentation Decathlon (dataset.json with modality and training)"
    )
    expected = f"a task of the {NAME} with its {DATASET}"
    labels = f"in the list `training` of {DATASET}"
    endings = NIFTI
    axis = None
    normalisation = "percentiles"

    def looks_like(self, folder: Path) -> bool:
        """Whether there is a `dataset.json` in it, of the first version."""
        return _is_first_version(folder / DATASET)

    def find(self, folder: Path, selection: Selection) -> Catalog:
        """The scans that `dataset.json` lists. Raises `ScanError`."""
        description = read_description(folder / DATASET, require_map(selection.labels))
        wanted = chosen(selection.channels, description.channels, folder / DATASET)
        scans: dict[str, ScanFiles] = {}
        problems: dict[str, ScanError] = {}
        left_out: dict[str, str] = {}
        for entry, is_test in (
            *((entry, False) for entry in description.training),
            *((entry, True) for entry in description.test),
        ):
            image, label = _names_in(entry)
            scan_id = _stem(image) if image else f"{DATASET}: {str(entry)[:40]}"
            if is_test and not selection.unlabelled:
                left_out[scan_id] = UNLABELLED
                continue
            try:
                if not image or (not label and not is_test):
                    raise _no_entry(entry, folder)
                if scan_id in scans or scan_id in problems:
                    raise ScanError(f"the same scan twice: {image}", where=folder / DATASET)
                scans[scan_id] = _scan_files(
                    folder, image, None if is_test else label, description, wanted
                )
            except ScanError as error:
                scans.pop(scan_id, None)
                problems[scan_id] = error
        counted = len(description.training)
        if description.count is not None and whole_number(description.count) != counted:
            said = str(description.count)[:40]
            left_out[DATASET] = f"its numTraining, {said}, is not what it lists: {counted}"
        return Catalog(
            tuple(description.channels[k] for k in wanted),
            description.labels.classes,
            tuple(scans[scan_id] for scan_id in sorted(scans)),
            problems,
            self.axis,
            self.normalisation,
            left_out=left_out | _not_listed(folder, description),
        )

    def find_one(
        self, paths: Sequence[Path], channels: Sequence[str], classes: Sequence[str]
    ) -> ScanFiles | None:
        """The one scan, if its `dataset.json` is beside the file or a folder above."""
        files = [path for path in files_in(paths, self.endings) if is_file(path)]
        described = [folder / DATASET for f in files[:1] for folder in f.absolute().parents[:2]]
        path = next((path for path in described if _is_first_version(path)), None)
        if path is None:
            return None
        description = read_description(path)
        names = description.channels
        ids = {file: _id_and_channel(file, len(names)) for file in files}
        require_one(sorted({scan_id for scan_id, _ in ids.values()}), files[0].parent)
        wanted = places_of(channels, names, NAME, files[0])
        found = {number: file for file, (_, number) in ids.items()}
        scan_id = next(iter(ids.values()))[0]
        labels = description.labels
        known = labels.classes == tuple(classes)
        values = labels.values if known else tuple(range(1, len(classes) + 1))
        scan = _of_files(scan_id, found, wanted, description, files[0].parent)
        return replace(scan, label_values=values, aliases=(), ignore_value=None)


def _is_first_version(path: Path) -> bool:
    try:
        value = read_json(path)
    except FewscanError:
        return False
    return isinstance(value.get("modality"), dict) and isinstance(value.get("training"), list)


def read_description(path: Path, given: Labels | None = None) -> TaskDescription:
    """Read a `dataset.json`; `given` is what the labels mean instead of what it says.

    Raises `ScanError` if it is damaged.
    """
    value = read_json(path)
    names = value.get("modality")
    numbers = [str(number) for number in range(len(names))] if isinstance(names, dict) else []
    if not isinstance(names, dict) or not numbers or set(names) != set(numbers):
        raise ScanError(
            f"modality {str(names)[:80]}",
            where=path,
            expected="modality {'0': name, '1': name, …}",
            remedy="correct the file",
        )
    test = value.get("test")
    return TaskDescription(
        tuple(str(names[number]) for number in numbers),
        given or _labels(value.get("labels"), path),
        tuple(value.get("training", ())),
        tuple(test) if isinstance(test, list) else (),
        value.get("numTraining"),
    )


def _labels(labels: Any, path: Path) -> Labels:
    names: dict[int, str] = {}
    for value, name in labels.items() if isinstance(labels, dict) else ():
        number = whole_number(value)
        if number is None or number in names or not isinstance(name, str):
            names.clear()
            break
        names[number] = name
    if not names:
        raise ScanError(
            f"labels {str(labels)[:80]}",
            where=path,
            expected="labels {'0': 'background', '1': name, …}",
            remedy="correct the file, or say what the values mean: --labels VALUE=CLASS,…",
        )
    return Labels.of({v: n for v, n in names.items() if v}, path)


def _names_in(entry: Any) -> tuple[str, str]:
    """The image's and the label's path in the folder; empty if they are not there."""
    entry = {"image": entry} if isinstance(entry, str) else entry
    found = (entry.get(key) if isinstance(entry, dict) else None for key in ("image", "label"))
    image, label = (name if isinstance(name, str) and _stem(name) else "" for name in found)
    return image, label


def _stem(name: str) -> str:
    """The file's name without its ending: what the scan is called."""
    base = PurePosixPath(name.replace("\\", "/")).name
    ending = next((e for e in (".nii.gz", ".nii") if ends_with(base, (e,))), "")
    return base[: -len(ending)] if ending else base.partition(".")[0]


def _no_entry(entry: Any, folder: Path) -> ScanError:
    return ScanError(
        f"an entry {str(entry)[:80]}",
        where=folder / DATASET,
        expected="{'image': './imagesTr/CASE.nii.gz', 'label': './labelsTr/CASE.nii.gz'}",
        remedy="correct the file; an image without a label belongs into the list `test`",
    )


def _scan_files(
    folder: Path, image: str, label: str | None, description: TaskDescription, wanted: Sequence[int]
) -> ScanFiles:
    path = folder / image
    scan_id = _stem(image)
    labels = description.labels
    files: dict[int | None, Path] = {None: path}
    if not is_file(path):
        files = _a_file_a_channel(path, len(description.channels))
    label_file = folder / label if label else None
    missing = [] if files else [image]
    missing += [label] if label and not is_file(folder / label) else []
    if missing:
        raise ScanError(
            f"missing: {', '.join(missing)}"[:300],
            where=folder,
            expected=f"the files that {DATASET} lists",
            remedy="copy or unpack the missing file, or take the scan out of the list",
        )
    for file in (*files.values(), *([label_file] if label_file else [])):
        if not ends_with(file.name, NIFTI):
            raise not_readable(file, NIFTI)
    scan = _of_files(scan_id, files, wanted, description, path.parent)
    return replace(
        scan,
        label_file=label_file,
        label_values=labels.values,
        aliases=labels.aliases,
        ignore_value=labels.ignore,
    )


def _of_files(
    scan_id: str,
    files: Mapping[int | None, Path],
    wanted: Sequence[int],
    description: TaskDescription,
    where: Path,
) -> ScanFiles:
    """A scan without a label, of one file (of the number None) or of one for each channel."""
    whole = files.get(None)
    missing = [f"{scan_id}_{k:04d}" for k in wanted if whole is None and k not in files]
    if missing:
        expected = f"a file for each of {', '.join(description.channels)}"
        raise ScanError(f"missing: {', '.join(missing)}", where=where, expected=expected)
    of_one_file = whole is not None and len(description.channels) > 1
    return ScanFiles(
        scan_id,
        NAME,
        tuple(whole or files[k] for k in wanted),
        None,
        description.labels.values,
        volumes=tuple(wanted) if of_one_file else (),
    )


def _a_file_a_channel(path: Path, count: int) -> dict[int | None, Path]:
    """CASE_0000.nii.gz, … instead of CASE.nii.gz, as nnU-Net v1 has them."""
    stem = _stem(path.name)
    ending = path.name[len(stem) :]
    found = {k: path.with_name(f"{stem}_{k:04d}{ending}") for k in range(count)}
    return {k: file for k, file in found.items() if is_file(file)}


def _id_and_channel(path: Path, count: int) -> tuple[str, int | None]:
    """The scan's id and the channel's number; None for a file that has all channels."""
    stem = _stem(path.name)
    base, _, number = stem.rpartition("_")
    is_listed = is_file(path.with_name(path.name.replace(stem, base))) or not base
    if len(number) == 4 and number.isdecimal() and int(number) < count and not is_listed:
        return base, int(number)
    return stem, None


def _not_listed(folder: Path, description: TaskDescription) -> dict[str, str]:
    """Files in the images' folders that no list names; hidden ones are left by other systems."""
    listed = {_names_in(entry)[0] for entry in (*description.training, *description.test)}
    ids = {_stem(name) for name in listed if name}
    unlisted, strangers = [], []
    for place in {folder / Path(name).parent for name in listed if name}:
        names = sorted(p.name for p in place.iterdir()) if place.is_dir() else []
        for name in (n for n in names if n[0] != "."):
            if not is_image(name):
                strangers.append(name)
            elif not {_stem(name), _stem(name).rpartition("_")[0]} & ids:
                unlisted.append(name)
    return files_left_out(unlisted, f"not in {DATASET}") | files_left_out(strangers, "no images")
