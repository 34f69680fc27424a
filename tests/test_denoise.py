"""Noise: as published, as fine as asked for, and the same however the batch is shared."""

import hashlib

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from fewscan.experiments.anomaly import foreground, reconstruction_anomaly
from fewscan.experiments.schemes import Denoise
from fewscan.experiments.schemes.denoise import Noise
from fewscan.experiments.schemes.scheme import SliceTable
from fewscan.experiments.spec import PROTOCOL, Network, Pretrain, Training, run_id
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


@settings(max_examples=25)
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


def energy_of(noise, size, mm):
    """Root mean square of what is added to slices of size² pixels, so many millimetres apart."""
    table = SliceTable(2, (size, size), np.arange(60), np.zeros(60), (mm, mm))
    images_NCHW = torch.ones(60, 2, size, size)
    return (
        noise_of(images_NCHW, Denoise(noise).draw(table, seeded(4))).square().mean().sqrt().item()
    )


def test_fine_noise_of_the_published_energy():
    """Interpolated, coarse noise has 0.668 of its deviation on the grid, fine noise all of it."""
    coarse = energy_of(Noise(), 128, 1.875)
    assert coarse == pytest.approx(0.668 * 0.2, rel=0.015)
    assert energy_of(Noise(resolution=128, std=0.134), 128, 1.875) == pytest.approx(
        coarse, rel=0.015
    )
    fine = Noise(pitch_mm=1.875, std=0.134)
    assert energy_of(fine, 128, 1.875) == pytest.approx(coarse, rel=0.015)
    assert energy_of(Noise(resolution=128), 128, 1.875) == pytest.approx(0.2, rel=0.015)
    assert energy_of(Noise(pitch_mm=16), 64, 3.75) == pytest.approx(coarse, rel=0.05)


@pytest.mark.parametrize(
    ("pitch_mm", "size", "spacing_mm", "nodes"),
    [
        (16.0, (128, 128), (1.875, 1.875), (16, 16)),  # the published grid
        (16.0, (64, 64), (3.75, 3.75), (16, 16)),
        (1.875, (128, 128), (1.875, 1.875), (128, 128)),
        (16.0, (64, 48), (1.0, 2.0), (5, 7)),
        (5.5, (14, 14), (1.0, 1.0), (3, 3)),  # from the first pixel's centre to the last's
        (0.5, (32, 16), (1.0, 1.0), (32, 16)),  # no finer than pixels
        (500.0, (32, 16), (1.0, 1.0), (1, 1)),
    ],
)
def test_the_grid_of_a_pitch(pitch_mm, size, spacing_mm, nodes):
    table = SliceTable(1, size, np.arange(3), np.zeros(3), spacing_mm)
    draw = Denoise(Noise(pitch_mm=pitch_mm)).draw(table, seeded())
    assert draw.coarse_NCRR.shape == (3, 1, *nodes)
    assert noise_of(torch.ones(3, 1, *size), draw).shape == (3, 1, *size)


def test_the_published_pitch_is_the_published_noise():
    table = SliceTable(4, (128, 128), np.arange(2), np.zeros(2), (1.875, 1.875))
    by_number = Denoise().draw(table, seeded())
    by_pitch = Denoise(Noise(pitch_mm=16)).draw(table, seeded())
    assert torch.equal(by_number.coarse_NCRR, by_pitch.coarse_NCRR)
    assert by_number.shift == by_pitch.shift


def test_ids_of_runs_without_a_pitch_are_as_they_were():
    spec = Pretrain("data", Network(), Training(10, 5), Denoise(Noise(resolution=8)))
    settings = '{"kind":"denoise","noise":{"resolution":8}}'
    training = '{"iterations":10,"validate_every":5}'
    canonical = (
        f'{{"data":"data","kind":"pretrain","network":{{}},"protocol":{PROTOCOL},'
        f'"scheme":{settings},"training":{training}}}'
    )
    assert run_id(spec) == hashlib.sha256(canonical.encode()).hexdigest()[:12]


def test_a_pitch_is_a_distance():
    for pitch_mm in (0, -1.0):
        with pytest.raises(ValueError, match="pitch_mm is"):
            Noise(pitch_mm=pitch_mm)
