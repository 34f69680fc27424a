"""Contrastive learning by position: losses against plain loops, views, batches, collapse."""

import math
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from fewscan.experiments import augment
from fewscan.experiments.anomaly import foreground
from fewscan.experiments.devices import Devices
from fewscan.experiments.projection import Projection
from fewscan.experiments.results import RunRecord
from fewscan.experiments.schemes.contrast import Contrast, infonce_loss, vicreg_loss
from fewscan.experiments.schemes.scheme import SliceTable
from fewscan.experiments.spec import Network, Pretrain, Training, run_id
from fewscan.experiments.stages import run_stage
from fewscan.experiments.unet import UNet
from fewscan.storage.runs import RunFolder
from fewscan.storage.slice_format import SliceFormat
from fewscan.storage.slices import SliceStore

HEIGHTS = torch.tensor([0.0, 0.05, 0.12, 0.5, 0.58, 1.0]).double()


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def projections(views=12, dimensions=5):
    return torch.randn(views, dimensions, generator=seeded(1), dtype=torch.float64)


def table(count=6):
    return SliceTable(3, (16, 24), np.arange(count), HEIGHTS.numpy()[:count])


def images(count=6):
    images_NCHW = torch.rand(count, 3, 16, 24, generator=seeded(2)) + 0.2
    images_NCHW[:, :, :4] = 0
    return images_NCHW


def plain_infonce(projections_MD, heights_M, reach, temperature):
    z = [v / np.linalg.norm(v) for v in projections_MD.numpy()]
    losses = []
    for i in range(len(z)):
        similar = [math.exp(z[i] @ v / temperature) for v in z]
        total = sum(s for j, s in enumerate(similar) if j != i)
        alike = [
            j
            for j in range(len(z))
            if j != i and (j == i ^ 1 or abs(heights_M[i] - heights_M[j]) < reach)
        ]
        losses.append(-np.mean([math.log(similar[j] / total) for j in alike]))
    return np.mean(losses)


@pytest.mark.parametrize("reach", [0, 0.06, 0.1, 2])
@pytest.mark.parametrize("temperature", [0.1, 0.5])
def test_infonce_is_a_plain_loop(reach, temperature):
    heights_M = HEIGHTS.repeat_interleave(2)
    found = infonce_loss(projections(), heights_M, reach, temperature)
    expected = plain_infonce(projections(), heights_M.tolist(), reach, temperature)
    assert found.item() == pytest.approx(expected, rel=1e-9)
    scheme = Contrast(reach, temperature)
    assert scheme.loss(projections(), heights_M).item() == pytest.approx(expected, rel=1e-9)


def test_without_reach_it_is_simclr():
    """Cross-entropy of the other view, wherever slices lie."""
    directions = F.normalize(projections(), dim=1)
    cosines = directions @ directions.T / 0.1 - 1e9 * torch.eye(12)
    expected = F.cross_entropy(cosines, torch.arange(12) ^ 1)
    for heights_M in (HEIGHTS.repeat_interleave(2), torch.zeros(12)):
        found = Contrast(reach=0).loss(projections(), heights_M)
        assert found.item() == pytest.approx(expected.item(), rel=1e-6)


def test_the_length_of_a_projection_makes_no_difference():
    heights_M, scale = HEIGHTS.repeat_interleave(2), torch.rand(12, 1, generator=seeded()) + 0.5
    loss = Contrast().loss(projections(), heights_M)
    assert Contrast().loss(projections() * scale, heights_M).item() == pytest.approx(loss.item())


def test_vicreg_is_plain_statistics():
    z = projections(12, 5).mul(0.7)
    one, two = z[0::2].numpy(), z[1::2].numpy()
    expected = 25 * ((one - two) ** 2).mean()
    for view in (one, two):
        covariance = np.cov(view.T)
        std = np.sqrt(view.var(axis=0, ddof=1) + 1e-4)
        expected += 25 * np.maximum(0, 1 - std).mean() / 2
        expected += (covariance**2)[~np.eye(5, dtype=bool)].sum() / 5
    assert vicreg_loss(z).item() == pytest.approx(expected, rel=1e-9)
    scheme = Contrast(reach=0, objective="vicreg")
    assert scheme.loss(z, torch.zeros(12)).item() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("objective", ["infonce", "vicreg"])
def test_one_slice_alone_has_a_finite_loss(objective):
    """As the last batch of a validation may have."""
    scheme = Contrast(reach=0, objective=objective)
    assert math.isfinite(scheme.loss(projections(2), torch.zeros(2)))
    assert torch.isfinite(scheme.watched(projections(2))).all()


def test_the_loss_is_computed_in_single_precision_under_autocast():
    heights_M, z = HEIGHTS.repeat_interleave(2), projections().float()
    with torch.autocast("cpu", torch.bfloat16):
        found = Contrast().loss(z, heights_M)
    assert torch.equal(found, Contrast().loss(z, heights_M))


def test_views_are_nnunets_transforms_and_another_brightness_and_contrast():
    images_NCHW, scheme = images(), Contrast()
    draw = scheme.draw(table(), seeded(3))
    views_MCHW, heights_M = scheme.pretext(images_NCHW, draw)
    assert torch.equal(heights_M, HEIGHTS.repeat_interleave(2))
    twice = torch.stack([images_NCHW, images_NCHW], dim=1).flatten(0, 1)
    expected, _ = augment.apply(twice, torch.zeros(12, 16, 24, dtype=torch.uint8), draw.draws_M)
    for m in range(12):
        inside = foreground(expected)[m]
        for plane in expected[m]:
            mean = plane[inside].mean()
            changed = (plane[inside] - mean) * draw.contrast_M[m] + mean + draw.brightness_M[m]
            plane[inside] = changed.clamp(0, 1.5)
    torch.testing.assert_close(views_MCHW, expected)
    assert all((one != two).any() for one, two in views_MCHW.unflatten(0, (6, 2)))


def test_views_are_drawn_between_the_published_bounds():
    count = 4000
    slices = SliceTable(1, (16, 16), np.arange(count), np.zeros(count))
    draw = Contrast().draw(slices, seeded())
    for values, middle in ((draw.brightness_M, 0), (draw.contrast_M, 1)):
        assert values.min().item() == pytest.approx(middle - 0.3, abs=0.001)
        assert values.max().item() == pytest.approx(middle + 0.3, abs=0.001)
        assert len(values) == 2 * count
    for name in ("rotation_rad_N", "scale_N"):
        happens = draw.draws_M.drawn(name).double().mean().item()
        assert happens == pytest.approx(0.67, abs=0.02)
    assert 0.7 <= draw.draws_M.scale_N.min() < 0.71
    assert 1.29 < draw.draws_M.scale_N.max() <= 1.3


def test_a_share_of_the_batch_gets_its_share_of_the_views():
    images_NCHW, scheme = images(), Contrast()
    draw = scheme.draw(table(), seeded(3))
    views_MCHW, heights_M = scheme.pretext(images_NCHW, draw)
    for a, b in ((0, 3), (3, 6), (1, 2)):
        share_MCHW, heights_of_share = scheme.pretext(images_NCHW[a:b], draw[a:b])
        assert torch.equal(share_MCHW, views_MCHW[2 * a : 2 * b])
        assert torch.equal(heights_of_share, heights_M[2 * a : 2 * b])


def test_a_batch_has_slices_of_different_scans():
    scans_N = np.repeat(np.arange(10), np.arange(1, 11))
    slices = SliceTable(1, (16, 16), scans_N, np.zeros(55))
    order, seen = Contrast().order(slices, 8, seed=0), []
    for step in range(300):
        indices = order.indices(step).numpy()
        assert len(set(scans_N[indices])) == 8
        seen += indices.tolist()
    assert set(seen) == set(range(55))
    assert np.bincount(scans_N[seen]).std() < 20  # of 240 each
    assert len(set(scans_N[Contrast().order(slices, 25, seed=0).indices(0).numpy()])) == 10
    assert torch.equal(order.indices(5), Contrast().order(slices, 8, seed=0).indices(5))


def test_validation_takes_every_slice_once_in_a_random_order():
    slices = SliceTable(1, (16, 16), np.arange(50), np.zeros(50))
    order = Contrast().validation_order(slices)
    assert sorted(order.tolist()) == list(range(50))
    assert order.tolist() != list(range(50))
    assert torch.equal(order, Contrast().validation_order(slices))


def test_the_head_sees_the_mean_of_the_encoders_coarsest_map():
    torch.manual_seed(0)
    body = UNet(3, 3, width=4, depth=3)
    model = Projection(body)
    x = images()
    x = body.down_path[0](x)
    x = body.down_path[1](F.avg_pool2d(x, 2))
    x = body.down_path[2](F.avg_pool2d(x, 2)).mean(dim=(2, 3))
    expected = model.head[2](model.head[0](x).clamp(min=0))
    assert torch.equal(model(images()), expected)
    assert expected.shape == (6, 16)
    learning = {name for name, p in model.named_parameters() if p.requires_grad}
    assert all(name.startswith(("body.down_path.", "head.")) for name in learning)
    assert len(learning) == 4 + len(list(body.down_path.parameters()))


def test_the_spread_of_directions_tells_a_collapse():
    everywhere = torch.randn(4000, 64, generator=seeded())
    assert Contrast().watched(everywhere).tolist() == pytest.approx([1], abs=0.01)
    collapsed = torch.ones(40, 64) + 0.01 * everywhere[:40]
    assert Contrast().watched(collapsed).item() < 0.02
    assert Contrast().watched(torch.ones(8, 4)).item() == 0


def test_validations_note_the_spread(store_path: Path, tmp_path: Path) -> None:
    store = SliceStore.open(store_path)
    training = Training(iterations=4, validate_every=2, batch_size=4, precision="fp32")
    spec = Pretrain(store.fingerprint, Network(4, 2), training, Contrast())
    folder = RunFolder(tmp_path / run_id(spec))
    RunRecord(spec, "it", "pretrain", SliceFormat.of_store(store), store.path).write(folder)
    run_stage(folder, Devices())
    found = [e.values for e in folder.committed_events() if e.kind == "metrics"]
    assert len(found) == 2
    assert all(0 < values["projection_std"] < 1.5 for values in found)


def test_wrong_settings_are_refused():
    for settings, message in (
        ({"reach": -1}, "reach is -1"),
        ({"temperature": 0}, "temperature is 0"),
        ({"objective": "vicreg"}, "reach is 0.1, expected 0: vicreg knows no positions"),
    ):
        with pytest.raises(ValueError, match=message):
            Contrast(**settings)


def test_a_default_is_part_of_the_protocol():
    assert asdict(Contrast()) == {"reach": 0.1, "temperature": 0.1, "objective": "infonce"}
