"""Synthetic anomalies: boxes, ellipses and labels against plain loops, pairs of one height."""

import math
from dataclasses import asdict

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from fewscan.experiments.anomaly import anomaly_of, foreground, reconstruction_anomaly
from fewscan.experiments.order import PairedOrder, paired
from fewscan.experiments.schemes.scheme import SliceTable
from fewscan.experiments.schemes.synthetic import KINDS, Anomalies, ForeignBoxes, Synthetic
from fewscan.experiments.unet import UNet
from fewscan.storage.errors import DeviceError, RunError

SIZE = (24, 32)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def table(count=6, spacing_mm=(10.0, 7.5), size=SIZE):
    return SliceTable(3, size, np.arange(count), np.zeros(count), spacing_mm)


def images(count=6, size=SIZE):
    images_NCHW = torch.rand(count, 3, *size, generator=seeded(1), dtype=torch.float64) + 0.1
    images_NCHW[:, :, :3] = 0
    images_NCHW[:, :, :, 29:] = 0
    return images_NCHW


# The mixed boxes of fpi.


@pytest.mark.parametrize("count", [6, 5, 1])
def test_a_pair_exchanges_a_share_of_a_box_and_the_label_is_that_share(count):
    images_NCHW, scheme = images(count), Synthetic()
    draw = scheme.draw(table(count), seeded(3))
    inputs_NCHW, labels_NHW = scheme.pretext(images_NCHW, draw)
    expected_NCHW, expected_NHW = images_NCHW.clone(), torch.zeros(count, *SIZE).double()
    for n in range(count):
        other = n ^ 1 if n ^ 1 < count else max(n - 1, 0)
        top, bottom, left, right = draw.edges_N4[n].tolist()
        alpha = draw.alpha_N[n].double()
        for row in range(max(top, 0), min(bottom, SIZE[0])):
            for column in range(max(left, 0), min(right, SIZE[1])):
                own, foreign = images_NCHW[n, :, row, column], images_NCHW[other, :, row, column]
                if own.sum() > 0.01:
                    expected_NCHW[n, :, row, column] = (1 - alpha) * own + alpha * foreign
                    expected_NHW[n, row, column] = alpha if (own != foreign).any() else 0
    torch.testing.assert_close(inputs_NCHW, expected_NCHW)
    torch.testing.assert_close(labels_NHW, expected_NHW)
    assert labels_NHW.any() or count == 1


def test_both_of_a_pair_have_the_same_box_and_share():
    draw = Synthetic().draw(table(6), seeded())
    assert torch.equal(draw.edges_N4[0::2], draw.edges_N4[1::2])
    assert torch.equal(draw.alpha_N[0::2], draw.alpha_N[1::2])
    assert len(draw.alpha_N.unique()) == 3


@pytest.mark.parametrize(
    ("size", "mm", "low", "high"),
    [
        (128, 1.875, 6.4, 25.6),  # published: 0.05 to 0.2 of the side
        (48, 5.0, 2.4, 9.6),
        (400, 1.0, 12, 48),  # of a larger field as many millimetres
        (64, 0.75, 3.2, 12.8),  # of a smaller one the same share
    ],
)
def test_boxes_have_the_published_sizes_and_places(size, mm, low, high):
    draw = Synthetic().draw(table(4000, (mm, mm), (size, size)), seeded())
    top, bottom, left, right = draw.edges_N4.unbind(dim=1)
    half_N = (bottom - top) / 2
    assert torch.equal(right - left, bottom - top)
    assert half_N.min() == max(1, round(low))
    assert half_N.max() == round(high)
    assert half_N.mean().item() == pytest.approx((low + high) / 2, rel=0.03)
    for centre_N in ((top + bottom) / 2, (left + right) / 2):
        assert centre_N.min() == int(0.1 * size)
        assert centre_N.max() <= 0.9 * size
        assert centre_N.max() >= 0.9 * size - 2
        assert centre_N.float().mean().item() == pytest.approx((size - 1) / 2, abs=0.02 * size)
    assert 0.05 <= draw.alpha_N.min() < 0.06
    assert 0.94 < draw.alpha_N.max() <= 0.95


def test_a_box_is_a_square_in_millimetres():
    draw = Synthetic(half_width=(0.2, 0.2)).draw(table(2, (10.0, 5.0), (24, 48)), seeded())
    top, bottom, left, right = draw.edges_N4[0].tolist()
    assert (bottom - top, right - left) == (10, 20)


def test_restore_has_the_input_of_fpi_and_asks_for_the_clean_slice():
    images_NCHW = images()
    fpi, restore = Synthetic("fpi"), Synthetic("restore")
    spoilt_NCHW, _ = fpi.pretext(images_NCHW, fpi.draw(table(), seeded()))
    inputs_NCHW, clean = restore.pretext(images_NCHW, restore.draw(table(), seeded()))
    assert torch.equal(inputs_NCHW, spoilt_NCHW)
    assert torch.equal(clean.images_NCHW, images_NCHW)
    assert torch.equal(clean.foreground_NHW, foreground(images_NCHW))
    squared = (inputs_NCHW - images_NCHW).square().mean()
    assert restore.loss(inputs_NCHW, clean).item() == pytest.approx(squared.item())
    assert [s.out_channels(3) for s in (fpi, restore, Synthetic("multitask"))] == [1, 3, 1]


def test_losses():
    logits, labels = torch.randn(2, 1, 4, 4, generator=seeded()), torch.rand(2, 4, 4)
    says = logits[:, 0].sigmoid()
    expected = -(labels * says.log() + (1 - labels) * (1 - says).log()).mean()
    assert Synthetic().loss(logits, labels).item() == pytest.approx(expected.item(), rel=1e-5)
    expected = (logits[:, 0] - labels).square().mean().item()
    assert Synthetic("multitask").loss(logits, labels).item() == pytest.approx(expected)


# The ellipses of multitask.


def anomaly(kind, **changes):
    """One of a kind, in the middle of a slice of 24 × 32 pixels, 10 pixels high and 14 wide."""
    to_disc = torch.tensor([[1 / 5, 0], [0, 1 / 7]], dtype=torch.float64)
    fields = {
        "kind_NK": torch.tensor([KINDS.index(kind), -1, -1, -1]),
        "centre_NK": torch.full((4,), 0.5),
        "to_disc_NK22": to_disc.expand(4, 2, 2),
        "shortest_NK": torch.full((4,), 50.0),
        "alpha_NK": torch.full((4,), 0.25),
        "ramp_NK": torch.full((4,), 20.0),
        "change_NKC": torch.tensor([0.1, -0.1, 0.2]).expand(4, 3),
        "pole_NK2": torch.tensor([0.3, -0.4]).expand(4, 2),
        "exponent_NK": torch.full((4,), 2.0),
    }
    return Anomalies(
        **{name: it[None].expand(2, *it.shape) for name, it in fields.items()} | changes
    )


def centre_of(inside_HW, share):
    places = np.argwhere(inside_HW)
    return places[int(share * len(places))]


def disc(image_CHW, share=0.5):
    """Unit coordinates of each pixel, by loops."""
    inside_HW = image_CHW.sum(0).numpy() > 0.01
    row, column = centre_of(inside_HW, share)
    found = np.array(
        [[((r - row) / 5, (c - column) / 7) for c in range(SIZE[1])] for r in range(SIZE[0])]
    )
    return inside_HW, (row, column), found


def bilinear(plane_HW, row, column):
    row, column = np.clip(row, 0, SIZE[0] - 1), np.clip(column, 0, SIZE[1] - 1)
    r, c = int(row), int(column)
    r1, c1 = min(r + 1, SIZE[0] - 1), min(c + 1, SIZE[1] - 1)
    a, b = row - r, column - c
    return (1 - a) * ((1 - b) * plane_HW[r, c] + b * plane_HW[r, c1]) + a * (
        (1 - b) * plane_HW[r1, c] + b * plane_HW[r1, c1]
    )


def expected_of(kind, image_CHW, other_CHW):
    inside_HW, (row, column), disc_HW2 = disc(image_CHW)
    image, other = image_CHW.numpy(), other_CHW.numpy()
    out = image.copy()
    pole, change = np.array([0.3, -0.4]), np.array([0.1, -0.1, 0.2])
    for r, c in np.argwhere(inside_HW & (np.linalg.norm(disc_HW2, axis=-1) < 1)):
        q = disc_HW2[r, c]
        if kind == "blend":
            out[:, r, c] = 0.75 * image[:, r, c] + 0.25 * other[:, r, c]
        elif kind == "intensity":
            share = min(1, (1 - np.linalg.norm(q)) * 50 / 20)
            low, high = image.min((1, 2)), image.max((1, 2))
            out[:, r, c] = (image[:, r, c] + change * share).clip(low, high)
        else:
            ray = q - pole
            near, far = 0.0, 100.0  # how many rays it is to the edge, by bisection
            for _ in range(80):
                middle = (near + far) / 2
                inside = np.linalg.norm(pole + middle * ray) < 1
                near, far = (middle, far) if inside else (near, middle)
            rho = 1 / near
            fetched = 1 - (1 - rho) ** 2 if kind == "sink" else rho**2
            place = pole + ray * fetched / rho
            out[:, r, c] = [bilinear(p, row + 5 * place[0], column + 7 * place[1]) for p in image]
    return torch.from_numpy(out)


@pytest.mark.parametrize("kind", KINDS)
def test_an_anomaly_is_what_a_plain_loop_makes(kind):
    images_NCHW, scheme = images(2), Synthetic("multitask")
    smooth_NCHW = F.avg_pool2d(images_NCHW, 5, 1, 2)
    inputs_NCHW, labels_NHW = scheme.pretext(smooth_NCHW, anomaly(kind))
    for n in range(2):
        expected_CHW = expected_of(kind, smooth_NCHW[n], smooth_NCHW[1 - n])
        assert (expected_CHW != smooth_NCHW[n]).any()
        torch.testing.assert_close(inputs_NCHW[n], expected_CHW, rtol=1e-5, atol=1e-6)
        change_HW = (expected_CHW - smooth_NCHW[n]).abs().mean(0)
        label_HW = 1 - (-(change_HW**2) / (2 * 0.04**2)).exp()
        torch.testing.assert_close(labels_NHW[n], label_HW, rtol=1e-4, atol=1e-5)


def test_an_intensity_stays_in_the_range_of_its_channel():
    images_NCHW = images(2)
    change = torch.full((2, 4, 3), 5.0)
    inputs_NCHW, _ = Synthetic("multitask").pretext(
        images_NCHW, anomaly("intensity", change_NKC=change)
    )
    assert torch.equal(inputs_NCHW.amax((2, 3)), images_NCHW.amax((2, 3)))
    assert (inputs_NCHW != images_NCHW).any()


def test_anomalies_are_drawn_as_published():
    scheme, count = Synthetic("multitask"), 20_000
    draw = scheme.draw(
        SliceTable(2, (128, 128), np.arange(count), np.zeros(count), (1.875,) * 2), seeded()
    )
    many_N = (draw.kind_NK >= 0).sum(dim=1)
    shares = [(many_N == k).double().mean().item() for k in range(5)]
    assert shares == pytest.approx([0, 0.5, 0.25, 0.125, 0.125], abs=0.012)
    assert torch.equal(draw.kind_NK >= 0, torch.arange(4) < many_N[:, None])
    kinds = draw.kind_NK[:, 0].bincount(minlength=4) / count
    assert kinds.tolist() == pytest.approx([0.25] * 4, abs=0.012)
    # Half axes are 0.03 + Γ(2, 0.1) of 240 mm, within 0.03 to 0.4 of it.
    half_mm = 1 / torch.linalg.vector_norm(draw.to_disc_NK22 / 1.875, dim=-1)
    assert half_mm.min().item() == pytest.approx(7.2, rel=0.03)
    assert half_mm.max().item() == pytest.approx(96, rel=1e-5)
    gamma = np.random.default_rng(0).gamma(2, 0.1, 200_000)
    expected = 240 * (0.03 + gamma).clip(0.03, 0.4)
    assert half_mm.mean().item() == pytest.approx(expected.mean(), rel=0.02)
    assert half_mm.std().item() == pytest.approx(expected.std(), rel=0.03)
    torch.testing.assert_close(half_mm.amin(-1), draw.shortest_NK)
    gamma = np.random.default_rng(0).gamma(3, 1, 200_000)
    for found, expected in (
        (draw.ramp_NK, 240 * (0.02 + 0.01 * gamma)),
        (draw.change_NKC.abs(), 0.04 * (0.5 + gamma)),
        (draw.exponent_NK, 2 ** np.random.default_rng(0).uniform(0.5, 2, 200_000)),
    ):
        assert found.mean().item() == pytest.approx(expected.mean(), rel=0.02)
        assert found.std().item() == pytest.approx(expected.std(), rel=0.03)
    assert torch.equal(draw.change_NKC[..., 0].abs(), draw.change_NKC[..., 1].abs())
    assert (draw.change_NKC[..., 0] * draw.change_NKC[..., 1]).sign().mean().abs() < 0.02
    length = torch.linalg.vector_norm(draw.pole_NK2, dim=-1)
    assert length.max() <= 1
    assert length.square().mean().item() == pytest.approx(0.5, abs=0.01)  # even in the disc


def test_ellipses_turn():
    draw = Synthetic("multitask").draw(table(500, (2.0, 1.0)), seeded())
    axis = draw.to_disc_NK22[:, 0, 0] / torch.tensor([2.0, 1.0])
    angle = torch.atan2(axis[:, 1], axis[:, 0])
    assert angle.min() < -math.pi + 0.1
    assert angle.max() > math.pi - 0.1
    rows = draw.to_disc_NK22[:, 0] / torch.tensor([2.0, 1.0])
    assert (rows[:, 0] * rows[:, 1]).sum(dim=-1).abs().max() < 1e-3 * rows.square().sum(
        (1, 2)
    ).max()


def test_centres_are_pixels_of_the_foreground():
    images_NCHW, scheme = torch.zeros(2, 1, 8, 8).double(), Synthetic("multitask", alpha=(1, 1))
    images_NCHW[0, :, 2:4, 3:6] = 1.0
    images_NCHW[1] = 2
    tiny = torch.eye(2).mul(1.5).expand(2, 4, 2, 2)  # of one pixel
    for share, place in ((0.0, (2, 3)), (0.5, (3, 3)), (0.999, (3, 5))):
        draw = anomaly("blend", centre_NK=torch.full((2, 4), share), to_disc_NK22=tiny)
        inputs_NCHW, _ = scheme.pretext(images_NCHW, draw)
        assert (inputs_NCHW[0, 0] != images_NCHW[0, 0]).nonzero().tolist() == [list(place)]


def test_a_slice_of_nothing_stays_nothing():
    for task in ("fpi", "multitask", "restore"):
        scheme = Synthetic(task)
        empty_NCHW = torch.zeros(6, 3, *SIZE)
        inputs_NCHW, asked = scheme.pretext(empty_NCHW, scheme.draw(table(), seeded()))
        assert not inputs_NCHW.any()
        assert not (asked.images_NCHW if task == "restore" else asked).any()


# Shares of a batch, pairs and their order.


@pytest.mark.parametrize("task", ["fpi", "multitask", "restore"])
def test_a_share_of_the_batch_gets_its_share(task):
    images_NCHW, scheme = images(8), Synthetic(task)
    draw = scheme.draw(table(8), seeded())
    inputs_NCHW, asked = scheme.pretext(images_NCHW, draw)
    for part in (slice(0, 4), slice(2, 6), slice(4, 8)):
        share_NCHW, asked_of_share = scheme.pretext(images_NCHW[part], draw[part])
        assert torch.equal(share_NCHW, inputs_NCHW[part])
        for whole, of_share in zip(
            *([it] if task != "restore" else it for it in (asked, asked_of_share)), strict=True
        ):
            assert torch.equal(of_share, whole[part])


def test_a_pair_cannot_be_shared_by_two_devices():
    draw = Synthetic().draw(table(6), seeded())
    for part in (slice(0, 3), slice(3, 6)):
        with pytest.raises(DeviceError, match=r"(?s)part a pair.*even number of slices for each"):
            draw[part]
    assert isinstance(Synthetic().draw(table(5), seeded())[4:5], ForeignBoxes)


def order_of(slices, batch_size=8):
    return Synthetic().order(slices, batch_size, seed=0)


def test_pairs_lie_at_the_same_height_of_two_scans():
    """Scans of different numbers of slices, and every slice is first equally often."""
    counts = (40, 50, 60)
    scans_N = np.repeat(np.arange(3), counts)
    heights_N = np.concatenate([np.linspace(0, 1, count) for count in counts])
    order = order_of(SliceTable(1, SIZE, scans_N, heights_N), batch_size=10)
    firsts, partners = [], set()
    for step in range(30):
        pairs = order.indices(step).view(-1, 2).numpy()
        assert (scans_N[pairs[:, 0]] != scans_N[pairs[:, 1]]).all()
        assert (np.abs(heights_N[pairs[:, 0]] - heights_N[pairs[:, 1]]) <= 0.02).all()
        firsts += pairs[:, 0].tolist()
        partners |= {tuple(pair) for pair in pairs.tolist()}
    assert sorted(firsts) == list(range(150))
    assert torch.equal(
        order.indices(7), order_of(SliceTable(1, SIZE, scans_N, heights_N), 10).indices(7)
    )
    again = {tuple(p) for s in range(30, 60) for p in order.indices(s).view(-1, 2).tolist()}
    assert len(again - partners) > 30, "another partner another time"


def test_where_no_height_is_near_the_nearest_is_taken():
    slices = SliceTable(1, SIZE, np.array([0, 0, 1, 1]), np.array([0.0, 1.0, 0.2, 0.7]))
    partner_of = dict(order_of(slices, 8).indices(0).view(-1, 2).tolist())
    assert partner_of == {0: 2, 1: 3, 2: 0, 3: 1}


def test_pairs_need_two_scans_and_an_even_batch():
    one = SliceTable(1, SIZE, np.zeros(4), np.arange(4) / 3)
    with pytest.raises(RunError, match=r"(?s)slices of one scan alone.*prepare more scans"):
        order_of(one)
    with pytest.raises(DeviceError, match="a batch of 5 slices cannot be made of pairs"):
        order_of(table(), 5)


def test_validation_pairs_slices_of_two_scans_while_there_are_two():
    scans_N = np.repeat([0, 1, 2], [4, 4, 1])
    heights_N = np.array([0, 0.3, 0.6, 1, 0, 0.3, 0.6, 1, 0.5])
    order = Synthetic().validation_order(SliceTable(1, SIZE, scans_N, heights_N)).numpy()
    assert sorted(order.tolist()) == list(range(9))
    pairs = order[:8].reshape(4, 2)
    assert (scans_N[pairs[:, 0]] != scans_N[pairs[:, 1]]).all()
    assert (np.abs(heights_N[pairs[:, 0]] - heights_N[pairs[:, 1]]) <= 0.4).all()
    assert paired(np.zeros(3), np.array([0.5, 0, 1])).tolist() == [1, 0, 2]
    assert len(paired(np.zeros(0), np.zeros(0))) == 0
    assert isinstance(order_of(table()), PairedOrder)


# Scores and settings.


@pytest.mark.parametrize("task", ["fpi", "multitask", "restore"])
def test_the_score_is_what_the_network_says(task):
    images_NCHW, scheme = images(2).float(), Synthetic(task)
    torch.manual_seed(0)
    network = UNet(3, scheme.out_channels(3), width=4, depth=2).eval()
    with torch.no_grad():
        scores_NHW = scheme.anomaly_score(network, images_NCHW, (3.0, 3.0))
        outputs_NCHW = network(images_NCHW)
    expected_NHW = {
        "fpi": lambda: anomaly_of(outputs_NCHW[:, 0].sigmoid(), images_NCHW, (3.0, 3.0)),
        "multitask": lambda: anomaly_of(outputs_NCHW[:, 0].clamp(min=0), images_NCHW, (3.0, 3.0)),
        "restore": lambda: reconstruction_anomaly(images_NCHW, outputs_NCHW, (3.0, 3.0)),
    }[task]()
    assert torch.equal(scores_NHW, expected_NHW)
    assert scores_NHW.any()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"half_width": (0.2, 0.1)}, "half_width is 0.2 to 0.1, expected 0 ≤ low ≤ high ≤ 0.5"),
        ({"alpha": (0, 2)}, "alpha is 0 to 2, expected"),
        ({"tissue_std": 0}, "tissue_std is 0"),
    ],
)
def test_wrong_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        Synthetic(**settings)


def test_a_default_is_part_of_the_protocol():
    assert asdict(Synthetic()) == {
        "task": "fpi",
        "half_width": (0.05, 0.2),
        "alpha": (0.05, 0.95),
        "tissue_std": 0.2,
    }
