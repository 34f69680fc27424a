"""What a slice store says about itself, and where in its folder everything lies.

A store is a folder: two Zarr arrays, and `manifest.json`, which is written last. While it is made
it is called `STORE.partial` and holds a record a finished subject instead of the manifest.

Letters: N kept slices, K lesion classes.
"""

import json
import os
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from fewscan.storage.atomic import write_bytes
from fewscan.storage.errors import StoreError, StudyError
from fewscan.storage.geometry import Axis
from fewscan.storage.intensity import Normalisation, Window
from fewscan.storage.labels import LabelMeaning, Region
from fewscan.storage.splits import Split, split_by_rule, split_rule

STORE_PROTOCOL = 1
"""raised whenever the same scans would give other slices, or the files are laid out otherwise"""
PREPARE_AGAIN = "delete it and run `fewscan prepare SCANS STORE` again"


@dataclass(frozen=True)
class StoreFolder:
    """The names of all files of a store, finished or not."""

    path: Path

    @classmethod
    def at(cls, path: Path) -> "StoreFolder":
        """The folder of a finished store."""
        return cls(Path(os.path.abspath(path)))

    @property
    def partial(self) -> "StoreFolder":
        """The folder in which this store is made."""
        return StoreFolder(self.path.with_name(self.path.name + ".partial"))

    @property
    def manifest(self) -> Path:
        """Written last: a folder with it is complete."""
        return self.path / "manifest.json"

    @property
    def parameters(self) -> Path:
        """What an unfinished store is made with."""
        return self.path / "parameters.json"

    @property
    def records(self) -> Path:
        """A file for each subject that is done but not in the manifest yet."""
        return self.path / "records"

    @property
    def lock(self) -> Path:
        """Held by the one process that may write."""
        return self.path / "lock"

    def record(self, subject: str) -> Path:
        """The record of one subject."""
        return self.records / f"{subject}.json"

    def images_shard(self, row: int) -> Path:
        """Images of the subject in this row: subjects, Z, C, H, W."""
        return self.path / "images" / f"c.{row}.0.0.0.0"

    def labels_shard(self, row: int) -> Path:
        """Labels of the subject in this row: subjects, Z, H, W."""
        return self.path / "labels" / f"c.{row}.0.0.0"

    def scan_labels(self, row: int) -> Path:
        """Labels of the subject in this row on the scan's own grid: a shard of Z, H, W."""
        return self.path / "scan_labels" / f"{row}"


_BY_DEFAULT = {
    "axis": 2,
    "normalisation": "quantile",
    "lesion": (),
    "regions": (),
    "ignored": False,
    "orientation": "",
    "windows": (),
    "window_masks": 0,
    "fewest_validated": 0,
}


@dataclass(frozen=True)
class Parameters:
    """What is the same for all subjects of a store."""

    protocol: int
    """`STORE_PROTOCOL` of the program that made it"""
    size: int
    """rows and columns of a slice"""
    depth: int
    """room for slices in a shard: the largest number of slices of a scan"""
    channels: tuple[str, ...]
    """names, in order"""
    classes: tuple[str, ...]
    """names of the lesion classes: label k is the k-th"""
    axis: Axis = 2
    """through the slices"""
    normalisation: Normalisation = "quantile"
    """how voxel values became comparable"""
    lesion: tuple[str, ...] = ()
    """the classes that are lesions; empty: all"""
    regions: tuple[Region, ...] = ()
    """what is scored beside the classes"""
    ignored: bool = False
    """whether labels may be `IGNORED`"""
    orientation: str = ""
    """that all scans were turned to ("LPS": see `geometry.orientation`); empty: all had the same"""
    windows: tuple[Window, ...] = ()
    """of each channel, if the normalisation has fixed ones"""
    window_masks: int = 0
    """how many scans' masks they were learnt from"""
    fewest_validated: int = 0
    """the least number of patients in validation, and in the test, by the rule; 0: the published
    rule alone, as in stores of earlier versions"""

    @property
    def meaning(self) -> LabelMeaning:
        """Of the labels."""
        return LabelMeaning(self.classes, self.lesion, self.ignored)

    def to_json(self) -> dict[str, Any]:
        """Plain values; what is as by default is left out, so that it hashes as it always did."""
        value = asdict(self)
        return {k: v for k, v in value.items() if v != _BY_DEFAULT.get(k)}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "Parameters":
        """Undo `to_json` and JSON; other keys are not looked at."""
        known = {f.name: value[f.name] for f in fields(cls) if f.name in value}
        names = {key: tuple(known.get(key, ())) for key in ("channels", "classes", "lesion")}
        regions = tuple((name, tuple(members)) for name, members in known.get("regions", ()))
        windows = tuple((low, high) for low, high in known.get("windows", ()))
        return cls(**{**known, **names, "regions": regions, "windows": windows})


_SUBJECT_BY_DEFAULT = {
    "labelled": True,
    "healthy": False,
    "hidden_lesions": (),
    "dropped_lesion_slices": 0,
    "scan_labels": "",
    "notes": (),
}


@dataclass(frozen=True, eq=False)
class Subject:
    """One scan in a store."""

    id: str
    row: int
    """first index in both arrays"""
    first: int
    """index through the scan's slices of the first kept one"""
    last: int
    """of the last one, itself included"""
    lesion_pixels_NK: np.ndarray
    """int32: lesion pixels of each kept slice in the store, by class"""
    shape_XYZ: tuple[int, int, int]
    """voxels of the scan"""
    affine: tuple[tuple[float, ...], ...]
    """4 x 4, voxel index of the scan → millimetres"""
    spacing_mm: tuple[float, float, float]
    """voxel size of the scan"""
    quantiles: tuple[float, ...]
    """the value of each channel's file that became 1"""
    naming: str
    """convention of the file names"""
    label_values: tuple[int, ...]
    """the value of each class in the segmentation file"""
    files: tuple[str, ...]
    """what it was made from, relative to the scans: the channels in order, the segmentation"""
    lesion_mm3: tuple[float, ...]
    """lesion volume by class, at the scan's own resolution"""
    sha256: str
    """of the decoded slices"""
    patient: str = ""
    """whose scan it is; by default its own id"""
    marks: tuple[str, str] = ("", "")
    """`mark_of` its shard of images and of labels; empty if there is none, or nobody noted it"""
    labelled: bool = True
    """whether it has a segmentation; without one its labels are 0, and nobody looks at them"""
    healthy: bool = False
    """whether somebody knows that it has no lesion: then no mask has to tell"""
    hidden_lesions: tuple[int, ...] = ()
    """indices of the kept slices with a lesion in the scan that is too small for the store"""
    dropped_lesion_slices: int = 0
    """slices with a lesion that are not kept, for there is nothing else in them"""
    scan_labels: str = ""
    """SHA-256 of the labels on the scan's own grid; empty if they are not kept: in stores of
    earlier versions, and without a segmentation"""
    notes: tuple[str, ...] = ()
    """what was assumed when it was read, for people"""

    def __post_init__(self) -> None:
        object.__setattr__(self, "patient", self.patient or self.id)

    @property
    def positions(self) -> range:
        """Slice indices of the kept slices."""
        return range(self.first, self.last + 1)

    def healthy_positions(self, meaning: LabelMeaning) -> list[int]:
        """Slice indices of the kept slices that are known to show no lesion."""
        if self.healthy:
            return list(self.positions)
        if not self.labelled:
            return []
        has_lesion_N = self._lesion_pixels_NL(meaning).any(axis=1)
        hidden = set(self.hidden_lesions)
        found = (self.first + int(n) for n in np.flatnonzero(~has_lesion_N))
        return [position for position in found if position not in hidden]

    def lesion_slices(self, meaning: LabelMeaning) -> int:
        """The number of kept slices with a lesion pixel."""
        return int(self.shows_lesion_N(meaning).sum())

    def shows_lesion_N(self, meaning: LabelMeaning) -> np.ndarray:
        """Whether there is a lesion pixel, for each kept slice."""
        return np.asarray(self._lesion_pixels_NL(meaning).any(axis=1))

    def _lesion_pixels_NL(self, meaning: LabelMeaning) -> np.ndarray:
        return self.lesion_pixels_NK[:, [k - 1 for k in meaning.lesion_values]]

    def to_json(self) -> dict[str, Any]:
        """A value that JSON can hold; without what is as by default."""
        value = {field.name: getattr(self, field.name) for field in fields(self)}
        if self.patient == self.id:
            del value["patient"]
        if not any(self.marks):
            del value["marks"]
        for name, default in _SUBJECT_BY_DEFAULT.items():
            if value[name] == default:
                del value[name]
        return {**value, "lesion_pixels_NK": self.lesion_pixels_NK.tolist()}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "Subject":
        """Undo `to_json` and JSON."""
        values: dict[str, Any] = {
            k: tuple(v) if isinstance(v, list) else v for k, v in value.items()
        }
        values["affine"] = tuple(tuple(row) for row in value["affine"])
        values["lesion_pixels_NK"] = np.array(value["lesion_pixels_NK"], np.int32)
        return cls(**values)


@dataclass(frozen=True, eq=False)
class Manifest:
    """The content of a finished store."""

    parameters: Parameters
    subjects: dict[str, Subject]
    """by id"""
    skipped: dict[str, str]
    """scans that could not be used: id → reason"""
    given_split: Split | None = None
    """None: by the rule; may name scans that could not be used"""
    not_taken: dict[str, str] = field(default_factory=dict)
    """what lay beside the scans and was not asked for: id, folder or file → why"""

    @cached_property
    def split(self) -> Split | None:
        """The given split of the subjects that are here."""
        return self.given_split.among(self.subjects) if self.given_split else None

    @cached_property
    def patient_of(self) -> dict[str, str]:
        """Subject's id → patient."""
        return {id_: subject.patient for id_, subject in self.subjects.items()}

    @cached_property
    def shared_patients(self) -> dict[str, list[str]]:
        """The patients with several scans → the sorted ids of those."""
        counts = Counter(self.patient_of.values())
        shared: dict[str, list[str]] = {p: [] for p, count in counts.items() if count > 1}
        for id_, patient in sorted(self.patient_of.items()):
            if patient in shared:
                shared[patient].append(id_)
        return shared

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of protocol, parameters, content, which scans are of one patient, a given split.

        The same however the store was made. Every run's id depends on it, so two splits never share
        a result. Patients with one scan do not count: with and without them the numbers are equal.
        """
        # Regions concern scores alone, and stand in their specs. That scans were turned shows in
        # the slices, and does not depend on which came first. Fewest patients: see below.
        beside = ("depth", "regions", "orientation", "fewest_validated")
        parameters = {k: v for k, v in self.parameters.to_json().items() if k not in beside}
        content = sorted((subject.id, subject.sha256) for subject in self.subjects.values())
        shared = sorted(self.shared_patients.values())
        patients = [{"patients": shared}] if shared else []
        given = [self.split.to_json()] if self.split else self._fewest_json()
        return _sha256_of([parameters, content, *patients, *given, *self._labels_json()])

    def split_by_rule(self, subjects: Collection[str]) -> Split:
        """The split of some subjects by the rule of this store. Raises `StudyError`."""
        return split_by_rule(subjects, self.patient_of, self.parameters.fewest_validated)

    def _fewest_json(self) -> list[dict[str, Any]]:
        """The least number of patients in validation, where it makes another split."""
        subjects = self.labelled or tuple(self.subjects)
        try:
            split = self.split_by_rule(subjects)
            as_published = split == split_by_rule(subjects, self.patient_of, fewest=0)
        except StudyError:  # too few of them for one of the two
            as_published = False
        fewest = self.parameters.fewest_validated
        return [{"fewest validated": fewest}] if fewest and not as_published else []

    def _labels_json(self) -> list[dict[str, Any]]:
        """What slices alone do not tell of labels: nothing where every scan has its own."""
        subjects = sorted(self.subjects.values(), key=lambda subject: subject.id)
        found = {
            "unlabelled": [it.id for it in subjects if not it.labelled],
            "healthy": [it.id for it in subjects if it.healthy],
            "hidden lesions": [[it.id, it.hidden_lesions] for it in subjects if it.hidden_lesions],
        }
        return [{name: value} for name, value in found.items() if value]

    @property
    def left_out(self) -> tuple[str, ...]:
        """Labelled subjects that are in no part of the given split."""
        return tuple(sorted(set(self.labelled) - self.split.ids)) if self.split else ()

    @cached_property
    def labelled(self) -> tuple[str, ...]:
        """The ids of the scans with a segmentation, sorted."""
        return tuple(sorted(it.id for it in self.subjects.values() if it.labelled))

    @cached_property
    def unlabelled(self) -> tuple[str, ...]:
        """The ids of the others, sorted."""
        return tuple(sorted(it.id for it in self.subjects.values() if not it.labelled))

    def write(self, path: Path) -> None:
        """Write it atomically, a line a subject, with a checksum over all of it."""
        value = {
            **self.parameters.to_json(),
            "fingerprint": self.fingerprint,
            **self._split_json(),
            "subjects": {id_: self.subjects[id_].to_json() for id_ in sorted(self.subjects)},
            "skipped": dict(sorted(self.skipped.items())),
            **({"not_taken": dict(sorted(self.not_taken.items()))} if self.not_taken else {}),
        }
        value["checksum"] = _sha256_of(value)
        write_bytes(path, _a_line_an_entry(value).encode())

    def _split_json(self) -> dict[str, Any]:
        if self.given_split:
            return {"split": self.given_split.to_json()}
        fewest = self.parameters.fewest_validated
        return {"split_rule": split_rule(bool(self.shared_patients), fewest)}

    @classmethod
    def read(cls, path: Path) -> "Manifest":
        """Read and verify a manifest.

        Raises `StoreError` if it is damaged or of another protocol; FileNotFoundError passes.
        """
        try:
            value = json.loads(path.read_bytes())
            _require_protocol(value["protocol"], path)
            intact = value.pop("checksum") == _sha256_of(value)
        except (ValueError, KeyError, TypeError, AttributeError):
            intact = False
        if not intact:
            expected = "the manifest as it was written"
            raise StoreError("damaged", where=path, expected=expected, remedy=PREPARE_AGAIN)
        subjects = {id_: Subject.from_json(v) for id_, v in value["subjects"].items()}
        split = Split.from_json(value["split"]) if "split" in value else None
        skipped, not_taken = value["skipped"], value.get("not_taken", {})
        return cls(Parameters.from_json(value), subjects, skipped, split, not_taken)


def _require_protocol(protocol: object, path: Path) -> None:
    if protocol != STORE_PROTOCOL:
        raise StoreError(
            f"a store of protocol {protocol}",
            where=path,
            expected=f"protocol {STORE_PROTOCOL}, which this program writes",
            remedy="prepare the scans into a new store, or use the program that made this one",
        )


def _sha256_of(value: object) -> str:
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return sha256(text.encode()).hexdigest()


def _a_line_an_entry(value: Mapping[str, Any]) -> str:
    """JSON with the entries of the outer two levels on lines of their own."""

    def entries(mapping: Mapping[str, Any], dump: Any) -> str:
        lines = ",\n".join(f"{json.dumps(key)}: {dump(item)}" for key, item in mapping.items())
        return f"{{\n{lines}\n}}"

    return entries(
        value, lambda v: entries(v, json.dumps) if isinstance(v, dict) else json.dumps(v)
    )
