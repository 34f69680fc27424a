import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fewscan.storage.phantom.anatomy import (
    BOX_ZYX,
    Push,
    coarser,
    doubled,
    draw_head,
    ellipsoid,
    smooth_noise,
    tube,
)

shapes = st.tuples(*[st.integers(2, 9)] * 3)


@settings(deadline=None, max_examples=25)
@given(shapes, st.tuples(*[st.floats(-3, 3, width=32)] * 3))
def test_doubling_keeps_planes(shape: tuple[int, int, int], slope: tuple[float, ...]) -> None:
    """A linear field is reproduced, with coarse point c at 2c − ½ of the fine grid."""
    coarse = np.indices(coarser(shape)) * 2 - 0.5
    plane = np.tensordot(slope, coarse, 1).astype(np.float32)
    expected = np.tensordot(slope, np.indices(shape), 1)
    np.testing.assert_allclose(doubled(plane, shape), expected, atol=1e-4)


def test_noise_has_the_strength_it_was_asked_for() -> None:
    noise = smooth_noise(np.random.default_rng(0), (64, 64, 64), (0, 2.0))
    assert noise.std() == pytest.approx(2.0, rel=0.1)
    assert np.abs(np.diff(noise, axis=0)).mean() < 1.0


def test_depths_are_millimetres() -> None:
    z, y, x = np.indices((41, 41, 41)).astype(np.float32) - 20
    radius = np.sqrt(z * z + y * y + x * x)
    ball = ellipsoid((z, y, x), (0, 0, 0), (15, 15, 15))
    np.testing.assert_allclose(ball[radius > 1], 15 - radius[radius > 1], atol=1e-2)
    rod = tube((z, y, x), [(-20, 0, 0), (0, 0, 0), (20, 0, 0)], 5)
    np.testing.assert_allclose(rod, 5 - np.hypot(y, x), atol=1e-4)


def test_heads_have_their_parts_and_fit_the_box() -> None:
    for seed in range(3):
        head = draw_head(np.random.default_rng(seed))
        brain = head.brain_ZYX > 0
        assert (head.ventricles_ZYX > 0).sum() > 500
        assert (head.nuclei_ZYX > 0).sum() > 500
        assert brain[(head.ventricles_ZYX > 0) | (head.nuclei_ZYX > 0)].mean() > 0.99
        assert brain.shape == coarser(BOX_ZYX)
        assert not brain[-1].any()
        grey = brain & (head.cortex_ZYX < head.sulcus_mm + head.ribbon_mm)
        assert 0.25 < grey.sum() / brain.sum() < 0.75


def test_tissue_gives_way() -> None:
    """What lay 10 mm beside a growing thing lies farther away afterwards."""
    centre_mm = (10.0, 0.0, 30.0)
    before, after = (
        draw_head(np.random.default_rng(0), pushes).place
        for pushes in ((), (Push(centre_mm, 20, 0.3),))
    )
    apart = [
        np.sqrt(sum((p - c) ** 2 for p, c in zip(place, centre_mm, strict=True)))
        for place in (before, after)
    ]
    assert (apart[1] <= apart[0] + 1e-3).all()
    near = (apart[0] > 8) & (apart[0] < 12)
    assert (apart[0] - apart[1])[near].mean() > 1
