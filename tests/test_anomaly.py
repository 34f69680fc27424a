"""Anomaly scores, the fast median and small components, against plain versions."""

import math
from itertools import product

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from fewscan.experiments import anomaly
from fewscan.experiments.anomaly import (
    PUBLISHED_MM,
    eroded,
    foreground,
    median_filter,
    reconstruction_anomaly,
    remove_small_components,
    voxels_in,
    window_of,
)


def median_filter_plain(images_NHW, window_HW=(5, 5)):
    """The 25 values of every window are gathered; borders are reflected."""
    rows, columns = window_HW
    rim = (columns // 2, columns // 2, rows // 2, rows // 2)
    padded_NHW = F.pad(images_NHW, rim, mode="reflect")
    return padded_NHW.unfold(1, rows, 1).unfold(2, columns, 1).flatten(3).median(dim=3).values


def plain_anomaly_score(images_NCHW, outputs_NCHW):
    """The definition, line by line."""
    seen = images_NCHW.sum(dim=1, keepdim=True) > 0.01
    kept = F.avg_pool2d(seen.float(), kernel_size=5, stride=1, padding=2) > 0.95
    error = ((images_NCHW - outputs_NCHW) * kept).abs().mean(dim=1)
    return median_filter_plain(error)


def heads(images, channels=4, size=32, seed=0):
    """Discs of tissue with pinholes on zeros, and outputs that differ a little everywhere."""
    generator = torch.Generator().manual_seed(seed)
    rows, columns = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    disc = (rows - size / 2) ** 2 + (columns - size / 2) ** 2 < (0.45 * size) ** 2
    pinholes = torch.rand(images, 1, size, size, generator=generator) > 0.02
    images_NCHW = torch.rand(images, channels, size, size, generator=generator) * disc * pinholes
    noise = torch.randn(images, channels, size, size, generator=generator)
    return images_NCHW, images_NCHW + 0.1 * noise


@pytest.mark.parametrize(("images", "channels", "size"), [(3, 4, 32), (1, 1, 20), (5, 2, 47)])
def test_score_is_exactly_the_plain_one(images, channels, size):
    images_NCHW, outputs_NCHW = heads(images, channels, size)
    scores_NHW = reconstruction_anomaly(images_NCHW, outputs_NCHW, PUBLISHED_MM)
    assert scores_NHW.shape == (images, size, size)
    assert torch.equal(scores_NHW, plain_anomaly_score(images_NCHW, outputs_NCHW))
    assert scores_NHW.any()


def test_score_is_float32_and_carries_no_gradient():
    images_NCHW, outputs_NCHW = heads(1)
    outputs_NCHW.requires_grad_()
    scores_NHW = reconstruction_anomaly(images_NCHW.half(), outputs_NCHW.bfloat16(), PUBLISHED_MM)
    assert scores_NHW.dtype == torch.float32
    assert not scores_NHW.requires_grad


def test_inputs_are_left_as_they_are():
    images_NCHW, outputs_NCHW = heads(2)
    before = images_NCHW.clone(), outputs_NCHW.clone()
    reconstruction_anomaly(images_NCHW, outputs_NCHW, PUBLISHED_MM)
    assert torch.equal(images_NCHW, before[0])
    assert torch.equal(outputs_NCHW, before[1])


def test_a_network_that_broke_does_not_look_healthy():
    images_NCHW, outputs_NCHW = heads(1)
    outputs_NCHW[0, 2, 16, 16] = math.nan
    assert reconstruction_anomaly(images_NCHW, outputs_NCHW, PUBLISHED_MM).isnan().any()


def test_foreground_is_the_channel_sum_above_a_hundredth():
    images_NCHW = torch.tensor([0.004, 0.006, 0.0, 0.5]).view(1, 1, 1, 4).repeat(1, 2, 1, 1)
    assert foreground(images_NCHW).flatten().tolist() == [False, True, False, True]
    assert not foreground(torch.full((1, 1, 1, 1), 0.01)).any(), "not at a hundredth"


@pytest.mark.parametrize(
    ("spacing_mm_HW", "window_HW"),
    [
        ((1.875, 1.875), (5, 5)),  # published: 240 voxels of 1 mm on 128 pixels
        ((1.8749999, 1.8750001), (5, 5)),
        ((240 / 128, 5.0), (5, 1)),  # 9.375 mm are 1.9 of 5 mm: 1 is nearest
        ((5.0, 5.0), (1, 1)),
        ((3.125, 1.34), (3, 7)),
        ((2.34, 2.35), (5, 3)),  # 4.006 and 3.989 pixels
        ((1.0, 0.5), (9, 19)),
        ((100.0, 0.01), (1, 255)),  # what 128 columns and their reflections hold
    ],
)
def test_windows_are_the_odd_number_of_pixels_nearest_to_a_length(spacing_mm_HW, window_HW):
    assert window_of(spacing_mm_HW, (128, 128)) == window_HW


@pytest.mark.parametrize("spacing_mm_HW", [(5.0, 5.0), (1.0, 3.0), (3.0, 3.1), (0.4, 0.4)])
def test_the_score_has_the_windows_of_its_slices(spacing_mm_HW):
    """By average pooling and gathered windows of rows × columns, also where these differ."""
    images_NCHW, outputs_NCHW = heads(2, 3, 26)
    rows, columns = window_HW = window_of(spacing_mm_HW, (26, 26))
    seen = (images_NCHW.sum(dim=1, keepdim=True) > 0.01).double()
    kept = F.avg_pool2d(seen, window_HW, stride=1, padding=(rows // 2, columns // 2)) > 0.95
    error = ((images_NCHW - outputs_NCHW) * kept).abs().mean(dim=1)
    scores_NHW = reconstruction_anomaly(images_NCHW, outputs_NCHW, spacing_mm_HW)
    assert torch.equal(scores_NHW, median_filter_plain(error, window_HW))
    assert scores_NHW.any() or rows > 9


def test_where_a_pixel_is_as_large_as_the_window_nothing_is_filtered():
    images_NCHW, outputs_NCHW = heads(2)
    scores_NHW = reconstruction_anomaly(images_NCHW, outputs_NCHW, (6.0, 6.0))
    error = (images_NCHW - outputs_NCHW).abs().mean(dim=1)
    assert torch.equal(scores_NHW, error * foreground(images_NCHW))


@settings(deadline=None, max_examples=20)
@given(
    window_HW=st.tuples(st.sampled_from([1, 3, 5, 7, 9]), st.sampled_from([1, 3, 5, 11])),
    levels=st.sampled_from([2, 50]),
    seed=st.integers(0, 2**16),
    at_once=st.sampled_from([1, 2000, 2**26]),
)
def test_the_median_of_any_window_is_the_plain_one(window_HW, levels, seed, at_once):
    """By OpenCV where it can, and however many rows are gathered at a time."""
    generator = torch.Generator().manual_seed(seed)
    images_NHW = torch.randint(-levels, levels, (3, 10, 12), generator=generator) / 7
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(anomaly, "_VALUES_AT_ONCE", at_once)
        filtered_NHW = median_filter(images_NHW, window_HW)
    assert torch.equal(filtered_NHW, median_filter_plain(images_NHW, window_HW))


def test_opencv_does_the_windows_that_it_can(monkeypatch):
    """The fast path: unfolding is not reached, and without it the numbers are the same."""
    images_NHW = torch.rand(3, 16, 20, generator=torch.Generator().manual_seed(0))
    plain = {n: median_filter_plain(images_NHW, (n, n)) for n in (3, 5)}
    monkeypatch.setattr(anomaly, "_unfolded_median", None)
    for n, expected_NHW in plain.items():
        assert torch.equal(median_filter(images_NHW, (n, n)), expected_NHW)


def test_a_component_is_small_by_its_volume():
    assert voxels_in(70.3125, (1.0, 1.875, 1.875)) == 20, "as published"
    assert voxels_in(70.3125, (1.0, np.float32(1.875 * (1 + 1e-7)), 1.875)) == 20
    assert voxels_in(70.3125, (1.0, 5.0, 5.0)) == 2
    assert voxels_in(70.3125, (5.0, 5.0, 5.0)) == 0
    assert voxels_in(0, (1.0, 1.0, 1.0)) == 0


@settings(deadline=None, max_examples=20)
@given(st.floats(0, 0.3), st.integers(0, 2**16))
def test_erosion_is_the_average_pooling(share, seed):
    generator = torch.Generator().manual_seed(seed)
    seen_NHW = torch.rand(2, 11, 9, generator=generator) >= share
    average = F.avg_pool2d(seen_NHW[:, None].float(), 5, stride=1, padding=2)[:, 0]
    assert torch.equal(eroded(seen_NHW), average > 0.95)


def test_erosion_clears_the_border_and_forgives_one_pixel():
    seen_NHW = torch.ones(1, 15, 15, dtype=torch.bool)
    expected = torch.zeros_like(seen_NHW)
    expected[:, 2:-2, 2:-2] = True
    assert torch.equal(eroded(seen_NHW), expected)
    seen_NHW[0, 7, 7] = False
    assert torch.equal(eroded(seen_NHW), expected)
    seen_NHW[0, 7, 8] = False
    assert not eroded(seen_NHW)[0, 7, 7]


def plain_removal(mask_ZHW, max_voxels):
    """Component by component, each filled on the whole grid."""
    kept_ZHW = mask_ZHW.copy()
    everywhere = np.ones((3, 3, 3))
    labels_ZHW, components = ndimage.label(mask_ZHW, everywhere)
    for label in range(1, components + 1):
        component = labels_ZHW == label
        if ndimage.binary_fill_holes(component, everywhere).sum() <= max_voxels:
            kept_ZHW[component] = False
    return kept_ZHW


@settings(deadline=None, max_examples=15)
@given(st.floats(0.02, 0.2), st.integers(0, 2**16), st.sampled_from([0, 1, 5, 20]))
def test_removal_equals_the_plain_one(share, seed, max_voxels):
    mask_ZHW = np.random.default_rng(seed).random((7, 8, 9)) < share
    np.testing.assert_array_equal(
        remove_small_components(mask_ZHW, max_voxels), plain_removal(mask_ZHW, max_voxels)
    )


def test_twenty_voxels_go_and_twenty_one_stay():
    mask_ZHW = np.zeros((5, 12, 30), bool)
    mask_ZHW[1, 2, :20] = True
    mask_ZHW[3, 8, :21] = True
    before = mask_ZHW.copy()
    kept_ZHW = remove_small_components(mask_ZHW, 20)
    assert not kept_ZHW[1].any()
    assert kept_ZHW[3].sum() == 21
    np.testing.assert_array_equal(mask_ZHW, before)


def test_voxels_that_touch_at_a_corner_are_one_component():
    mask_ZHW = np.zeros((21, 21, 21), bool)
    mask_ZHW[np.arange(21), np.arange(21), np.arange(21)] = True
    np.testing.assert_array_equal(remove_small_components(mask_ZHW, 20), mask_ZHW)


def test_holes_count_as_part_of_a_component():
    mask_ZHW = np.zeros((9, 9, 9), bool)
    mask_ZHW[1:4, 1:4, 1:4] = True
    mask_ZHW[2, 2, 2] = False
    assert remove_small_components(mask_ZHW, max_voxels=26).sum() == 26
    for max_voxels in (27, 28, 100):
        assert not remove_small_components(mask_ZHW, max_voxels).any()


def test_an_empty_mask_stays_empty():
    assert not remove_small_components(np.zeros((3, 4, 5), bool), 20).any()


@settings(deadline=None, max_examples=40)
@given(
    shape=st.tuples(st.integers(1, 4), st.integers(3, 12), st.integers(3, 12)),
    levels=st.sampled_from([2, 3, 50]),
    seed=st.integers(0, 2**16),
)
def test_equals_the_plain_median(shape, levels, seed):
    generator = torch.Generator().manual_seed(seed)
    images_NHW = torch.randint(-levels, levels, shape, generator=generator) / 7
    assert torch.equal(median_filter(images_NHW), median_filter_plain(images_NHW))


def test_borders_are_reflected_as_scipy_does():
    images_NHW = torch.rand(3, 9, 14, generator=torch.Generator().manual_seed(0))
    for image_HW, filtered_HW in zip(images_NHW, median_filter(images_NHW), strict=True):
        mirrored = ndimage.median_filter(image_HW.numpy(), size=5, mode="mirror")
        np.testing.assert_array_equal(filtered_HW, mirrored)


def test_every_window_of_zeros_and_ones_is_right():
    # A network of minima and maxima is right for all numbers if it is for zeros and ones (Knuth's
    # 0-1 principle). Of those windows: all patterns of a column, beside every number of ones in
    # each of the others.
    patterns = [list(bits) for bits in product((0.0, 1.0), repeat=5)]
    sorted_ = [[0.0] * (5 - ones) + [1.0] * ones for ones in range(6)]
    windows_NWH = torch.tensor(list(product(patterns, sorted_, sorted_, sorted_, sorted_)))
    medians_N = median_filter(windows_NWH.mT)[:, 2, 2]
    assert torch.equal(medians_N == 1, windows_NWH.sum(dim=(1, 2)) >= 13)


def test_how_many_images_there_are_changes_nothing():
    images_NHW = torch.rand(7, 16, 16, generator=torch.Generator().manual_seed(0))
    alone = [median_filter(image_HW[None])[0] for image_HW in images_NHW]
    assert torch.equal(median_filter(images_NHW), torch.stack(alone))


def test_one_image_with_a_nan_leaves_the_others_as_they_are():
    images_NHW = torch.rand(3, 16, 16, generator=torch.Generator().manual_seed(0))
    whole = median_filter(images_NHW)
    images_NHW[1, 5, 5] = math.nan
    broken = median_filter(images_NHW)
    assert torch.equal(broken[[0, 2]], whole[[0, 2]])
    assert broken[1].isnan().sum() == 25


def test_the_median_is_float32_and_leaves_its_input_alone():
    images_NHW = torch.rand(2, 9, 9, dtype=torch.float64, requires_grad=True)
    before = images_NHW.detach().clone()
    filtered_NHW = median_filter(images_NHW)
    assert filtered_NHW.dtype == torch.float32
    assert not filtered_NHW.requires_grad
    assert torch.equal(images_NHW, before)
    assert torch.equal(filtered_NHW, median_filter_plain(before.float()))


def test_a_strided_image_is_filtered_as_its_copy():
    images_NHW = torch.rand(8, 9, 3, generator=torch.Generator().manual_seed(0)).permute(2, 1, 0)
    assert torch.equal(median_filter(images_NHW), median_filter(images_NHW.contiguous()))


def test_nan_anywhere_in_a_window_shows():
    for row, column in product(range(5), repeat=2):
        images_NHW = torch.rand(1, 13, 13, generator=torch.Generator().manual_seed(0))
        images_NHW[0, row + 4, column + 4] = math.nan
        filtered_NHW = median_filter(images_NHW)
        assert filtered_NHW[0, 6, 6].isnan()
        assert torch.equal(filtered_NHW.isnan(), median_filter_plain(images_NHW).isnan())


def test_no_image_gives_no_image():
    assert median_filter(torch.zeros(0, 8, 8)).shape == (0, 8, 8)


@settings(deadline=None, max_examples=60)
@given(
    corner=st.tuples(st.integers(0, 11), st.integers(0, 13)),
    size=st.tuples(st.integers(0, 12), st.integers(0, 14)),
    seed=st.integers(0, 2**16),
    odd=st.sampled_from([0.5, math.nan, -math.inf]),
)
def test_what_lies_in_zeros_is_filtered_as_everything_is(corner, size, seed, odd):
    generator = torch.Generator().manual_seed(seed)
    images_NHW = torch.zeros(2, 12, 14)
    inside = images_NHW[:, corner[0] : corner[0] + size[0], corner[1] : corner[1] + size[1]]
    inside.copy_(torch.randn(inside.shape, generator=generator))
    if inside.numel():
        inside[0, 0, 0] = odd
    expected = median_filter_plain(images_NHW)
    torch.testing.assert_close(median_filter(images_NHW), expected, rtol=0, atol=0, equal_nan=True)
