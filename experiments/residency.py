"""Where the slices of a run are kept while it trains: on the device, on the node, or in the store.

Which one is chosen changes no bit of a result. Letters in names: N slices, C channels, H and W rows
and columns.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from fewscan.experiments.devices import Devices
from fewscan.experiments.patches import Patches
from fewscan.experiments.schemes.scheme import SliceTable
from fewscan.experiments.spec import Patch
from fewscan.experiments.tiling import tiles
from fewscan.experiments.to_device import sent
from fewscan.storage.errors import DeviceError
from fewscan.storage.labels import PretrainSlices
from fewscan.storage.shared_slices import SHARE_OF_FREE, SharedSlices
from fewscan.storage.slices import SliceStore
from fewscan.storage.stream import SliceStream
from fewscan.storage.system.memory import available_bytes

SHARE_OF_DEVICE = 0.5
"""Of a run's share of a GPU's memory: the rest is for activations and weights."""
_LOADED_AT_ONCE = 256


class ChosenSlices:
    """Which slices of a store: the kept ones of some subjects, or the healthy ones."""

    def __init__(
        self,
        store: SliceStore,
        ids: Sequence[str],
        which: PretrainSlices = "all",
        at_most: int | None = None,
        patch: Patch | None = None,
        tiles: bool = False,
    ) -> None:
        """Read nothing yet. `at_most` takes so many, evenly spaced.

        With a `patch` each is the middle of one, and `tiles` takes those whose patches lie behind
        each other, the last one of a scan perhaps over the one before it.
        """
        self.store = store
        self.patch = patch
        self.stream = SliceStream(store, ids, which, 1 if patch is None else patch[0])
        found_N = np.arange(len(self.stream))
        if patch is not None and tiles:
            found_N = self._tiles(patch[0])
        count = len(found_N) if at_most is None else min(at_most, len(found_N))
        self.indices_N = found_N[np.arange(count) * len(found_N) // max(count, 1)]
        """Numbers of the slices in the stream."""

    def _tiles(self, depth: int) -> np.ndarray:
        """Numbers of those whose patches lie behind each other."""
        found: list[int] = []
        for subject, id_ in enumerate(self.ids):
            numbers_N = np.flatnonzero(self.stream.subjects_N == subject)
            kept = self.store.subjects[id_].positions
            found += numbers_N[tiles(self.stream.positions_N[numbers_N], kept, depth)].tolist()
        return np.array(found, np.int64)

    def __len__(self) -> int:
        return len(self.indices_N)

    @property
    def ids(self) -> tuple[str, ...]:
        """The subjects."""
        return self.stream.ids

    @property
    def nbytes(self) -> int:
        """Bytes of images in half precision and labels in one byte."""
        return len(self) * self.store.size**2 * (2 * len(self.store.channels) + 1)

    def table(self) -> SliceTable:
        """What is known of the slices without reading them."""
        stream, size = self.stream, self.store.size
        plane = (size, size)
        scans_N, positions_N = stream.subjects_N[self.indices_N], stream.positions_N[self.indices_N]
        store = self.store
        counts = [store.slices_of(store.subjects[subject]) for subject in stream.ids]
        last_N = np.maximum(np.array(counts, np.int64)[scans_N] - 1, 1)
        spacings_mm = [store.spacing_mm_ZHW(subject) for subject in stream.ids]
        through_mm, rows_mm, columns_mm = np.median(spacings_mm, axis=0).tolist()
        return SliceTable(
            len(self.store.channels),
            plane if self.patch is None else self.patch,
            scans_N,
            positions_N / last_N,
            (rows_mm, columns_mm) if self.patch is None else (through_mm, rows_mm, columns_mm),
        )

    def patches(self, size: Patch) -> Patches:
        """Those around the slices."""
        stream, plane = self.stream, (self.store.size, self.store.size)
        kept = [self.store.subjects[subject].positions for subject in stream.ids]
        of, at = stream.subjects_N[self.indices_N], stream.positions_N[self.indices_N]
        return Patches.around(size, plane, kept, of, at)

    def empty(self, count: int, device: str = "cpu", pinned: bool = False) -> tuple[Tensor, Tensor]:
        """Room for `count` slices: images_NCHW (float16), labels_NHW (uint8)."""
        plane = (self.store.size, self.store.size)
        images = torch.empty(
            (count, len(self.store.channels), *plane),
            dtype=torch.float16,
            device=device,
            pin_memory=pinned,
        )
        labels = torch.empty((count, *plane), dtype=torch.uint8, device=device, pin_memory=pinned)
        return images, labels


class Kept(Protocol):
    """Slices that are kept somewhere."""

    def __len__(self) -> int:
        """How many."""

    def take(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """images_NCHW (float16) and labels_NHW (uint8) of these indices (int64, on the CPU).

        They may still be on their way to the device when this returns, in its stream.
        """


@dataclass(frozen=True)
class InMemory:
    """Slices in one tensor, on a device or in memory of this process alone."""

    images_NCHW: Tensor
    labels_NHW: Tensor

    def __len__(self) -> int:
        return len(self.images_NCHW)

    def take(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """See `Kept`."""
        where = sent(indices, self.images_NCHW.device)
        return self.images_NCHW[where], self.labels_NHW[where]


@dataclass(frozen=True)
class Mapped:
    """Slices in files that the processes of the node share; see `SharedSlices`."""

    selection: ChosenSlices
    maps: list[tuple[np.ndarray, np.ndarray]]
    """Of each subject, all kept slices."""
    pinned: bool

    def __len__(self) -> int:
        return len(self.selection)

    def take(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """See `Kept`."""
        images_NCHW, labels_NHW = self.selection.empty(len(indices), pinned=self.pinned)
        to_images, to_labels = images_NCHW.numpy(), labels_NHW.numpy()
        stream = self.selection.stream
        for n, number in enumerate(self.selection.indices_N[indices.numpy()]):
            subject = stream.subjects_N[number]
            first = stream.store.subjects[stream.ids[subject]].first
            row = stream.positions_N[number] - first
            to_images[n], to_labels[n] = (kept[row] for kept in self.maps[subject])
        return images_NCHW, labels_NHW


@dataclass(frozen=True)
class Streamed:
    """Slices that are read from the store whenever they are needed."""

    selection: ChosenSlices
    pinned: bool

    def __len__(self) -> int:
        return len(self.selection)

    def take(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """See `Kept`."""
        slices = self.selection.stream.gather(self.selection.indices_N[indices.numpy()])
        images_NCHW = torch.from_numpy(slices.images_NCHW)
        labels_NHW = torch.from_numpy(slices.labels_NHW)
        if self.pinned:
            images_NCHW, labels_NHW = images_NCHW.pin_memory(), labels_NHW.pin_memory()
        return images_NCHW, labels_NHW


def keep(selection: ChosenSlices, devices: Devices) -> tuple[Kept, str]:
    """Keep the slices where `devices.residency` says, and say where and why.

    `auto`: on a GPU in its memory if they take at most half of the run's share of it, else as on a
    CPU: in a folder of the node that has room, else in memory of this process, else in the store.
    Raises `DeviceError` for `shared` if no folder of the node has room.
    """
    wish, need = devices.residency, selection.nbytes
    on_gpu = devices.device.startswith("cuda")
    shared, rooms = _shared(selection, devices)
    if wish == "device" or (wish == "auto" and on_gpu and need <= _device_bytes(devices)):
        return _loaded(
            selection, shared, devices.device
        ), f"device: {_size(need)} on {devices.device}"
    if wish in ("auto", "shared") and shared is not None:
        maps = shared.map(selection.ids)
        return Mapped(selection, maps, on_gpu), f"shared: {_size(need)} in {shared.folder}"
    if wish == "shared":
        raise DeviceError(
            f"the slices have no place that processes share: {rooms}",
            where="resources.residency",
            expected=f"room for {_size(need)}, with as much again left free",
            remedy="set resources.residency to auto or stream",
        )
    if wish == "auto" and need <= SHARE_OF_FREE * available_bytes():
        return _loaded(selection, None, "cpu", on_gpu), f"memory: {_size(need)}; {rooms}"
    return Streamed(selection, on_gpu), f"stream: {_size(need)} are read as needed; {rooms}"


def _shared(selection: ChosenSlices, devices: Devices) -> tuple[SharedSlices | None, str]:
    """The first folder of the node that has room and is ours alone, and what was found."""
    for folder in devices.node_folders:
        shared = SharedSlices(selection.store, folder)
        if shared.fits(selection.ids) and shared.is_ours():
            return shared, f"room in {folder}"
    folders = " and ".join(map(str, devices.node_folders))
    return None, f"too little room in {folders}" if folders else "no folder of this node is given"


def _device_bytes(devices: Devices) -> float:
    free, total = torch.cuda.mem_get_info(devices.device)
    return min(SHARE_OF_DEVICE * devices.gpu_share * total, 0.8 * free)


def _loaded(
    selection: ChosenSlices, shared: SharedSlices | None, device: str, pinned: bool = False
) -> InMemory:
    """All slices in one tensor, filled part by part."""
    images_NCHW, labels_NHW = selection.empty(len(selection), device, pinned)
    source: Kept = Streamed(selection, False)
    if shared is not None:
        source = Mapped(selection, shared.map(selection.ids), False)
    for part in torch.arange(len(selection)).split(_LOADED_AT_ONCE):
        start, stop = int(part[0]), int(part[-1]) + 1
        images_NCHW[start:stop], labels_NHW[start:stop] = source.take(part)
    return InMemory(images_NCHW, labels_NHW)


def _size(nbytes: int) -> str:
    return f"{nbytes / 1e9:.2f} GB" if nbytes >= 1e8 else f"{nbytes / 1e6:.1f} MB"
