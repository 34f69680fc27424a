"""Slices of a split as tensors, ready to be made into batches.

Letters in names: N slices, C channels, H and W rows and columns.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import Tensor

from fewscan.experiments.devices import Devices
from fewscan.experiments.residency import ChosenSlices, InMemory, Kept, keep
from fewscan.experiments.results import RunRecord
from fewscan.experiments.schemes.scheme import SliceTable
from fewscan.experiments.to_device import sent
from fewscan.storage.errors import RunError
from fewscan.storage.labels import PretrainSlices
from fewscan.storage.runs import RunFolder
from fewscan.storage.slices import SliceStore

VALIDATION_BATCH = 32
"""Slices a validation batch; fixed, because what a scheme draws is drawn batch by batch."""


def open_store(folder: RunFolder, fingerprint: str) -> SliceStore:
    """The store of a run. Raises `RunError` if its content is not what the run was planned for."""
    place = RunRecord.read(folder).store
    assert place is not None, "imported weights have no store, and no stage"
    store = SliceStore.open(place)
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
        self, kept: Kept, table: SliceTable, dtype: torch.dtype, device: str, note: str = ""
    ) -> None:
        """`note` says where they are kept and why, for the record."""
        self.note = note
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
    ) -> "SliceData":
        """The kept slices of the subjects, or the healthy ones alone.

        `at_most` keeps that many, evenly spaced. Raises as `residency.keep`.
        """
        selection = ChosenSlices(store, subjects, which, at_most)
        kept, note = keep(selection, devices)
        return cls(kept, selection.table(), dtype, devices.device, note)

    def __len__(self) -> int:
        return len(self._kept)

    def batch(self, indices: Tensor, following: Tensor | None = None) -> Batch:
        """The slices of these indices (on the CPU), on the device.

        `following` are those of the next batch, which may be fetched in the meantime.
        """
        images_NCHW, labels_NHW = self._take(indices)
        if self._fetcher is not None and following is not None:
            self._coming = following, self._fetcher.submit(self._kept.take, following)
        return Batch(self._on_device(images_NCHW, self._dtype), self._on_device(labels_NHW))

    def _take(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        coming, self._coming = self._coming, None
        if coming is not None and torch.equal(coming[0], indices):
            return coming[1].result()
        return self._kept.take(indices)

    def _on_device(self, tensor: Tensor, dtype: torch.dtype = torch.int64) -> Tensor:
        return sent(tensor, self._device, dtype)

    def validation_batches(
        self, devices: Devices, order: Tensor | None = None
    ) -> Iterator[tuple[int, Tensor, Batch]]:
        """This rank's share of all slices in `order`, each batch with its number and indices.

        None: in their own order.
        """
        order = torch.arange(len(self)) if order is None else order
        indices = order.split(VALIDATION_BATCH)
        mine = range(devices.rank, len(indices), devices.world_size)
        for number in mine:
            after = number + devices.world_size
            following = indices[after] if after in mine else None
            yield number, indices[number], self.batch(indices[number], following)
