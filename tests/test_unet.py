"""The U-Net: its size and names, each of its parts against a plain version, and transfer."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from fewscan.experiments.unet import (
    ReflectionPad,
    StandardisedConv2d,
    UNet,
    UNetShape,
    load_for_transfer,
    middle_divisor,
)
from fewscan.storage.errors import RunError


def tiny(seed=0, **shape):
    torch.manual_seed(seed)
    return UNet(**{"in_channels": 3, "out_channels": 3, "width": 4, "depth": 3} | shape)


def test_published_size_and_names():
    model = UNet(in_channels=4, out_channels=4, width=64, depth=4)
    assert sum(p.numel() for p in model.parameters()) == 7_703_748
    assert model.shape == UNetShape(4, 4, 64, 4)
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    assert len(shapes) == 7 * 8 + 3 * 2 + 2
    assert shapes["down_path.0.block.1.weight"] == (64, 4, 3, 3)
    assert shapes["down_path.3.block.7.bias"] == (512,)
    assert shapes["up_path.0.up.weight"] == (512, 256, 2, 2)
    assert shapes["up_path.0.conv_block.block.1.weight"] == (256, 512, 3, 3)
    assert shapes["last.weight"] == (4, 64, 1, 1)


@pytest.mark.parametrize(
    ("channels", "groups"),
    [(64, 8), (128, 16), (256, 16), (512, 32), (1, 1), (2, 2), (7, 7), (12, 4), (24, 6), (36, 6)],
)
def test_middle_divisor(channels, groups):
    assert middle_divisor(channels) == groups


@settings(deadline=None, max_examples=20)
@given(height=st.integers(2, 7), width=st.integers(2, 7), channels_last=st.booleans())
def test_padding_and_its_gradient_are_those_of_torch(height, width, channels_last):
    layout = torch.channels_last if channels_last else torch.contiguous_format
    generator = torch.Generator().manual_seed(height * 10 + width)
    x_NCHW = torch.randn(2, 3, height, width, generator=generator, dtype=torch.float64)
    weights = torch.randn(2, 3, height + 2, width + 2, generator=generator, dtype=torch.float64)
    ours = x_NCHW.clone(memory_format=layout).requires_grad_()
    plain = x_NCHW.clone().requires_grad_()
    padded = ReflectionPad()(ours)
    expected = F.pad(plain, (1, 1, 1, 1), mode="reflect")
    (padded * weights).sum().backward()
    (expected * weights).sum().backward()
    assert torch.equal(padded, expected)
    torch.testing.assert_close(ours.grad, plain.grad, rtol=1e-12, atol=1e-12)


def test_no_gradient_goes_through_the_padding_of_torch():
    # On CUDA that one adds with atomics, and a resumed run would not end with the same bits.
    model = tiny()
    todo, seen = [model(torch.rand(1, 3, 8, 8)).grad_fn], set()
    while todo:
        node = todo.pop()
        if node is not None and node not in seen:
            seen.add(node)
            todo += [parent for parent, _ in node.next_functions]
    names = {node.name() for node in seen}
    assert any("PadByOne" in name for name in names)
    assert not any("ReflectionPad" in name for name in names)


def test_weight_standardisation():
    torch.manual_seed(0)
    convolution = StandardisedConv2d(3, 5, kernel_size=3).double()
    x_NCHW = torch.randn(2, 3, 6, 6, dtype=torch.float64)
    standardised = torch.stack(
        [
            (w - w.mean()) / (((w - w.mean()) ** 2).sum().div(w.numel() - 1).sqrt() + 1e-5)
            for w in convolution.weight
        ]
    )
    expected = F.conv2d(x_NCHW, standardised, convolution.bias)
    torch.testing.assert_close(convolution(x_NCHW), expected, rtol=1e-12, atol=1e-12)


def test_constant_filters_do_not_spoil_the_gradient():
    convolution = StandardisedConv2d(2, 2, kernel_size=3)
    torch.nn.init.constant_(convolution.weight, 0.3)
    convolution(torch.rand(1, 2, 4, 4)).sum().backward()
    assert convolution.weight.grad.isfinite().all()


def test_filters_are_standardised_in_full_precision_under_autocast():
    # Filters of 1 ± 0.002 are constant in bf16, so their standardised form would be lost there.
    torch.manual_seed(0)
    convolution = StandardisedConv2d(3, 5, kernel_size=3)
    with torch.no_grad():
        convolution.weight.mul_(0.01).add_(1)
    x_NCHW = torch.randn(2, 3, 6, 6)
    with torch.autocast("cpu", torch.bfloat16):
        half = convolution(x_NCHW)
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), convolution(x_NCHW), rtol=0.02, atol=0.1)


def test_bf16_autocast_is_close_and_trains():
    model = tiny(width=8)
    images_NCHW = torch.rand(2, 3, 16, 16)
    with torch.autocast("cpu", torch.bfloat16):
        half = model(images_NCHW)
    full = model(images_NCHW)
    assert (half.float() - full).std() < 0.05 * full.std()
    half.float().square().mean().backward()
    assert all(p.grad.dtype == torch.float32 for p in model.parameters())
    assert all(p.grad.isfinite().all() for p in model.parameters())


@settings(deadline=None, max_examples=15)
@given(
    width=st.integers(1, 7),
    depth=st.integers(2, 4),
    rows=st.integers(2, 4),
    columns=st.integers(2, 4),
)
def test_any_width_and_any_size_that_can_be_halved(width, depth, rows, columns):
    size = (rows * 2 ** (depth - 1), columns * 2 ** (depth - 1))
    output = tiny(width=width, depth=depth, out_channels=2)(torch.rand(1, 3, *size))
    assert output.shape == (1, 2, *size)


def test_images_do_not_see_each_other():
    model = tiny().double()
    images_NCHW = torch.rand(3, 3, 8, 8, dtype=torch.float64)
    alone = torch.cat([model(image[None]) for image in images_NCHW])
    torch.testing.assert_close(model(images_NCHW), alone, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    ("size", "message"), [((10, 8), "height 10"), ((8, 6), "width 6"), ((4, 8), "at least 8")]
)
def test_sizes_that_do_not_fit(size, message):
    with pytest.raises(ValueError, match=message):
        tiny()(torch.rand(1, 3, *size))


@pytest.mark.parametrize("shape", [{"depth": 1}, {"width": 0}, {"out_channels": 0}])
def test_shapes_that_make_no_network(shape):
    with pytest.raises(ValueError, match="expected at least"):
        tiny(**shape)


@pytest.mark.parametrize("classes", [2, 3])
def test_transfer_loads_all_but_the_head(classes):
    source, model = tiny(seed=0), tiny(seed=1, out_channels=classes)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    report = load_for_transfer(model, source.state_dict())
    assert report.replaced == ("last.weight", "last.bias")
    assert {*report.loaded, *report.replaced} == set(before)
    for name, tensor in model.state_dict().items():
        kept = before if name in report.replaced else source.state_dict()
        assert torch.equal(tensor, kept[name]), name


def test_transfer_of_the_encoder_leaves_the_decoder_new():
    source, model = tiny(seed=0), tiny(seed=1, out_channels=2)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    report = load_for_transfer(model, source.state_dict(), "encoder")
    assert {*report.loaded, *report.replaced} == set(before)
    assert set(report.loaded) == {name for name in before if name.startswith("down_path.")}
    for name, tensor in model.state_dict().items():
        kept = source.state_dict() if name in report.loaded else before
        assert torch.equal(tensor, kept[name]), name


def test_the_encoder_of_a_network_without_skips_can_be_transferred():
    source, model = tiny(seed=0, skips=False, out_channels=1), tiny(seed=1)
    report = load_for_transfer(model, source.state_dict(), "encoder")
    assert all(torch.equal(model.state_dict()[n], source.state_dict()[n]) for n in report.loaded)


def test_without_skips_the_decoder_sees_the_coarsest_level_alone():
    """Other maps of the finer levels make no difference; with skips they do."""
    images_NCHW = torch.rand(1, 3, 8, 8)
    for skips in (False, True):
        model = tiny(skips=skips)
        assert model.shape.skips is skips
        coarsest = model.down_path[-1]
        fixed = torch.rand(1, 16, 2, 2)
        coarsest.forward = lambda x, fixed=fixed: fixed
        with torch.no_grad():
            same = torch.equal(model(images_NCHW), model(images_NCHW.flip(-1)))
        assert same is not skips


def test_skips_change_no_name_and_no_shape():
    with_, without = (tiny(skips=skips).state_dict() for skips in (True, False))
    assert {n: t.shape for n, t in with_.items()} == {n: t.shape for n, t in without.items()}


def _without(name):
    return lambda weights: weights.pop(name)


def _with_stranger(weights):
    weights["attention.weight"] = torch.zeros(1)


@pytest.mark.parametrize(
    ("spoil", "where", "found"),
    [
        (_without("up_path.1.up.bias"), "up_path.1.up.bias", "no such tensor"),
        (_with_stranger, "attention.weight", r"shape \(1,\)"),
        (
            lambda weights: weights.update(tiny(width=8).state_dict()),
            "down_path.0.block.1.weight",
            r"shape \(8, 3, 3, 3\)",
        ),
    ],
)
def test_transfer_refuses_another_network(spoil, where, found):
    model, weights = tiny(seed=1), tiny(seed=0).state_dict()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    spoil(weights)
    with pytest.raises(RunError, match=found) as caught:
        load_for_transfer(model, weights)
    assert caught.value.where == where
    assert caught.value.expected
    assert "same network" in caught.value.remedy
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
