"""From finished cells to a conclusion: bounds, signs, corrections, the side of a tail."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from fake_runs import finish
from fake_scores import cell
from scipy import stats

from fewscan.experiments.catalogue import METRICS, Metric
from fewscan.experiments.spec import Score
from fewscan.harness.arms import Arm
from fewscan.harness.planner import make_plan
from fewscan.harness.report import evidence as evidence_module
from fewscan.harness.report.bootstrap import Estimate, draw_resamples, estimate, p_value
from fewscan.harness.report.cells import Cell, difference
from fewscan.harness.report.comparison import area, compare
from fewscan.harness.report.evidence import Evidence, Outcome, gather
from fewscan.harness.report.findings import findings
from fewscan.harness.report.labels_saved import crossings, labels_saved
from fewscan.harness.report.results import (
    Labelled,
    Quantity,
    panel_points,
    quantities,
    read_results,
)
from fewscan.harness.report.studies import Studies, one_study
from fewscan.harness.study import Study
from fewscan.storage.errors import StudyError

SCRATCH, DENOISE = Arm("fine-tuning"), Arm("fine-tuning", "denoise")
DICE = Quantity("binary", METRICS["dice"], "dice", "Dice", ("dice",), leads=True)


def flat(score: float, seeds: int = 3) -> Cell:
    """A cell in which every seed gives every patient the same score."""
    return cell(np.full((seeds, 20), score))


def test_all_arms_are_scored_on_the_test_split_by_one_evaluation(
    tiny_study: Callable[..., Study],
) -> None:
    """The baselines too, and each target by the same metrics."""
    plan = make_plan(tiny_study())
    specs = [(run.place, run.spec) for run in plan.scores if isinstance(run.spec, Score)]
    assert len(specs) == 9
    assert {spec.split for _, spec in specs} == {"test"}
    assert {spec.evaluation for _, spec in specs} == {plan.study.evaluation}
    for target in ("binary", "multiclass"):
        assert len({spec.metrics for place, spec in specs if place.target == target}) == 1


@pytest.mark.parametrize("turned", [False, True])
def test_the_long_tail_of_the_interval_is_that_of_the_scores(turned: bool) -> None:
    """One seed, or one patient, that is far above the others: the truth may lie far above."""
    scores_SP = np.full((12, 12), 0.2)
    scores_SP[0] = 0.9
    found = estimate(cell(scores_SP.T if turned else scores_SP))
    low, high = found.interval or (None, None)
    assert found.value is not None
    assert low is not None
    assert high is not None
    assert high - found.value > 1.3 * (found.value - low)


def test_how_seeds_and_patients_are_widened_is_drawn_apart() -> None:
    """Else a resample that is wide in one were wide in the other."""
    by_seed_SP = np.repeat([[0.1], [0.4], [0.9]], 3, axis=1)
    resampling = draw_resamples([cell(by_seed_SP)])
    by_seed_B, by_patient_B = (
        np.abs(resampling.means_B(cell(scores_SP)) - scores_SP.mean())
        for scores_SP in (by_seed_SP, by_seed_SP.T)
    )
    assert abs(stats.spearmanr(by_seed_B, by_patient_B).statistic) < 0.05


def test_an_interval_has_no_value_that_the_number_cannot_take() -> None:
    assert Estimate(0.9, (0.7, 1.2)).within(0, 1) == Estimate(0.9, (0.7, 1))
    assert Estimate(0.1, (-0.3, 0.2)).within(0, 1) == Estimate(0.1, (0, 0.2))
    assert Estimate(None, None).within(0, 1) == Estimate(None, None)


def gathered(
    cells: dict[Labelled, Cell], metric: Metric, studies: Studies, monkeypatch: pytest.MonkeyPatch
) -> Outcome:
    """What is known of the pre-trained arm with one label, from cells that are given."""
    quantity = replace(DICE, metric=metric)
    monkeypatch.setattr(evidence_module, "quantities", lambda *_: [quantity])
    monkeypatch.setattr(evidence_module, "collect_cells", lambda *_: cells)
    (found,) = gather(studies, [])
    return found.of_arm(DENOISE)[1]


@pytest.fixture
def studies(tiny_study: Callable[..., Study]) -> Studies:
    return one_study(make_plan(tiny_study()))


def test_means_and_differences_stay_in_the_range_of_their_metric(
    studies: Studies, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two seeds far apart have intervals that reach far beyond it."""
    lucky, unlucky = (np.repeat([[a], [b]], 20, axis=1) for a, b in ((0.1, 1.0), (0.9, 0.0)))
    cells = {(SCRATCH, 1): cell(unlucky), (DENOISE, 1): cell(lucky)}
    wide = estimate(cell(lucky)).interval or (0, 0)
    assert wide[0] < 0
    assert wide[1] > 1
    found = gathered(cells, DICE.metric, studies, monkeypatch)
    assert found.mean is not None
    assert found.comparison is not None
    assert found.mean.interval == (0, 1)
    assert found.comparison.difference.interval == (-1, 1)
    tenfold = replace(DICE.metric, most=10.0)
    found = gathered(cells, tenfold, studies, monkeypatch)
    assert found.mean is not None
    assert found.comparison is not None
    assert found.mean.interval == (0, pytest.approx(min(wide[1], 10)))
    assert found.comparison.difference.interval == (-10, 10)


SCRATCH_FALLS = {1: flat(0.8), 2: flat(0.7), 8: flat(0.5), 16: flat(0.4)}


def test_of_a_metric_whose_smaller_values_are_better_the_curve_falls() -> None:
    found = labels_saved({1: flat(0.6)}, SCRATCH_FALLS, higher_is_better=False)[1]
    assert found.score == pytest.approx(0.6)
    assert found.needed.value == pytest.approx(4)
    assert found.needed.interval == pytest.approx((4, 4))
    turned = {count: flat(1 - value) for count, value in ((1, 0.8), (2, 0.7), (8, 0.5), (16, 0.4))}
    mirrored = labels_saved({1: flat(0.4)}, turned)[1]
    assert (found.needed.value, found.saved.value, found.ratio.value) == pytest.approx(
        (mirrored.needed.value, mirrored.saved.value, mirrored.ratio.value)
    )


def test_the_score_that_is_asked_for_is_the_mean_of_the_cell() -> None:
    scores_SP = np.random.default_rng(0).random((3, 20))
    found = labels_saved({1: cell(scores_SP)}, {1: cell(scores_SP), 4: flat(0.9)})[1]
    assert found.score == pytest.approx(scores_SP.mean())
    assert (found.needed.value, found.saved.value, found.ratio.value) == pytest.approx((1, 0, 1))


def test_where_rounding_alone_reaches_a_score_no_more_labels_are_needed_than_there() -> None:
    """A curve that stops 9.5e-13 below it has reached it, at its last count and not beyond."""
    curve_BK = np.array([[0.5 - 10.5e-13, 0.5 - 9.5e-13]])
    needed_B, _ = crossings(np.array([0.5]), curve_BK, np.array([1, 2]))
    assert needed_B[0] == pytest.approx(2)


@pytest.mark.parametrize(("seeds", "patients"), [(2, 20), (20, 2)])
def test_two_seeds_or_two_patients_are_enough_for_an_interval(seeds: int, patients: int) -> None:
    few = {count: cell(np.full((seeds, patients), count / 10)) for count in (1, 2, 4)}
    found = labels_saved({1: few[2]}, {1: few[1], 4: few[4]})[1]
    assert found.needed.interval == pytest.approx((4 ** (1 / 3), 4 ** (1 / 3)))


@pytest.mark.parametrize("sign", [1, -1])
def test_a_p_value_takes_both_sides_alike(sign: int) -> None:
    draws_B = sign * np.array([-0.5] * 10 + [0.5] * 89)
    assert p_value(draws_B) == pytest.approx(2 * 11 / 100)
    assert p_value(sign * np.full(99, 0.5)) == pytest.approx(2 / 100)


def test_the_catalogue_says_which_way_is_better(
    studies: Studies, monkeypatch: pytest.MonkeyPatch
) -> None:
    cells = {(SCRATCH, n): it for n, it in SCRATCH_FALLS.items()} | {(DENOISE, 1): flat(0.6)}
    monkeypatch.setattr(Studies, "planned", lambda *_: dict.fromkeys(cells, 3))
    lower = replace(DICE.metric, higher_is_better=False)
    saved = [gathered(cells, it, studies, monkeypatch).saved for it in (lower, DICE.metric)]
    falls, rises = (it.needed.value for it in saved if it is not None)
    assert falls == pytest.approx(4)
    assert rises == 1, "scratch begins above it"


@pytest.mark.parametrize(("corrected", "kind"), [(0.04, "helps"), (0.06, "open")])
def test_the_corrected_p_value_of_the_area_decides_what_is_claimed(
    corrected: float, kind: str
) -> None:
    scratch, other = {8: flat(0.3)}, {8: flat(0.4)}
    found = area(other, scratch)
    assert found is not None
    outcomes = (
        Outcome(DICE, SCRATCH, 8, 3, None, scratch[8]),
        Outcome(DICE, DENOISE, 8, 3, SCRATCH, other[8], comparison=compare(other, scratch)[8]),
    )
    areas = {DENOISE: replace(found, p=0.02, p_corrected=corrected)}
    evidence = Evidence(DICE, "scratch", outcomes, {}, areas, tested=1)
    (conclusion,) = findings(evidence)
    assert conclusion.kind == kind


def test_scores_that_do_not_fit_say_how_many_were_expected() -> None:
    with pytest.raises(ValueError, match=r"2 subsets.*shape \(2, 2\) for 2 seeds and 3 patients"):
        Cell("scratch", (0, 1), ("A", "B", "C"), ((), ()), np.zeros((2, 2)))
    with pytest.raises(ValueError, match="a seed or a patient comes twice"):
        Cell("scratch", (1, 1), ("A",), ((), ()), np.zeros((2, 1)))


def test_more_than_three_names_are_not_all_listed() -> None:
    second = cell([[0.5]], seeds=(7,))
    for count, listed in ((3, "0, 1, 2"), (4, "0, 1, 2, …")):
        first = cell(np.zeros((count, 1)))
        with pytest.raises(StudyError, match=f"no seed in common: {listed} against 7"):
            difference(first, second)


def test_a_point_of_a_panel_has_the_numbers_that_are_defined(
    tiny_study: Callable[..., Study], tiny_document: dict[str, Any]
) -> None:
    """One of two seeds has none, which is not a 0."""
    finetune = tiny_document["finetune"] | {"seeds": [0, 1], "targets": ["binary"]}
    plan = make_plan(tiny_study(finetune=finetune))
    for run in plan.grid:
        test = {"pooled_ap": 0.5, "pooled_best_dice": None if run.place.seed else 0.25}
        finish(plan, run, test=test)
    found = one_study(plan)
    points = panel_points(found, read_results(found))
    values = {
        point.quantity.metric.key: point.values
        for point in points
        if point.quantity.target == "binary" and point.arm.is_scratch and point.labels == 1
    }
    assert values == {"pooled_ap": (0.5, 0.5), "pooled_best_dice": (0.25,)}


def test_quantities_of_classes_are_named_and_their_mean_is_known_as_one(studies: Studies) -> None:
    compared = {it.key: it for it in quantities(studies) if it.metric.compared == "difference"}
    assert [key for key, it in compared.items() if it.is_mean] == [
        "dice_class_mean",
        "dice_scan_class_mean",
        "nsd_class_mean",
    ]
    assert compared["dice_oedema"].title == f"{METRICS['dice'].title}, oedema"
    described = {
        it.key: it.title for it in quantities(studies) if it.metric.compared == "quartiles"
    }
    assert described["hd95_mm_oedema"] == f"{METRICS['hd95_mm'].title} of oedema, mm"
