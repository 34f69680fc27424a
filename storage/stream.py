"""Random slices straight from a store, for splits that are larger than memory.

A store's shard holds all slices of a subject, each compressed by itself. Here a slice is read
alone: where it lies is looked up in the shard's index, which is read once and kept with the open
file, for as many shards as a process may well have open.

Letters: N slices, C channels, H and W rows and columns of a slice.
"""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path

import numpy as np

from fewscan.storage.labels import PretrainSlices
from fewscan.storage.manifest import Subject
from fewscan.storage.shards import DamagedShard, decode_index, decode_slice, index_bytes
from fewscan.storage.slices import Slices, SliceStore, damaged
from fewscan.storage.system.workers import usable_cpus

_OPEN_SHARDS = 256
"""of 1024 files that a process may have open on most machines"""
_SLICES_A_THREAD = 8
"""fewer are not worth waking another thread for"""


class SliceStream:
    """The kept slices of some subjects, or the healthy ones, without reading them first.

    They are numbered as `SliceStore.read` orders them, and `gather` gives what indexing its arrays
    would. Use one in the process that made it: its threads and files do not survive a fork.
    """

    def __init__(
        self,
        store: SliceStore,
        ids: Sequence[str],
        which: PretrainSlices = "all",
        depth: int = 1,
    ) -> None:
        """Look up what there is; reads no slice. Raises `StoreError` for an unknown subject.

        `depth` is that of `SliceStore.positions`.
        """
        self.store = store
        self.ids = tuple(ids)
        self._subjects = [store.subject(id_) for id_ in ids]
        positions = [store.positions(subject, which, depth) for subject in self._subjects]
        self._labels_of = [store.has_labels(subject) for subject in self._subjects]
        self.subjects_N = np.repeat(np.arange(len(ids)), [len(p) for p in positions])
        self.positions_N = np.array([z for p in positions for z in p], np.int64)
        folder, depth = store.folder, store.manifest.parameters.depth
        self._images = _Array(folder.images_shard, depth)
        self._labels = _Array(folder.labels_shard, depth)
        self._threads = ThreadPoolExecutor(usable_cpus())

    def __len__(self) -> int:
        return len(self.positions_N)

    def gather(self, indices_N: Sequence[int] | np.ndarray) -> Slices:
        """Read these slices, verifying checksums, in the order asked for; one may come twice.

        Raises `StoreError` if a slice is damaged, IndexError if there is no such slice.
        """
        indices_N = np.asarray(indices_N, np.int64)
        subjects_N, positions_N = self.subjects_N[indices_N], self.positions_N[indices_N]
        slices = self.store.empty(self.ids, subjects_N, positions_N)
        # Neighbours in the store are read one after the other, by the same thread.
        order_N = np.lexsort((positions_N, subjects_N))
        parts = -(-len(order_N) // _SLICES_A_THREAD)
        shares = np.array_split(order_N, max(1, min(parts, usable_cpus())))
        list(self._threads.map(lambda share: self._read_into(slices, share.tolist()), shares))
        return slices

    def _read_into(self, slices: Slices, share: list[int]) -> None:
        for n in share:
            number = slices.subjects_N[n]
            subject = self._subjects[number]
            position = int(slices.positions_N[n])
            self._images.read(subject, position, slices.images_NCHW[n], subject.marks[0])
            if self._has_labels(number, position):
                self._labels.read(subject, position, slices.labels_NHW[n], subject.marks[1])
            else:
                slices.labels_NHW[n] = 0

    def _has_labels(self, number: int, position: int) -> bool:
        subject = self._subjects[number]
        has_lesion = bool(subject.lesion_pixels_NK[position - subject.first].any())
        return has_lesion or (self.store.meaning.has_ignored and self._labels_of[number])


class _Array:
    """One of the two arrays of a store; the shards used last are kept open."""

    def __init__(self, shard_path: Callable[[int], Path], depth: int) -> None:
        self._path = shard_path
        self._shard = lru_cache(_OPEN_SHARDS)(
            lambda row, mark: _Shard(shard_path(row), depth, mark)
        )

    def read(self, subject: Subject, position: int, out: np.ndarray, mark: str) -> None:
        """Read a slice into `out`. Raises `StoreError` if it is damaged or another subject's."""
        try:
            self._shard(subject.row, mark).read(position, out)
        except (DamagedShard, OSError) as error:
            raise damaged(subject, self._path(subject.row), error) from error


class _Shard:
    """An open shard and its index; closed when nobody holds it any more."""

    def __init__(self, path: Path, length: int, mark: str) -> None:
        self._file = os.open(path, os.O_RDONLY)
        end = index_bytes(length)
        start = max(0, os.fstat(self._file).st_size - end)
        self._index = decode_index(os.pread(self._file, end, start), length, mark)

    def read(self, position: int, out: np.ndarray) -> None:
        """Read a slice into `out`. Raises `DamagedShard`, OSError."""
        place = self._index[position]
        if place is None:
            out[...] = 0
        else:
            chunk = os.pread(self._file, place.stop - place.start, place.start)
            decode_slice(chunk, position, out)

    def __del__(self) -> None:
        if hasattr(self, "_file"):
            os.close(self._file)
