"""Models Genesis: each change against a plain one, how often it happens, and their order."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from fewscan.experiments.anomaly import foreground
from fewscan.experiments.blocks import uniform
from fewscan.experiments.schemes import Genesis
from fewscan.experiments.schemes.genesis import bend, curves, paint, shuffle
from fewscan.experiments.schemes.scheme import SliceTable

MM = (1.875, 1.875)
CHANGES = ("shuffle_N", "bend_N", "paint_N", "flip_N2")


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def heads(count=6, size=48, seed=0):
    """Discs of tissue on zeros, values up to 1.3."""
    rows, columns = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    disc = (rows - size / 2) ** 2 + (columns - size / 2) ** 2 < (0.42 * size) ** 2
    return (0.1 + 1.2 * torch.rand(count, 3, size, size, generator=seeded(seed))) * disc


def drawn(count=6, size=48, seed=0, only=None, mm=MM):
    """A draw in which everything happens to every image, or one change alone."""
    table = SliceTable(3, (size, size), np.arange(count), np.zeros(count), mm)
    draw = Genesis().draw(table, seeded(seed))
    happens = {name: torch.ones_like(getattr(draw, name)) for name in CHANGES}
    if only is not None:
        happens |= {n: torch.zeros_like(happens[n]) for n in CHANGES if n not in only}
    return replace(draw, **happens)


def test_pixels_are_shuffled_within_windows_and_all_channels_alike():
    images_NCHW, draw = heads(), drawn()
    seen_NHW = foreground(images_NCHW)
    found_NCHW = shuffle(images_NCHW, seen_NHW, draw)
    moved = 0
    for n in range(6):
        rows, columns = draw.pitch_N2[n].tolist()
        above, left = (draw.place_N2[n] * draw.pitch_N2[n]).long().tolist()
        for top in range(-above, 48, rows):
            for first in range(-left, 48, columns):
                place = np.s_[max(top, 0) : top + rows, max(first, 0) : first + columns]
                tissue = seen_NHW[n][place]
                was, now = (it[n][:, *place][:, tissue] for it in (images_NCHW, found_NCHW))
                # Columns are pixels with all their channels: the same ones, in another order.
                assert sorted(was.T.tolist()) == sorted(now.T.tolist())
                moved += (was != now).any(dim=0).sum().item()
    assert torch.equal(found_NCHW * ~seen_NHW[:, None], images_NCHW * ~seen_NHW[:, None])
    assert moved > 0.5 * seen_NHW.sum()


def test_windows_of_shuffling_are_millimetres_until_a_tenth_of_the_slice():
    def largest(size, mm):
        return drawn(300, size, mm=(mm, mm)).pitch_N2.amax(dim=0).tolist()

    assert drawn(300).pitch_N2.amin() == 1
    assert largest(128, 1.875) == [12, 12]  # Models Genesis: a tenth of the side
    assert largest(256, 1.875) == [12, 12]
    assert largest(48, 1.0) == [4, 4]


def test_shuffling_is_uniform():
    """Of a window of 2×2 pixels each of 24 orders comes as often."""
    images_NCHW = torch.arange(1.0, 5.0).view(1, 1, 2, 2).expand(4800, 1, 2, 2)
    draw = replace(
        drawn(4800),
        pitch_N2=torch.full((4800, 2), 2),
        place_N2=torch.zeros(4800, 2),
    )
    found = shuffle(images_NCHW, torch.ones(4800, 2, 2, dtype=torch.bool), draw)
    _, counts = found.flatten(1).unique(dim=0, return_counts=True)
    assert len(counts) == 24
    assert ((counts - 200).abs() < 5 * 200**0.5).all()


def plain_curve(points, falls):
    """x and y of the cubic from (0, 0) by two points to (1, 1), drawn from its end as published."""
    t = np.linspace(0, 1, 1000)
    p = [(0, 0), *points, (1, 1)]
    weights = [t**3, 3 * t**2 * (1 - t), 3 * t * (1 - t) ** 2, (1 - t) ** 3]
    x, y = (sum(w * q[axis] for w, q in zip(weights, p, strict=True)) for axis in (0, 1))
    return np.sort(x), y if falls else np.sort(y)


def test_curves_are_the_published_ones():
    draw = drawn(20)
    points_P22, falls_P = draw.points_NC22.flatten(0, 1), draw.falls_NC.flatten()
    table_PT = curves(points_P22, falls_P).numpy()
    assert falls_P.any()
    assert not falls_P.all()
    x_T = np.linspace(0, 1, table_PT.shape[1])
    for points, falls, found_T in zip(points_P22.tolist(), falls_P, table_PT, strict=True):
        np.testing.assert_allclose(found_T, np.interp(x_T, *plain_curve(points, falls)), atol=1e-6)
        assert found_T[[0, -1]] == pytest.approx([1, 0] if falls else [0, 1])


def test_each_channel_is_bent_by_its_own_curve_in_the_foreground():
    images_NCHW, draw = heads().double(), drawn()
    seen_NHW = foreground(images_NCHW)
    found_NCHW = bend(images_NCHW, seen_NHW, draw)
    for n in range(6):
        for c in range(3):
            falls = bool(draw.falls_NC[n, c])
            x, y = plain_curve(draw.points_NC22[n, c].tolist(), falls)
            values = images_NCHW[n, c][seen_NHW[n]].numpy()
            inside = values.clip(0, 1)
            nearest = (inside * 2048).round() / 2048
            expected = np.interp(nearest, x, y) + (values - inside) * (-1 if falls else 1)
            found = found_NCHW[n, c][seen_NHW[n]].numpy()
            np.testing.assert_allclose(found, expected, atol=1e-6)
    assert (found_NCHW[~seen_NHW[:, None].expand_as(found_NCHW)] == 0).all()
    assert (images_NCHW > 1).any()


def test_outside_the_unit_interval_a_curve_goes_on():
    images_NCHW = torch.tensor([-0.5, 0.0, 1.0, 1.5]).view(1, 1, 2, 2).repeat(2, 1, 1, 1)
    everywhere = torch.ones(2, 2, 2, dtype=torch.bool)
    falls_NC = torch.tensor([[False], [True]])
    draw = replace(drawn(2), falls_NC=falls_NC, points_NC22=torch.rand(2, 1, 2, 2))
    found = bend(images_NCHW, everywhere, draw).flatten(1)
    expected = torch.tensor([[-0.5, 0, 1, 1.5], [1.5, 1, 0, -0.5]])
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("inner", [True, False])
def test_painted_are_boxes_or_all_but_the_windows(inner):
    images_NCHW = heads()
    draw = replace(drawn(), is_inner_N=torch.full((6,), inner))
    seen_NHW = foreground(images_NCHW)
    found_NCHW = paint(images_NCHW, seen_NHW, draw)
    noise_NCHW = uniform(draw.paint_seed_N, (3, 48, 48), images_NCHW)
    boxes = draw.boxes.covered(seen_NHW) if inner else ~draw.windows.covered(seen_NHW)
    painted = (boxes & seen_NHW)[:, None].expand_as(images_NCHW)
    assert torch.equal(found_NCHW[painted], noise_NCHW[painted])
    assert torch.equal(found_NCHW[~painted], images_NCHW[~painted])
    assert painted.any(dim=(1, 2, 3)).sum() >= 4
    assert (~painted & seen_NHW[:, None]).any(dim=(1, 2, 3)).all()


def test_sides_of_boxes_and_windows():
    draw = drawn(500, 128)
    low, high = draw.boxes.sides_NK2.min().item(), draw.boxes.sides_NK2.max().item()
    assert (low, high) == (21, 43)  # a sixth to a third
    low, high = draw.windows.sides_NK2.min().item(), draw.windows.sides_NK2.max().item()
    assert (low, high) == (55, 73)  # 1 − 4/7 to 1 − 3/7
    assert draw.windows.happens_NK[:, 0].all()
    assert draw.boxes.happens_NK.shape == draw.windows.happens_NK.shape == (500, 5)


def test_how_often_things_happen():
    table = SliceTable.unrelated(2, (32, 32), 20_000)
    draw = Genesis().draw(table, seeded())
    shares = {
        name: getattr(draw, name).float().mean().item()
        for name in ("flip_N2", "shuffle_N", "bend_N", "falls_NC", "paint_N", "is_inner_N")
    }
    expected = {"flip_N2": 0.4, "shuffle_N": 0.5, "bend_N": 0.9}
    expected |= {"falls_NC": 0.5, "paint_N": 0.9, "is_inner_N": 0.2}
    assert shares == pytest.approx(expected, abs=0.015)
    for axis in range(2):
        assert draw.flip_N2[:, axis].float().mean().item() == pytest.approx(0.4, abs=0.015)


def test_input_and_target_are_flipped_and_then_spoilt_in_order():
    images_NCHW, draw = heads(seed=3), drawn()
    inputs_NCHW, clean = Genesis().pretext(images_NCHW, draw)
    flipped_NCHW = images_NCHW.flip((2, 3))
    assert torch.equal(clean.images_NCHW, flipped_NCHW)
    seen_NHW = foreground(flipped_NCHW)
    assert torch.equal(clean.foreground_NHW, seen_NHW)
    expected_NCHW = bend(shuffle(flipped_NCHW, seen_NHW, draw), seen_NHW, draw)
    assert torch.equal(inputs_NCHW, paint(expected_NCHW, seen_NHW, draw))
    one_axis = replace(draw, flip_N2=torch.tensor([[True, False]] * 3 + [[False, True]] * 3))
    _, clean = Genesis().pretext(images_NCHW, one_axis)
    assert torch.equal(clean.images_NCHW[:3], images_NCHW[:3].flip(2))
    assert torch.equal(clean.images_NCHW[3:], images_NCHW[3:].flip(3))


@pytest.mark.parametrize("change", CHANGES)
def test_what_is_not_drawn_does_not_happen(change):
    """To half of the images one change happens, to the others nothing."""
    images_NCHW, draw = heads(seed=3), drawn(only=())
    half = torch.tensor([True, False] * 3)
    value = half[:, None].expand(-1, 2) if change == "flip_N2" else half
    inputs_NCHW, _ = Genesis().pretext(images_NCHW, replace(draw, **{change: value}))
    changed_N = (inputs_NCHW != images_NCHW).any(dim=(1, 2, 3))
    assert changed_N.tolist() == half.tolist()


def test_a_share_of_the_batch_is_spoilt_as_in_the_whole():
    images_NCHW = heads()
    table = SliceTable(3, (48, 48), np.arange(6), np.zeros(6), MM)
    draw = Genesis().draw(table, seeded(1))
    whole, clean = Genesis().pretext(images_NCHW, draw)
    share, clean_share = Genesis().pretext(images_NCHW[2:5], draw[2:5])
    assert torch.equal(share, whole[2:5])
    assert torch.equal(clean_share.images_NCHW, clean.images_NCHW[2:5])


def test_it_has_no_anomaly_score_of_its_own():
    """The network was hardly ever shown a clean slice."""
    assert not Genesis().has_anomaly_score
    table = SliceTable.unrelated(2, (32, 32), 20_000)
    draw = Genesis().draw(table, seeded())
    clean_N = ~(draw.shuffle_N | draw.bend_N | draw.paint_N)
    assert clean_N.float().mean() < 0.01
