"""Slices of a split as tensors, ready to be made into batches.

Letters in names: N slices, C channels, H and W rows and columns; of a 3D network N patches, and HW
stands for ZHW.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from fewscan.experiments.devices import Devices
from fewscan.experiments.patches import Patches
from fewscan.experiments.residency import ChosenSlices, InMemory, Kept, keep
from fewscan.experiments.results import RunRecord
from fewscan.experiments.schemes.scheme import SliceTable
from fewscan.experiments.spec import Patch
from fewscan.experiments.to_device import sent
from fewscan.storage.errors import RunError
from fewscan.storage.labels import PretrainSlices
from fewscan.storage.runs import RunFolder
from fewscan.storage.slices import SliceStore
from fewscan.storage.splits import Fold

VALIDATION_BATCH = 32
"""Slices a validation batch; fixed, because what a scheme draws is drawn batch by batch. Of patches
as many as have no more slices, and at least one."""


def open_store(folder: RunFolder, fingerprint: str) -> SliceStore:
    """The store of a run. Raises `RunError` if its content is not what the run was planned for."""
    place = RunRecord.read(folder).store
    assert place is not None, "imported weights have no store, and no stage"
    store = SliceStore.open(place, Fold.of_fingerprint(fingerprint))
    if store.fingerprint != fingerprint:
        raise RunError(
            f"the store's content has changed: its fingerprint is {store.fingerprint}",
            where=store.path,
            expected=f"{fingerprint}, which run {folder.run_id} was planned for",
            remedy="sweep again: runs on the new content get ids and folders of their own",
        )
    return store


@dataclass(frozen=True)
class Batch:
    """Slices on the device that computes."""

    images_NCHW: Tensor
    """In units of the scan's 99th percentile; float32, or float64 if the run is."""
    labels_NHW: Tensor
    """int64; 0 is no lesion, k the store's k-th class."""


class SliceData:
    """All slices that a task draws from, wherever they are kept."""

    def __init__(
        self,
        kept: Kept,
        table: SliceTable,
        dtype: torch.dtype,
        device: str,
        note: str = "",
        patches: Patches | None = None,
    ) -> None:
        """`note` says where they are kept and why, for the record.

        With `patches`, of which the table tells, `kept` are all slices of their scans.
        """
        self.note = note
        self.patches = patches
        self.table = table
        self._kept = kept
        self._dtype = dtype
        self._device = device
        # Slices in memory are at hand; others are fetched while the step before computes.
        self._fetcher = None if isinstance(kept, InMemory) else ThreadPoolExecutor(1)
        self._coming: tuple[Tensor, Future[tuple[Tensor, Tensor]]] | None = None

    @classmethod
    def load(
        cls,
        store: SliceStore,
        subjects: Sequence[str],
        devices: Devices,
        dtype: torch.dtype,
        which: PretrainSlices = "all",
        at_most: int | None = None,
        patch: Patch | None = None,
        tiles: bool = False,
    ) -> "SliceData":
        """The kept slices of the subjects, or the healthy ones alone; or patches around them.

        `at_most` keeps that many, evenly spaced; `tiles` leaves patches that lie behind each other.
        Raises as `residency.keep`.
        """
        selection = ChosenSlices(store, subjects, which, at_most, patch, tiles)
        patches, stored = None, selection
        if patch is not None:
            patches, stored = selection.patches(patch), ChosenSlices(store, subjects)
        kept, note = keep(stored, devices)
        return cls(kept, selection.table(), dtype, devices.device, note, patches)

    def __len__(self) -> int:
        return len(self.table)

    def corners(self, count: int, generator: Generator) -> Tensor | None:
        """Where in the plane so many patches lie: see `Patches.corners`; None of slices."""
        return None if self.patches is None else self.patches.corners(count, generator)

    def batch(
        self,
        indices: Tensor,
        following: Tensor | None = None,
        corners_N2: Tensor | None = None,
    ) -> Batch:
        """The slices of these indices (on the CPU), on the device; or the patches around them.

        `following` are those of the next batch, which may be fetched in the meantime; `corners_N2`
        says where in the plane patches lie (None: in the middle).
        """
        images, labels = self._take(indices)
        if self._fetcher is not None and following is not None:
            self._coming = following, self._fetcher.submit(self._fetch, following)
        if self.patches is not None:
            images, labels = self.patches.cut(images, labels, indices, corners_N2)
        return Batch(self._on_device(images, self._dtype), self._on_device(labels))

    def _fetch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        return self._kept.take(indices if self.patches is None else self.patches.slices(indices))

    def _take(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        coming, self._coming = self._coming, None
        if coming is not None and torch.equal(coming[0], indices):
            return coming[1].result()
        return self._fetch(indices)

    def _on_device(self, tensor: Tensor, dtype: torch.dtype = torch.int64) -> Tensor:
        return sent(tensor, self._device, dtype)

    def validation_batches(
        self, devices: Devices, order: Tensor | None = None
    ) -> Iterator[tuple[int, Tensor, Batch]]:
        """This rank's share of all slices in `order`, each batch with its number and indices.

        None: in their own order.
        """
        order = torch.arange(len(self)) if order is None else order
        slices = 1 if self.patches is None else self.patches.size[0]
        indices = order.split(max(1, VALIDATION_BATCH // slices))
        mine = range(devices.rank, len(indices), devices.world_size)
        for number in mine:
            after = number + devices.world_size
            following = indices[after] if after in mine else None
            yield number, indices[number], self.batch(indices[number], following)
