"""Coarse noise: as published, and the same however the batch is shared."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from fewscan.experiments.noise import coarse_noise, draw_noise, masked_noise


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def test_is_the_published_noise():
    # The recipe line by line, with the numbers in the order that our draw takes them.
    images_NCHW = torch.rand(3, 4, 32, 48, generator=seeded(1))
    images_NCHW[:, :, :8] = 0
    generator = seeded(2)
    coarse = torch.randn(3, 4, 16, 16, generator=generator) * 0.2
    rows = int(torch.randint(32, (), generator=generator))
    columns = int(torch.randint(48, (), generator=generator))
    noise = F.interpolate(coarse, (32, 48), mode="bilinear", align_corners=True)
    noise = torch.roll(noise, shifts=[rows, columns], dims=[-2, -1])
    expected = noise * (images_NCHW.sum(dim=1, keepdim=True) > 0.01)
    assert torch.equal(coarse_noise(images_NCHW, generator=seeded(2)), expected)


def test_only_in_the_foreground():
    images_NCHW = torch.zeros(1, 2, 32, 32)
    images_NCHW[:, 0, :16] = 0.006
    images_NCHW[:, 1, :16] = 0.005
    images_NCHW[:, :, 16:] = 0.005  # sums to 0.01: not above it
    noise = coarse_noise(images_NCHW, generator=seeded())
    assert (noise[:, :, :16] != 0).all()
    assert (noise[:, :, 16:] == 0).all()


@pytest.mark.parametrize("std", [0.2, 0.5])
def test_standard_deviation_on_the_grid_and_independence(std):
    draw = draw_noise(200, 4, 16, std, (32, 32), seeded())
    assert draw.coarse_NCRR.shape == (200, 4, 16, 16)
    assert draw.coarse_NCRR.std().item() == pytest.approx(std, rel=0.01)
    assert draw.coarse_NCRR.mean().item() == pytest.approx(0, abs=0.01 * std)
    images_and_channels = draw.coarse_NCRR.flatten(0, 1).flatten(1)[:50]
    correlation = torch.corrcoef(images_and_channels) - torch.eye(50)
    assert correlation.abs().max() < 0.4


def test_shifts_reach_every_row_and_column():
    generator = seeded()
    shifts = torch.tensor([draw_noise(1, 1, 2, 1, (8, 4), generator).shift for _ in range(400)])
    assert shifts[:, 0].unique().tolist() == list(range(8))
    assert shifts[:, 1].unique().tolist() == list(range(4))


@settings(deadline=None, max_examples=25)
@given(
    images=st.integers(1, 6),
    resolution=st.integers(1, 16),
    seed=st.integers(0, 2**31),
    data=st.data(),
)
def test_a_share_of_the_batch_gets_its_share_of_the_noise(images, resolution, seed, data):
    a = data.draw(st.integers(0, images - 1))
    b = data.draw(st.integers(a + 1, images))
    images_NCHW = torch.rand(images, 3, 16, 24, generator=seeded(seed)).sub(0.5).relu()
    draw = draw_noise(images, 3, resolution, 0.2, (16, 24), seeded(seed))
    whole = masked_noise(images_NCHW, draw)
    assert len(draw[a:b]) == b - a
    assert torch.equal(masked_noise(images_NCHW[a:b], draw[a:b]), whole[a:b])
    assert torch.equal(coarse_noise(images_NCHW, resolution, 0.2, generator=seeded(seed)), whole)


def test_follows_the_precision_of_the_images():
    images_NCHW = torch.rand(2, 1, 16, 16, dtype=torch.float64)
    assert coarse_noise(images_NCHW, generator=seeded()).dtype == torch.float64
