"""The slice store: read the slices of any subjects, fast and verified.

The only module that knows zarr, which describes the arrays and can read them too. The store is read
straight from its shards (`shards`); `SliceStore._read_subject_into` is the one place where that is
done. What is in the store and where comes from its manifest (`manifest`).

Letters: N slices, C channels, H and W rows and columns of a slice, Z slices of the scan, K classes.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from fewscan.storage.atomic import write_bytes
from fewscan.storage.errors import StoreError, StudyError
from fewscan.storage.geometry import Frame, slice_axis
from fewscan.storage.labels import LabelMeaning, PretrainSlices, Region
from fewscan.storage.manifest import PREPARE_AGAIN, Manifest, Parameters, StoreFolder, Subject
from fewscan.storage.shards import ZSTD_LEVEL, DamagedShard, decode_shard
from fewscan.storage.splits import Fold, Split, folds, hold_out, label_subset, split_of_fold
from fewscan.storage.system.workers import usable_cpus


@dataclass(frozen=True, eq=False)
class Slices:
    """Slices of some subjects, subject after subject, in the order of the scan."""

    ids: tuple[str, ...]
    """the subjects, in the order asked for"""
    images_NCHW: np.ndarray
    """float16, 1 = the 0.99 quantile of the scan's channel"""
    labels_NHW: np.ndarray
    """uint8: 0 no lesion, k the k-th class"""
    subjects_N: np.ndarray
    """index into `ids`"""
    positions_N: np.ndarray
    """index of the slice through the scan"""


class SliceStore:
    """A finished store: what its manifest says, and its slices."""

    path: Path
    protocol: int
    """`STORE_PROTOCOL` of the program that made it"""
    size: int
    """rows and columns of a slice"""
    channels: tuple[str, ...]
    """names, in order"""
    classes: tuple[str, ...]
    """names of the lesion classes: label k is the k-th"""
    meaning: LabelMeaning
    """of the labels"""
    regions: tuple[Region, ...]
    """what is scored beside the classes"""
    subjects: dict[str, Subject]
    """by id, sorted"""
    fingerprint: str
    """what the ids of runs on this store depend on"""
    fold: Fold | None
    """of a cross-validation: who is tested here; None: there is none"""

    def __init__(self, folder: StoreFolder, manifest: Manifest, fold: Fold | None = None) -> None:
        """Reads nothing: see `open`."""
        self.folder, self.path, self.manifest = folder, folder.path, manifest
        self.protocol, self.size = manifest.parameters.protocol, manifest.parameters.size
        self.channels, self.classes = manifest.parameters.channels, manifest.parameters.classes
        self.meaning, self.regions = manifest.parameters.meaning, manifest.parameters.regions
        self.subjects, self.fold = manifest.subjects, fold
        self.fingerprint = manifest.fingerprint + (fold.suffix if fold else "")

    @classmethod
    def open(cls, path: Path, fold: Fold | None = None) -> "SliceStore":
        """Open a store, or one fold of its cross-validation; reads the manifest and nothing else.

        Raises `StoreError` if there is none, or it is unfinished, damaged or of another protocol.
        """
        folder = StoreFolder.at(path)
        try:
            return cls(folder, Manifest.read(folder.manifest), fold)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise _no_store(folder) from error

    def outer_folds(self, count: int) -> tuple["SliceStore", ...]:
        """The same store as each fold of a cross-validation sees it; 0: itself alone.

        Raises `StudyError` if somebody has said who is tested.
        """
        if not count:
            return (self,)
        if self.manifest.split is not None:
            raise StudyError(
                f"{count} folds of a store whose split was given",
                where=f"split.folds, {self.path}",
                expected="a store that was prepared without a split: in a cross-validation each "
                "labelled scan is tested once",
                remedy="prepare the scans without --split, or leave split.folds out",
            )
        each = (Fold(number, count) for number in range(1, count + 1))
        return tuple(SliceStore(self.folder, self.manifest, fold) for fold in each)

    @cached_property
    def split(self) -> Split:
        """Of the labelled scans: that of the fold, the given one, or by the rule.

        Raises `StudyError` if they are too few.
        """
        manifest, fold = self.manifest, self.fold
        if fold is not None:
            fewest = manifest.parameters.fewest_validated
            return split_of_fold(manifest.labelled, manifest.patient_of, fold, fewest)
        return manifest.split or manifest.split_by_rule(manifest.labelled)

    @cached_property
    def unlabelled(self) -> tuple[str, ...]:
        """The unlabelled scans that may be trained on: not of a patient who is validated or tested.

        Raises `StudyError` if there are labelled scans, too few for a split.
        """
        patient_of, kept = self.manifest.patient_of, set()
        if self.manifest.labelled:
            kept = {patient_of[i] for i in (*self.split.validation, *self.split.test)}
        return tuple(i for i in self.manifest.unlabelled if patient_of[i] not in kept)

    def pretraining(
        self, which: PretrainSlices, depth: int = 1
    ) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """The scans that a pre-training learns from, and those that it is validated on.

        The training part and the unlabelled scans; the validation part. In a store without any
        label the rule's validation part is for validation, and the others are learnt from. Scans
        without such slices (`positions`) are left out. Raises `StudyError` if there are too few for
        both.
        """
        if self.manifest.labelled:
            parts = (*self.split.train, *self.unlabelled), self.split.validation
        else:
            rest = self.manifest.split_by_rule(self.subjects)
            parts = (*rest.train, *rest.test), rest.validation
        train, validation = (
            tuple(i for i in ids if len(self.positions(self.subjects[i], which, depth)))
            for ids in parts
        )
        return train, validation

    def positions(self, subject: Subject, which: PretrainSlices, depth: int = 1) -> Sequence[int]:
        """Slice indices of the kept slices of a subject, or of the healthy ones.

        With a `depth`, of those around which a patch of so many slices is healthy, too.
        """
        if which != "healthy":
            return subject.positions
        found, kept = subject.healthy_positions(self.meaning), subject.positions
        if depth == 1 or not found:
            return found
        is_ill = np.ones(len(kept), np.int64)
        is_ill[np.array(found) - kept.start] = 0
        ill_before = np.concatenate([[0], np.cumsum(is_ill)])
        starts_N = patch_starts(np.array(found), kept, depth) - kept.start
        ends_N = np.minimum(starts_N + depth, len(kept))  # what lies beyond them is zeros
        ill_N = ill_before[ends_N] - ill_before[np.maximum(starts_N, 0)]
        return [position for position, ill in zip(found, ill_N, strict=True) if not ill]

    def labelled_subset(self, count: int, seed: int) -> tuple[str, ...]:
        """The `count` scans of the training part whose labels may be used: see `label_subset`.

        Raises `StudyError` if there are not that many.
        """
        return label_subset(self.split.train, count, seed, self.manifest.patient_of)

    def hold_out(self, labelled: Sequence[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Labelled scans to learn from, and those that choose a model: see `splits.hold_out`."""
        return hold_out(labelled, self.manifest.patient_of)

    def folds(self, labelled: Sequence[str], count: int) -> tuple[tuple[str, ...], ...]:
        """Labelled scans in parts for cross-validation: see `splits.folds`."""
        return folds(labelled, count, self.manifest.patient_of)

    def patient(self, subject_id: str) -> str:
        """Whose scan it is. Raises `StoreError` if it is not in the store."""
        return self.subject(subject_id).patient

    def spacing_mm_ZHW(self, subject: str) -> tuple[float, float, float]:
        """Distances between the slices of a subject, and between their rows and columns, in mm."""
        return self.frame(subject).spacing_mm(self.subject(subject).spacing_mm)

    def frame(self, subject: str) -> Frame:
        """Where the slices of a subject lie in its scan."""
        found, parameters = self.subject(subject), self.manifest.parameters
        axis = slice_axis(parameters.axis, np.array(found.affine))
        return Frame.of(found.shape_XYZ, found.spacing_mm, axis, parameters.size)

    def slices_of(self, subject: Subject) -> int:
        """The number of slices of a scan, kept or not."""
        axis = self.manifest.parameters.axis
        return subject.shape_XYZ[slice_axis(axis, np.array(subject.affine))]

    def read_subject(self, subject: str, which: PretrainSlices = "all") -> Slices:
        """Read the kept slices of one subject, or the healthy ones. Raises `StoreError`."""
        return self.read([subject], which)

    def read(
        self,
        ids: Sequence[str],
        which: PretrainSlices = "all",
        progress: Callable[[int, int], None] | None = None,
    ) -> Slices:
        """Read the kept slices of these subjects, or the healthy ones, verifying checksums.

        `progress` is called with subjects done and subjects in all. Raises `StoreError` if a
        subject is not in the store or its slices are damaged.
        """
        subjects = [self.subject(subject) for subject in ids]
        positions = [list(self.positions(subject, which)) for subject in subjects]
        slices = self.empty(
            tuple(ids),
            subjects_N=np.repeat(np.arange(len(ids)), [len(p) for p in positions]),
            positions_N=np.array([z for p in positions for z in p], np.int64),
        )
        ends = np.cumsum([0, *map(len, positions)]).tolist()
        parts = [slice(start, stop) for start, stop in pairwise(ends)]

        def read_into(k: int) -> None:
            images, labels = slices.images_NCHW[parts[k]], slices.labels_NHW[parts[k]]
            self._read_subject_into(subjects[k], positions[k], images, labels)

        with ThreadPoolExecutor(usable_cpus()) as threads:
            for done, _ in enumerate(threads.map(read_into, range(len(ids))), start=1):
                if progress:
                    progress(done, len(ids))
        return slices

    @cached_property
    def keeps_scan_labels(self) -> bool:
        """Whether the labels of all test scans are here on their own grids too.

        Stores of earlier versions have none.
        """
        return all(self.subjects[i].scan_labels for i in self.split.test)

    def read_scan_labels(self, subject: str) -> np.ndarray:
        """Labels of all slices of a scan, kept or not, on its own grid: uint8 ZHW.

        As `slices_of` and `Frame.as_slices` see the scan. Raises `StoreError` if they are not kept
        or not what was written.
        """
        found, shape_HW = self.subject(subject), self.frame(subject).shape_HW
        path, depth = self.folder.scan_labels(found.row), self.slices_of(found)
        if not found.scan_labels:
            raise StoreError(
                f"of subject {subject} no labels are kept on the scan's own grid",
                where=self.path,
                expected="a store of this version, and a scan with labels",
                remedy="prepare the scans into a new store",
            )
        labels_ZHW = np.zeros((depth, *shape_HW), np.uint8)
        try:
            if path.exists():  # there is none of zeros
                decode_shard(path.read_bytes(), depth, range(depth), labels_ZHW)
            if scan_labels_sha256(labels_ZHW) != found.scan_labels:
                raise DamagedShard("they are not those that were written")
        except (DamagedShard, OSError) as error:
            raise damaged(found, path, error, "labels on the scan's own grid") from error
        return labels_ZHW

    def arrays(self) -> tuple[Any, Any]:
        """Images (subjects, Z, C, H, W) and labels (subjects, Z, H, W) as zarr arrays."""
        import zarr

        group = zarr.open_group(self.path, mode="r")
        return group["images"], group["labels"]

    def empty(
        self, ids: tuple[str, ...], subjects_N: np.ndarray, positions_N: np.ndarray
    ) -> Slices:
        """Room for these slices, to be filled."""
        count, size = len(positions_N), self.size
        return Slices(
            ids,
            images_NCHW=np.empty((count, len(self.channels), size, size), np.float16),
            labels_NHW=np.empty((count, size, size), np.uint8),
            subjects_N=subjects_N,
            positions_N=positions_N,
        )

    def subject(self, subject: str) -> Subject:
        """What the manifest says of a subject. Raises `StoreError` if it is not in the store."""
        if subject not in self.subjects:
            expected = f"one of the {len(self.subjects)} subjects in the store"
            raise StoreError(f"no subject {subject!r}", where=self.path, expected=expected)
        return self.subjects[subject]

    def has_labels(self, subject: Subject) -> bool:
        """Whether there is a shard of labels: Zarr keeps none of zeros."""
        if subject.lesion_pixels_NK.any():
            return True
        return self.meaning.has_ignored and self.folder.labels_shard(subject.row).exists()

    def _read_subject_into(
        self,
        subject: Subject,
        positions: Sequence[int],
        images_NCHW: np.ndarray,
        labels_NHW: np.ndarray,
    ) -> None:
        """Read slices of one subject; the place for another way of reading."""
        of_images, of_labels = subject.marks
        shards = [(self.folder.images_shard(subject.row), images_NCHW, of_images)]
        if self.has_labels(subject):
            shards.append((self.folder.labels_shard(subject.row), labels_NHW, of_labels))
        else:
            labels_NHW[...] = 0
        depth = self.manifest.parameters.depth
        for path, out, mark in shards:
            try:
                decode_shard(path.read_bytes(), depth, positions, out, mark)
            except (DamagedShard, OSError) as error:
                raise damaged(subject, path, error) from error


def patch_starts(positions_N: np.ndarray, kept: range, depth: int) -> np.ndarray:
    """The first slice of a patch of `depth` slices around each of these, of a scan that has `kept`.

    It is shifted to lie within them; if they are fewer, they lie in its middle.
    """
    if len(kept) < depth:
        return np.full_like(positions_N, kept.start - (depth - len(kept)) // 2)
    starts_N: np.ndarray = (positions_N - depth // 2).clip(kept.start, kept.stop - depth)
    return starts_N


def damaged(subject: Subject, shard: Path, error: Exception, what: str = "slices") -> StoreError:
    """What is wrong with a shard, for people."""
    return StoreError(
        f"the {what} of subject {subject.id} are damaged: {error}",
        where=shard,
        expected="the bytes that were written",
        remedy=f"copy this file from another copy of the store, or {PREPARE_AGAIN}",
    )


def slices_sha256(first: int, images_NCHW: np.ndarray, labels_NHW: np.ndarray) -> str:
    """SHA-256 of the kept slices of one subject, of which the first stands at `first`."""
    shapes = f"{first} {images_NCHW.shape} {labels_NHW.shape}"
    digest = sha256(shapes.encode())
    digest.update(np.ascontiguousarray(images_NCHW, "<f2").data)
    digest.update(np.ascontiguousarray(labels_NHW, np.uint8).data)
    return digest.hexdigest()


def scan_labels_sha256(labels_ZHW: np.ndarray) -> str:
    """SHA-256 of the labels of one subject on the scan's own grid."""
    digest = sha256(f"{labels_ZHW.shape}".encode())
    digest.update(np.ascontiguousarray(labels_ZHW, np.uint8).data)
    return digest.hexdigest()


def describe_arrays(folder: StoreFolder, parameters: Parameters, rows: int) -> None:
    """Write the Zarr metadata of a store whose arrays have `rows` rows, each file atomically."""
    import zarr

    files: dict[str, Any] = {}
    group = zarr.create_group(zarr.storage.MemoryStore(files))
    plane = {"row": parameters.size, "column": parameters.size}
    channels = {"channel": len(parameters.channels)}
    _describe(group, "images", "float16", (rows, parameters.depth), {**channels, **plane})
    _describe(group, "labels", "uint8", (rows, parameters.depth), plane)
    for name, content in files.items():
        write_bytes(folder.path / name, content.to_bytes())


def _describe(
    group: Any, name: str, dtype: str, slots: tuple[int, int], slice_shape: dict[str, int]
) -> None:
    from zarr.codecs import Crc32cCodec, ZstdCodec

    names, lengths = zip(*slice_shape.items(), strict=True)
    group.create_array(
        name,
        shape=(*slots, *lengths),
        chunks=(1, 1, *lengths),
        shards=(1, slots[1], *lengths),
        dtype=dtype,
        compressors=[ZstdCodec(level=ZSTD_LEVEL), Crc32cCodec()],
        chunk_key_encoding={"name": "default", "separator": "."},
        dimension_names=("subject", "slice", *names),
    )


def _no_store(folder: StoreFolder) -> StoreError:
    partial = folder if folder.parameters.exists() else folder.partial
    if partial.path.exists():
        done = len(list(partial.records.glob("*.json")))
        return StoreError(
            f"the store is not finished: {done} subjects are done in {partial.path.name}",
            where=folder.path,
            expected="a finished store",
            remedy="run the same `fewscan prepare SCANS STORE` again; it goes on where it was",
        )
    found = "no slice store in this folder" if folder.path.exists() else "no such store"
    remedy = "check the path, or make one: fewscan prepare SCANS STORE"
    return StoreError(found, where=folder.path, expected="a finished store", remedy=remedy)
