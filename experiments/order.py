"""Which items make the batch of a step."""

from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import torch
from torch import Generator, Tensor

from fewscan.experiments.seeds import generator_for, seed_for
from fewscan.storage.errors import DeviceError, RunError


@dataclass(frozen=True)
class BatchOrder:
    """Which items make the batch of a step: epoch after epoch, each in a new random order.

    A batch may span two epochs, so every step is full and every item is seen equally often.
    """

    items: int
    batch_size: int
    seed: int
    _orders: dict[int, Tensor] = field(default_factory=dict, repr=False, compare=False)

    def indices(self, step: int) -> Tensor:
        """(batch_size,) int64 indices of the global batch of `step`."""
        first = step * self.batch_size
        places = range(first, first + self.batch_size)
        found = [int(self._order(p // self.items)[p % self.items]) for p in places]
        return torch.tensor(found, dtype=torch.int64)

    def _order(self, epoch: int) -> Tensor:
        if epoch not in self._orders:
            self._orders.pop(epoch - 2, None)
            generator = generator_for(self.seed, "order", epoch)
            self._orders[epoch] = torch.randperm(self.items, generator=generator)
        return self._orders[epoch]


@dataclass(frozen=True)
class OversampledOrder:
    """Which items make the batch of a step, some of whose places are for some of the items alone.

    As nnU-Net oversamples foreground: the last places of a batch are for patches that show some
    (Isensee et al. 2021: a third, at least), the others for any. Each kind comes epoch after epoch,
    in orders of its own; that it is any lesion and no class drawn first is our choice.
    """

    others: BatchOrder
    """For the first places, from all items."""
    chosen: BatchOrder
    """For the last places, from the items that are preferred."""
    items_N: Tensor
    """int64: the preferred ones."""

    @classmethod
    def of(cls, order: BatchOrder, items_N: Tensor, share: float) -> "OversampledOrder":
        """`order` with this share of each batch from these items."""
        places = order.batch_size - round(order.batch_size * (1 - share))
        seed = seed_for(order.seed, "oversampled")
        others = replace(order, batch_size=order.batch_size - places)
        return cls(others, BatchOrder(len(items_N), places, seed), items_N)

    def indices(self, step: int) -> Tensor:
        """(batch_size,) int64 indices of the global batch of `step`."""
        return torch.cat([self.others.indices(step), self.items_N[self.chosen.indices(step)]])


@dataclass(frozen=True)
class PairedOrder(BatchOrder):
    """Slices in pairs (0 and 1, 2 and 3, …) that lie at the same height of two scans.

    Every slice is first in a pair equally often. Its partner is a random one of those of other
    scans whose height differs by at most `reach`, or of the nearest if there is none.
    """

    scans_N: np.ndarray = field(kw_only=True)
    heights_N: np.ndarray = field(kw_only=True)
    """From 0, the first slice of a scan, to 1, the last."""
    reach: float = field(kw_only=True)

    def __post_init__(self) -> None:
        """Raises `DeviceError` for an odd batch, `RunError` if there is one scan alone."""
        if self.batch_size % 2:
            raise DeviceError(
                f"a batch of {self.batch_size} slices cannot be made of pairs",
                where="pretrain.training.batch_size",
                expected="an even number",
                remedy="change batch_size",
            )
        if len(np.unique(self.scans_N)) < 2:
            raise RunError(
                "slices of one scan alone, where each needs a partner from another one",
                expected="two scans or more to pre-train on",
                remedy="prepare more scans, or take another scheme",
            )

    def indices(self, step: int) -> Tensor:
        """(batch_size,) int64 indices, those of a pair behind each other."""
        firsts = BatchOrder(self.items, self.batch_size // 2, self.seed, self._orders).indices(step)
        generator = generator_for(self.seed, "partners", step)
        partners = [self._partner(int(first), generator) for first in firsts]
        return torch.stack([firsts, torch.tensor(partners)], dim=1).flatten()

    @cached_property
    def _by_height(self) -> np.ndarray:
        return np.argsort(self.heights_N, kind="stable")

    @cached_property
    def _sorted_heights(self) -> np.ndarray:
        heights: np.ndarray = self.heights_N[self._by_height]
        return heights

    def _partner(self, first: int, generator: Generator) -> int:
        height, scan = self.heights_N[first], self.scans_N[first]
        low = np.searchsorted(self._sorted_heights, height - self.reach, "left")
        high = np.searchsorted(self._sorted_heights, height + self.reach, "right")
        near = self._by_height[low:high]
        near = near[self.scans_N[near] != scan]
        if not len(near):
            others = np.flatnonzero(self.scans_N != scan)
            distances = np.abs(self.heights_N[others] - height)
            near = others[distances == distances.min()]
        return int(near[int(torch.randint(len(near), (), generator=generator))])


def paired(scans_N: np.ndarray, heights_N: np.ndarray) -> Tensor:
    """Every slice once, in pairs of similar height from two scans while there are two scans.

    For slices whose number is given, as in validation. int64 indices.
    """
    waiting = np.argsort(heights_N, kind="stable").tolist()
    order: list[int] = []
    while waiting:
        first = waiting.pop(0)
        others = (place for place, n in enumerate(waiting) if scans_N[n] != scans_N[first])
        place = next(others, None)
        if place is None:  # one scan is left
            return torch.tensor([*order, first, *waiting])
        order += [first, waiting.pop(place)]
    return torch.tensor(order, dtype=torch.int64)


@dataclass(frozen=True)
class ManyScansOrder(BatchOrder):
    """Slices of as many different scans as there are, or as fit into the batch.

    For each step scans are drawn, and of each a slice: scans are seen equally often on average.
    """

    scans_N: np.ndarray = field(kw_only=True)

    def indices(self, step: int) -> Tensor:
        """(batch_size,) int64 indices."""
        generator = generator_for(self.seed, "scans", step)
        scans = torch.randperm(len(self._slices_of), generator=generator).tolist()
        shares = torch.rand(self.batch_size, generator=generator, dtype=torch.float64).tolist()
        found = []
        for place, share in enumerate(shares):
            slices = self._slices_of[scans[place % len(scans)]]
            found.append(int(slices[int(share * len(slices))]))
        return torch.tensor(found)

    @cached_property
    def _slices_of(self) -> list[np.ndarray]:
        """Of each scan."""
        by_scan = np.argsort(self.scans_N, kind="stable")
        _, firsts = np.unique(self.scans_N[by_scan], return_index=True)
        return np.split(by_scan, firsts[1:])
