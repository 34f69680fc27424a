"""Example slices: chosen by the rule, computed once, true to the scored masks."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from fake_runs import finish_all
from tiny import run_in_process

from fewscan.experiments.measures import MEASURES, Masks
from fewscan.experiments.predictor import load_predictor
from fewscan.experiments.results import Result
from fewscan.experiments.spec import Evaluation
from fewscan.harness.plan import Plan
from fewscan.harness.planner import make_plan
from fewscan.harness.report.examples import Choice, choose, draw_examples, read_examples
from fewscan.harness.report.results import RunResults, read_results
from fewscan.harness.report.studies import one_study
from fewscan.harness.report.write import gather_report
from fewscan.harness.study import Study


def results_of(plan: Plan) -> list[RunResults]:
    return read_results(one_study(plan))


@pytest.fixture
def plan(tiny_study: Callable[..., Study], tiny_document: dict[str, Any]) -> Plan:
    grid = {"label_counts": [1, 4, "all"], "seeds": [0, 1]}
    return make_plan(tiny_study(finetune=tiny_document["finetune"] | grid))


def test_the_middle_count_the_first_seed_and_three_patients(plan: Plan) -> None:
    """In ascending order of Dice: P3, P4, P5, who have no core, then P0, P1, P2."""
    finish_all(plan)
    choice = choose(plan, results_of(plan))
    assert choice is not None
    assert (choice.target, choice.labels, choice.seed) == ("multiclass", 4, 0)
    assert [arm.key for arm in choice.arms] == ["scratch", "denoise"]
    assert choice.patients == {"lower quartile": "P4", "median": "P5", "upper quartile": "P0"}


def test_a_count_that_one_arm_lacks_is_not_shown(plan: Plan) -> None:
    finish_all(plan, lambda r: r.place.arm.is_scratch or r.place.labels != 4)
    choice = choose(plan, results_of(plan))
    assert choice is not None
    assert choice.labels == 1


def test_without_a_finished_pair_there_are_none(plan: Plan) -> None:
    finish_all(plan, lambda run: run.place.arm.is_scratch)
    assert choose(plan, results_of(plan)) is None


def test_a_model_that_is_gone_is_said_and_stops_nothing(plan: Plan) -> None:
    finish_all(plan)
    content = gather_report(one_study(plan), results_of(plan))
    assert content.examples is None
    assert content.no_examples


def scored_again(plan: Plan, choice: Choice, patient: str) -> list[float]:
    """Dice of a whole scan, an arm after the other, from the predictor that makes the masks."""
    slices = plan.store.read_subject(patient)
    spacing_mm = plan.store.spacing_mm_ZHW(patient)
    scores = {run.run_id: run for run in plan.scores}
    found = []
    for run_id in choice.run_ids:
        folder = plan.folder.run(run_id)
        predictor = load_predictor([folder.sibling(p) for p in scores[run_id].parents])
        threshold = Result.read(folder).threshold
        batches = predictor.in_batches(torch.from_numpy(slices.images_NCHW), spacing_mm[1:])
        labels = [predictor.labels(maps, threshold) for maps in batches]
        labels_NHW = np.concatenate([found.numpy() for found in labels if found is not None])
        truth_NHW, classes = slices.labels_NHW, (1, 2, 3)
        if choice.target == "binary":
            truth_NHW, classes = truth_NHW > 0, (1,)
        masks = [Masks(labels_NHW == k, truth_NHW == k, spacing_mm) for k in classes]
        found.append(np.nanmean([MEASURES["dice"](m, Evaluation()) for m in masks]))
    return found


@pytest.mark.parametrize("target", ["binary", "multiclass"])
def test_the_masks_are_those_that_were_scored(
    tiny_study: Callable[..., Study], tiny_document: dict[str, Any], target: str
) -> None:
    """Trained for real; the slice shown is the patient's, and a second look computes nothing."""
    finetune = tiny_document["finetune"] | {"label_counts": [2], "targets": [target]}
    plan = make_plan(tiny_study(finetune=finetune, baselines=["unsupervised"]))
    run_in_process(plan, plan.runs)
    results = results_of(plan)
    found = read_examples(plan, results)
    assert found is not None
    assert found.anomaly_NHW is not None
    shown = list(found.choice.patients.values())
    for n, patient in enumerate(shown):
        slices = plan.store.read_subject(patient)
        at = int(np.flatnonzero(slices.positions_N == found.positions[n])[0])
        sizes_N = (slices.labels_NHW > 0).sum(axis=(1, 2))
        assert sizes_N[at] == sizes_N.max()
        assert np.array_equal(found.truth_NHW[n], slices.labels_NHW[at])
        assert scored_again(plan, found.choice, patient) == pytest.approx(
            found.choice.dice[list(found.choice.patients)[n]], nan_ok=True
        )
    draw_examples(found, "flair", plan.store.meaning).canvas.draw()
    for run in plan.runs:
        plan.folder_of(run).model.unlink(missing_ok=True)
    again = read_examples(plan, results)
    assert again is not None
    assert np.array_equal(again.labels_ANHW, found.labels_ANHW)
    assert again.choice == found.choice
