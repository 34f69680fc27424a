"""The losses against their formulas; sums that pool exactly, over batches and over ranks."""

from functools import partial, reduce
from operator import add
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from fewscan.experiments.devices import Devices, launch
from fewscan.experiments.losses import (
    masked_reconstruction_loss,
    reconstruction_loss,
    segmentation_loss,
    segmentation_sums,
    sums_over_ranks,
)


def batch(images=3, classes=4, size=8, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(images, classes, size, size, generator=generator, dtype=dtype) * 3
    return logits, torch.randint(classes, (images, size, size), generator=generator)


def loss_of(logits, labels):
    return segmentation_loss(segmentation_sums(logits, labels))


def plain_loss(logits, labels):
    """Cross-entropy + 1 − Dice, class by class."""
    probabilities = logits.softmax(dim=1)
    dice = []
    for k in range(1, logits.shape[1]):
        p, t = probabilities[:, k], (labels == k).to(logits)
        dice.append((2 * (p * t).sum() + 1e-5) / (p.sum() + t.sum() + 1e-5))
    return F.cross_entropy(logits, labels) + 1 - sum(dice) / len(dice)


def test_reconstruction_is_averaged_over_all_pixels():
    output, target = torch.full((2, 3, 4, 4), 0.5), torch.zeros(2, 3, 4, 4)
    foreground_NHW = torch.zeros(2, 4, 4, dtype=torch.bool)
    foreground_NHW[0, :2] = True
    # A quarter of the pixels, each with 0.5².
    loss = reconstruction_loss(output, target, foreground_NHW)
    assert loss.item() == pytest.approx(0.25 * 8 / 32)


def test_reconstruction_teaches_nothing_outside_the_foreground():
    output = torch.randn(1, 2, 4, 4, requires_grad=True)
    foreground_NHW = torch.arange(16).view(1, 4, 4) % 3 == 0
    reconstruction_loss(output, torch.zeros(1, 2, 4, 4), foreground_NHW).backward()
    assert torch.equal(output.grad != 0, foreground_NHW.unsqueeze(1).expand_as(output))


def test_masked_reconstruction_is_averaged_over_the_values_of_the_mask():
    output, target = torch.rand(2, 3, 4, 4), torch.rand(2, 3, 4, 4)
    mask_NHW = torch.zeros(2, 4, 4, dtype=torch.bool)
    assert masked_reconstruction_loss(output, target, mask_NHW) == 0
    mask_NHW[0, :2] = True
    mask_NHW[1, 3, 3] = True
    where = mask_NHW[:, None].expand_as(output)
    expected = (output[where] - target[where]).square().mean()
    torch.testing.assert_close(masked_reconstruction_loss(output, target, mask_NHW), expected)


def masked_gradient(folder, devices):
    """The gradient of the masked loss of a batch whose images hide unlike numbers of pixels."""
    images_NCHW = torch.rand(4, 2, 8, 8, generator=torch.Generator().manual_seed(1)).double()
    mask_NHW = torch.arange(4 * 64).view(4, 8, 8) < 140
    share, scale = devices.share_of(4), torch.ones((), dtype=torch.float64, requires_grad=True)
    loss = masked_reconstruction_loss(
        images_NCHW[share] * scale, torch.full_like(images_NCHW[share], 0.3), mask_NHW[share]
    )
    loss.backward()
    mean = [devices.sum_over_ranks(it) / devices.world_size for it in (loss.detach(), scale.grad)]
    torch.save(mean, folder / f"masked {devices.rank}.pt")


def test_reconstruction_of_a_bf16_output_is_computed_in_float32():
    output, target = torch.rand(1, 1, 8, 8).bfloat16(), torch.rand(1, 1, 8, 8)
    everywhere = torch.ones(1, 8, 8, dtype=torch.bool)
    loss = reconstruction_loss(output, target, everywhere)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(F.mse_loss(output.double(), target.double()).item())


@settings(deadline=None, max_examples=25)
@given(images=st.integers(1, 4), classes=st.integers(2, 5), seed=st.integers(0, 2**31))
def test_segmentation_loss_and_gradient_are_the_formula(images, classes, seed):
    logits, labels = batch(images, classes, seed=seed, dtype=torch.float64)
    ours, plain = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    loss, expected = loss_of(ours, labels), plain_loss(plain, labels)
    loss.backward()
    expected.backward()
    torch.testing.assert_close(loss, expected, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(ours.grad, plain.grad, rtol=1e-8, atol=1e-12)


def test_perfect_and_worst_prediction():
    labels = torch.arange(16).view(1, 4, 4) % 3
    certain = 50.0 * F.one_hot(labels, 3).permute(0, 3, 1, 2)
    assert loss_of(certain, labels).item() == pytest.approx(0, abs=1e-5)
    # Each pixel certainly wrong: cross-entropy 50, no overlap at all.
    assert loss_of(certain, (labels + 1) % 3).item() == pytest.approx(51, rel=1e-3)


def test_an_absent_class_that_is_not_predicted_has_dice_one():
    labels = torch.zeros(1, 4, 4, dtype=torch.long)
    logits = torch.tensor([200.0, 0.0]).view(1, 2, 1, 1).expand(1, 2, 4, 4)
    assert loss_of(logits, labels).item() == pytest.approx(0, abs=1e-6)


def test_background_has_no_dice():
    logits, labels = batch(classes=3)
    sums = segmentation_sums(logits, labels)
    assert len(sums.intersection_K) == len(sums.prediction_K) == len(sums.target_K) == 2
    assert sums.target_K.tolist() == [(labels == 1).sum(), (labels == 2).sum()]
    assert sums.pixels == labels.numel()


@settings(deadline=None, max_examples=20)
@given(sizes=st.lists(st.integers(1, 3), min_size=1, max_size=4), seed=st.integers(0, 2**31))
def test_pooled_sums_are_those_of_one_batch(sizes, seed):
    logits, labels = batch(sum(sizes), seed=seed)
    parts = zip(logits.split(sizes), labels.split(sizes), strict=True)
    pooled = reduce(add, (segmentation_sums(*part) for part in parts))
    torch.testing.assert_close(segmentation_loss(pooled), loss_of(logits, labels))


def test_bf16_logits_under_autocast_lose_nothing():
    logits, labels = batch()
    logits = logits.bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        loss = loss_of(logits, labels)
    assert torch.equal(loss, loss_of(logits.float(), labels))
    expected = plain_loss(logits.double(), labels)
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("certainty", [1e3, 1e4])
def test_certain_logits_stay_finite(certainty):
    logits, labels = batch()
    logits = (logits * certainty).requires_grad_()
    loss = loss_of(logits, labels)
    loss.backward()
    assert loss.isfinite()
    assert logits.grad.isfinite().all()


def global_gradient(folder: Path, devices: Devices) -> None:
    """What DDP does with a shared scale: each rank its share, then the mean of the gradients."""
    logits, labels = batch(images=4)
    share = devices.share_of(4)
    scale = torch.ones((), requires_grad=True)
    loss = segmentation_loss(
        sums_over_ranks(segmentation_sums(logits[share] * scale, labels[share]))
    )
    loss.backward()
    gradient = devices.sum_over_ranks(scale.grad) / devices.world_size
    torch.save((loss.detach(), gradient), folder / f"{devices.rank}.pt")
    masked_gradient(folder, devices)


def test_two_ranks_have_the_loss_and_gradient_of_one(tmp_path):
    global_gradient(tmp_path, Devices())
    alone, masked_alone = (torch.load(tmp_path / name) for name in ("0.pt", "masked 0.pt"))
    launch(partial(global_gradient, tmp_path), Devices(world_size=2))
    for rank in range(2):
        shared = torch.load(tmp_path / f"{rank}.pt")
        torch.testing.assert_close(shared, alone)
        torch.testing.assert_close(torch.load(tmp_path / f"masked {rank}.pt"), masked_alone)
