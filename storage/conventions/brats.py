"""BraTS: which file is whose, in folders however deep; what a label means in which edition.

Since 2023 there are several populations, and the same value is another tissue in another of them.
The editions below say which; where the names do not tell, the scan is refused until a person does.
Sources: the challenges' papers, arXiv:2107.02314 (2021), 2405.18368 (2024: the resection cavity is
4), 2404.15009 (children), 2405.18383 (MEN-RT), and the notes that come with the data.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from fewscan.storage.catalog import Catalog, ScanFiles, Selection, patient_in_name
from fewscan.storage.conventions.convention import (
    NIFTI,
    UNLABELLED,
    Convention,
    Labels,
    chosen,
    files_in,
    files_left_out,
    is_image,
    labels_given,
    not_readable,
    places_of,
    require_one,
    walk,
)
from fewscan.storage.errors import ScanError

CHANNELS = ("flair", "t1", "t1ce", "t2")
CLASSES = ("necrotic_core", "oedema", "enhancing")
LABELS = "seg"
_CAVITY = (*CLASSES, "resection_cavity")
_NO_VALUE = -1


@dataclass(frozen=True)
class Naming:
    """How files are named."""

    name: str
    """"BraTS 2021" """
    ids: str
    """of the scans that have such names: a pattern"""
    separator: str
    """between the scan's id and the part"""
    parts: dict[str, str] = field(hash=False)
    """channel → part of the file's name"""
    label_part: str = LABELS

    def recognise(self, file_name: str) -> tuple[str, str] | None:
        """Return the scan's id and the part of the file's name, or None."""
        parts = "|".join((*self.parts.values(), self.label_part))
        pattern = rf"(?!\.)({self.ids}){self.separator}((?i:{parts}))(?i:\.nii(?:\.gz)?)"
        match = re.fullmatch(pattern, file_name)
        return (match[1], match[2].lower()) if match else None


OLD = Naming("BraTS 2021", ".+", "_", {"flair": "flair", "t1": "t1", "t1ce": "t1ce", "t2": "t2"})
NEW = Naming("BraTS 2023", ".+", "-", {"flair": "t2f", "t1": "t1n", "t1ce": "t1c", "t2": "t2w"})
RADIOTHERAPY = Naming("BraTS MEN-RT", "BraTS-MEN-RT-.+", "_", {"t1ce": "t1c"}, "gtv")
NAMINGS = (RADIOTHERAPY, OLD, NEW)
_NEW_NAMES = {part: channel for channel, part in NEW.parts.items()}


@dataclass(frozen=True)
class Edition:
    """What the label values mean in one edition, for one population."""

    key: str
    """what `--labels` calls it"""
    name: str
    """for people"""
    ids: str
    """of its scans: a pattern; empty: those that no other edition claims"""
    classes: tuple[str, ...]
    values: tuple[int, ...]


EDITIONS = (
    Edition("brats-2021", "BraTS 2021", "", CLASSES, (1, 2, 4)),
    Edition("brats-2023", "BraTS 2023", "", CLASSES, (1, 2, 3)),
    Edition("brats-2024", "BraTS 2024", r"BraTS-GLI-\d+-[1-9]\d\d", _CAVITY, (1, 2, 3, 4)),
    # The cavity came in 2025; what the other values mean did not change.
    Edition("brats-met", "BraTS MET", "BraTS-MET-.+", _CAVITY, (1, 2, 3, 4)),
    Edition(
        "brats-ped",
        "BraTS PED since 2024",
        "BraTS-PEDs?-.+",
        ("enhancing", "non_enhancing", "cystic", "oedema"),
        (1, 2, 3, 4),
    ),
    Edition(
        "brats-ped-2023",
        "BraTS PED 2023",
        "BraTS-PEDs?-.+",
        ("non_enhancing", "oedema", "enhancing"),
        (1, 2, 3),
    ),
    Edition("brats-men-rt", "BraTS MEN-RT", "BraTS-MEN-RT-.+", ("gross_tumour_volume",), (1,)),
)
KEYS = tuple(edition.key for edition in EDITIONS)
_DEFAULT = {OLD.name: "brats-2021", NEW.name: "brats-2023", RADIOTHERAPY.name: "brats-men-rt"}
_POPULATION = re.compile(r"BraTS-[A-Za-z]")
"""how ids begin that say of which population the scan is"""

_SCAN_FOLDER = re.compile(r"Bra[Tt][Ss].*\d")
_FIRST_SCAN_2021 = re.compile(r"BraTS2021_(\d{5})")
_TIME_POINT = re.compile(r"(BraTS-(?:[A-Za-z]+-)+\d+)-\d+")
"""ID of a patient, number of the scan, since BraTS 2023"""


class Brats(Convention):
    """The BraTS challenges."""

    name = "BraTS"
    layout = "a folder of files with BraTS names, of any edition, however deep"
    expected = " or ".join(
        f"ID{naming.separator}{{{','.join((*naming.parts.values(), naming.label_part))}}}.nii.gz"
        for naming in (OLD, NEW, RADIOTHERAPY)
    )
    labels = f"{LABELS}, beside the channels"
    endings = NIFTI
    axis = 2
    """as published"""
    normalisation = "quantile"
    """as published"""

    def looks_like(self, folder: Path) -> bool:
        """Whether some file in it, however deep, is named like part of a scan."""
        return folder.is_dir() and any(
            _recognise(name) for _, _, names in walk(folder, {}) for name in names
        )

    def find(self, folder: Path, selection: Selection) -> Catalog:
        """All scans in `folder` and its sub-folders; a folder of strange images is a problem."""
        groups, strangers, others = _walk(folder)
        named = _labels_of(groups, selection, folder)
        classes = max((labels.classes for _, labels in named.values()), key=len, default=CLASSES)
        has_all = any(naming is not RADIOTHERAPY for _, naming in groups)
        names = CHANNELS if has_all else tuple(RADIOTHERAPY.parts)
        channels = tuple(names[k] for k in chosen(selection.channels, names, folder, _NEW_NAMES))
        scans, problems = [], {}
        left_out: dict[str, str] = {}
        for scan_id, scan in self._group(groups, channels).items():
            if isinstance(scan, ScanError):
                problems[scan_id] = scan
            elif scan.label_file is None and not selection.unlabelled:
                left_out[scan_id] = UNLABELLED
            else:
                edition, labels = named[scan_id]
                absent = (_NO_VALUE,) * (len(classes) - len(labels.classes))
                scans.append(
                    replace(
                        scan,
                        naming=edition,
                        label_values=labels.values + absent,
                        aliases=labels.aliases,
                        ignore_value=labels.ignore,
                    )
                )
        return Catalog(
            channels,
            classes,
            tuple(scans),
            {**strangers, **problems},
            self.axis,
            self.normalisation,
            left_out={**left_out, **others},
        )

    def find_one(
        self, paths: Sequence[Path], channels: Sequence[str], classes: Sequence[str]
    ) -> ScanFiles | None:
        """The one scan; with an edition's label values if the model has its classes."""
        files = files_in(paths, self.endings)
        groups = _groups(files)
        if not groups:
            return None
        require_one([scan_id for scan_id, _ in groups], files[0].parent)
        ((scan_id, naming),) = groups
        places_of(channels, tuple(naming.parts), naming.name, paths[0])
        (scan,) = self._group(groups, channels).values()
        if isinstance(scan, ScanError):
            raise scan
        fits = (e for e in _editions_of(scan_id, naming) if e.classes == tuple(classes))
        values = next((e.values for e in fits), tuple(range(1, len(classes) + 1)))
        return replace(scan, label_file=None, label_values=values)

    def patient_of(self, scan_id: str) -> str:
        """BraTS-GLI-02062-100 and -101 are two scans of BraTS-GLI-02062."""
        match = _TIME_POINT.fullmatch(scan_id)
        return match[1] if match else patient_in_name(scan_id)

    def same_scan(self, scan_id: str) -> str:
        """The scans of BraTS 2021 are the patients' first ones in BraTS 2023."""
        match = _FIRST_SCAN_2021.fullmatch(scan_id)
        return f"BraTS-GLI-{match[1]}-000" if match else scan_id

    def _group(self, groups: "Groups", channels: Sequence[str]) -> dict[str, ScanFiles | ScanError]:
        """The scan of each group, by id, or why its files do not fit together."""
        ids_of = defaultdict(list)
        for scan_id, _ in groups:
            ids_of[self.same_scan(scan_id)].append(scan_id)
        scans: dict[str, ScanFiles | ScanError] = {}
        for (scan_id, naming), files in sorted(groups.items(), key=lambda item: item[0][0]):
            try:
                _refuse_twice(ids_of[self.same_scan(scan_id)], files)
                scan = _scan_files(scan_id, naming, files, channels)
                scans[scan_id] = replace(scan, patient=self.patient_of(scan_id))
            except ScanError as error:
                scans[scan_id] = error
        return scans


Groups = dict[tuple[str, Naming], dict[str, list[Path]]]
"""a scan's id and how its files are named → part of the name → files"""


def _groups(paths: Iterable[Path]) -> Groups:
    groups: Groups = defaultdict(lambda: defaultdict(list))
    for path in paths:
        if found := _recognise(path.name):
            scan_id, part, naming = found
            groups[scan_id, naming][part].append(path)
    return groups


def _recognise(file_name: str) -> tuple[str, str, Naming] | None:
    """The scan's id, the part, and the naming, of the first that the name is of."""
    found = ((naming, naming.recognise(file_name)) for naming in NAMINGS)
    return next(((*answer, naming) for naming, answer in found if answer), None)


def _walk(folder: Path) -> tuple[Groups, dict[str, ScanError], dict[str, str]]:
    """Files that are part of a scan; places of images that cannot be read; what is left out."""
    known: list[Path] = []
    strangers: dict[str, ScanError] = {}
    others: list[str] = []
    unnamed: list[str] = []
    for place, subfolders, names in walk(folder, strangers):
        parts = [n for n in names if _recognise(n)]
        images = [n for n in names if is_image(n) and n not in parts]
        known += [place / name for name in parts]
        others += [n for n in names if n not in parts and n not in images]
        key = place.relative_to(folder).as_posix()
        if images and not parts:
            strangers[key] = _strange_images(place, images)
        elif images:
            unread = {id_: name for name in images if (id_ := _id_of_other_format(name))}
            strangers |= {id_: not_readable(place / name, NIFTI) for id_, name in unread.items()}
            unnamed += [name for name in images if name not in unread.values()]
        elif names and not (parts or subfolders) and _SCAN_FOLDER.fullmatch(place.name):
            found = f"no image in the folder of a scan ({names[0]}, ...)"
            strangers[key] = ScanError(found, where=place, expected=Brats.expected)
        elif not (names or subfolders):
            strangers[key] = ScanError("an empty folder", where=place, expected=Brats.expected)
    left_out = files_left_out(others, "no images")
    left_out |= files_left_out(unnamed, "named like no part of a scan")
    return _groups(known), strangers, left_out


def _strange_images(place: Path, images: Sequence[str]) -> ScanError:
    other = next((name for name in images if _id_of_other_format(name)), None)
    if other:
        return not_readable(place / other, NIFTI)
    found = f"no known file name ({images[0]}, ...)"
    remedy = "rename the files, or write a table of them: fewscan table"
    return ScanError(found, where=place, expected=Brats.expected, remedy=remedy)


def _id_of_other_format(name: str) -> str | None:
    """The scan's id, of a file that would be part of it if it were NIfTI."""
    found = _recognise(re.sub(r"(\.[A-Za-z]\w*)+$", ".nii", name))
    return found[0] if found else None


def _editions_of(scan_id: str, naming: Naming) -> list[Edition]:
    """Those that may be meant: the ones that claim the id, else that of the names."""
    claimed = [e for e in EDITIONS if e.ids and re.fullmatch(e.ids, scan_id)]
    return claimed or [e for e in EDITIONS if e.key == _DEFAULT[naming.name]]


def _labels_of(groups: Groups, selection: Selection, folder: Path) -> dict[str, tuple[str, Labels]]:
    """For each labelled scan the edition's name, and what its label values mean.

    Raises `ScanError` if names do not tell and nobody does, or the classes are not one set.
    """
    given = labels_given(selection.labels) if selection.labels else None
    if selection.labels and given is None and selection.labels not in KEYS:
        raise ScanError(
            f"labels {selection.labels[:80]!r}",
            where="--labels",
            expected=f"one of {', '.join(KEYS)}, or VALUE=CLASS,…",
        )
    found: dict[str, tuple[str, Labels]] = {}
    of_classes: dict[tuple[str, ...], str] = {}
    for scan_id, naming in sorted(groups, key=lambda group: group[0]):
        if given is not None:
            found[scan_id] = naming.name, given
            continue
        edition = _edition(scan_id, naming, selection.labels)
        labelled = naming.label_part in groups[scan_id, naming]
        if edition is None and not labelled:
            edition = next(e for e in EDITIONS if e.key == _DEFAULT[naming.name])
        elif edition is None:
            raise _unclear(scan_id, naming, selection.labels, folder)
        if labelled:
            of_classes.setdefault(edition.classes, scan_id)
        found[scan_id] = edition.name, Labels(edition.classes, edition.values)
    if of_classes:
        _require_one_set(of_classes, folder)
        longest = max(of_classes, key=len)
        unlike = {i for i, (_, v) in found.items() if v.classes != longest[: len(v.classes)]}
        plain = Labels(longest, tuple(range(1, len(longest) + 1)))
        found |= {scan_id: (found[scan_id][0], plain) for scan_id in unlike}
    return found


def _edition(scan_id: str, naming: Naming, key: str) -> Edition | None:
    """The edition by the id, or the one that is asked for; None if it is not clear."""
    possible = _editions_of(scan_id, naming)
    if not key:
        return possible[0] if len(possible) == 1 else None
    asked = next(e for e in EDITIONS if e.key == key)
    if asked.ids:
        fits = re.fullmatch(asked.ids, scan_id) or not _POPULATION.match(scan_id)
    else:  # for adults' gliomas and what is labelled like them
        fits = possible[0].classes[:3] == CLASSES
    return asked if fits else None


def _unclear(scan_id: str, naming: Naming, key: str, folder: Path) -> ScanError:
    possible = _editions_of(scan_id, naming)
    meanings = " or ".join(
        f"{e.key} ({', '.join(f'{v} {c}' for v, c in zip(e.values, e.classes, strict=True))})"
        for e in possible
    )
    return ScanError(
        f"{scan_id} is not of {key}" if key else f"{scan_id}: what its labels mean is not clear",
        where=folder,
        expected=meanings,
        remedy=f"say which: --labels {' or --labels '.join(e.key for e in possible)}, or --labels "
        "VALUE=CLASS,…; other populations go into a store of their own",
    )


def _require_one_set(of_classes: dict[tuple[str, ...], str], folder: Path) -> None:
    """An edition may have a class less; otherwise the same value is something else."""
    longest = max(of_classes, key=len)
    for classes, scan_id in of_classes.items():
        if classes != longest[: len(classes)]:
            raise ScanError(
                f"editions with other classes: {scan_id} has {', '.join(classes)}, "
                f"{of_classes[longest]} has {', '.join(longest)}",
                where=folder,
                expected="one set of classes in a store",
                remedy="prepare each population into a store of its own, or give --labels "
                "VALUE=CLASS,… if the files have been relabelled",
            )


def _refuse_twice(ids: list[str], files: dict[str, list[Path]]) -> None:
    copies = next((paths for paths in files.values() if len(paths) > 1), None)
    if copies is None and len(ids) == 1:
        return
    found = " and ".join(str(path) for path in copies) if copies else " and ".join(sorted(ids))
    remedy = "remove one, so that no scan is in two parts of the split"
    raise ScanError(f"the same subject twice: {found}", expected="each once", remedy=remedy)


def _scan_files(
    scan_id: str, naming: Naming, files: dict[str, list[Path]], channels: Sequence[str]
) -> ScanFiles:
    """With the edition's usual label values, which the caller may know better."""
    wanted = [naming.parts.get(channel, channel) for channel in channels]
    missing = [part for part in wanted if part not in files]
    if missing:
        names = ", ".join(f"{scan_id}{naming.separator}{part}.nii.gz" for part in missing)
        raise ScanError(
            f"missing: {names}",
            where=next(iter(files.values()))[0].parent,
            expected=f"{naming.name}'s files {', '.join(wanted)} and {naming.label_part}",
            remedy="copy or download the missing file, or do without it: --channels",
        )
    channel_files = tuple(files[part][0] for part in wanted)
    label_file = files[naming.label_part][0] if naming.label_part in files else None
    values = next(e.values for e in EDITIONS if e.key == _DEFAULT[naming.name])
    return ScanFiles(scan_id, naming.name, channel_files, label_file, values)
