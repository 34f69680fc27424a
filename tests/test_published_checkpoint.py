"""Published checkpoints: outputs as theirs, and a clear error for everything that is not one."""

import fractions

import pytest
import torch
import torch.nn.functional as F

from fewscan.experiments.published_checkpoint import read_checkpoint
from fewscan.experiments.unet import UNet
from fewscan.storage.errors import RunError


def plain_forward(weights, x):
    """The published network, written straight from the names and its description."""

    def convolution(x, conv, norm):
        w = weights[f"{conv}.weight"]
        flat = w.reshape(len(w), -1)
        flat = flat - flat.mean(dim=1, keepdim=True)
        std = (flat.square().sum(dim=1, keepdim=True) / (flat.shape[1] - 1)).sqrt()
        w = (flat / (std + 1e-5)).reshape(w.shape)
        x = F.conv2d(F.pad(x, (1, 1, 1, 1), mode="reflect"), w, weights[f"{conv}.bias"])
        x = x * torch.sigmoid(x)
        groups = {4: 2, 6: 3, 8: 4, 12: 4, 16: 4, 64: 8, 128: 16, 256: 16, 512: 32}[len(w)]
        y = x.reshape(len(x), groups, -1)
        centred = y - y.mean(dim=2, keepdim=True)
        y = centred / (centred.square().mean(dim=2, keepdim=True) + 1e-5).sqrt()
        scale, shift = (weights[f"{norm}.{n}"].view(1, -1, 1, 1) for n in ("weight", "bias"))
        return y.reshape(x.shape) * scale + shift

    def block(x, name):
        x = convolution(x, f"{name}.block.1", f"{name}.block.3")
        return convolution(x, f"{name}.block.5", f"{name}.block.7")

    levels = len({name.split(".")[1] for name in weights if name.startswith("down_path")})
    skips = []
    for level in range(levels):
        if level > 0:
            x = (x[..., ::2, ::2] + x[..., 1::2, ::2] + x[..., ::2, 1::2] + x[..., 1::2, 1::2]) / 4
        x = block(x, f"down_path.{level}")
        skips.append(x)
    for level in range(levels - 1):
        up = f"up_path.{level}"
        x = F.conv_transpose2d(x, weights[f"{up}.up.weight"], weights[f"{up}.up.bias"], stride=2)
        x = block(torch.cat([x, skips[levels - 2 - level]], dim=1), f"{up}.conv_block")
    return torch.einsum("oc,nchw->nohw", weights["last.weight"][:, :, 0, 0], x) + weights[
        "last.bias"
    ].view(1, -1, 1, 1)


def trained(seed=0, **shape):
    """A network none of whose parameters is at a neutral value."""
    torch.manual_seed(seed)
    model = UNet(**{"in_channels": 2, "out_channels": 3, "width": 4, "depth": 3} | shape)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return model


def saved(path, model, prefix="", **extra):
    weights = {prefix + name: tensor for name, tensor in model.state_dict().items()}
    torch.save({"epoch_no": 7, "model_class": "UNet", "model_state_dict": weights} | extra, path)
    return path


@pytest.mark.parametrize(
    ("shape", "size"),
    [
        ({"in_channels": 4, "out_channels": 4, "width": 64, "depth": 4}, (16, 16)),
        ({"in_channels": 1, "out_channels": 2, "width": 6, "depth": 2}, (6, 10)),
    ],
)
def test_outputs_are_those_of_the_published_network(tmp_path, shape, size):
    path = saved(tmp_path / "dae.pt", trained(**shape))
    weights, *found = read_checkpoint(path)
    assert found == list(shape.values())
    model = UNet(*found)
    model.load_state_dict(weights, strict=True)
    images_NCHW = torch.rand(2, shape["in_channels"], *size)
    exact = {name: tensor.double() for name, tensor in weights.items()}
    with torch.no_grad():
        expected = plain_forward(exact, images_NCHW.double())
        assert (model(images_NCHW) - expected).abs().max() < 1e-5 * expected.abs().max()
        outputs = model.double()(images_NCHW.double())
    torch.testing.assert_close(outputs, expected, rtol=1e-10, atol=1e-10)


def test_names_of_data_parallel_and_half_precision(tmp_path):
    model = trained()
    path = saved(tmp_path / "dae.pt", model.bfloat16(), prefix="module.")
    weights = read_checkpoint(path).state_dict
    assert list(weights) == list(model.state_dict())
    assert all(tensor.dtype == torch.float32 for tensor in weights.values())


def test_reading_draws_no_random_numbers(tmp_path):
    path = saved(tmp_path / "dae.pt", trained())
    before = torch.get_rng_state()
    read_checkpoint(path)
    assert torch.equal(torch.get_rng_state(), before)


def refused(path):
    with pytest.raises(RunError) as caught:
        read_checkpoint(path)
    error = caught.value
    assert str(path) in error.where
    assert error.expected
    assert error.remedy
    return error


def test_no_file(tmp_path):
    assert "missing" in refused(tmp_path / "nothing.pt").found
    assert "not a file" in refused(tmp_path).found


@pytest.mark.parametrize("content", [b"", b"a text file", bytes(1000), b"PK\x03\x04 cut short"])
def test_not_a_torch_file(tmp_path, content):
    path = tmp_path / "dae.pt"
    path.write_bytes(content)
    assert "cannot read" in refused(path).found


def test_a_file_that_was_cut_short(tmp_path):
    path = saved(tmp_path / "dae.pt", trained())
    path.write_bytes(path.read_bytes()[:-1000])
    error = refused(path)
    assert "cannot read" in error.found
    assert "copied whole" in error.remedy


def test_code_is_not_run(tmp_path):
    error = refused(saved(tmp_path / "dae.pt", trained(), extra=fractions.Fraction(1, 2)))
    assert "code" in error.found
    assert "save only the weights" in error.remedy


@pytest.mark.parametrize(
    ("content", "found"),
    [
        ({"state": 1, "epoch": 2}, "state, epoch"),
        ([1, 2], "list"),
        ({"model_state_dict": {"last.weight": 3}}, "model_state_dict"),
        ({"model_state_dict": {5: torch.zeros(1)}}, "model_state_dict"),
    ],
)
def test_no_weights(tmp_path, content, found):
    path = tmp_path / "dae.pt"
    torch.save(content, path)
    error = refused(path)
    assert "no weights" in error.found
    assert found in error.found
    assert "torch.save" in error.remedy


@pytest.mark.parametrize(
    "weights",
    [
        {},
        {"encoder.0.weight": torch.zeros(2, 2)},
        {"down_path.0.block.1.weight": torch.zeros(()), "last.weight": torch.zeros(1)},
        {"down_path.0.block.1.weight": torch.zeros(2, 2, 3, 3), "last.weight": torch.zeros(())},
        {"down_path.0.block.1.weight": torch.zeros(2, 2, 3, 3), "last.weight": torch.zeros(1)},
    ],
)
def test_weights_of_another_network(tmp_path, weights):
    path = tmp_path / "dae.pt"
    torch.save({"model_state_dict": weights}, path)
    assert "not those of the published U-Net" in refused(path).found


@pytest.mark.parametrize(
    ("name", "value", "found"),
    [
        ("down_path.1.block.5.bias", None, "no such tensor"),
        ("down_path.1.block.5.scale", torch.ones(1), "shape (1,)"),
        ("up_path.0.up.weight", torch.zeros(16, 8, 3, 3), "shape (16, 8, 3, 3)"),
    ],
)
def test_a_name_or_shape_that_does_not_fit(tmp_path, name, value, found):
    weights = trained().state_dict() | {name: value}
    kept = {k: v for k, v in weights.items() if v is not None}
    path = tmp_path / "dae.pt"
    torch.save({"model_state_dict": kept}, path)
    error = refused(path)
    assert found in error.found
    assert name in error.where
