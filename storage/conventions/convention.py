"""What every convention answers, and what they share when they look for one scan."""

import json
import math
import os
import re
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from fewscan.storage.catalog import Catalog, ScanFiles, Selection, patient_in_name
from fewscan.storage.errors import ScanError, named

if TYPE_CHECKING:  # numpy, which they load, would slow every `--help`
    from fewscan.storage.geometry import Axis
    from fewscan.storage.intensity import Normalisation

NIFTI = (".nii", ".nii.gz")
PICTURES = (".png", ".tif", ".tiff", ".bmp")
_OTHER_IMAGES = (
    *(".nrrd", ".nhdr", ".mha", ".mhd", ".mgz", ".mgh", ".dcm", ".img", ".hdr", ".minc", ".mnc"),
    *(".nii.bz2", ".nii.xz", ".nii.zst", ".npy", ".npz", ".jpg", ".jpeg"),
)
"""formats of images that are not read, or not as scans"""
UNLABELLED = "no segmentation; --unlabelled takes it in"
"""why a scan is left out"""
_IGNORE = "ignore"
_SHOWN = 5


class Convention(Protocol):
    """How a data set lies on disk.

    A convention knows names and small text files; it opens no image. What it finds has one order of
    channels and of classes for all scans, and ids that are the same wherever the folder lies. A
    scan whose files do not fit together is a problem with its reason; it never stops the others.
    `tests/convention_suite.py` holds every convention to this.
    """

    name: str
    """for people: "BraTS" """
    layout: str
    """what a data set of it is, as `--help` says it"""
    expected: str
    """the names that it looks for, as an error says it"""
    labels: str
    """where the segmentation of a scan is, as an error says it"""
    endings: tuple[str, ...]
    """of its images' file names, in small letters; capitals are read as well"""
    axis: "Axis | None"
    """through the slices, unless the folder says otherwise; None: the spacing tells"""
    normalisation: "Normalisation"
    """what suits its images, unless the folder says otherwise"""

    @abstractmethod
    def looks_like(self, folder: Path) -> bool:
        """Whether `folder` is a data set of this convention; quick, and raises nothing."""

    @abstractmethod
    def find(self, folder: Path, selection: Selection) -> Catalog:
        """The scans in `folder`, which looks like it, that are wanted.

        A scan without a segmentation is among them if `selection.unlabelled`, else it is left out,
        as is what is no image; what looks like an image and cannot be read is a problem. What the
        selection says of lesions and regions is seen to elsewhere (`find`).

        Raises `ScanError` if the whole data set is of a kind that is not supported, or does not
        have what is wanted.
        """

    @abstractmethod
    def find_one(
        self, paths: Sequence[Path], channels: Sequence[str], classes: Sequence[str]
    ) -> ScanFiles | None:
        """The one new scan in `paths`, for a model of these channels and classes.

        `paths` is one folder, or files. None if nothing in there is of this convention. Label
        values are those of the data set, or 1, 2, … where it does not say any; the segmentation is
        not looked at. Of a scan with more channels those of the model are taken, where names tell
        which they are. Raises `ScanError` if files are missing, belong to several scans, or are of
        other channels.
        """

    def patient_of(self, scan_id: str) -> str:
        """Whose scan this is, as far as its id tells; by default as BIDS has it."""
        return patient_in_name(scan_id)

    def same_scan(self, scan_id: str) -> str:
        """The id under which this very scan is known in the newest edition of its data set."""
        return scan_id


@dataclass(frozen=True)
class Labels:
    """What the values in label files mean."""

    classes: tuple[str, ...]
    """names without the background, in the order of their values"""
    values: tuple[int, ...]
    """the (least) value of each class"""
    aliases: tuple[tuple[int, int], ...] = ()
    """further values of a class: (value, the one of `values` that it stands for)"""
    ignore: int | None = None
    """the value of voxels that are neither trained on nor scored"""

    @classmethod
    def of(cls, names: Mapping[int, str], where: str | Path) -> "Labels":
        """From value → name; several values may have one name, `ignore` is no class.

        Raises `ScanError` if there is no class, 0 is one, or a name is unfit (`class_names`).
        """
        values: dict[str, list[int]] = {}
        for value, name in sorted(names.items()):
            values.setdefault(name, []).append(value)
        ignored = values.pop(_IGNORE, [])
        values = {name: found for name, found in values.items() if found != [0]}
        bad = [name for name, found in values.items() if 0 in found]
        if bad or not values or len(ignored) > 1 or min(names, default=0) < 0:
            what = ", ".join(f"{value}={name}" for value, name in list(names.items())[:_SHOWN])
            raise ScanError(
                f"label values {what or 'of nothing'}",
                where=where,
                expected="a class for each value above 0, such as 1=tumour,2=cyst; 0 is background,"
                " at most one value is `ignore`",
            )
        firsts = {name: found[0] for name, found in values.items()}
        aliases = [(v, found[0]) for found in values.values() for v in found[1:]]
        names_of = class_names(firsts, where)
        return cls(names_of, tuple(firsts.values()), tuple(aliases), next(iter(ignored), None))


def labels_given(text: str) -> Labels | None:
    """What VALUE=CLASS,… says; None if `text` is not of that form. Raises `ScanError`."""
    items = [item.partition("=") for item in text.split(",")]
    if not all(value.strip().isdecimal() and name.strip() for value, _, name in items):
        return None
    names = {int(value): name.strip() for value, _, name in items}
    if len(names) < len(items):
        found = f"a label value that is given twice: {text[:80]}"
        raise ScanError(found, where="--labels", expected="each value once: 1=tumour,2=cyst")
    return Labels.of(names, "--labels")


def require_map(text: str) -> Labels | None:
    """The same, for a convention without editions; None if `text` is empty. Raises `ScanError`."""
    labels = labels_given(text) if text else None
    if text and labels is None:
        raise ScanError(
            f"labels {text[:80]!r}",
            where="--labels",
            expected="VALUE=CLASS,…, such as 1=tumour,2=cyst",
            remedy="give what each value in the label files means",
        )
    return labels


def class_names(names: Iterable[str], where: str | Path) -> tuple[str, ...]:
    """Names that can stand in a file's header, a metric's key and a table. Raises `ScanError`."""
    plain = tuple(re.sub(r"[^\w-]+", "_", name).strip("_") for name in names)
    if len(set(plain)) < len(plain) or not all(plain):
        raise ScanError(
            f"class names {', '.join(plain[:_SHOWN])}{', ...' if len(plain) > _SHOWN else ''}",
            where=where,
            expected="names that differ in letters and digits",
            remedy="rename the labels",
        )
    return plain


def chosen(
    wanted: Sequence[str], names: Sequence[str], where: Path, other: Mapping[str, str] | None = None
) -> tuple[int, ...]:
    """The places in `names` of the channels that are wanted, in that order; none wanted: all.

    `other` are further names of the channels: other → name. Capitals do not matter. Raises
    `ScanError` if one is not there, or wanted twice.
    """
    known = {name.casefold(): place for place, name in reversed(list(enumerate(names)))}
    for alias, name in (other or {}).items():
        if name.casefold() in known:
            known.setdefault(alias.casefold(), known[name.casefold()])
    places = tuple(known[name.casefold()] for name in wanted if name.casefold() in known)
    if len(set(places)) < len(wanted):
        raise ScanError(
            f"--channels {','.join(wanted)[:200]}",
            where=where,
            expected=f"some of {', '.join(names)}, each once",
        )
    return places or tuple(range(len(names)))


def places_of(
    wanted: Sequence[str], names: Sequence[str], what: str, where: Path
) -> tuple[int, ...]:
    """The places in a scan's channels, `names`, of those that a model wants. Raises `ScanError`."""
    if wanted and len(set(wanted)) == len(wanted) and set(wanted) <= set(names):
        return tuple(names.index(name) for name in wanted)
    require_channels(names, wanted, what, where)
    return tuple(range(len(names)))


def ends_with(name: str, endings: tuple[str, ...]) -> bool:
    """Whether the file's name ends so, in small letters or capitals."""
    return name.lower().endswith(endings)


def is_image(name: str) -> bool:
    """Whether this is the name of a file that holds an image, of whatever format."""
    return ends_with(name, NIFTI + PICTURES + _OTHER_IMAGES)


def not_readable(path: Path, endings: tuple[str, ...]) -> ScanError:
    """The error for an image of a format that is not read."""
    return ScanError(
        f"{path.name}: an image of another format",
        where=path.parent,
        expected=f"files that end in {' or '.join(endings)}",
        remedy="convert it to NIfTI: dcm2niix for DICOM, SimpleITK or 3D Slicer for the others",
    )


def walk(
    folder: Path, unreadable: dict[str, ScanError]
) -> Iterator[tuple[Path, list[str], list[str]]]:
    """Each folder under `folder` with the names of its sub-folders and files, sorted.

    Links are followed, each folder is visited once, hidden things are left out. Folders that may
    not be listed are added to `unreadable`, by their path in `folder`.
    """
    seen: set[tuple[int, int]] = set()

    def refuse(error: OSError) -> None:
        place = Path(error.filename or folder)
        unreadable[_relative(place, folder)] = _unreadable(place, error)

    for place, subfolders, names in os.walk(folder, onerror=refuse, followlinks=True):
        status = os.stat(place)
        if (status.st_dev, status.st_ino) in seen:
            subfolders[:] = []
            continue
        seen.add((status.st_dev, status.st_ino))
        subfolders[:] = sorted(name for name in subfolders if name[0] != ".")
        yield Path(place), subfolders, sorted(name for name in names if name[0] != ".")


def _relative(place: Path, folder: Path) -> str:
    return place.relative_to(folder).as_posix()


def is_file(path: Path) -> bool:
    """Whether it is a file, as far as one may look; no name, however strange, raises anything."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def entries_of(folder: Path) -> list[Path]:
    """What lies in a folder, sorted; hidden things are left out. Raises `ScanError`."""
    try:
        return sorted(path for path in folder.iterdir() if path.name[0] != ".")
    except OSError as error:
        raise _unreadable(folder, error) from error


def _unreadable(folder: Path, error: OSError) -> ScanError:
    return ScanError(
        f"the folder cannot be read ({error.strerror})",
        where=folder,
        expected="a folder that you may enter and list",
        remedy="ask its owner for permission",
    )


def files_left_out(names: Sequence[str], why: str) -> dict[str, str]:
    """One line for files that are left out together."""
    if not names:
        return {}
    return {named(names): why}


def files_in(paths: Sequence[Path], endings: tuple[str, ...]) -> list[Path]:
    """The files given, or those in the one folder given whose names end so; hidden ones are not."""
    if not paths[0].is_dir():
        return list(paths)
    inside = [path for path in entries_of(paths[0]) if ends_with(path.name, endings)]
    return [path for path in inside if not path.is_dir()]


def require_one(ids: Sequence[str], where: Path) -> None:
    """Raise `ScanError` if files of several scans were given for one."""
    if len(ids) > 1:
        raise ScanError(
            f"{len(ids)} scans: {named(ids)}",
            where=where,
            expected="one scan",
            remedy="give the files of one of them, such as FOLDER/CASE_*.nii.gz",
        )


def require_channels(
    found: Sequence[str], wanted: Sequence[str], what: str, where: Path, by_name: bool = True
) -> None:
    """Raise `ScanError` unless a scan has a model's channels; if not `by_name`, as many."""
    if len(found) != len(wanted) or (by_name and tuple(found) != tuple(wanted)):
        raise ScanError(
            f"a scan with {len(found)} channels: {', '.join(found)} ({what})",
            where=where,
            expected=f"the model's {len(wanted)} channels: {', '.join(wanted)}",
            remedy="choose a run that was trained on such scans",
        )


def read_json(path: Path) -> dict[str, Any]:
    """The description of a data set. Raises `ScanError` unless it is a JSON object."""
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise ScanError(
            f"the file cannot be read ({type(error).__name__}: {str(error)[:200]})",
            where=path,
            expected="a JSON file",
            remedy="copy or download it again, or correct what is named above",
        ) from error
    if not isinstance(value, dict):
        raise ScanError(f"a JSON {type(value).__name__}", where=path, expected="a JSON object")
    return value


def whole_number(value: Any) -> int | None:
    """A number, also one that is written as text or with .0; None if it is none."""
    try:
        number = float(value) if isinstance(value, (int, float, str)) else math.nan
        return int(number) if number == int(number) else None
    except (ValueError, OverflowError):
        return None
