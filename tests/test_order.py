"""The order of batches: every epoch sees every item once."""

import math

import torch
from hypothesis import given
from hypothesis import strategies as st

from fewscan.experiments.order import BatchOrder


@given(items=st.integers(1, 40), batch_size=st.integers(1, 20), seed=st.integers(0, 5))
def test_every_epoch_sees_every_item_once(items: int, batch_size: int, seed: int) -> None:
    order = BatchOrder(items, batch_size, seed)
    steps = math.ceil(3 * items / batch_size)
    seen = torch.cat([order.indices(step) for step in range(steps)])
    for epoch in range(3):
        assert sorted(seen[epoch * items : (epoch + 1) * items].tolist()) == list(range(items))
    assert torch.equal(BatchOrder(items, batch_size, seed).indices(steps - 1), seen[-batch_size:])
