"""Slices are what the published preprocessing gives, and its fast parts what numpy gives."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from fake_scans import AFFINE, fake_images
from hypothesis import given, settings
from hypothesis import strategies as st

from fewscan.storage.errors import ScanError
from fewscan.storage.geometry import Frame
from fewscan.storage.intensity import bright_quantile, counted_quantile
from fewscan.storage.preprocess import (
    Losses,
    Resize,
    filled_window,
    kept_slices,
    preprocess,
    resized_labels,
)
from fewscan.storage.scans import Scan


def scan_of(channels: list[np.ndarray], labels: np.ndarray | None) -> Scan:
    fortran = [np.asfortranarray(channel) for channel in channels]
    labels = None if labels is None else np.asfortranarray(labels)
    return Scan(tuple(fortran), labels, AFFINE, (1.0, 1.0, 1.5))


def interpolate(images_NCXY: np.ndarray, size: int) -> np.ndarray:
    images = torch.from_numpy(np.ascontiguousarray(images_NCXY, dtype=np.float64))
    return F.interpolate(images, size=(size, size), mode="bilinear", align_corners=False).numpy()


def published(
    channels: list[np.ndarray], labels_XYZ: np.ndarray, size: int
) -> tuple[int, np.ndarray, np.ndarray]:
    """First slice, images and binary masks as the paper describes them, in plain float64."""
    normalised = np.stack([c / np.quantile(c[c > 0].astype(float), 0.99) for c in channels])
    filled = np.flatnonzero(normalised.mean(axis=0).sum(axis=(0, 1)) > 0.5)
    first, end = filled[0], filled[-1] + 1
    images = interpolate(normalised[..., first:end].transpose(3, 0, 1, 2), size)
    masks = interpolate((labels_XYZ[..., first:end] > 0.5).transpose(2, 0, 1)[:, None], size) > 0.5
    return int(first), images, masks[:, 0]


def square(side: int, size: int) -> Frame:
    return Frame.of((side, side, 1), (1, 1, 1), axis=2, size=size)


def head(shape_XYZ: tuple[int, int, int]) -> tuple[list[np.ndarray], np.ndarray]:
    """A scan with a ragged lesion."""
    channels, classes = fake_images(0, shape_XYZ)
    ragged = np.random.default_rng(1).random(shape_XYZ) < 0.7
    return channels, classes * ragged


def test_slices_of_brats_size_are_the_published_ones_bit_for_bit() -> None:
    channels, classes = head((240, 240, 20))
    first, images, masks = published(channels, classes, 128)
    result = preprocess(scan_of(channels, classes), 128)
    assert result.first == first == 1
    assert np.array_equal(result.images_NCHW, images.astype(np.float16))
    assert result.labels_NHW is not None
    assert np.array_equal(result.labels_NHW > 0, masks)
    assert masks.any(axis=(1, 2)).sum() > 3


@pytest.mark.parametrize("size", [7, 24, 31])
@pytest.mark.parametrize("dtype", [np.int16, np.int32, np.float32])
def test_any_size_and_type(size: int, dtype: type) -> None:
    channels, classes = fake_images(5, (20, 20, 10))
    channels = [channel.astype(dtype) for channel in channels[:2]]
    first, images, masks = published(channels, classes, size)
    result = preprocess(scan_of(channels, classes), size)
    assert result.first == first
    np.testing.assert_allclose(result.images_NCHW, images, rtol=2**-10, atol=1e-7)
    assert result.labels_NHW is not None
    assert np.array_equal(result.labels_NHW > 0, masks)


def test_slices_keep_the_array_axes() -> None:
    """Row is X, column is Y: at the scan's own size nothing moves."""
    channels, classes = fake_images(2, (16, 16, 6))
    result = preprocess(scan_of(channels, classes), 16)
    for n, z in enumerate(range(result.first, result.first + len(result.images_NCHW))):
        assert np.array_equal(result.labels_NHW[n], classes[:, :, z])
        expected = (channels[1][:, :, z] / result.quantiles[1]).astype(np.float16)
        assert np.array_equal(result.images_NCHW[n, 1], expected)


def test_a_pixel_of_the_lesion_gets_the_class_with_the_largest_share() -> None:
    _, classes = head((60, 60, 12))
    shares = [interpolate((classes == k).transpose(2, 0, 1)[:, None], 32)[:, 0] for k in (1, 2, 3)]
    labels = resized_labels(classes, square(60, 32))
    assert set(np.unique(labels)) == {0, 1, 2, 3}
    largest = np.max(shares, axis=0)
    chosen = np.choose(np.maximum(labels.astype(int) - 1, 0), shares)
    inside = labels > 0
    np.testing.assert_allclose(chosen[inside], largest[inside], rtol=0, atol=1e-12)


def test_half_of_a_lesion_is_not_a_lesion() -> None:
    """Shares of exactly one half: the published threshold is "more than"."""
    classes = np.zeros((8, 8, 1), np.uint8)
    classes[:3] = 2
    labels = resized_labels(classes, square(8, 4))
    assert labels[0].tolist() == [[2] * 4, [0] * 4, [0] * 4, [0] * 4]


def test_labels_are_optional_and_empty_slices_at_the_ends_go() -> None:
    channels, _ = fake_images(0)
    result = preprocess(scan_of(channels, None), 12)
    assert result.labels_NHW is None
    assert result.first == 1
    assert len(result.images_NCHW) == channels[0].shape[2] - 2


def slices_that_sum_to(*sums_Z: float) -> np.ndarray:
    """A channel of 2×3 voxels a slice, in one of which is all that there is."""
    channel_HWZ = np.zeros((2, 3, len(sums_Z)), np.float32)
    channel_HWZ[1, 2] = sums_Z
    return channel_HWZ


def test_a_slice_counts_if_its_normalised_voxels_sum_to_more_than_a_half() -> None:
    """Exactly a half is not enough; what is too little between two that count is kept."""
    sums_Z = (0.0, 0.5, 0.51, 0.0, 0.5, 0.75, 0.5, 0.25)
    assert kept_slices([slices_that_sum_to(*sums_Z)], [1.0]) == range(2, 6)
    assert kept_slices([slices_that_sum_to(*(80 * s for s in sums_Z))], [80.0]) == range(2, 6)


def test_what_counts_is_the_mean_over_channels_each_in_its_own_unit() -> None:
    one = slices_that_sum_to(0.9, 0.9, 0.2, 4.0)
    other = slices_that_sum_to(10.0, 20.0, 180.0, 0.0)
    assert kept_slices([one, other], [1.0, 100.0]) == range(1, 4)
    assert kept_slices([one[..., :2], other[..., :2]], [1.0, 100.0]) == range(1, 2)


@settings(deadline=None, max_examples=200)
@given(st.lists(st.integers(1, 300), min_size=1, max_size=400), st.floats(0, 1))
def test_counting_gives_numpys_quantile(values: list[int], q: float) -> None:
    assert counted_quantile(np.bincount(values), q) == np.quantile(np.array(values, float), q)


@pytest.mark.parametrize("dtype", [np.int16, np.uint16, np.uint8, np.int32, np.float32, np.float64])
def test_quantile_of_each_type(dtype: type) -> None:
    voxels = np.random.default_rng(0).integers(-50, 120, (30, 20, 10)).astype(dtype)
    voxels[::3] = 0
    bright = voxels[voxels > 0].astype(float)
    assert bright_quantile(np.asfortranarray(voxels)) == np.quantile(bright, 0.99)


def test_nothing_in_any_slice_and_a_voxel_beyond_half_precision() -> None:
    speck = np.zeros((4, 4, 3), np.int16)
    speck[1, 1, 1] = 5
    empty = [speck, *(np.roll(speck, shift, axis=2) for shift in (1, 2, 1))]
    with pytest.raises(ScanError, match="no slice"):
        preprocess(scan_of(empty, None), 4)
    outlier = np.ones((20, 20, 3), np.float32)
    outlier[0, 0, 0] = 1e6
    with pytest.raises(ScanError, match="channel 2"):
        preprocess(scan_of([np.ones_like(outlier), outlier], None), 4)


@settings(deadline=None, max_examples=100)
@given(
    size=st.sampled_from([3, 8, 13, 30]),
    corner=st.tuples(st.integers(0, 19), st.integers(0, 19)),
    lengths=st.tuples(st.integers(0, 20), st.integers(0, 20)),
    seed=st.integers(0, 2**16),
)
def test_leaving_out_what_is_zero_changes_nothing(
    size: int, corner: tuple[int, int], lengths: tuple[int, int], seed: int
) -> None:
    frame = square(20, size)
    volumes = np.zeros((2, 20, 20, 3), np.int16)
    inside = volumes[:, corner[0] : corner[0] + lengths[0], corner[1] : corner[1] + lengths[1], 1]
    inside[...] = np.random.default_rng(seed).integers(-9, 9, inside.shape)
    everything = Resize.exact_for(volumes.dtype, frame, (slice(0, 20), slice(0, 20)))
    some = Resize.exact_for(volumes.dtype, frame, filled_window(list(volumes)))
    for image_HW in (volumes[0, ..., 1], volumes[1, ..., 1], volumes[0, ..., 0]):
        resized_HW = np.zeros((size, size), np.float32)
        resized_HW[some.outputs] = some(image_HW)
        assert np.array_equal(resized_HW, everything(image_HW))


def test_lesions_that_are_not_in_the_slices_are_counted() -> None:
    """One too small to be seen, one in a slice without tissue, and one that is seen."""
    image = np.zeros((40, 40, 6), np.int16)
    image[5:35, 5:35, 1:5] = 100
    labels = np.zeros((40, 40, 6), np.uint8)
    labels[20:22, 20, 2] = 1
    labels[10:30, 10:30, 3] = 2
    labels[0:3, 0, 5] = 2
    labels[20, 20, 4] = 3
    scan = replace(scan_of([image], labels), class_count=4)
    result = preprocess(scan, 10)
    assert (result.first, result.depth) == (1, 6)
    assert result.lesion_voxels_NK is not None
    expected = [[0, 0, 0, 0], [2, 0, 0, 0], [0, 400, 0, 0], [0, 0, 1, 0]]
    assert result.lesion_voxels_NK.tolist() == expected
    assert result.losses() == Losses(
        slices=2, lesion_slices=1, lesion_voxels=3, faded_slices=2, faded_voxels=3
    )
    assert result.losses((1, 2)) == Losses(2, 1, 3, 1, 2)
    assert result.losses((4,)) == Losses(slices=2)
    unlabelled = preprocess(scan_of([image], None), 10)
    assert unlabelled.lesion_voxels_NK is None
    assert unlabelled.losses() == Losses(slices=2)


def test_a_few_voxels_below_zero_are_said() -> None:
    image = np.full((20, 20, 3), 100, np.int16)
    assert preprocess(scan_of([image], None), 10).sentences() == []
    image[0, 0, 0] = -50
    (said,) = preprocess(scan_of([image], None), 10).sentences()
    assert "below zero" in said
