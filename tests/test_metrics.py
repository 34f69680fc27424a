"""AP and ⌈Dice⌉, against the plain ways of computing them."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score

from fewscan.experiments.metrics import THRESHOLDS, PixelScores

quick = settings(deadline=None, max_examples=25)

SCORES = st.one_of(
    st.sampled_from([0.0, 5e-8, 0.25, 0.2501, 0.5, 0.999, 1.0, 3.0, 65504.0]),
    st.floats(0, 2, width=32),
)
PIXELS = st.lists(st.tuples(SCORES, st.booleans()), min_size=1, max_size=60)


def counted(scores, mask):
    pixel_scores = PixelScores()
    pixel_scores.update(scores, mask)
    return pixel_scores


def columns(pixels):
    scores, mask = zip(*pixels, strict=True)
    return np.array(scores, np.float32), np.array(mask, bool)


def synthetic(pixels, seed=0, share=0.05):
    """Scores as a denoiser leaves them: many exact zeros, lesions higher than the rest."""
    rng = np.random.default_rng(seed)
    mask = rng.random(pixels) < share
    scores = np.abs(rng.normal(0.05, 0.05, pixels)) + mask * rng.gamma(2, 0.1, pixels)
    scores[rng.random(pixels) < 0.4] = 0
    return scores.astype(np.float32), mask


def plain_dice(scores, mask, threshold):
    predicted = scores.astype(np.float16) > np.float16(threshold)
    return 2 * np.sum(predicted & mask) / (predicted.sum() + mask.sum())


def plain_average_precision(scores, mask):
    return average_precision_score(mask, scores.astype(np.float16).astype(np.float32))


@pytest.mark.parametrize("seed", range(3))
def test_ap_and_dice_are_exactly_those_of_pooled_pixels(seed):
    scores, mask = synthetic(20_000, seed)
    pixel_scores = counted(scores, mask)
    dice = [plain_dice(scores, mask, threshold) for threshold in THRESHOLDS]
    assert pixel_scores.average_precision() == plain_average_precision(scores, mask)
    assert pixel_scores.best_dice() == (max(dice), THRESHOLDS[np.argmax(dice)])
    assert [pixel_scores.dice_at(threshold) for threshold in THRESHOLDS] == dice
    assert (pixel_scores.pixels, pixel_scores.positives) == (mask.size, mask.sum())


@quick
@given(PIXELS.filter(lambda pixels: any(lesion for _, lesion in pixels)))
def test_small_and_tied_scores_agree_too(pixels):
    scores, mask = columns(pixels)
    pixel_scores = counted(scores, mask)
    dice, threshold = pixel_scores.best_dice()
    assert pixel_scores.average_precision() == plain_average_precision(scores, mask)
    assert dice == max(plain_dice(scores, mask, t) for t in THRESHOLDS)
    assert dice == plain_dice(scores, mask, threshold) == pixel_scores.dice_at(threshold)


@quick
@given(PIXELS, PIXELS)
def test_parts_add_up_to_the_whole(first, second):
    whole = counted(*columns(first + second))
    added = counted(*columns(first)) + counted(*columns(second))
    streamed = counted(*columns(second))
    streamed.update(*columns(first))
    np.testing.assert_array_equal(added.counts_2V, whole.counts_2V)
    np.testing.assert_array_equal(streamed.counts_2V, whole.counts_2V)


@quick
@given(PIXELS, st.randoms(use_true_random=False))
def test_the_order_of_pixels_does_not_matter(pixels, random):
    shuffled = random.sample(pixels, len(pixels))
    np.testing.assert_array_equal(
        counted(*columns(pixels)).counts_2V, counted(*columns(shuffled)).counts_2V
    )


def test_shapes_types_and_strides_do_not_matter():
    scores, mask = synthetic(4 * 6 * 5)
    expected = counted(scores, mask).counts_2V
    scores_NHW, mask_NHW = scores.reshape(4, 6, 5), mask.reshape(4, 6, 5)
    scores_NHW.setflags(write=False)
    turned = torch.tensor(scores_NHW).permute(2, 0, 1), torch.tensor(mask_NHW).permute(2, 0, 1)
    for given_scores, given_mask in (
        (scores_NHW, mask_NHW),
        (scores_NHW.astype(np.float64), mask_NHW.astype(np.uint8) * 3),
        (torch.tensor(scores_NHW).half(), torch.tensor(mask_NHW)),
        turned,
    ):
        np.testing.assert_array_equal(counted(given_scores, given_mask).counts_2V, expected)


def test_half_precision_scores_are_left_as_they_are():
    scores = torch.tensor([-0.0, 0.5]).half()
    counted(scores, torch.tensor([True, False]))
    assert math.copysign(1, scores[0].item()) == -1


def test_best_threshold_is_the_first_on_ties():
    scores, mask = np.array([0.1, 0.9], np.float32), np.array([False, True])
    dice, threshold = counted(scores, mask).best_dice()
    assert dice == 1
    # Half precision rounds 0.1 and the threshold 0.1 to one number, which does not exceed itself.
    assert threshold == 0.1


def test_the_thresholds_are_the_thousand_published_ones():
    """0, 0.001 … 0.999: a score of 1 is above them all, however much higher a lesion scores."""
    assert [str(threshold) for threshold in THRESHOLDS] == [str(n / 1000) for n in range(1000)]
    dice, threshold = counted(np.array([1, 2], np.float32), np.array([False, True])).best_dice()
    assert (dice, threshold) == (2 / 3, 0)


def test_minus_zero_counts_as_zero():
    pixel_scores = counted(np.array([-0.0, 0.0], np.float32), np.array([True, False]))
    assert pixel_scores.counts_2V[:, 0].tolist() == [1, 1]


@pytest.mark.parametrize(
    ("bad", "named"),
    [(math.nan, "1 NaN"), (math.inf, "1 infinite"), (7e4, "1 infinite"), (-0.25, "1 negative")],
)
def test_impossible_scores_are_refused_and_nothing_is_counted(bad, named):
    pixel_scores = PixelScores()
    with pytest.raises(ValueError, match=named):
        pixel_scores.update(np.array([0.5, bad], np.float32), np.array([True, False]))
    with pytest.raises(ValueError, match="1 NaN"):
        pixel_scores.update(np.array([-math.nan, 0.5], np.float32), np.array([True, False]))
    assert pixel_scores.pixels == 0


def test_shapes_must_agree():
    with pytest.raises(ValueError, match=r"\(4,\).*\(2, 2\)"):
        PixelScores().update(np.zeros(4, np.float32), np.zeros((2, 2), bool))


@pytest.mark.parametrize("threshold", [-0.001, math.nan, 1e6])
def test_impossible_thresholds_are_refused(threshold):
    with pytest.raises(ValueError, match="threshold"):
        PixelScores().dice_at(threshold)


def test_without_a_positive_pixel_nothing_is_defined():
    for pixel_scores in (PixelScores(), counted(np.ones(3, np.float32), np.zeros(3, bool))):
        assert math.isnan(pixel_scores.average_precision())
        assert all(math.isnan(value) for value in pixel_scores.best_dice())
        assert math.isnan(pixel_scores.dice_at(0.5))


def test_empty_arrays_count_nothing():
    assert counted(np.zeros((0, 8, 8), np.float32), np.zeros((0, 8, 8), bool)).pixels == 0
