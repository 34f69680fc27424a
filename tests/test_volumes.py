"""3D networks: the 2D ones with one axis more, and equal to them where that axis has length 1."""

from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from test_train import Killed, dying_at, losses
from test_train import train_once as train_slices
from torch import Tensor

from fewscan.experiments import augment
from fewscan.experiments.checkpoint import TrainingState, load_model, save_model
from fewscan.experiments.data import SliceData
from fewscan.experiments.devices import Devices, launch
from fewscan.experiments.finetune import SegmentTask
from fewscan.experiments.initial_weights import initial_network
from fewscan.experiments.patches import Patches
from fewscan.experiments.pretrain import PretextTask
from fewscan.experiments.residency import InMemory
from fewscan.experiments.schemes import Denoise
from fewscan.experiments.schemes.autoencode import Autoencode
from fewscan.experiments.schemes.ddep import NoisePrediction
from fewscan.experiments.schemes.denoise import Noise
from fewscan.experiments.schemes.scheme import Scheme, SliceTable
from fewscan.experiments.spec import Finetune, Network, Pretrain, Training
from fewscan.experiments.train import Task, train
from fewscan.experiments.unet import (
    ReflectionPad,
    StandardisedConv3d,
    UNet,
    enlarged,
    inflated,
    load_for_transfer,
    pooled,
)
from fewscan.storage.errors import RunError
from fewscan.storage.labels import LabelMeaning
from fewscan.storage.runs import RunFolder

TRAINING = Training(
    iterations=6, validate_every=2, batch_size=4, lr=1e-2, precision="fp64", lr_half_period=3
)
FLAT = Network(width=4, depth=2, dims=3, patch=(1, 16, 16), flat_levels=2)
"""Kernels of depth 1, and patches of one slice."""
DEEP = Network(width=4, depth=2, dims=3, patch=(4, 8, 8))


def tiny(seed: int = 0, **shape: object) -> UNet:
    torch.manual_seed(seed)
    settings_ = {"in_channels": 3, "out_channels": 3, "width": 4, "depth": 3, "dims": 3}
    return UNet(**settings_ | shape)  # type: ignore[arg-type]


# The network.


@pytest.mark.parametrize(
    ("flat_levels", "kernels", "up"),
    [(0, [3, 3, 3], [2, 2]), (1, [1, 3, 3], [2, 1]), (3, [1, 1, 1], [1, 1])],
)
def test_names_are_those_of_2d_and_flat_levels_have_depth_1(
    flat_levels: int, kernels: list[int], up: list[int]
) -> None:
    """Of three levels: what each convolution, and each upsampling, sees through the slices."""
    plain = tiny(dims=2).state_dict()
    own = tiny(flat_levels=flat_levels).state_dict()
    assert list(own) == list(plain)
    assert own["last.weight"].shape == (3, 4, 1, 1, 1)
    for level, depth in enumerate(kernels):
        assert own[f"down_path.{level}.block.1.weight"].shape[2:] == (depth, 3, 3)
    assert own["up_path.0.conv_block.block.1.weight"].shape[2:] == (kernels[1], 3, 3)
    assert [own[f"up_path.{n}.up.weight"].shape[2] for n in (0, 1)] == up


def as_slices_of_depth_1(model: UNet, flat: UNet) -> None:
    weights = model.state_dict()
    flat.load_state_dict({k: weights[k].view(v.shape) for k, v in flat.state_dict().items()})


def test_kernels_of_depth_1_equal_the_2d_network_to_the_last_bit() -> None:
    """Forward and backward, in double precision; a patch of one slice, and of five that so do not
    see each other."""
    plain = tiny(dims=2).double()
    flat = tiny(flat_levels=3, seed=1).double()
    as_slices_of_depth_1(plain, flat)
    images_NCHW = torch.rand(5, 3, 16, 16, dtype=torch.float64)
    wanted = torch.rand(5, 3, 16, 16, dtype=torch.float64)
    slices, patches = images_NCHW.clone().requires_grad_(), images_NCHW.clone().requires_grad_()
    output = plain(slices)
    (output * wanted).sum().backward()
    other = flat(patches[:, :, None])[:, :, 0]
    (other * wanted).sum().backward()
    assert torch.equal(output, other)
    assert torch.equal(slices.grad, patches.grad)
    for (name, one), two in zip(plain.named_parameters(), flat.parameters(), strict=True):
        assert torch.equal(one.grad.flatten(), two.grad.flatten()), name


@settings(deadline=None, max_examples=15)
@given(
    size=st.tuples(st.integers(2, 4), st.integers(2, 5), st.integers(2, 5)),
    along=st.sampled_from([(True, True, True), (False, True, True)]),
)
def test_padding_of_volumes_and_its_gradient_are_those_of_torch(
    size: tuple[int, int, int], along: tuple[bool, bool, bool]
) -> None:
    generator = torch.Generator().manual_seed(sum(size))
    x = torch.randn(2, 3, *size, generator=generator, dtype=torch.float64)
    ours, plain = x.clone().requires_grad_(), x.clone().requires_grad_()
    padded = ReflectionPad(along)(ours)
    sides = [1, 1, 1, 1, int(along[0]), int(along[0])]
    expected = F.pad(plain, sides, mode="reflect")
    weights = torch.randn(expected.shape, generator=generator, dtype=torch.float64)
    (padded * weights).sum().backward()
    (expected * weights).sum().backward()
    assert torch.equal(padded, expected)
    torch.testing.assert_close(ours.grad, plain.grad, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("pool", [(2, 2, 2), (1, 2, 2)])
def test_pooling_and_enlarging_volumes_are_those_of_torch(pool: tuple[int, int, int]) -> None:
    x = torch.randn(2, 3, 4, 6, 8, dtype=torch.float64)
    torch.testing.assert_close(pooled(x, pool), F.avg_pool3d(x, pool))
    size = tuple(n * k for n, k in zip(x.shape[2:], pool, strict=True))
    expected = F.interpolate(x, size, mode="trilinear", align_corners=False)
    torch.testing.assert_close(enlarged(x, size), expected)


def test_a_volume_has_no_gradient_that_cuda_adds_in_any_order() -> None:
    """Those of torch's 3D pooling, trilinear interpolation and reflection."""
    names = set()
    for level in (0, 2):
        todo, seen = [tiny(head_level=level)(torch.rand(1, 3, 8, 8, 8)).grad_fn], set()
        while todo:
            node = todo.pop()
            if node is not None and node not in seen:
                seen.add(node)
                todo += [parent for parent, _ in node.next_functions]
        names |= {node.name() for node in seen}
    assert any("PadByOne" in name for name in names)
    assert not [it for it in names if "Pool3" in it or "Trilinear" in it or "ReflectionPad" in it]


def test_filters_of_volumes_are_standardised_over_all_their_axes() -> None:
    torch.manual_seed(0)
    convolution = StandardisedConv3d(2, 3, kernel_size=3).double()
    x = torch.randn(1, 2, 4, 5, 6, dtype=torch.float64)
    each = [(w - w.mean()) / (w.std() + 1e-5) for w in convolution.weight]
    expected = F.conv3d(x, torch.stack(each), convolution.bias)
    torch.testing.assert_close(convolution(x), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("size", "flat_levels", "message"),
    [
        ((6, 16, 16), 0, "depth 6 .* multiple of 4, and at least 8: reflected borders need two"),
        ((4, 16, 16), 0, "depth 4 .* at least 8"),
        ((1, 16, 16), 2, "depth 1 .* at least 2"),
        ((4, 16, 12), 1, None),
        ((1, 8, 8), 3, None),
        ((8, 6, 8), 0, "height 6"),
    ],
)
def test_each_axis_must_be_halved_as_often_as_it_is_pooled(
    size: tuple[int, int, int], flat_levels: int, message: str | None
) -> None:
    model, images = tiny(flat_levels=flat_levels), torch.rand(1, 3, *size)
    if message is None:
        assert model(images).shape == images.shape
    else:
        with pytest.raises(ValueError, match=message):
            model(images)
    network = partial(Network, 4, 3, 3, size, flat_levels)  # and a study file is told the same
    if message is None:
        network()
    else:
        with pytest.raises(ValueError, match="a patch of"):
            network()


def test_a_kept_model_comes_back_with_its_patch(tmp_path: Path) -> None:
    model = tiny(flat_levels=1, patch=(4, 16, 16))
    save_model(tmp_path / "model.pt", model, model.state_dict())
    assert load_model(tmp_path / "model.pt").shape == model.shape
    plain = tiny(dims=2)
    save_model(tmp_path / "plain.pt", plain, plain.state_dict())
    content = torch.load(tmp_path / "plain.pt", weights_only=True)
    assert "dims" not in content["network"], "as in files of earlier versions"


# Inflation.


def test_flat_levels_and_upsampling_are_inflated_exactly() -> None:
    """Of slices that are all alike, what needs no standardised filter of depth 3 stays the same."""
    source, model = tiny(dims=2), tiny(seed=1, flat_levels=3)
    report = load_for_transfer(model, source.state_dict(), "inflate")
    assert report.replaced == ("last.weight", "last.bias")
    as_slices_of_depth_1(source, flat := tiny(seed=2, flat_levels=3))
    images = torch.rand(2, 3, 2, 8, 8)
    for one, two in zip(model.encoded(images), flat.encoded(images), strict=True):
        assert torch.equal(one, two)
    up, inflated_up = source.up_path[0].up, tiny(seed=3).up_path[0].up
    weights = inflated(source.state_dict(), tiny(seed=3).state_dict())
    inflated_up.load_state_dict({k: weights[f"up_path.0.up.{k}"] for k in ("weight", "bias")})
    x_NCHW = torch.rand(1, 16, 3, 3)
    same = up(x_NCHW)[:, :, None].expand(-1, -1, 4, -1, -1)
    found = inflated_up(x_NCHW[:, :, None].expand(-1, -1, 2, -1, -1))
    torch.testing.assert_close(found, same)


def test_an_inflated_filter_answers_three_times_as_strongly() -> None:
    """On slices that are all alike, bias included; but for the unbiased deviation."""
    source, model = tiny(dims=2).double(), tiny(seed=1).double()
    load_for_transfer(model, source.state_dict(), "inflate")
    x_NCHW = torch.rand(2, 3, 8, 8, dtype=torch.float64)
    plain = source.down_path[0].block[1](x_NCHW)
    found = model.down_path[0].block[1](x_NCHW[:, :, None].expand(-1, -1, 3, -1, -1))[:, :, 0]
    torch.testing.assert_close(found, 3 * plain, rtol=0.05, atol=0.05)
    n = 3 * 9
    exact = 3 * (plain - source.down_path[0].block[1].bias.view(-1, 1, 1))
    exact = exact * ((3 * n - 1) / (3 * (n - 1))) ** 0.5
    exact = exact + 3 * source.down_path[0].block[1].bias.view(-1, 1, 1)
    torch.testing.assert_close(found, exact, rtol=1e-3, atol=1e-3)


def test_inflated_features_resemble_those_of_the_slices() -> None:
    """More than those of weights that nobody has inflated; on slices that are all alike."""
    source = tiny(dims=2)
    images_NCHW = torch.rand(2, 3, 16, 16)
    wanted = source.encoded(images_NCHW)[-1]
    likeness = []
    for seed, transfers in ((1, True), (1, False)):
        model = tiny(seed=seed)
        if transfers:
            load_for_transfer(model, source.state_dict(), "inflate")
        found = model.encoded(images_NCHW[:, :, None].expand(-1, -1, 8, -1, -1))[-1][:, :, 1]
        pair = torch.stack([found.flatten(), wanted.flatten()])
        likeness.append(torch.corrcoef(pair)[0, 1].item())
    assert likeness[0] > 0.9 > 0.5 > abs(likeness[1])


def test_only_a_2d_network_is_inflated() -> None:
    with pytest.raises(RunError, match="do not fit"):
        load_for_transfer(tiny(), tiny(dims=2).state_dict(), "all")
    with pytest.raises(RunError, match="do not fit"):
        load_for_transfer(tiny(), tiny(dims=2, width=8).state_dict(), "inflate")


# Patches.


def volumes(count: int, depth: int, seed: int, dtype: torch.dtype, network: Network) -> SliceData:
    """Scans of so many slices: balls of tissue with a lesion of two classes; an item a slice."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand((count * depth, 2, 16, 16), generator=generator)
    rows = torch.arange(16) - 7.5
    images *= (rows[:, None] ** 2 + rows**2 < 49).float()
    labels = torch.zeros((count * depth, 16, 16), dtype=torch.uint8)
    labels[:, 5:9, 5:9], labels[:, 6:8, 6:8] = 1, 2
    images[:, 0] += labels.float() / 2
    assert network.patch is not None
    scans_N = np.repeat(np.arange(count), depth)
    positions_N = np.tile(np.arange(depth), count)
    kept = [range(depth)] * count
    patches = Patches.around(network.patch, (16, 16), kept, scans_N, positions_N)
    heights_N = positions_N / max(depth - 1, 1)
    table = SliceTable(2, network.patch, scans_N, heights_N, (2.0, 1.0, 1.0))
    return SliceData(InMemory(images.half(), labels), table, dtype, "cpu", patches=patches)


def train_once(spec: Pretrain | Finetune, folder: RunFolder, devices: Devices) -> TrainingState:
    devices.set_up()
    dtype = devices.dtype(spec.training.precision)
    data = (volumes(n, 5, seed, dtype, spec.network) for n, seed in ((2, 1), (1, 2)))
    if isinstance(spec, Pretrain):
        task: Task = PretextTask(spec, *data, devices)
    else:
        task = SegmentTask(spec, LabelMeaning(("a", "b")), *data, devices)
    outputs = 2 if isinstance(spec, Pretrain) else 3
    model, facts = initial_network(spec, 2, outputs, folder, devices)
    return train(model, task, spec.training, folder, devices, facts)


PRETRAIN = Pretrain("data", DEEP, TRAINING, Denoise(Noise(resolution=4)))
FINETUNE = Finetune("data", DEEP, "multiclass", 1, TRAINING, seed=0)


def of_one_slice(spec: Pretrain | Finetune) -> tuple[Pretrain | Finetune, Pretrain | Finetune]:
    """A training of 20 steps in 2D, and in 3D with kernels of depth 1."""
    training = replace(TRAINING, iterations=20, validate_every=5)
    plain = replace(spec, training=training, network=Network(width=4, depth=2))
    return plain, replace(plain, network=FLAT)


@pytest.mark.parametrize("spec", [PRETRAIN, FINETUNE], ids=lambda s: s.kind)
def test_a_training_on_patches_of_one_slice_equals_that_on_slices(
    spec: Pretrain | Finetune, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twenty steps, to the last bit, with noise, or with nnU-Net's augmentation: a patch of one
    slice is flat, and changed in its plane alone."""
    plain, flat = of_one_slice(spec)
    one, two = RunFolder(tmp_path / "one"), RunFolder(tmp_path / "two")
    one.path.mkdir()
    two.path.mkdir()

    def slices(count: int, seed: int, dtype: torch.dtype) -> SliceData:
        data = volumes(count // 5, 5, seed, dtype, FLAT)
        images, labels = data._kept.images_NCHW, data._kept.labels_NHW  # type: ignore[attr-defined]
        table = SliceTable.unrelated(2, (16, 16), count)
        return SliceData(InMemory(images, labels), table, dtype, "cpu")

    monkeypatch.setattr("test_train.slices", slices)
    first = train_slices(plain, one, Devices())
    second = train_once(flat, two, Devices())
    assert losses(one) == losses(two)
    assert len(losses(one)) == 8
    for name, tensor in first.model.items():
        assert torch.equal(tensor.flatten(), second.model[name].flatten()), name


GOLDEN = {
    "pretrain": [0.569368528, 0.542801148, 0.454544603, 0.525411582, 0.420334002, 0.467847991],
    "finetune": [1.772468121, 1.635463728, 1.696395935, 1.605197344, 1.629353346, 1.530442510],
}
"""Training and validation loss at steps 2, 4 and 6, in double precision."""


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    (tmp_path / "run").mkdir()
    return RunFolder(tmp_path / "run")


@pytest.mark.parametrize("spec", [PRETRAIN, FINETUNE], ids=lambda s: s.kind)
def test_golden_losses(spec: Pretrain | Finetune, folder: RunFolder) -> None:
    train_once(spec, folder, Devices())
    assert losses(folder) == pytest.approx(GOLDEN[spec.kind], rel=1e-6)


@pytest.mark.parametrize("spec", [PRETRAIN, FINETUNE], ids=lambda s: s.kind)
def test_an_interrupted_training_ends_with_the_same_bits(
    spec: Pretrain | Finetune, folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = RunFolder(folder.path.with_name("whole"))
    whole.path.mkdir()
    expected = train_once(spec, whole, Devices())
    task = PretextTask if spec.kind == "pretrain" else SegmentTask
    with monkeypatch.context() as patch:
        patch.setattr(task, "loss", dying_at(3, task.loss))
        with pytest.raises(Killed):
            train_once(spec, folder, Devices(checkpoint_every_s=0))
    found = train_once(spec, folder, Devices())
    assert losses(folder) == losses(whole)
    assert all(torch.equal(found.model[k], expected.model[k]) for k in expected.model)


@pytest.mark.parametrize("spec", [PRETRAIN, FINETUNE], ids=lambda s: s.kind)
def test_two_ranks_equal_one(spec: Pretrain | Finetune, tmp_path: Path) -> None:
    one, two = RunFolder(tmp_path / "one"), RunFolder(tmp_path / "two")
    one.path.mkdir()
    two.path.mkdir()
    train_once(spec, one, Devices())
    launch(partial(train_once, spec, two), Devices(world_size=2))
    assert losses(two) == pytest.approx(losses(one), rel=1e-9)
    assert len(losses(two)) == 6


# Schemes and augmentation.


@pytest.mark.parametrize("scheme", [Denoise(Noise(4)), Autoencode(3), NoisePrediction()])
def test_schemes_of_3d_learn_and_score_volumes(scheme: Scheme) -> None:
    torch.manual_seed(0)
    size = (4, 8, 8)
    table = SliceTable.unrelated(2, size, 3)
    images = torch.rand(3, 2, *size)
    draw = scheme.draw(table, torch.Generator().manual_seed(0))
    network = scheme.network(tiny(in_channels=2, out_channels=2, depth=2))
    inputs, targets = scheme.pretext(images, draw)
    loss = scheme.loss(network(inputs), targets)
    loss.backward()
    assert loss.isfinite()
    assert all(p.grad is None or p.grad.isfinite().all() for p in network.parameters())
    mine, _ = scheme.pretext(images[1:2], draw[1:2])
    assert torch.equal(mine, inputs[1:2]), "a rank's share is its part of the batch"
    with torch.no_grad():
        scores = scheme.anomaly_score(network, images[:1], (2.0, 3.0, 3.0))
    assert scores.shape == (1, *size)
    assert (scores >= 0).all()


def test_noise_of_volumes_has_the_energy_of_that_of_slices() -> None:
    """σ 0.245 of 16 mm in 3D, as σ 0.2 of 16 nodes in 2D; away from the grid's period."""

    def rms(scheme: Denoise, size: tuple[int, ...], mm: tuple[float, ...]) -> float:
        table = SliceTable(1, size, np.arange(24), np.zeros(24), mm)
        draw = scheme.draw(table, torch.Generator().manual_seed(0))
        noise = scheme.corrupted(torch.zeros(24, 1, *size), torch.ones(24, *size), draw)
        return noise.square().mean().sqrt().item()

    plane = rms(Denoise(), (128, 128), (1.875, 1.875))
    deep = rms(Denoise(Noise(std=0.245, pitch_mm=16)), (41, 49, 49), (2.0, 2.0, 2.0))
    assert plane == pytest.approx(0.134, rel=0.02)
    assert deep == pytest.approx(plane, rel=0.06)


@pytest.mark.parametrize(
    ("noise", "nodes"),
    [(Noise(pitch_mm=8), (3, 5, 5)), (Noise(5), (3, 5, 5)), (Noise(9), (5, 9, 9))],
)
def test_nodes_are_as_far_apart_through_slices_as_along_rows(
    noise: Noise, nodes: tuple[int, ...]
) -> None:
    """Slices of 4 mm, pixels of 2 mm: 5 slices are 16 mm high, 17 rows 32 mm; never two a slice."""
    table = SliceTable(1, (5, 17, 17), np.arange(1), np.zeros(1), (4.0, 2.0, 2.0))
    assert noise.nodes(table) == nodes


def test_noise_of_volumes_is_trilinear() -> None:
    table = SliceTable(2, (6, 9, 9), np.arange(3), np.zeros(3), (1.0, 1.0, 1.0))
    scheme = Denoise(Noise(4))
    draw = scheme.draw(table, torch.Generator().manual_seed(0))
    images, inside = torch.rand(3, 2, 6, 9, 9), torch.rand(3, 6, 9, 9) > 0.5
    noisy = scheme.corrupted(images, inside, draw)
    plain = F.interpolate(draw.coarse_NCRR, (6, 9, 9), mode="trilinear", align_corners=True)
    expected = images + plain.roll(draw.shift, dims=(2, 3, 4)) * inside.unsqueeze(1)
    torch.testing.assert_close(noisy, expected, rtol=1e-5, atol=1e-6)
    assert draw.coarse_NCRR.shape[2:] == (4 - 1, 4, 4)


def balls(count: int, size: tuple[int, int, int], seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand((count, 2, *size), generator=generator) + 0.1
    labels = torch.zeros((count, *size), dtype=torch.long)
    labels[:, 2:-2, 3:-3, 3:-4] = 1
    return images * (labels > 0).unsqueeze(1), labels


TRANSFORMS = ("rotation", "scaling", "noise", "blur", "brightness", "contrast", "low_resolution")
ALWAYS = replace(
    augment.NNUNET_3D,
    **{f"{name}_probability": 1.0 for name in (*TRANSFORMS, "inverted_gamma", "gamma")},
)


@pytest.mark.parametrize("size", [(8, 12, 12), (3, 12, 12)], ids=["deep", "flat"])
def test_an_augmented_patch_is_alone_what_it_is_in_its_batch(size: tuple[int, int, int]) -> None:
    generator = torch.Generator().manual_seed(3)
    draws = augment.draw(ALWAYS, 4, 2, generator, size)
    images = torch.rand(4, 2, *size)
    labels = torch.randint(3, (4, *size))
    kept = images.clone()
    together, labels_together = augment.apply(images, labels, draws)
    assert torch.equal(images, kept)
    assert together.isfinite().all()
    assert not torch.equal(together, images)
    for n in range(4):
        alone, labels_alone = augment.apply(images[n : n + 1], labels[n : n + 1], draws[n : n + 1])
        torch.testing.assert_close(alone[0], together[n], rtol=1e-4, atol=1e-5)
        assert torch.equal(labels_alone[0], labels_together[n])


def test_nnunets_table_of_3d() -> None:
    """±30° about three axes; of flat patches ±180° in the plane, and mirrors along all axes."""
    assert augment.table_of((8, 12, 12)).rotation_deg == (-30, 30)
    assert augment.table_of((4, 12, 12)).rotation_deg == (-30, 30)
    assert augment.table_of((3, 12, 12)) is augment.table_of((12, 12)) is augment.NNUNET
    draws = augment.draw(augment.NNUNET_3D, 4000, 1, torch.Generator().manual_seed(0), (8, 12, 12))
    assert isinstance(draws, augment.PatchDraws)
    turned = draws.drawn("rotation_rad_N")
    assert torch.equal(draws.drawn("tilt_rad_N2").all(dim=1), turned)
    assert 0.17 < turned.double().mean() < 0.23
    assert draws.tilt_rad_N2.abs().max().rad2deg() == pytest.approx(30, abs=0.5)
    assert 0.47 < draws.mirror_through_N.double().mean() < 0.53
    flat = augment.draw(augment.NNUNET, 100, 1, torch.Generator().manual_seed(0), (3, 12, 12))
    assert isinstance(flat, augment.PatchDraws)
    assert not flat.drawn("tilt_rad_N2").any()
    assert flat.drawn("rotation_rad_N").any()


def test_labels_turn_with_the_volume() -> None:
    """Where an image shows its own labels, the changed image shows the changed labels."""
    size = (16, 16, 16)
    labels = torch.zeros(6, *size, dtype=torch.long)
    labels[:, 4:11, 3:10, 5:13] = 1
    images = labels.unsqueeze(1).float()
    only = replace(ALWAYS, scaling_probability=0.0)
    draws = augment.draw(only, 6, 1, torch.Generator().manual_seed(0), size)
    names = ("rotation_rad_N", "tilt_rad_N2", "mirror_N2", "mirror_through_N")
    never = augment.AugmentationTable(
        **{k: 0.0 for k in vars(augment.NNUNET) if k.endswith("probability")}
    )
    nothing = augment.draw(never, 6, 1, torch.Generator().manual_seed(0), size)
    draws = replace(nothing, **{name: getattr(draws, name) for name in names})
    changed, changed_labels = augment.apply(images, labels, draws)
    assert ((changed[:, 0] > 0.5) == (changed_labels == 1)).double().mean() > 0.99
    assert not torch.equal(changed_labels, labels)
    counts = changed_labels.flatten(1).sum(dim=1) / labels[0].sum()
    assert (counts - 1).abs().max() < 0.1, "a turn keeps the volume"


def test_a_tilt_of_nothing_is_the_turn_of_2d() -> None:
    from fewscan.experiments import transforms

    images, labels = balls(2, (6, 12, 12))
    angles, scales = torch.tensor([0.3, -1.0]), torch.tensor([1.0, 1.2])
    flat = transforms.warp(images, labels, angles, torch.ones(2))
    deep = transforms.warp(images, labels, angles, torch.ones(2), torch.zeros(2, 2))
    torch.testing.assert_close(flat[0], deep[0], rtol=1e-4, atol=1e-4)
    each = [transforms.warp(images[:, :, z], labels[:, z], angles, scales)[0] for z in range(6)]
    together = transforms.warp(images, labels, angles, scales)[0]
    assert torch.equal(together, torch.stack(each, dim=2))


def test_blur_of_volumes_blurs_each_axis() -> None:
    from fewscan.experiments import transforms

    volume = torch.rand(1, 9, 8, 7)
    sigmas = torch.tensor([[1.0, 0.7, 0.5]])
    found = transforms.blur(volume, sigmas)
    in_turn = volume
    for axis in (1, 2, 3):
        one = torch.tensor([[1e-3] * 3])
        one[0, axis - 1] = sigmas[0, axis - 1]
        in_turn = transforms.blur(in_turn, one)
    torch.testing.assert_close(found, in_turn, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(found, volume)
    constant = transforms.blur(torch.full((1, 4, 4, 4), 3.0), sigmas)
    torch.testing.assert_close(constant, torch.full((1, 4, 4, 4), 3.0))
