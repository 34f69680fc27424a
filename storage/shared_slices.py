"""Decoded slices in files that all processes of a node map: read from the store once, never copied.

A file holds the kept slices of one subject, images and then labels, so that a run reads no more
than its own subjects. It is written under a lock, beside its place, and renamed when it is whole.

Letters: N slices, C channels, H and W rows and columns of a slice.
"""

import os
import shutil
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fewscan.storage.errors import NotWritableError, RunError, disk_full_explained
from fewscan.storage.locks import exclusive
from fewscan.storage.slices import Slices, SliceStore
from fewscan.storage.system import node_folder
from fewscan.storage.system.memory import available_bytes
from fewscan.storage.system.workers import usable_cpus

SHARE_OF_FREE = 0.5
"""Of what is free in a place, to leave room for whoever else uses it."""
OTHERS_DECODE_WITHIN_S = 600.0


@dataclass(frozen=True)
class SharedSlices:
    """The subjects of a store as files in a folder of this node."""

    store: SliceStore
    folder: Path

    def fits(self, ids: Sequence[str]) -> bool:
        """Whether there is room for those of the subjects that are not here yet."""
        missing = sum(self.nbytes(i) for i in ids if not self._file(i).exists())
        return missing == 0 or missing <= SHARE_OF_FREE * free_bytes(self.folder)

    def is_ours(self) -> bool:
        """Whether this process may use the folder: another user may have made one of its name."""
        try:
            node_folder.join(self.folder)
        except (NotWritableError, OSError):
            return False
        return True

    def nbytes(self, subject: str) -> int:
        """Bytes of the slices of a subject."""
        size, pixels = len(self.store.subjects[subject].positions), self.store.size**2
        return size * pixels * (2 * len(self.store.channels) + 1)

    def map(self, ids: Sequence[str]) -> list[tuple[np.ndarray, np.ndarray]]:
        """All kept slices of each subject: images_NCHW (float16) and labels_NHW (uint8).

        They are decoded by whoever comes first. Do not write to them. Raises `StoreError` if the
        store is damaged and `DiskFullError` if there is no room after all.
        """
        node_folder.join(self.folder)
        with ThreadPoolExecutor(usable_cpus()) as threads:
            return list(threads.map(self._map, ids))

    def _map(self, subject: str) -> tuple[np.ndarray, np.ndarray]:
        file = self._file(subject)
        if not file.exists():
            busy = RunError(
                f"another process has been decoding {subject} for {OTHERS_DECODE_WITHIN_S:.0f} s",
                where=file,
                expected="a subject decoded in less than a second",
                remedy="look for a process that hangs on this node; or set resources.residency "
                "to device or stream",
            )
            with exclusive(file.with_suffix(".lock"), busy, wait_s=OTHERS_DECODE_WITHIN_S):
                if not file.exists():
                    _write(file, self.store.read_subject(subject))
        count, size = len(self.store.subjects[subject].positions), self.store.size
        shape = (count, len(self.store.channels), size, size)
        # "c" maps for private writing, of which there is none: torch warns of read-only arrays.
        images = np.memmap(file, np.float16, "c", 0, shape)
        return images, np.memmap(file, np.uint8, "c", images.nbytes, (count, size, size))

    def _file(self, subject: str) -> Path:
        row = self.store.subjects[subject].row
        return self.folder / f"{self.store.fingerprint[:16]}-{row}.slices"


def free_bytes(folder: Path) -> int:
    """How much may be written into `folder`; for files in memory also what memory allows."""
    existing = next(p for p in [folder, *folder.parents] if p.exists())
    free = shutil.disk_usage(existing).free
    return min(free, available_bytes()) if folder.is_relative_to(node_folder.MEMORY) else free


def _write(file: Path, slices: Slices) -> None:
    # No fsync: after a power cut nobody has a use for it.
    temporary = file.with_suffix(".partial")
    try:
        with disk_full_explained(file), temporary.open("wb") as out:
            out.write(slices.images_NCHW.data)
            out.write(slices.labels_NHW.data)
        os.replace(temporary, file)
    finally:
        temporary.unlink(missing_ok=True)
