"""The fast median equals the plain one, to the bit."""

import math
from itertools import product

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from fewscan.experiments import median
from fewscan.experiments.median import median_filter, median_filter_plain


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
    # 0-1 principle). Columns are sorted first and alike: so one column takes all its patterns, and
    # the others, with each number of ones, are given sorted.
    patterns = [list(bits) for bits in product((0.0, 1.0), repeat=5)]
    sorted_ = [[0.0] * (5 - ones) + [1.0] * ones for ones in range(6)]
    windows_NWH = torch.tensor(list(product(patterns, sorted_, sorted_, sorted_, sorted_)))
    medians_N = median_filter(windows_NWH.mT)[:, 2, 2]
    assert torch.equal(medians_N == 1, windows_NWH.sum(dim=(1, 2)) >= 13)


def test_work_in_parts_changes_nothing(monkeypatch):
    images_NHW = torch.rand(7, 16, 16, generator=torch.Generator().manual_seed(0))
    whole = median_filter(images_NHW)
    for pixels in (1, 3 * 256, 7 * 256):
        monkeypatch.setattr(median, "_PIXELS_AT_ONCE", {"cpu": pixels})
        assert torch.equal(median_filter(images_NHW), whole)


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
