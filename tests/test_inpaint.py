"""Context restoration and inpainting: what is hidden, by what, and the score of it."""

import numpy as np
import pytest
import torch
from torch import nn

from fewscan.experiments.anomaly import foreground, reconstruction_anomaly
from fewscan.experiments.blocks import Blocks, seeds, uniform
from fewscan.experiments.schemes import Inpaint
from fewscan.experiments.schemes.inpaint import SCORE_SEED, partners
from fewscan.experiments.schemes.scheme import SliceTable

MM = (1.875, 1.875)
FILLS = pytest.mark.parametrize("fill", ["zero", "noise", "swap"])


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def heads(count=3, size=48, seed=0):
    """Discs of tissue on zeros; no pixel of tissue is 0."""
    rows, columns = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    disc = (rows - size / 2) ** 2 + (columns - size / 2) ** 2 < (0.42 * size) ** 2
    return (0.1 + torch.rand(count, 2, size, size, generator=seeded(seed))) * disc


def drawn(scheme, count=3, size=48, seed=0):
    table = SliceTable(2, (size, size), np.arange(count), np.zeros(count), MM)
    return scheme.draw(table, seeded(seed))


@pytest.mark.parametrize("fill", ["zero", "noise"])
def test_boxes_in_the_foreground_are_painted_over(fill):
    images_NCHW, scheme = heads(), Inpaint(fill)
    draw = drawn(scheme)
    inputs_NCHW, clean = scheme.pretext(images_NCHW, draw)
    assert torch.equal(clean.images_NCHW, images_NCHW)
    painted_NHW = draw.boxes.covered(foreground(images_NCHW)) & foreground(images_NCHW)
    assert (painted_NHW.float().mean(dim=(1, 2)) > 0.05).all()
    noise_NCHW = uniform(draw.seed_N, (2, 48, 48), images_NCHW)
    for n in range(3):
        for row in range(48):
            for column in range(48):
                value_C = inputs_NCHW[n, :, row, column]
                if not painted_NHW[n, row, column]:
                    assert torch.equal(value_C, images_NCHW[n, :, row, column])
                elif fill == "zero":
                    assert value_C.tolist() == [0, 0]
                else:
                    assert torch.equal(value_C, noise_NCHW[n, :, row, column])


def test_sides_of_boxes_are_millimetres_until_a_third_of_the_slice():
    def sides(size, mm):
        table = SliceTable(1, (size, size), np.arange(300), np.zeros(300), (mm, mm))
        found = Inpaint("zero").draw(table, seeded()).boxes.sides_NK2
        return found.min().item(), found.max().item()

    assert sides(128, 1.875) == (21, 43)  # Models Genesis: a sixth to a third
    assert sides(256, 1.875) == (21, 43)
    assert sides(48, 1.0) == (8, 16)


def test_pairs_of_blocks_change_places():
    images_NCHW, scheme = heads(4), Inpaint("swap", patch_mm=7.5, share=0.5)
    draw = drawn(scheme, 4)
    assert draw.blocks.block_HW == (4, 4)
    inputs_NCHW, _ = scheme.pretext(images_NCHW, draw)
    counts_NB = draw.blocks.counted(foreground(images_NCHW))
    (above, left), (rows, columns) = draw.blocks.offset_HW, draw.blocks.shape
    for n in range(4):
        eligible = [
            b
            for b in range(rows * columns)
            if counts_NB[n, b] >= 8
            and 0 <= b // columns * 4 - above <= 44
            and 0 <= b % columns * 4 - left <= 44
        ]
        eligible.sort(key=lambda b: draw.key_NB[n, b].item())
        number = 2 * int(len(eligible) * 0.5 / 2)
        assert number > 10
        expected_CHW = images_NCHW[n].clone()
        for first, second in zip(eligible[:number:2], eligible[1:number:2], strict=True):
            places = [
                np.s_[:, b // columns * 4 - above :, b % columns * 4 - left :]
                for b in (first, second)
            ]
            for here, there in (places, places[::-1]):
                expected_CHW[here][:, :4, :4] = images_NCHW[n][there][:, :4, :4]
        assert torch.equal(inputs_NCHW[n], expected_CHW)


def test_the_grid_of_blocks_is_drawn_for_each_batch():
    scheme = Inpaint()
    offsets = {drawn(scheme, seed=seed).blocks.offset_HW for seed in range(300)}
    assert drawn(scheme, size=128).blocks.block_HW == (8, 8)
    assert {row for row, _ in offsets} == {column for _, column in offsets} == set(range(8))


def test_partners_in_pairs_and_in_a_circle():
    keys_1B = torch.tensor([[0.5, 0.1, 0.9, 0.2, 0.3, 0.4]])
    eligible_1B = torch.tensor([[True, True, True, False, True, True]])
    pairs = partners(keys_1B, eligible_1B, torch.tensor([[4]]))  # 1-4, 5-0
    assert pairs.tolist() == [[5, 4, 2, 3, 1, 0]]
    circle = partners(keys_1B, eligible_1B, torch.tensor([[5]]), in_pairs=False)
    assert circle.tolist() == [[2, 4, 1, 3, 5, 0]]
    alone = partners(keys_1B, eligible_1B, torch.tensor([[1]]), in_pairs=False)
    assert alone.tolist() == [[0, 1, 2, 3, 4, 5]]


@FILLS
def test_a_share_of_the_batch_is_spoilt_as_in_the_whole(fill):
    images_NCHW, scheme = heads(5), Inpaint(fill, patch_mm=7.5)
    draw = drawn(scheme, 5)
    whole, _ = scheme.pretext(images_NCHW, draw)
    share, _ = scheme.pretext(images_NCHW[2:4], draw[2:4])
    assert torch.equal(share, whole[2:4])
    assert not torch.equal(whole, images_NCHW)


class Copying(nn.Module):
    """A network that copies, and remembers what it was fed."""

    def __init__(self):
        super().__init__()
        self.inputs = []

    def forward(self, images_NCHW):
        self.inputs.append(images_NCHW)
        return images_NCHW


def test_of_a_network_that_copies_all_that_was_hidden_is_anomalous():
    """Each pixel of tissue is hidden once; by zeros its error is the pixel itself."""
    images_NCHW, network = heads(), Copying()
    scores_NHW = Inpaint("zero").anomaly_score(network, images_NCHW, MM)
    zeros_NCHW = torch.zeros_like(images_NCHW)
    assert torch.equal(scores_NHW, reconstruction_anomaly(images_NCHW, zeros_NCHW, MM))
    hidden_4NHW = torch.stack([(it != images_NCHW).any(dim=1) for it in network.inputs])
    assert hidden_4NHW.shape[0] == 4
    assert torch.equal(hidden_4NHW.sum(dim=0), foreground(images_NCHW).long())
    assert (hidden_4NHW[0, :, 8:16, :] == 0).all()  # blocks of 8 pixels: rows take turns
    assert hidden_4NHW[0, :, 16:24, 16:24].all()


@FILLS
def test_what_is_missed_of_shown_pixels_does_not_count(fill):
    """A network that answers with zeros misses each pixel in all four passes; one counts."""
    images_NCHW = heads()
    scores_NHW = Inpaint(fill).anomaly_score(torch.zeros_like, images_NCHW, MM)
    zeros_NCHW = torch.zeros_like(images_NCHW)
    assert torch.equal(scores_NHW, reconstruction_anomaly(images_NCHW, zeros_NCHW, MM))


def test_of_a_network_that_copies_noise_is_anomalous():
    images_NCHW = heads()
    scores_NHW = Inpaint("noise").anomaly_score(Copying(), images_NCHW, MM)
    noise_1CHW = uniform(seeds(1, seeded(SCORE_SEED)), (2, 48, 48), images_NCHW)
    outputs_NCHW = noise_1CHW.expand_as(images_NCHW)
    assert torch.equal(scores_NHW, reconstruction_anomaly(images_NCHW, outputs_NCHW, MM))


def test_of_a_network_that_copies_what_came_from_elsewhere_is_anomalous():
    """All blocks with tissue move, each of a quarter to the place of another of it."""
    images_NCHW, network = heads(), Copying()
    scores_NHW = Inpaint("swap").anomaly_score(network, images_NCHW, MM)
    blocks = Blocks((8, 8), (48, 48))
    quarter_HW = blocks.spread(blocks.quarters("cpu")[None])[0]
    outputs_NCHW = images_NCHW.clone()
    for quarter, inputs_NCHW in enumerate(network.inputs):
        here_HW = quarter_HW == quarter
        assert torch.equal(inputs_NCHW[..., ~here_HW], images_NCHW[..., ~here_HW])
        ours, theirs = (it[..., here_HW].sort().values for it in (inputs_NCHW, images_NCHW))
        assert torch.equal(ours, theirs)
        outputs_NCHW[..., here_HW] = inputs_NCHW[..., here_HW]
    assert torch.equal(scores_NHW, reconstruction_anomaly(images_NCHW, outputs_NCHW, MM))
    seen_N1HW = foreground(images_NCHW)[:, None]
    same = ((outputs_NCHW == images_NCHW) & seen_N1HW).sum() / (2 * seen_N1HW.sum())
    assert same < 0.01


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="fill is 'black', expected zero, noise or swap"):
        Inpaint("black")
    with pytest.raises(ValueError, match=r"share is 1\.5"):
        Inpaint(share=1.5)
