"""Predicting the noise of every pixel: the published input and target, and the score of ours."""

from dataclasses import asdict

import numpy as np
import pytest
import torch

from fewscan.experiments.anomaly import anomaly_of, foreground
from fewscan.experiments.schemes.ddep import SCORED_NOISES, NoisePrediction
from fewscan.experiments.schemes.scheme import SliceTable
from fewscan.experiments.unet import UNet

TABLE = SliceTable.unrelated(3, (16, 24), 5)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def images(count=5):
    images_NCHW = torch.rand(count, 3, 16, 24, generator=seeded(1)) + 0.1
    images_NCHW[:, :, :5] = 0
    return images_NCHW


def test_input_and_target_are_the_published_ones_inside_the_foreground():
    images_NCHW = images()
    draw = NoisePrediction().draw(TABLE, seeded(2))
    inputs_NCHW, asked = NoisePrediction().pretext(images_NCHW, draw)
    for n, seed in enumerate(draw.seeds_N.tolist()):
        noise_CHW = torch.randn(3, 16, 24, generator=seeded(seed))
        noise_CHW[:, :5] = 0
        assert torch.equal(asked.noise_NCHW[n], noise_CHW)
        expected_CHW = (1 + 0.22**2) ** -0.5 * (images_NCHW[n] + 0.22 * noise_CHW)
        torch.testing.assert_close(inputs_NCHW[n], expected_CHW)
    assert torch.equal(asked.foreground_NHW, foreground(images_NCHW))


def test_the_loss_is_the_squared_error_of_the_noise():
    inputs_NCHW, asked = NoisePrediction().pretext(
        images(), NoisePrediction().draw(TABLE, seeded())
    )
    outputs_NCHW = torch.rand(inputs_NCHW.shape, generator=seeded(3))
    inside_NHW = asked.foreground_NHW.numpy()
    error_NCHW = (outputs_NCHW - asked.noise_NCHW).numpy() ** 2 * inside_NHW[:, None]
    loss = NoisePrediction().loss(outputs_NCHW, asked)
    assert loss.item() == pytest.approx(error_NCHW.sum() / error_NCHW.size)
    assert NoisePrediction().loss(asked.noise_NCHW, asked) == 0


def test_noise_is_standard_normal_and_new_for_each_slice_and_channel():
    table = SliceTable.unrelated(2, (64, 64), 20)
    draw = NoisePrediction().draw(table, seeded())
    _, asked = NoisePrediction().pretext(torch.ones(20, 2, 64, 64), draw)
    planes = asked.noise_NCHW.flatten(0, 1).flatten(1)
    assert planes.std().item() == pytest.approx(1, rel=0.01)
    assert planes.mean().item() == pytest.approx(0, abs=0.01)
    assert (torch.corrcoef(planes) - torch.eye(40)).abs().max() < 0.1


def test_a_share_gets_its_share_in_the_precision_of_the_images():
    images_NCHW = images().double()
    draw = NoisePrediction(0.5).draw(TABLE, seeded())
    whole, asked = NoisePrediction(0.5).pretext(images_NCHW, draw)
    share, asked_of_share = NoisePrediction(0.5).pretext(images_NCHW[1:3], draw[1:3])
    assert whole.dtype == torch.float64
    assert torch.equal(share, whole[1:3])
    assert torch.equal(asked_of_share.noise_NCHW, asked.noise_NCHW[1:3])


class Guess(torch.nn.Module):
    """Always the same answer."""

    def __init__(self, noise_NCHW):
        super().__init__()
        self.noise_NCHW = noise_NCHW

    def forward(self, inputs_NCHW):
        return self.noise_NCHW.expand_as(inputs_NCHW)


def test_the_score_is_what_is_left_of_the_noise():
    """x − x̂ = σ (output − ε): a network that says 0 leaves the mean of σ |ε|."""
    images_NCHW, network = torch.ones(1, 3, 16, 24), Guess(torch.zeros(1))
    scores_NHW = NoisePrediction().anomaly_score(network, images_NCHW, (10.0, 10.0))
    inside = scores_NHW[scores_NHW > 0]
    expected = 0.22 * np.sqrt(2 / np.pi)
    assert inside.mean().item() == pytest.approx(expected, rel=0.05)
    spread = 0.22 * np.sqrt(1 - 2 / np.pi) / np.sqrt(3 * SCORED_NOISES)
    assert inside.std().item() == pytest.approx(spread, rel=0.15)


def test_the_score_of_a_slice_does_not_depend_on_its_batch():
    images_NCHW = images(3)
    torch.manual_seed(0)
    network = UNet(3, 3, width=4, depth=2).eval()
    with torch.no_grad():
        together = NoisePrediction().anomaly_score(network, images_NCHW, (1.0, 3.0))
        alone = NoisePrediction().anomaly_score(network, images_NCHW[1:2], (1.0, 3.0))
    torch.testing.assert_close(together[1:2], alone)
    assert together.dtype == torch.float32
    assert (together >= 0).all()
    kept = anomaly_of(torch.ones(3, 16, 24), images_NCHW, (1.0, 3.0))
    assert torch.equal(together > 0, kept > 0)


def test_without_noise_there_is_nothing_to_predict():
    with pytest.raises(ValueError, match="std is 0, expected more than 0"):
        NoisePrediction(0)


def test_a_default_is_part_of_the_protocol():
    assert asdict(NoisePrediction()) == {"std": 0.22}
