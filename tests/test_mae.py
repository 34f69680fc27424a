"""The masked auto-encoder: what is hidden, what counts, its score, and the sparse encoder."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fewscan.experiments.anomaly import anomaly_of, foreground, reconstruction_anomaly
from fewscan.experiments.around import Sparse, visible_part
from fewscan.experiments.schemes import Mae
from fewscan.experiments.schemes.scheme import SliceTable
from fewscan.experiments.unet import UNet

MM = (1.875, 1.875)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def heads(count=3, size=64, seed=0):
    """Discs of tissue on zeros; no pixel of tissue is 0."""
    rows, columns = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    disc = (rows - size / 2) ** 2 + (columns - size / 2) ** 2 < (0.42 * size) ** 2
    return (0.1 + torch.rand(count, 2, size, size, generator=seeded(seed))) * disc


def drawn(scheme, count=3, size=64, seed=0):
    table = SliceTable(2, (size, size), np.arange(count), np.zeros(count), MM)
    return scheme.draw(table, seeded(seed))


@pytest.mark.parametrize("ratio", [0.6, 0.75])
def test_so_many_of_the_blocks_with_tissue_are_hidden(ratio):
    """Whole blocks, in all channels, by zeros; asked for is the tissue in them."""
    images_NCHW, scheme = heads(), Mae(ratio)
    draw = drawn(scheme)
    assert draw.blocks.block_HW == (8, 8)
    inputs_NCHW, asked = scheme.pretext(images_NCHW, draw)
    for n in range(3):
        hidden, seen = [], []
        for b in range(64):
            place = np.s_[b // 8 * 8 : b // 8 * 8 + 8, b % 8 * 8 : b % 8 * 8 + 8]
            clean, fed = images_NCHW[n][:, *place], inputs_NCHW[n][:, *place]
            tissue = foreground(clean[None])[0]
            is_hidden = bool((asked.hidden_NHW[n][place]).any())
            if tissue.any():
                (hidden if is_hidden else seen).append(draw.key_NB[n, b].item())
            assert torch.equal(asked.hidden_NHW[n][place], tissue & is_hidden)
            assert torch.equal(fed, torch.zeros_like(clean) if is_hidden else clean)
        assert len(hidden) == round(ratio * (len(hidden) + len(seen)))
        assert max(hidden) < min(seen)
    assert torch.equal(asked.images_NCHW, images_NCHW)
    assert len(asked.hidden_NHW.flatten(1).unique(dim=0)) == 3


def test_a_share_of_the_batch_is_hidden_as_in_the_whole():
    images_NCHW, scheme = heads(5), Mae()
    draw = drawn(scheme, 5)
    whole, asked = scheme.pretext(images_NCHW, draw)
    share, asked_share = scheme.pretext(images_NCHW[2:4], draw[2:4])
    assert torch.equal(share, whole[2:4])
    assert torch.equal(asked_share.hidden_NHW, asked.hidden_NHW[2:4])


def test_the_loss_is_the_mean_over_hidden_tissue():
    images_NCHW, scheme = heads(), Mae()
    _, asked = scheme.pretext(images_NCHW, drawn(scheme))
    outputs_NCHW = torch.rand(images_NCHW.shape, generator=seeded(5))
    hidden = asked.hidden_NHW[:, None].expand_as(images_NCHW)
    expected = F.mse_loss(outputs_NCHW[hidden], images_NCHW[hidden])
    torch.testing.assert_close(scheme.loss(outputs_NCHW, asked), expected)
    nothing = scheme.loss(outputs_NCHW, asked._replace(hidden_NHW=torch.zeros(3, 64, 64).bool()))
    assert nothing == 0


class Remembering(nn.Module):
    """A network that answers with a shade of its own each time, and remembers its inputs."""

    def __init__(self):
        super().__init__()
        self.inputs = []

    def forward(self, images_NCHW):
        self.inputs.append(images_NCHW)
        return torch.full_like(images_NCHW, 0.1 * len(self.inputs) ** 2)


def test_the_score_is_the_mean_of_three_passes_that_hide_a_pixel():
    images_NCHW, network = heads(), Remembering()
    scores_NHW = Mae().anomaly_score(network, images_NCHW, MM)
    error_NHW = torch.zeros(3, 64, 64)
    hidden_NHW = torch.zeros(3, 64, 64)
    for n, inputs_NCHW in enumerate(network.inputs, start=1):
        away_NHW = (inputs_NCHW != images_NCHW).any(dim=1)
        shown = [inputs_NCHW[:, :, b // 8 * 8 :, b % 8 * 8 :][..., :8, :8] for b in range(64)]
        assert sum(bool(it.any()) for it in shown) <= 16  # a quarter of the blocks at most
        error_NHW += (images_NCHW - 0.1 * n**2).abs().mean(dim=1) * away_NHW
        hidden_NHW += away_NHW
    assert len(network.inputs) == 4
    assert torch.equal(hidden_NHW == 3, foreground(images_NCHW))
    expected_NHW = anomaly_of(error_NHW / 3, images_NCHW, MM)
    torch.testing.assert_close(scores_NHW, expected_NHW)


def test_what_nobody_sees_is_anomalous_to_a_network_that_copies():
    images_NCHW = heads()
    scores_NHW = Mae().anomaly_score(nn.Identity(), images_NCHW, MM)
    zeros = torch.zeros_like(images_NCHW)
    torch.testing.assert_close(scores_NHW, reconstruction_anomaly(images_NCHW, zeros, MM))


def body(skips=False):
    torch.manual_seed(0)
    model = UNet(2, 2, width=4, depth=3, skips=skips)
    for name, parameter in model.named_parameters():  # gains of 1 and shifts of 0 hide mistakes
        if parameter.dim() == 1:
            nn.init.normal_(parameter, mean=float(name.endswith("weight")), std=0.3)
    return model


def with_mask(images_NCHW, visible_NHW):
    return torch.cat([images_NCHW, visible_NHW[:, None].to(images_NCHW)], dim=1)


@pytest.mark.parametrize("skips", [True, False])
def test_a_sparse_encoder_that_sees_all_is_the_body(skips):
    made = body(skips)
    images_NCHW = heads()
    outputs = Sparse(made)(with_mask(images_NCHW, torch.ones(3, 64, 64)))
    torch.testing.assert_close(outputs, made(images_NCHW), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("skips", [True, False])
def test_a_sparse_encoder_sees_nothing_of_what_is_hidden(skips):
    network = Sparse(body(skips))
    assert len(network.tokens) == (3 if skips else 1)
    images_NCHW, visible_NHW = heads(), torch.ones(3, 64, 64)
    visible_NHW[:, 16:48, 8:40] = 0
    outputs = network(with_mask(images_NCHW, visible_NHW))
    images_NCHW[:, :, 16:48, 8:40] = 100
    torch.testing.assert_close(network(with_mask(images_NCHW, visible_NHW)), outputs)


def test_a_sparse_block_against_a_plain_one():
    """Of visible cells alone: the convolutions see zeros elsewhere, the norms see nothing else."""
    block = body().down_path[0].double()
    x_NCHW = torch.rand(2, 2, 12, 12, generator=seeded(3), dtype=torch.float64)
    visible_NHW = torch.rand(2, 12, 12, generator=seeded(4)) < 0.4
    found_NCHW = visible_part(block, x_NCHW, visible_NHW[:, None].double())
    for n in range(2):
        seen, x_CHW = visible_NHW[n], x_NCHW[n] * visible_NHW[n]
        for convolve, norm in ((block.block[1], block.block[3]), (block.block[5], block.block[7])):
            padded = F.pad(x_CHW[None], (1, 1, 1, 1), mode="reflect")
            cells_CP = F.silu(convolve(padded))[0][:, seen]
            groups = [
                (it - it.mean()) / (it.var(correction=0) + norm.eps).sqrt()
                for it in cells_CP.split(norm.num_channels // norm.num_groups)
            ]
            cells_CP = torch.cat(groups) * norm.weight[:, None] + norm.bias[:, None]
            x_CHW = torch.zeros(norm.num_channels, 12, 12, dtype=torch.float64)
            x_CHW[:, seen] = cells_CP
        torch.testing.assert_close(found_NCHW[n], x_CHW)


def test_a_learnt_vector_stands_in_for_cells_without_a_visible_pixel():
    made = body()
    network = Sparse(made)
    images_NCHW, visible_NHW = heads(1), torch.ones(1, 64, 64)
    visible_NHW[:, 1:63, 1:63] = 0  # a rim is seen: of the coarsest cells all but the border
    with torch.no_grad():
        network.tokens[0].fill_(1e6)
    maps = []
    made.decoded = lambda found: maps.extend(found)
    network(with_mask(images_NCHW, visible_NHW))
    assert (maps[2][0, :, 0] < 1e3).all()  # the border, of which a quarter or so is seen
    inner_CHW = maps[2][0, :, 1:-1, 1:-1]
    assert torch.equal(inner_CHW, network.tokens[0].view(-1, 1, 1).expand_as(inner_CHW))
    assert (maps[0][0, :, 1:63, 1:63] == 0).all()  # the decoder does not see it
    torch.manual_seed(0)
    token = Sparse(UNet(2, 2, width=512, depth=2, skips=False)).tokens[0]
    assert token.std().item() == pytest.approx(0.02, rel=0.2)  # cut: 0.88 of it
    assert token.abs().max() <= 0.04


def test_the_sparse_one_is_told_what_is_visible():
    images_NCHW, scheme = heads(), Mae(sparse=True)
    inputs, asked = scheme.pretext(images_NCHW, drawn(scheme))
    plain, _ = Mae().pretext(images_NCHW, drawn(scheme))
    assert torch.equal(inputs[:, :2], plain)
    hidden_NHW = inputs[:, 2] == 0
    assert torch.equal(hidden_NHW & foreground(images_NCHW), asked.hidden_NHW)
    assert Mae().network(made := body()) is made


def test_mistakes_are_named():
    for ratio in (0.0, 1.0, 1.5):
        with pytest.raises(ValueError, match="ratio is"):
            Mae(ratio)
