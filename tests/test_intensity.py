"""Voxel values in units of the scan: what is background, what becomes 0 and 1."""

import numpy as np
import pytest

from fewscan.storage.errors import ScanError
from fewscan.storage.intensity import background_value, foreground_window, normalised


def ct(padding: int = -1024, seed: int = 0) -> np.ndarray:
    """Tissue in air that is padded outside the scanner's circle."""
    rng = np.random.default_rng(seed)
    image = np.full((20, 18, 7), padding, np.int16)
    image[2:-2, 2:-2] = rng.normal(-1000, 10, (16, 14, 7))
    image[5:-5, 5:-5] = rng.normal(40, 30, (10, 8, 7))
    return image


def test_ct_is_clipped_to_the_percentiles_of_what_is_not_padding() -> None:
    image = ct()
    found = normalised([image], "percentiles")
    (result,), divisors, tops = found.channels_XYZ, found.divisors, found.tops
    inside = image[image != -1024].astype(float)
    low, high = np.quantile(inside, [0.005, 0.995])
    assert divisors == (1.0,)
    assert tops == pytest.approx((high,))
    expected = np.where(image == -1024, 0, ((image - low) / (high - low)).clip(0, 1))
    np.testing.assert_allclose(result, expected, atol=1e-6)
    assert result.dtype == np.float32


@pytest.mark.parametrize("dtype", [np.int16, np.int32, np.float32, np.float64])
def test_every_type_gives_the_same(dtype: type) -> None:
    (expected,) = normalised([ct().astype(np.float64)], "percentiles").channels_XYZ
    (result,) = normalised([np.asfortranarray(ct().astype(dtype))], "percentiles").channels_XYZ
    np.testing.assert_allclose(result, expected, atol=1e-6)


def test_background_stays_zero_in_an_image_that_was_shifted() -> None:
    """Skull-stripped and z-scored: the brain is on both sides of the background's 0."""
    image = np.zeros((10, 10, 6), np.float32)
    image[2:8, 2:8] = np.random.default_rng(1).standard_normal((6, 6, 6))
    (result,) = normalised([image], "percentiles").channels_XYZ
    assert not result[image == 0].any()
    assert result[image > 0].mean() > result[image < 0].mean() > 0


def test_background_is_what_all_corners_share() -> None:
    image = ct()
    assert background_value(image) == -1024
    image[-1, 0, -1] = -1000
    assert background_value(image) is None
    low, high = foreground_window(image)
    assert (low, high) == pytest.approx(tuple(np.quantile(image.astype(float), [0.005, 0.995])))
    assert background_value(np.ones((1, 1, 1))) == 1


def test_units_do_not_matter() -> None:
    (one,) = normalised([ct()], "percentiles").channels_XYZ
    (other,) = normalised([ct().astype(float) * 3 + 500], "percentiles").channels_XYZ
    np.testing.assert_allclose(one, other, atol=1e-6)


def test_the_published_rule_leaves_the_voxels_and_says_what_to_divide_by() -> None:
    image = np.arange(60, dtype=np.int16).reshape(3, 4, 5)
    found = normalised([image], "quantile")
    (result,), divisors, tops = found.channels_XYZ, found.divisors, found.tops
    assert result is image
    assert divisors == tops == (np.quantile(image[image > 0].astype(float), 0.99),)


def test_what_cannot_be_scaled_is_refused_by_its_channel() -> None:
    good, flat = ct(), np.zeros((4, 4, 4), np.int16)
    flat[1:3, 1:3, 1:3] = 7
    with pytest.raises(ScanError, match="channel 2 has no contrast"):
        normalised([good, flat], "percentiles")
    with pytest.raises(ScanError, match="no voxel of channel 2 is above zero") as caught:
        normalised([flat, -flat], "quantile")
    assert "percentiles" in str(caught.value.remedy)


def brain(seed: int) -> np.ndarray:
    image = np.zeros((12, 12, 8), np.float32)
    image[2:-2, 2:-2] = np.random.default_rng(seed).normal(400, 40, (8, 8, 8))
    return image


def test_an_image_with_tissue_below_zero_is_none_for_the_published_rule() -> None:
    shifted = brain(1)
    inside = shifted > 0
    shifted[inside] = (shifted[inside] - shifted[inside].mean()) / shifted[inside].std()
    with pytest.raises(ScanError, match=r"channel 2 has 2\d% of its voxels below zero") as caught:
        normalised([brain(0), shifted], "quantile")
    assert "--normalisation percentiles" in str(caught.value.remedy)
    assert normalised([brain(0), shifted], "percentiles").voxels_below_zero == 0


@pytest.mark.parametrize(("part", "refused"), [(0.045, False), (0.055, True)])
def test_what_interpolation_leaves_below_zero_is_tolerated(part: float, refused: bool) -> None:
    """Up to 5 % of what is above, and it is counted."""
    image = np.abs(brain(0))
    image[0, :, 0] = -part * image.sum(dtype=float) / 12
    if refused:
        with pytest.raises(ScanError, match="below zero"):
            normalised([image], "quantile")
    else:
        assert normalised([image], "quantile").voxels_below_zero == 12
