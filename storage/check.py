"""Is a store what it was when it was made, and what is in it?

Letters: N slices, K lesion classes.
"""

from collections import defaultdict
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np

from fewscan.storage.account import account
from fewscan.storage.conventions.registry import patient_of
from fewscan.storage.errors import StoreError, StudyError
from fewscan.storage.geometry import Axis
from fewscan.storage.intensity import Normalisation
from fewscan.storage.manifest import PREPARE_AGAIN, Subject
from fewscan.storage.slices import Slices, SliceStore, slices_sha256


@dataclass(frozen=True)
class CheckReport:
    """What a sound store holds."""

    path: Path
    fingerprint: str
    size: int
    """rows and columns of a slice"""
    channels: tuple[str, ...]
    axis: Axis
    """through the slices"""
    normalisation: Normalisation
    subjects: int
    patients: int
    """whose scans they are"""
    patients_in_ids: int
    """as far as ids tell; fewer than `patients` if the store was made before it knew any"""
    unlabelled: int
    """of the subjects, those without a segmentation"""
    slices: int
    healthy_slices: int
    """of them, those known to show no lesion"""
    masks: int
    """labelled subjects whose segmentations told which slices are healthy"""
    lesion_mm3: dict[str, tuple[float, float, float]]
    """class → smallest, median and largest volume of a subject, at the scans' own resolution"""
    split: tuple[int, int, int] | None
    """subjects in train, validation and test; None if there are too few for all three"""
    published: bool
    """whether the split is the published one"""
    given: bool
    """whether the split was given as a file"""
    fewest_validated: int
    """patients in validation and test at least, by the rule; 0: as published"""
    left_out: tuple[str, ...]
    """subjects that are in no part of a given split"""
    skipped: dict[str, str]
    """scans that could not be used when it was made: id → reason"""
    copies: tuple[tuple[str, ...], ...]
    """subjects with equal slices: of one patient, or in the store since before they were refused"""
    account: tuple[str, ...]
    """what was lost of the scans, and what was assumed: see `account`"""

    def render(self) -> str:
        """The report as lines of text."""
        lines = [
            f"{self.path}: sound",
            f"fingerprint     {self.fingerprint}",
            f"subjects        {self._subjects_text()}",
            *([self._unknown_patients_text()] if self.patients_in_ids < self.patients else []),
            f"channels        {', '.join(self.channels)}",
            f"slices          {self.slices} of {self.size} × {self.size}, {self._slicing_text()}",
            f"healthy slices  {self.healthy_slices}, {self._masks_text()}",
            *(f"{name:<15} {_millilitres(v)}" for name, v in self.lesion_mm3.items()),
            f"split           {self._split_text()}",
            *(f"in no part      {subject}" for subject in self.left_out),
            *(f"equal slices    {', '.join(ids)}" for ids in self.copies),
            *(f"skipped         {subject}: {reason}" for subject, reason in self.skipped.items()),
            *self.account,
        ]
        return "\n".join(lines)

    def _subjects_text(self) -> str:
        patients = f" of {self.patients} patients" if self.patients < self.subjects else ""
        unlabelled = f", {self.unlabelled} of them unlabelled" if self.unlabelled else ""
        return f"{self.subjects}{patients}{unlabelled}"

    def _masks_text(self) -> str:
        return f"as the masks of {self.masks} scans tell" if self.masks else "no mask was needed"

    def _unknown_patients_text(self) -> str:
        found = f"by their ids the scans are of {self.patients_in_ids} patients"
        return f"patients        {found}, whom the split may divide; `fewscan prepare` again"

    def _slicing_text(self) -> str:
        across = f"along axis {self.axis}" if isinstance(self.axis, int) else self.axis
        return f"{across}, voxels normalised by {self.normalisation}"

    def _split_text(self) -> str:
        if self.split is None:
            return (
                "none: too few patients; `fewscan prepare SCANS STORE --validation N` (or --split "
                "FILE) chooses"
            )
        sizes = "train {}, validation {}, test {}".format(*self.split)
        rule = "the published lists" if self.published else "the published rule on other subjects"
        if self.fewest_validated and not self.published:
            rule += f", at least {self.fewest_validated} in validation and in the test"
        return f"{sizes} ({'as given' if self.given else rule})"


def _millilitres(volumes_mm3: tuple[float, float, float]) -> str:
    smallest, middle, largest = (volume / 1000 for volume in volumes_mm3)
    return f"{middle:.1f} ml (median; {smallest:.1f} to {largest:.1f})"


def check(path: Path, progress: Callable[[int, int], None] | None = None) -> CheckReport:
    """Read all of a store and compare it with its checksums, hashes and counts.

    Raises `StoreError` that names the subject whose slices are not what was written.
    """
    store = SliceStore.open(path)
    _require_arrays(store)
    for done, subject in enumerate(store.subjects, start=1):
        _require_content(store, store.read_subject(subject))
        if store.subjects[subject].scan_labels:
            store.read_scan_labels(subject)  # which compares them with their hash
        if progress:
            progress(done, len(store.subjects))
    return _report(store)


def _require_arrays(store: SliceStore) -> None:
    """What other Zarr readers see must be what the manifest says."""
    parameters = store.manifest.parameters
    rows = 1 + max(subject.row for subject in store.subjects.values())
    plane = (parameters.depth, store.size, store.size)
    expected = {
        "images": ("float16", (plane[0], len(store.channels), *plane[1:])),
        "labels": ("uint8", plane),
    }
    for (name, (dtype, shape)), array in zip(expected.items(), _arrays(store), strict=True):
        if array.dtype != dtype or array.shape[1:] != shape or array.shape[0] < rows:
            raise StoreError(
                f"an array of {array.dtype} {array.shape}",
                where=store.path / name,
                expected=f"{dtype} ({rows} or more, {', '.join(map(str, shape))})",
                remedy=PREPARE_AGAIN,
            )


def _arrays(store: SliceStore) -> tuple[np.ndarray, np.ndarray]:
    try:
        return store.arrays()
    except (OSError, KeyError, ValueError, TypeError) as error:
        raise StoreError(
            f"damaged array metadata ({error})",
            where=store.path,
            expected="the zarr.json files as they were written",
            remedy=PREPARE_AGAIN,
        ) from error


def _require_content(store: SliceStore, slices: Slices) -> None:
    subject = store.subjects[slices.ids[0]]
    labels_NHW = slices.labels_NHW
    classes = range(1, len(store.classes) + 1)
    pixels_NK = np.stack([(labels_NHW == k).sum(axis=(1, 2)) for k in classes], axis=1)
    content = slices_sha256(subject.first, slices.images_NCHW, labels_NHW)
    if content != subject.sha256 or not np.array_equal(pixels_NK, subject.lesion_pixels_NK):
        raise StoreError(
            f"the slices of subject {subject.id} are not those that were written",
            where=store.folder.images_shard(subject.row),
            expected=f"content with SHA-256 {subject.sha256}",
            remedy=PREPARE_AGAIN,
        )


def _report(store: SliceStore) -> CheckReport:
    subjects = list(store.subjects.values())
    labelled = [subject for subject in subjects if subject.labelled]
    volumes_K = list(zip(*(subject.lesion_mm3 for subject in labelled), strict=True))
    split = None
    with suppress(StudyError):
        split = store.split
    return CheckReport(
        path=store.path,
        fingerprint=store.fingerprint,
        size=store.size,
        channels=store.channels,
        axis=store.manifest.parameters.axis,
        normalisation=store.manifest.parameters.normalisation,
        subjects=len(subjects),
        patients=len(set(store.manifest.patient_of.values())),
        patients_in_ids=len({patient_of(id_) for id_ in store.subjects}),
        unlabelled=len(subjects) - len(labelled),
        slices=sum(len(subject.positions) for subject in subjects),
        healthy_slices=sum(len(subject.healthy_positions(store.meaning)) for subject in subjects),
        masks=sum(subject.labelled and not subject.healthy for subject in subjects),
        lesion_mm3={
            name: (min(volumes), median(volumes), max(volumes))
            for name, volumes in zip(store.classes, volumes_K, strict=False)  # none if unlabelled
        },
        split=(len(split.train), len(split.validation), len(split.test)) if split else None,
        published=split is not None and split.published,
        given=store.manifest.given_split is not None,
        fewest_validated=store.manifest.parameters.fewest_validated,
        left_out=store.manifest.left_out,
        skipped=store.manifest.skipped,
        copies=_copies(subjects),
        account=account(store),
    )


def _copies(subjects: list[Subject]) -> tuple[tuple[str, ...], ...]:
    ids_by_content = defaultdict(list)
    for subject in subjects:
        ids_by_content[subject.sha256].append(subject.id)
    return tuple(tuple(sorted(ids)) for ids in ids_by_content.values() if len(ids) > 1)
