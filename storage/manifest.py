"""What a slice store says about itself, and where in its folder everything lies.

A store is a folder: two Zarr arrays, and `manifest.json`, which is written last. While it is made
it is called `STORE.partial` and holds a record a finished subject instead of the manifest.

Letters: N kept slices, K lesion classes.
"""

import json
import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from fewscan.storage.atomic import write_bytes
from fewscan.storage.errors import StoreError
from fewscan.storage.geometry import Axis
from fewscan.storage.intensity import Normalisation
from fewscan.storage.splits import PATIENT_RULE, SPLIT_RULE, Split

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


_AS_PUBLISHED = {"axis": 2, "normalisation": "quantile"}


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

    def to_json(self) -> dict[str, Any]:
        """Plain values; what is as published is left out, so that it hashes as it always did."""
        value = asdict(self)
        return {k: v for k, v in value.items() if v != _AS_PUBLISHED.get(k)}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "Parameters":
        """Undo `to_json` and JSON; other keys are not looked at."""
        known = {f.name: value[f.name] for f in fields(cls) if f.name in value}
        names = {key: tuple(value[key]) for key in ("channels", "classes")}
        return cls(**{**known, **names})


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

    def __post_init__(self) -> None:
        object.__setattr__(self, "patient", self.patient or self.id)

    @property
    def positions(self) -> range:
        """Slice indices of the kept slices."""
        return range(self.first, self.last + 1)

    @cached_property
    def healthy_positions(self) -> list[int]:
        """Slice indices of the kept slices without a lesion pixel."""
        return [self.first + int(n) for n in np.flatnonzero(~self.lesion_pixels_NK.any(axis=1))]

    def to_json(self) -> dict[str, Any]:
        """A value that JSON can hold; without what is as by default."""
        value = {field.name: getattr(self, field.name) for field in fields(self)}
        if self.patient == self.id:
            del value["patient"]
        if not any(self.marks):
            del value["marks"]
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
    """None: by the published rule; may name scans that could not be used"""

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
        parameters = {k: v for k, v in self.parameters.to_json().items() if k != "depth"}
        content = sorted((subject.id, subject.sha256) for subject in self.subjects.values())
        shared = sorted(self.shared_patients.values())
        patients = [{"patients": shared}] if shared else []
        given = [self.split.to_json()] if self.split else []
        return _sha256_of([parameters, content, *patients, *given])

    @property
    def left_out(self) -> tuple[str, ...]:
        """Subjects that are in no part of the given split."""
        return tuple(sorted(set(self.subjects) - self.split.ids)) if self.split else ()

    def write(self, path: Path) -> None:
        """Write it atomically, a line a subject, with a checksum over all of it."""
        value = {
            **self.parameters.to_json(),
            "fingerprint": self.fingerprint,
            **self._split_json(),
            "subjects": {id_: self.subjects[id_].to_json() for id_ in sorted(self.subjects)},
            "skipped": dict(sorted(self.skipped.items())),
        }
        value["checksum"] = _sha256_of(value)
        write_bytes(path, _a_line_an_entry(value).encode())

    def _split_json(self) -> dict[str, Any]:
        if self.given_split:
            return {"split": self.given_split.to_json()}
        return {"split_rule": PATIENT_RULE if self.shared_patients else SPLIT_RULE}

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
        return cls(Parameters.from_json(value), subjects, value["skipped"], split)


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
