"""How slices lie in scans of any shape, and that the squares show them undistorted."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fewscan.storage.errors import ScanError
from fewscan.storage.geometry import Frame, slice_axis, thickest_axis, usual_axis
from fewscan.storage.preprocess import preprocess
from fewscan.storage.scans import Scan

LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


def test_a_plane_is_found_by_the_affine() -> None:
    permuted = np.eye(4)[[1, 2, 0, 3]]  # the array's axes run to R, A, S in the order S, R, A
    assert [slice_axis(plane, LPS) for plane in ("sagittal", "coronal", "axial")] == [0, 1, 2]
    assert [slice_axis(plane, permuted) for plane in ("sagittal", "coronal", "axial")] == [1, 2, 0]
    assert slice_axis(1, permuted) == 1


@pytest.mark.parametrize(
    ("spacings_mm", "axis"),
    [
        ([], 2),
        ([(1, 1, 1)], 2),
        ([(1.005, 1, 1)], 2),
        ([(0.5, 0.5, 3)], 2),
        ([(1, 4, 1), (1, 4, 2), (0.5, 0.5, 3)], 1),
    ],
)
def test_the_thickest_axis(spacings_mm: list[tuple[float, ...]], axis: int) -> None:
    assert thickest_axis(spacings_mm) == axis


def test_a_slice_of_brats_fills_the_square() -> None:
    frame = Frame.of((240, 240, 155), (1, 1, 1), axis=2, size=128)
    assert frame.inner_HW == (128, 128)
    assert frame.window == (slice(0, 128), slice(0, 128))
    assert frame.spacing_mm((1, 1, 1)) == (1, 1.875, 1.875)


def test_anisotropic_slices_keep_their_aspect() -> None:
    frame = Frame.of((70, 48, 152), (2, 4, 1), axis=1, size=76)
    assert frame.shape_HW == (70, 152)
    assert frame.inner_HW == (70, 76), "140 mm by 152 mm"
    assert frame.window == (slice(3, 73), slice(0, 76))
    assert frame.spacing_mm((2, 4, 1)) == (4, 2, 2)


@given(
    st.tuples(*[st.integers(1, 300)] * 3),
    st.tuples(*[st.floats(0.1, 8)] * 3),
    st.integers(0, 2),
    st.integers(8, 128),
)
def test_the_window_lies_in_the_square_and_touches_two_sides(
    shape_XYZ: tuple[int, ...], spacing_mm: tuple[float, ...], axis: int, size: int
) -> None:
    frame = Frame.of(shape_XYZ, spacing_mm, axis, size)
    assert max(frame.inner_HW) == size
    for side, inner in zip(frame.window, frame.inner_HW, strict=True):
        assert 0 <= side.start < side.stop <= size
        assert side.stop - side.start == inner
        assert abs(side.start - (size - side.stop)) <= 1
    volume = np.empty(shape_XYZ)
    assert frame.as_slices(volume).shape == (*frame.shape_HW, shape_XYZ[axis])
    assert frame.as_volume(frame.as_slices(volume)).shape == shape_XYZ


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_slices_along_any_axis_are_those_of_the_turned_scan(axis: int) -> None:
    rng = np.random.default_rng(0)
    shape = (12, 16, 9)
    channels = tuple(rng.integers(1, 900, shape).astype(np.int16) for _ in range(2))
    labels = (rng.random(shape) < 0.3).astype(np.uint8)
    turned = [np.moveaxis(v, axis, 2) for v in (*channels, labels)]
    spacing = (1.0, 2.0, 3.0)
    there = tuple(s for k, s in enumerate(spacing) if k != axis)
    scan = Scan(channels, labels, np.diag([*spacing, 1]), spacing)
    expected = preprocess(
        Scan(tuple(turned[:2]), turned[2], np.diag([*there, spacing[axis], 1]), (*there, 7.0)), 24
    )
    result = preprocess(scan, 24, axis)
    assert np.array_equal(result.images_NCHW, expected.images_NCHW)
    assert np.array_equal(result.labels_NHW, expected.labels_NHW)


def test_a_disc_stays_a_disc_and_around_the_slice_is_nothing() -> None:
    """An ellipse in voxels of 2 mm by 1 mm is a disc in the patient, and in the square."""
    rows, columns = np.meshgrid(np.arange(20) - 9.5, np.arange(64) - 31.5, indexing="ij")
    disc = ((2 * rows) ** 2 + columns**2 < 15**2)[..., None] * np.ones(3)
    scan = Scan(((disc * 100 + 1).astype(np.int16),), disc.astype(np.uint8), LPS, (2, 1, 5))
    result = preprocess(scan, 64)
    assert result.labels_NHW is not None
    rows, columns = np.nonzero(result.labels_NHW[0])
    assert 27 <= np.ptp(rows) <= 29, "it was made of voxels of 2 mm"
    assert 27 <= np.ptp(columns) <= 29
    assert rows.mean() == columns.mean() == 31.5
    outside = np.ones((64, 64), bool)
    outside[result.frame.window] = False
    assert outside.sum() == 64 * 24
    assert not result.images_NCHW[..., outside].any()
    assert (result.images_NCHW[..., ~outside] > 0).all()


@pytest.mark.parametrize(
    ("shapes_XYZ", "axis"),
    [
        ([(1, 40, 32)] * 3, 0),
        ([(40, 1, 32)] * 2 + [(1, 40, 32)], 1),
        ([(40, 32, 1)] * 2, 2),
        ([(1, 40, 32), (9, 40, 32), (9, 40, 32)], 1),
        ([(1, 1, 32)] * 3, 1),
        ([], 1),
    ],
)
def test_of_single_slices_the_axis_is_the_one_of_length_1(
    shapes_XYZ: list[tuple[int, ...]], axis: int
) -> None:
    """Else the one with the largest spacing, here the second."""
    assert usual_axis(shapes_XYZ, [(1, 4, 1)]) == axis


def test_a_single_slice_is_not_cut_into_lines() -> None:
    image = np.arange(1, 1281, dtype=np.int16).reshape(1, 40, 32)
    scan = Scan((image,), None, np.eye(4), (1, 1, 1))
    assert preprocess(scan, 16, 0).images_NCHW.shape == (1, 1, 16, 16)
    with pytest.raises(ScanError, match="a single slice across axis 0") as caught:
        preprocess(scan, 16, 2)
    assert "--axis 0" in str(caught.value.remedy)
