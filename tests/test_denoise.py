"""Coarse noise: as published, and the same however the batch is shared."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from fewscan.experiments.anomaly import foreground, reconstruction_anomaly
from fewscan.experiments.schemes import Denoise
from fewscan.experiments.schemes.denoise import Noise
from fewscan.experiments.schemes.scheme import SliceTable
from fewscan.experiments.unet import UNet

MM_HW = (1.0, 3.0)
"""Between rows and between columns: windows of 9 × 3."""


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def drawn(count, channels, resolution, std, size, generator):
    scheme = Denoise(Noise(resolution, std))
    return scheme.draw(SliceTable.unrelated(channels, size, count), generator)


def noise_of(images_NCHW, draw):
    """What a clean image is given."""
    noisy_NCHW, _ = Denoise().pretext(images_NCHW, draw)
    return noisy_NCHW - images_NCHW


def published_draw(images_NCHW, generator):
    count, channels, *size = images_NCHW.shape
    return Denoise().draw(SliceTable.unrelated(channels, tuple(size), count), generator)


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
    expected = images_NCHW + noise * (images_NCHW.sum(dim=1, keepdim=True) > 0.01)
    noisy_NCHW, _ = Denoise().pretext(images_NCHW, published_draw(images_NCHW, seeded(2)))
    assert torch.equal(noisy_NCHW, expected)


def test_only_in_the_foreground():
    images_NCHW = torch.zeros(1, 2, 32, 32)
    images_NCHW[:, 0, :16] = 0.006
    images_NCHW[:, 1, :16] = 0.005
    images_NCHW[:, :, 16:] = 0.005  # sums to 0.01: not above it
    noise = noise_of(images_NCHW, published_draw(images_NCHW, seeded()))
    assert (noise[:, :, :16] != 0).all()
    assert (noise[:, :, 16:] == 0).all()


@pytest.mark.parametrize("std", [0.2, 0.5])
def test_standard_deviation_on_the_grid_and_independence(std):
    draw = drawn(200, 4, 16, std, (32, 32), seeded())
    assert draw.coarse_NCRR.shape == (200, 4, 16, 16)
    assert draw.coarse_NCRR.std().item() == pytest.approx(std, rel=0.01)
    assert draw.coarse_NCRR.mean().item() == pytest.approx(0, abs=0.01 * std)
    images_and_channels = draw.coarse_NCRR.flatten(0, 1).flatten(1)[:50]
    correlation = torch.corrcoef(images_and_channels) - torch.eye(50)
    assert correlation.abs().max() < 0.4


def test_shifts_reach_every_row_and_column():
    generator = seeded()
    shifts = torch.tensor([drawn(1, 1, 2, 1.0, (8, 4), generator).shift for _ in range(400)])
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
    draw = drawn(images, 3, resolution, 0.2, (16, 24), seeded(seed))
    whole, clean = Denoise().pretext(images_NCHW, draw)
    share, clean_share = Denoise().pretext(images_NCHW[a:b], draw[a:b])
    assert len(draw[a:b].coarse_NCRR) == b - a
    assert torch.equal(share, whole[a:b])
    assert torch.equal(clean_share.images_NCHW, clean.images_NCHW[a:b])
    assert torch.equal(clean_share.foreground_NHW, clean.foreground_NHW[a:b])


def test_follows_the_precision_of_the_images():
    images_NCHW = torch.rand(2, 1, 16, 16, dtype=torch.float64)
    draw = published_draw(images_NCHW, seeded())
    assert noise_of(images_NCHW, draw).dtype == torch.float64


def test_the_clean_slice_is_asked_for_inside_its_foreground():
    images_NCHW = torch.rand(2, 3, 16, 16, generator=seeded(3))
    images_NCHW[:, :, :5] = 0
    noisy_NCHW, clean = Denoise().pretext(images_NCHW, published_draw(images_NCHW, seeded()))
    assert torch.equal(clean.images_NCHW, images_NCHW)
    assert torch.equal(clean.foreground_NHW, foreground(images_NCHW))
    squared = (noisy_NCHW - images_NCHW).square() * foreground(images_NCHW)[:, None]
    loss = Denoise().loss(noisy_NCHW, clean)
    assert loss.item() == pytest.approx(squared.mean().item())


def test_the_anomaly_score_is_that_of_the_reconstruction_of_the_clean_slice():
    images_NCHW = torch.rand(2, 3, 16, 16, generator=seeded(3))
    torch.manual_seed(0)
    network = UNet(3, 3, width=4, depth=2)
    with torch.no_grad():
        scores_NHW = Denoise().anomaly_score(network, images_NCHW, MM_HW)
        outputs_NCHW = network(images_NCHW)
    assert torch.equal(scores_NHW, reconstruction_anomaly(images_NCHW, outputs_NCHW, MM_HW))
    assert scores_NHW.any()
