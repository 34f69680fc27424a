"""Slices of a split as tensors, ready to be made into batches.

Letters in names: N slices, C channels, H and W rows and columns.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from experiments.devices import Devices
from storage.errors import RunError
from storage.runs import RunFolder
from storage.slices import SliceStore

VALIDATION_BATCH = 32
"""Slices a validation batch; fixed, because the validation noise is drawn batch by batch."""


def open_store(folder: RunFolder, fingerprint: str) -> SliceStore:
    """The store of a run. Raises `RunError` if its content is not what the run was planned for."""
    store = SliceStore.open(Path(folder.read_spec()["store"]))
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


@dataclass(frozen=True)
class SliceData:
    """All slices that a task draws from, as the store holds them, in memory."""

    images_NCHW: Tensor
    """float16."""
    labels_NHW: Tensor
    """uint8."""
    dtype: torch.dtype
    device: str

    @classmethod
    def load(
        cls,
        store: SliceStore,
        subjects: Sequence[str],
        devices: Devices,
        dtype: torch.dtype,
        healthy_only: bool = False,
        at_most: int | None = None,
    ) -> "SliceData":
        """Read the kept slices of the subjects, or the healthy ones alone.

        `at_most` keeps that many, evenly spaced.
        """
        slices = store.read(subjects, healthy_only=healthy_only)
        images, labels = torch.from_numpy(slices.images_NCHW), torch.from_numpy(slices.labels_NHW)
        if at_most is not None and at_most < len(images):
            kept = torch.arange(at_most) * len(images) // at_most
            images, labels = images[kept], labels[kept]
        return cls(images, labels, dtype, devices.device)

    def __len__(self) -> int:
        return len(self.images_NCHW)

    def batch(self, indices: Tensor) -> Batch:
        """The slices of these indices, on the device."""
        return self._batch(self.images_NCHW[indices], self.labels_NHW[indices])

    def _batch(self, images_NCHW: Tensor, labels_NHW: Tensor) -> Batch:
        return Batch(
            images_NCHW.to(self.device, self.dtype), labels_NHW.to(self.device, torch.int64)
        )

    def validation_batches(self, devices: Devices) -> Iterator[tuple[int, Batch]]:
        """This rank's share of all slices in order, each batch with its number."""
        starts = range(0, len(self), VALIDATION_BATCH)
        for number in range(devices.rank, len(starts), devices.world_size):
            part = slice(starts[number], starts[number] + VALIDATION_BATCH)
            yield number, self._batch(self.images_NCHW[part], self.labels_NHW[part])
