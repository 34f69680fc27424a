"""Which items make the batch of a step."""

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from fewscan.experiments.seeds import generator_for, seed_for


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
