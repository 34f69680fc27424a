"""Which items make the batch of a step."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from fewscan.experiments.seeds import generator_for


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
        return torch.stack([self._order(p // self.items)[p % self.items] for p in places])

    def _order(self, epoch: int) -> Tensor:
        if epoch not in self._orders:
            self._orders.pop(epoch - 2, None)
            generator = generator_for(self.seed, "order", epoch)
            self._orders[epoch] = torch.randperm(self.items, generator=generator)
        return self._orders[epoch]
