"""Boxes and blocks: against loops over pixels, and their lengths."""

import numpy as np
import pytest
import torch

from fewscan.experiments.blocks import Blocks, Boxes, at_most, pixels_of, ranks, seeds, uniform


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def discs(count, height=21, width=30, seed=1):
    """A foreground of holes and a disc, another in each image."""
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    radii_N = torch.arange(count) + 6
    disc = (rows - 10) ** 2 + (columns - 14) ** 2 < radii_N[:, None, None] ** 2
    return disc & (torch.rand(count, height, width, generator=seeded(seed)) > 0.1)


def test_lengths_of_the_published_slices():
    """Of 128² pixels on 240 mm, and of a small organ's, where shares of the slice are less."""
    assert pixels_of(15.0, (1.875, 1.875), (128, 128)) == (8, 8)
    assert pixels_of(15.0, (5.0, 2.5), (48, 96)) == (3, 6)
    assert pixels_of(15.0, (40.0, 0.1), (128, 128)) == (1, 128)
    assert at_most(80.0, 1 / 3, (1.875, 1.875), (128, 128)) == pytest.approx((128 / 3, 128 / 3))
    assert at_most(80.0, 1 / 3, (1.0, 1.0), (48, 300)) == (16, 80)


def test_boxes_are_those_of_a_loop():
    foreground_NHW = discs(6)
    boxes = Boxes.drawn(6, 4, ((3.0, 9.0), (2.0, 14.0)), seeded())
    found_NHW = boxes.covered(foreground_NHW)
    for n in range(6):
        tissue = np.argwhere(foreground_NHW[n].numpy())
        expected_HW = np.zeros((21, 30), bool)
        for k in range(4):
            if not boxes.happens_NK[n, k]:
                continue
            row, column = tissue[int(boxes.centre_NK[n, k] * np.float32(len(tissue)))]
            rows, columns = boxes.sides_NK2[n, k].tolist()
            top, left = row - rows // 2, column - columns // 2
            expected_HW[max(top, 0) : top + rows, max(left, 0) : left + columns] = True
        assert found_NHW[n].numpy().tolist() == expected_HW.tolist()
    assert found_NHW.any(dim=(1, 2)).all()


def test_centres_reach_all_of_the_foreground_and_nothing_else():
    foreground_NHW = torch.zeros(400, 5, 6, dtype=torch.bool)
    foreground_NHW[:, 1:3, 2:5] = True
    found_NHW = Boxes.drawn(400, 1, ((1, 1), (1, 1)), seeded(), 1).covered(foreground_NHW)
    assert (found_NHW.sum(dim=(1, 2)) == 1).all()
    assert torch.equal(found_NHW.any(dim=0), foreground_NHW[0])


def test_without_foreground_boxes_lie_somewhere():
    Boxes.drawn(2, 3, ((2, 4), (2, 4)), seeded()).covered(torch.zeros(2, 8, 8, dtype=torch.bool))


def test_boxes_come_until_one_does_not():
    boxes = Boxes.drawn(40_000, 5, ((21.0, 42.0), (10.0, 20.0)), seeded(), certain=0)
    share_K = boxes.happens_NK.float().mean(dim=0).tolist()
    assert share_K == pytest.approx([0.95**k for k in (1, 2, 3, 4, 5)], abs=0.006)
    assert (boxes.happens_NK[:, :-1] >= boxes.happens_NK[:, 1:]).all()
    certain = Boxes.drawn(1000, 5, ((1, 2), (1, 2)), seeded(), certain=2).happens_NK
    assert certain[:, :2].all()
    assert 0 < certain[:, 2].float().mean() < 1
    low, high = boxes.sides_NK2.amin(dim=(0, 1)), boxes.sides_NK2.amax(dim=(0, 1))
    assert low.tolist() == [21, 10]
    assert high.tolist() == [42, 20]
    rows, columns = boxes.sides_NK2.double().flatten(0, 1).T
    assert abs(torch.corrcoef(torch.stack([rows, columns]))[0, 1]) < 0.01


GRIDS = [
    Blocks((4, 5), (21, 30)),
    Blocks((4, 5), (21, 30), (3, 2)),
    Blocks((7, 10), (21, 30)),
    Blocks((21, 1), (21, 30), (20, 0)),
]


def block_of(blocks, row, column):
    (height, width), (above, left) = blocks.block_HW, blocks.offset_HW
    return ((row + above) // height) * blocks.shape[1] + (column + left) // width


@pytest.mark.parametrize("blocks", GRIDS)
def test_blocks_are_those_of_a_loop(blocks):
    foreground_NHW = discs(3)
    counts_NB = np.zeros((3, blocks.number), int)
    pixels_B = np.zeros(blocks.number, int)
    places = [(row, column) for row in range(21) for column in range(30)]
    for row, column in places:
        b = block_of(blocks, row, column)
        counts_NB[:, b] += foreground_NHW[:, row, column].numpy()
        pixels_B[b] += 1
    assert blocks.counted(foreground_NHW).tolist() == counts_NB.tolist()
    full = blocks.block_HW[0] * blocks.block_HW[1]
    assert blocks.whole("cpu").tolist() == (pixels_B == full).tolist()
    assert (pixels_B > 0).all()
    values_NB = torch.randint(1000, (3, blocks.number), generator=seeded())
    spread_NHW = blocks.spread(values_NB)
    assert spread_NHW.shape == (3, 21, 30)
    for row, column in places:
        expected_N = values_NB[:, block_of(blocks, row, column)]
        assert torch.equal(spread_NHW[:, row, column], expected_N)


@pytest.mark.parametrize("blocks", GRIDS[:3])
def test_exchanged_blocks_are_those_of_a_loop(blocks):
    images_NCHW = torch.rand(2, 3, 21, 30, generator=seeded())
    whole = blocks.whole("cpu").nonzero().flatten()
    source_NB = torch.arange(blocks.number).expand(2, -1).clone()
    for n in range(2):
        source_NB[n, whole] = whole[torch.randperm(len(whole), generator=seeded(n))]
    found_NCHW = blocks.exchanged(images_NCHW, source_NB)
    (height, width), (above, left), columns = blocks.block_HW, blocks.offset_HW, blocks.shape[1]
    expected_NCHW = images_NCHW.clone()
    for n in range(2):
        for b in whole.tolist():
            (row, column), (r, c) = (
                (b // columns * height - above, b % columns * width - left)
                for b in (b, int(source_NB[n, b]))
            )
            content = images_NCHW[n, :, r : r + height, c : c + width]
            expected_NCHW[n, :, row : row + height, column : column + width] = content
    assert torch.equal(found_NCHW, expected_NCHW)
    assert not torch.equal(found_NCHW, images_NCHW)


def test_quarters_are_a_checkerboard():
    blocks = Blocks((2, 2), (9, 8))
    quarter_RS = blocks.quarters("cpu").view(blocks.shape)
    assert quarter_RS.unique().tolist() == [0, 1, 2, 3]
    for row in range(4):
        for column in range(3):
            around = quarter_RS[row : row + 2, column : column + 2].flatten()
            assert around.sort().values.tolist() == [0, 1, 2, 3]


def test_ranks_put_what_is_not_eligible_last():
    keys_NB = torch.tensor([[0.3, 0.1, 0.4, 0.2]])
    order_NB, rank_NB = ranks(keys_NB, torch.tensor([[True, False, True, True]]))
    assert order_NB.tolist() == [[3, 0, 2, 1]]
    assert rank_NB.tolist() == [[1, 3, 2, 0]]


def test_uniform_numbers_depend_on_the_seed_of_their_image_alone():
    like = torch.zeros(0, dtype=torch.float64)
    seed_N = seeds(5, seeded())
    all_NP = uniform(seed_N, (1000,), like)
    assert torch.equal(all_NP[2:4], uniform(seed_N[2:4], (1000,), like))
    assert all_NP.dtype == torch.float64
    assert all_NP.mean().item() == pytest.approx(0.5, abs=0.03)
    assert 0 <= all_NP.min() < 0.01
    assert 0.99 < all_NP.max() <= 1
    assert len(all_NP[:, 0].unique()) == 5
