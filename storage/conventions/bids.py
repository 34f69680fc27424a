"""BIDS: `sub-01/[ses-1/]anat/sub-01_T1w.nii.gz`, segmentations there or below `derivatives`.

A channel is what its name says beside subject, session and run: `T1w`, `ce-gadolinium_T1w`. Those
that more than half of the scans have are read; a scan that lacks one of them is a problem with its
name, for a channel must not vanish from a store because one scan came in without it. Names are
those of the specification, bids-specification.readthedocs.io (1.10): entities, suffix, ending.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from fewscan.storage.catalog import Catalog, ScanFiles, Selection
from fewscan.storage.conventions.convention import (
    NIFTI,
    UNLABELLED,
    Convention,
    Labels,
    files_in,
    files_left_out,
    is_image,
    not_readable,
    places_of,
    require_map,
    require_one,
    walk,
)
from fewscan.storage.conventions.table import read_rows
from fewscan.storage.errors import ScanError

NAME = "BIDS"
FOLDER, DERIVATIVES = "anat", "derivatives"
_NAME = re.compile(
    r"(?P<scan>sub-[A-Za-z0-9]+(?:_ses-[A-Za-z0-9]+)?)"
    r"(?P<entities>(?:_[a-z]+-[A-Za-z0-9.+]+)*)_(?P<suffix>[A-Za-z0-9]+)"
)
_SUFFIXES = (
    *("T1w", "T2w", "PDw", "T2starw", "FLAIR", "inplaneT1", "inplaneT2", "UNIT1", "CT", "angio"),
    *("T1map", "T2map", "T2starmap", "R1map", "R2map", "R2starmap", "PDmap", "Chimap", "MTRmap"),
)
"""of images, by which a file alone is known to be of this convention"""
_MASKS = ("mask", "roi")
"""suffixes of segmentations of one class"""
_SEGMENTATIONS = ("dseg", "seg")
"""of those with several"""
_NO_LESION = re.compile(r"(desc|label)-(brain|head|GM|WM|CSF|aseg|aparcaseg|aparc)(?![A-Za-z0-9])")
"""segmentations that programs write of everybody: brains, tissues, FreeSurfer's regions"""
_SIDE_FILES = (".json", ".tsv", ".bval", ".bvec")
"""texts that belong to the layout"""
_SHOWN = 5


@dataclass(frozen=True)
class ImageName:
    """What a file's name says."""

    scan: str
    """sub-01_ses-1"""
    kind: str
    """all but scan and run: ce-gadolinium_T1w"""
    suffix: str
    """T1w"""


def recognise(file_name: str) -> ImageName | None:
    """What the name of an image says, whatever its format; None if it is not of BIDS."""
    base = re.sub(r"(\.[A-Za-z]\w*)+$", "", file_name)
    match = _NAME.fullmatch(base)
    if match is None or not is_image(file_name):
        return None
    entities = [e for e in match["entities"].split("_") if e and not e.startswith("run-")]
    return ImageName(match["scan"], "_".join((*entities, match["suffix"])), match["suffix"])


class Bids(Convention):
    """The Brain Imaging Data Structure."""

    name = NAME
    layout = "a BIDS data set (sub-*/anat, segmentations in derivatives)"
    expected = "a BIDS data set with sub-*/[ses-*/]anat/sub-*_T1w.nii.gz"
    labels = f"sub-*_dseg.nii.gz or sub-*_label-*_mask.nii.gz, in {FOLDER} or {DERIVATIVES}"
    endings = NIFTI
    axis = None
    normalisation = "percentiles"

    def looks_like(self, folder: Path) -> bool:
        """Whether a subject's folder in it has an `anat` with a file named so."""
        return any(
            recognise(name)
            for subject in _subjects(folder)
            for place, _, names in walk(subject, {})
            if place.name == FOLDER
            for name in names
        )

    def find(self, folder: Path, selection: Selection) -> Catalog:
        """The scans of all subjects and sessions. Raises `ScanError`."""
        found = _Found(folder)
        channels = _channels(selection, found.images, folder)
        kind = _label_kind(found.labels, found.images, folder)
        labels = require_map(selection.labels) or _labels(kind, found, folder)
        scans: list[ScanFiles] = []
        problems: dict[str, ScanError] = {}
        left_out: dict[str, str] = {}
        for scan_id, images in sorted(found.images.items()):
            label_files = found.labels.get(scan_id, {}).get(kind, [])
            if not label_files and not selection.unlabelled:
                left_out[scan_id] = UNLABELLED
                continue
            try:
                files = tuple(_one_file(channel, images, folder) for channel in channels)
                label_file = _only(label_files, kind, folder) if label_files else None
            except ScanError as error:
                problems[scan_id] = error
                continue
            scan = ScanFiles(scan_id, NAME, files, label_file, labels.values)
            scans.append(replace(scan, aliases=labels.aliases, ignore_value=labels.ignore))
        others = _other_channels(found.images, channels)
        return Catalog(
            tuple(channels),
            labels.classes,
            tuple(scans),
            {**found.problems, **problems},
            self.axis,
            self.normalisation,
            left_out={**left_out, **others, **found.left_out},
        )

    def find_one(
        self, paths: Sequence[Path], channels: Sequence[str], classes: Sequence[str]
    ) -> ScanFiles | None:
        """The one scan, by the suffixes of its files."""
        found = {p: name for p in files_in(paths, self.endings) if (name := recognise(p.name))}
        images = {p: name for p, name in found.items() if name.suffix in _SUFFIXES}
        if not images:
            return None
        where = next(iter(images)).parent
        require_one(sorted({name.scan for name in images.values()}), where)
        of_kind: dict[str, list[Path]] = defaultdict(list)
        for path, name in images.items():
            of_kind[name.kind].append(path)
        if not all(_matching(channel, of_kind) for channel in channels):
            places_of(channels, list(of_kind), NAME, where)
        files = tuple(_one_file(channel, of_kind, where) for channel in channels)
        values = tuple(range(1, len(classes) + 1))
        return ScanFiles(next(iter(images.values())).scan, NAME, files, None, values)


class _Found:
    """The files of a data set, by scan and kind."""

    def __init__(self, folder: Path) -> None:
        self.images: dict[str, dict[str, list[Path]]] = defaultdict(lambda: defaultdict(list))
        self.labels: dict[str, dict[str, list[Path]]] = defaultdict(lambda: defaultdict(list))
        """a kind of segmentation is the folder below `derivatives`, and the name's kind"""
        self.problems: dict[str, ScanError] = {}
        self.texts: list[Path] = []
        """tables of label values"""
        self._others: list[str] = []
        self._unnamed: list[str] = []
        self._unread: set[str] = set()
        for subject in _subjects(folder):
            for place, _, names in walk(subject, self.problems):
                if place.name == FOLDER:
                    self._take(place, names, "")
                elif any(is_image(name) for name in names):
                    self._unread.add(place.name)
        if (folder / DERIVATIVES).is_dir():
            for place, _, names in walk(folder / DERIVATIVES, self.problems):
                pipeline = next(iter(place.relative_to(folder / DERIVATIVES).parts), "sub-")
                self._take(place, names, DERIVATIVES if pipeline[:4] == "sub-" else pipeline)
        self.texts += sorted(folder.glob("*dseg.tsv"))
        self.left_out = {
            **dict.fromkeys(sorted(self._unread), f"only {FOLDER} is read"),
            **files_left_out(self._others, "no images"),
            **files_left_out(self._unnamed, "no names of BIDS"),
        }

    def _take(self, place: Path, names: Sequence[str], pipeline: str) -> None:
        in_derivatives = bool(pipeline)
        for file_name in names:
            path, name = place / file_name, recognise(file_name)
            if file_name.endswith("dseg.tsv"):
                self.texts.append(path)
            elif name is None:
                strangers = self._unnamed if is_image(file_name) else self._others
                if not (in_derivatives or file_name.endswith(_SIDE_FILES)):
                    strangers.append(file_name)
            elif not file_name.lower().endswith(NIFTI):
                if not in_derivatives:
                    self.problems[name.scan] = not_readable(path, NIFTI)
            elif name.suffix in (*_MASKS, *_SEGMENTATIONS):
                if not _NO_LESION.search(file_name):
                    self.labels[name.scan][f"{pipeline}/{name.kind}"].append(path)
            elif not in_derivatives:
                self.images[name.scan][name.kind].append(path)


def _subjects(folder: Path) -> list[Path]:
    try:
        return sorted(p for p in folder.glob("sub-*") if p.is_dir())
    except OSError:
        return []


def _channels(
    selection: Selection, images: Mapping[str, Mapping[str, list[Path]]], folder: Path
) -> tuple[str, ...]:
    """Those that are wanted, or the usual ones."""
    wanted = selection.channels
    there = all(any(_matching(c, kinds) for kinds in images.values()) for c in wanted)
    if not there or len(set(wanted)) < len(wanted):
        kinds = sorted({kind for of_scan in images.values() for kind in of_scan})
        raise ScanError(
            f"--channels {','.join(wanted)[:200]}",
            where=folder,
            expected=f"some of {', '.join(kinds)[:400]}, each once",
        )
    return wanted or _usual_channels(images, folder)


def _usual_channels(
    images: Mapping[str, Mapping[str, Sequence[Path]]], folder: Path
) -> tuple[str, ...]:
    """The channels that more than half of the scans have, sorted."""
    counts = Counter(kind for kinds in images.values() for kind in kinds)
    usual = tuple(sorted(kind for kind, count in counts.items() if 2 * count > len(images)))
    if not usual:
        shown = ", ".join(f"{kind} in {count}" for kind, count in counts.most_common(_SHOWN))
        raise ScanError(
            f"no channel that most of {len(images)} scans have: {shown or 'no images'}",
            where=folder,
            expected="the same channels in all scans",
            remedy="say which are wanted (--channels T1w,FLAIR), or write a table: fewscan table",
        )
    return usual


def _matching(channel: str, images: Mapping[str, Sequence[Path]]) -> list[Path]:
    """The files of the channel: of the kind, or else all with that suffix."""
    if channel in images:
        return list(images[channel])
    return [p for kind, files in images.items() if kind.endswith(f"_{channel}") for p in files]


def _one_file(channel: str, images: Mapping[str, Sequence[Path]], folder: Path) -> Path:
    files = _matching(channel, images)
    if not files:
        some = next(iter(images.values()))[0]
        name = recognise(some.name)
        assert name is not None
        raise ScanError(
            f"missing: {name.scan}_{channel}.nii.gz",
            where=some.parent,
            expected=f"a file of each channel; here are {', '.join(sorted(images))}",
            remedy="copy the missing file, or do without the channel: --channels",
        )
    return _only(files, channel, folder)


def _only(files: Sequence[Path], what: str, folder: Path) -> Path:
    if len(files) > 1:
        raise ScanError(
            f"{len(files)} files for {what}: {', '.join(p.name for p in files[:_SHOWN])}",
            where=files[0].parent,
            expected="one, or --channels with the whole kind, such as ce-gadolinium_T1w",
            remedy="say which by a table: fewscan table "
            f"{folder} --channel {what.rpartition('/')[2]}='PATTERN'",
        )
    return files[0]


def _label_kind(
    labels: Mapping[str, Mapping[str, Sequence[Path]]],
    images: Mapping[str, Mapping[str, Sequence[Path]]],
    folder: Path,
) -> str:
    """Which kind of segmentation is meant: the only one. Empty if there is none."""
    counts = Counter(
        kind for scan_id, kinds in labels.items() if scan_id in images for kind in kinds
    )
    if len(counts) > 1:
        shown = ", ".join(f"{kind} of {count} scans" for kind, count in counts.most_common(_SHOWN))
        kind = counts.most_common(1)[0][0].rpartition("/")[2]
        raise ScanError(
            f"{len(counts)} kinds of segmentations: {shown}",
            where=folder,
            expected=f"one in {FOLDER} and {DERIVATIVES}",
            remedy=f"say which by a table: fewscan table {folder} --label '*_{kind}.nii.gz' "
            "--channel T1w='*_T1w.nii.gz', with each channel",
        )
    return next(iter(counts), "")


def _labels(kind: str, found: _Found, folder: Path) -> Labels:
    """What the values of the segmentations mean."""
    name = kind.rpartition("/")[2]
    if not name or name.split("_")[-1] in _MASKS:
        label = re.search(r"label-([A-Za-z0-9]+)", name)
        return Labels.of({1: label[1] if label else "lesion"}, folder)
    if not found.texts:
        raise ScanError(
            f"segmentations of the kind {name}, whose values nothing explains",
            where=folder,
            expected="a dseg.tsv with the columns index and name",
            remedy="say what the values mean: --labels 1=CLASS,2=CLASS",
        )
    path = found.texts[0]
    columns, rows = read_rows(path)
    lower = {column.casefold(): column for column in columns}
    if not {"index", "name"} <= set(lower) or len(found.texts) > 1:
        raise ScanError(
            f"{len(found.texts)} files *dseg.tsv"
            if len(found.texts) > 1
            else f"columns {', '.join(columns)[:80]}",
            where=path,
            expected="one file with the columns index and name",
            remedy="say what the values mean: --labels 1=CLASS,2=CLASS",
        )
    values: dict[int, str] = {}
    for row in rows:
        index, label_name = row.cells[lower["index"]], row.cells[lower["name"]]
        if not index.isdecimal() or int(index) in values or not label_name:
            expected = "a number of its own, and a name"
            found_here = f"index {index[:40]!r}, name {label_name[:40]!r}"
            raise ScanError(found_here, where=f"{path}, line {row.line}", expected=expected)
        values[int(index)] = label_name
    return Labels.of({value: text for value, text in values.items() if value}, path)


def _other_channels(
    images: Mapping[str, Mapping[str, Sequence[Path]]], channels: Sequence[str]
) -> dict[str, str]:
    """The kinds of images that are not read, with how many scans have them."""
    counts = Counter(kind for kinds in images.values() for kind in kinds)
    return {
        f"the channel {kind}": f"in {count} of {len(images)} scans; --channels takes it in"
        for kind, count in sorted(counts.items())
        if not any(kind == c or kind.endswith(f"_{c}") for c in channels)
    }
