"""AP and ⌈Dice⌉, against the plain ways of computing them."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score

from fewscan.experiments.metrics import THRESHOLDS, PixelScores, PooledScores, pseudo_values

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


def test_pseudo_values_are_those_of_leaving_each_patient_out():
    """Of scikit-learn's AP and the plain Dice. One patient holds most of the lesion, one has none,
    one comes with two scans."""
    rng = np.random.default_rng(0)
    sizes = ((300, 0.1), (2000, 0.4), (500, 0), (700, 0.05))
    scans = [synthetic(pixels, seed, share) for seed, (pixels, share) in enumerate(sizes)]
    patients = {"a": scans[:1], "b": scans[1:2], "c": scans[2:3], "d": [scans[3], scans[0]]}
    pooled = PooledScores()
    order = [(name, scan) for name, of_patient in patients.items() for scan in of_patient]
    for index in rng.permutation(len(order)):
        pooled.add(order[index][0], counted(*order[index][1]))

    def plainly(names, statistic):
        parts = [scan for name in names for scan in patients[name]]
        return statistic(*(np.concatenate(column) for column in zip(*parts, strict=True)))

    for statistic, plain in (
        (PixelScores.average_precision, plain_average_precision),
        (lambda it: it.best_dice()[0], lambda s, m: max(plain_dice(s, m, t) for t in THRESHOLDS)),
        (lambda it: it.dice_at(0.2), lambda s, m: plain_dice(s, m, 0.2)),
    ):
        whole = plainly(patients, plain)
        without = {out: plainly([it for it in patients if it != out], plain) for out in patients}
        middle = np.mean([*without.values()])
        found = pooled.pseudo_values(statistic)
        assert found.keys() == patients.keys()
        for name, value in found.items():
            assert value == pytest.approx(whole + 3 * (middle - without[name]), rel=1e-12)
        assert np.mean([*found.values()]) == pytest.approx(whole, rel=1e-12)
        assert found["b"] > max(found[name] for name in "acd"), "it finds most, of the most"
        assert found["c"] < whole, "false positives alone make it worse"


def test_pseudo_values_of_a_mean_are_its_terms():
    terms = {"a": 0.1, "b": 0.5, "c": 0.9}
    total = sum(terms.values())
    found = pseudo_values(total / 3, {name: (total - it) / 2 for name, it in terms.items()})
    assert found == pytest.approx(terms)


def test_without_the_only_patient_with_a_lesion_there_are_no_pseudo_values():
    pooled = PooledScores()
    for name, lesion in (("a", True), ("b", False)):
        pooled.add(name, counted(np.array([0.5, 0.2], np.float32), np.array([lesion, False])))
        assert all(map(math.isnan, pooled.pseudo_values(PixelScores.average_precision).values()))
    assert pooled.whole.average_precision() > 0


def test_what_is_remembered_of_a_patient_is_what_it_added():
    scans = [counted(*synthetic(5000, seed)) for seed in range(3)]
    pooled = PooledScores()
    for name, scan in zip("aba", scans, strict=True):
        pooled.add(name, scan)
    np.testing.assert_array_equal(pooled.of("a").counts_2V, (scans[0] + scans[2]).counts_2V)
    np.testing.assert_array_equal(pooled.of("b").counts_2V, scans[1].counts_2V)
    assert pooled.of("c").pixels == 0
    np.testing.assert_array_equal(pooled.whole.counts_2V, sum(scans, PixelScores()).counts_2V)
