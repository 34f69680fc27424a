"""The auto-encoder: nothing is spoilt, and what makes it a task."""

import pytest
import torch
import torch.nn.functional as F

from fewscan.experiments.around import Narrow
from fewscan.experiments.checkpoint import load_around, load_model, save_model, weights_around
from fewscan.experiments.schemes import Autoencode
from fewscan.experiments.schemes.scheme import SliceTable
from fewscan.experiments.unet import UNet


def body(skips=False):
    torch.manual_seed(0)
    return UNet(2, 2, width=4, depth=3, skips=skips)


def images(count=2, seed=0):
    return torch.rand(count, 2, 16, 16, generator=torch.Generator().manual_seed(seed))


def test_the_slice_itself_is_fed_and_asked_for():
    scheme = Autoencode()
    generator = torch.Generator().manual_seed(0)
    before = generator.get_state()
    draw = scheme.draw(SliceTable.unrelated(2, (16, 16), 2), generator)
    assert torch.equal(generator.get_state(), before)
    inputs_NCHW, clean = scheme.pretext(images(), draw[0:2])
    assert torch.equal(inputs_NCHW, images())
    assert torch.equal(clean.images_NCHW, images())
    assert scheme.loss(images(), clean) == 0
    assert scheme.loss(images(seed=1), clean) == pytest.approx(
        F.mse_loss(images(seed=1), images()).item()
    )


def test_all_passes_through_the_narrow_place():
    network = Autoencode(latent_channels=3).network(body())
    assert isinstance(network, Narrow)
    assert network.squeeze.weight.shape == (3, 16, 1, 1)
    x = images()
    for level, block in enumerate(network.body.down_path):
        x = block(F.avg_pool2d(x, 2) if level else x)
    x = network.widen(network.squeeze(x))
    for block in network.body.up_path:
        size = [2 * n for n in x.shape[2:]]
        x = block(x, torch.zeros(2, x.shape[1] // 2, *size))
    torch.testing.assert_close(network(images()), network.body.last(x), rtol=0, atol=0)
    with torch.no_grad():
        network.squeeze.weight.zero_()
    assert torch.equal(network(images(seed=1))[0], network(images(seed=2))[0])


def test_without_it_the_body_is_trained():
    made = body()
    assert Autoencode(latent_channels=None).network(made) is made
    with pytest.raises(ValueError, match="latent_channels is 0"):
        Autoencode(latent_channels=0)


def test_skips_are_off_unless_it_is_the_control():
    assert not Autoencode().skips
    assert Autoencode(skips=True).skips
    assert Autoencode().transfer == "encoder"


def test_the_narrow_place_lies_beside_the_body_in_the_file(tmp_path):
    """What is handed on is the body; the rest is there for the anomaly score."""
    made = body()
    network = Autoencode().network(made)
    around = weights_around(network, made)
    assert set(around) == {f"{n}.{p}" for n in ("squeeze", "widen") for p in ("weight", "bias")}
    save_model(tmp_path / "model.pt", made, made.state_dict(), around)
    assert set(load_model(tmp_path / "model.pt").state_dict()) == set(made.state_dict())
    found = load_around(tmp_path / "model.pt")
    assert all(torch.equal(found[name], around[name]) for name in around)
    save_model(tmp_path / "alone.pt", made, made.state_dict(), weights_around(made, made))
    assert load_around(tmp_path / "alone.pt") == {}
