"""Each transform against its meaning: exact cases, plain versions, and what must not change."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from fewscan.experiments import transforms


def planes(count=3, height=12, width=16, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(count, height, width, generator=generator, dtype=dtype)


def warped(image_HW, angle_deg=0.0, scale=1.0, labels_HW=None):
    labels_HW = (image_HW * 4).long() if labels_HW is None else labels_HW
    images, labels = transforms.warp(
        image_HW[None, None],
        labels_HW[None],
        torch.tensor([math.radians(angle_deg)], dtype=torch.float64),
        torch.tensor([scale], dtype=torch.float64),
    )
    return images[0, 0], labels[0]


@pytest.mark.parametrize(("angle_deg", "turns"), [(90, 1), (180, 2), (-180, 2), (-90, -1), (0, 0)])
def test_warp_turns_counter_clockwise_about_the_centre(angle_deg, turns):
    image = planes(1, 15, 15)[0] if turns % 2 else planes(1)[0]
    turned, labels = warped(image, angle_deg)
    torch.testing.assert_close(turned, image.rot90(turns), rtol=1e-9, atol=1e-9)
    assert torch.equal(labels, (image * 4).long().rot90(turns))


def test_warp_keeps_angles_in_images_that_are_not_square():
    # A line along the columns' axis becomes one along the rows' axis of the same length.
    image = torch.zeros(21, 41, dtype=torch.float64)
    image[10, 15:26] = 1
    turned, _ = warped(image, 90)
    expected = torch.zeros_like(image)
    expected[5:16, 20] = 1
    torch.testing.assert_close(turned, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("scale", "side"), [(1, 16), (2, 8), (0.5, 32)])
def test_a_scale_above_one_makes_things_smaller(scale, side):
    image = torch.zeros(64, 64, dtype=torch.float64)
    image[24:40, 24:40] = 1
    scaled, labels = warped(image, scale=scale, labels_HW=3 * image.long())
    expected = torch.zeros(64, 64, dtype=torch.long)
    first = 32 - side // 2
    expected[first : first + side, first : first + side] = 3
    assert torch.equal(labels, expected)
    assert scaled.sum().item() == pytest.approx(side**2, rel=0.05)


def test_warp_interpolates_images_and_never_labels():
    image, labels_HW = planes(1)[0], torch.arange(12 * 16).view(12, 16) % 5 * 3
    turned, labels = warped(image, 30, 1.1, labels_HW)
    assert set(labels.unique().tolist()) <= set(labels_HW.unique().tolist())
    assert not torch.isin(turned[4:8, 6:10], image).any()
    # Bilinear: a plane of constant slope stays one, wherever nothing comes from outside.
    slope = torch.arange(16, dtype=torch.float64).expand(16, 16)
    turned, _ = warped(slope, 90, 1)
    torch.testing.assert_close(turned, slope.rot90(), rtol=1e-9, atol=1e-9)


def test_warp_has_zeros_outside():
    image = torch.ones(20, 20, dtype=torch.float64)
    turned, labels = warped(image, scale=2, labels_HW=image.long())
    assert (turned[:4] == 0).all()
    assert (labels[:4] == 0).all()
    assert (turned[6:14, 6:14] == 1).all()


def test_noise_is_gaussian_and_shared_by_the_channels():
    images_NCHW = torch.zeros(2, 3, 128, 128)
    sigmas, seeds = torch.tensor([0.05, 0.1]), torch.tensor([2**62, 1])
    noise = transforms.add_noise(images_NCHW, sigmas, seeds)
    assert torch.equal(noise[:, 0], noise[:, 1])
    assert torch.equal(noise[:, 0], noise[:, 2])
    torch.testing.assert_close(noise.std(dim=(1, 2, 3)), sigmas, rtol=0.02, atol=0)
    assert noise.mean(dim=(1, 2, 3)).abs().max() < 0.003
    z = noise[0, 0] / 0.05
    assert (z.abs() < 1.96).float().mean().item() == pytest.approx(0.95, abs=0.01)
    assert torch.equal(transforms.add_noise(images_NCHW, sigmas, seeds), noise)


def test_blur_is_gaussian_along_each_axis():
    sigmas_px = torch.tensor([[0.5, 1.0], [0.8, 0.6], [1.0, 0.5]])
    images = planes()
    blurred = transforms.blur(images, sigmas_px)
    for plane, sigma, result in zip(images, sigmas_px.double().tolist(), blurred, strict=True):
        radius = [math.ceil(3 * s) for s in sigma]
        expected = ndimage.gaussian_filter(plane.numpy(), sigma, mode="mirror", radius=radius)
        torch.testing.assert_close(result, torch.from_numpy(expected), rtol=1e-6, atol=1e-6)


def test_brightness_multiplies():
    images = planes()
    factors = torch.tensor([0.75, 1.0, 1.25])
    brightened = transforms.change_brightness(images, factors)
    for plane, factor, result in zip(images, factors.tolist(), brightened, strict=True):
        torch.testing.assert_close(result, plane * factor)


@pytest.mark.parametrize("factor", [0.75, 1.25])
def test_contrast_is_about_the_mean_and_within_the_old_range(factor):
    (image,) = planes(1)
    image[0, 0], image[0, 1] = (
        3,
        -1,
    )  # outliers, so that stretching stays within the range elsewhere
    (result,) = transforms.change_contrast(image[None], torch.tensor([factor]))
    expected = image.mean() + factor * (image - image.mean())
    inside = (expected >= image.min()) & (expected <= image.max())
    torch.testing.assert_close(result[inside], expected[inside], rtol=1e-6, atol=1e-6)
    assert result.min() >= image.min()
    assert result.max() <= image.max()
    assert inside.all() == (factor < 1)


@pytest.mark.parametrize("scale", [0.5, 0.7, 0.99])
def test_low_resolution_is_nearest_down_and_bilinear_up(scale):
    image = planes(1, 20, 30)
    (result,) = transforms.lower_resolution(image, torch.tensor([scale], dtype=torch.float64))
    rows, columns = round(20 * scale), round(30 * scale)
    row_of = ((torch.arange(rows) + 0.5) * 20 / rows).long()
    column_of = ((torch.arange(columns) + 0.5) * 30 / columns).long()
    coarse = image[0][row_of][:, column_of]
    expected = F.interpolate(coarse[None, None], (20, 30), mode="bilinear")[0, 0]
    torch.testing.assert_close(result, expected, rtol=1e-9, atol=1e-9)
    if scale == 0.5:
        assert torch.equal(coarse, image[0, 1::2, 1::2])


def test_each_plane_has_its_own_resolution():
    images = planes(2)
    scales = torch.tensor([0.5, 0.8])
    both = transforms.lower_resolution(images, scales)
    for plane, scale, result in zip(images, scales, both, strict=True):
        assert torch.equal(transforms.lower_resolution(plane[None], scale[None])[0], result)


@settings(deadline=None, max_examples=20)
@given(gamma=st.floats(0.7, 1.5), inverted=st.booleans(), seed=st.integers(0, 2**31))
def test_gamma_is_a_power_with_mean_and_deviation_kept(gamma, inverted, seed):
    images = planes(seed=seed) * 2 - 0.3
    change = transforms.change_inverted_gamma if inverted else transforms.change_gamma
    changed = change(images, torch.full((3,), gamma, dtype=torch.float64))
    for before, after in zip(images, changed, strict=True):
        unit = (before - before.min()) / (before.max() - before.min())
        power = 1 - (1 - unit) ** gamma if inverted else unit**gamma
        standard = (power - power.mean()) / power.std()
        expected = standard * before.std() + before.mean()
        torch.testing.assert_close(after, expected, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(after.std(), before.std())
        torch.testing.assert_close(after.mean(), before.mean())


def test_gamma_acts_on_the_dark_end_and_inverted_on_the_bright_end():
    ramp = torch.linspace(0, 1, 64, dtype=torch.float64).view(1, 8, 8)
    gamma = torch.tensor([1.5])
    steps = transforms.change_gamma(ramp, gamma).flatten().diff()
    assert steps[0] < 0.5 * steps[-1]
    steps = transforms.change_inverted_gamma(ramp, gamma).flatten().diff()
    assert steps[-1] < 0.5 * steps[0]


@pytest.mark.parametrize(
    "change",
    [
        transforms.change_contrast,
        transforms.change_gamma,
        transforms.change_inverted_gamma,
        transforms.lower_resolution,
    ],
)
@pytest.mark.parametrize("value", [0.0, 0.7])
def test_constant_planes_stay_constant(change, value):
    constant = torch.full((2, 8, 8), value)
    changed = change(constant, torch.tensor([0.8, 0.9]))
    torch.testing.assert_close(changed, constant)
