"""What is read of finished runs, and what it is named."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_runs import PATIENTS, dice_of, finish_all
from fake_scores import cell

from fewscan.experiments import catalogue
from fewscan.experiments.catalogue import Metric
from fewscan.harness.arms import Arm
from fewscan.harness.planner import make_plan
from fewscan.harness.report.bootstrap import draw_resamples, percentiles
from fewscan.harness.report.comparison import estimates
from fewscan.harness.report.figures import colours_of, draw_published
from fewscan.harness.report.results import panel_points, quantities, read_patients, read_results
from fewscan.harness.report.studies import one_study
from fewscan.harness.study import Study


def test_scans_of_a_patient_are_averaged_first(tmp_path: Path) -> None:
    path = tmp_path / "cases.csv"
    path.write_text("subject,patient,ap,dice_x\nA1,A,0.2,\nA2,A,0.4,0.5\nB1,B,0.9,\n")
    found = read_patients(path)
    assert [*found] == ["A", "B"]
    np.testing.assert_allclose([*found["A"].values()], [0.3, 0.5])
    np.testing.assert_allclose([*found["B"].values()], [0.9, np.nan])


def test_without_patients_each_scan_is_one(tmp_path: Path) -> None:
    path = tmp_path / "cases.csv"
    path.write_text("subject,ap\nA1,0.2\nA2,0.4\n")
    assert read_patients(path) == {"A1": {"ap": 0.2}, "A2": {"ap": 0.4}}
    assert read_patients(tmp_path / "none.csv") == {}


def test_a_pretraining_whose_name_ends_in_scratch_is_not_scratch(
    tiny_study: Callable[..., Study], tiny_document: dict[str, Any]
) -> None:
    """Once it was drawn as the supervised line."""
    pretrain = {"v2/scratch": tiny_document["pretrain"]["denoise"]}
    finetune = tiny_document["finetune"] | {"inits": ["v2/scratch"]}
    study = tiny_study(pretrain=pretrain, finetune=finetune, baselines=[])
    plan = make_plan(study)
    finish_all(plan)
    points = panel_points(one_study(plan), read_results(one_study(plan)))
    arm = Arm("fine-tuning", "v2/scratch")
    assert {point.arm for point in points} == {arm}
    figure = draw_published(points, colours_of([arm]))
    labels = {line.get_label() for axes in figure.axes for line in axes.get_lines()}
    assert labels == {"pre-trained: v2/scratch"}


def test_one_more_metric_is_compared_and_described_by_its_row_alone(
    tiny_study: Callable[..., Study], monkeypatch: Any
) -> None:
    more = Metric("msd_mm", "MSD", "structure", "Mean.", unit="mm", compared="quartiles")
    monkeypatch.setattr(catalogue, "CATALOGUE", (*catalogue.CATALOGUE, more))
    studies = one_study(make_plan(tiny_study()))
    found = [it.key for it in quantities(studies) if it.metric == more]
    assert found == ["msd_mm_lesion", *(f"msd_mm_{name}" for name in studies.first.store.classes)]
    leading = [it.key for it in quantities(studies) if it.leads]
    assert leading == ["dice_at_chosen_threshold", "dice_class_mean"]


def test_a_point_of_the_figure_has_the_interval_of_its_mean(
    tiny_study: Callable[..., Study], tiny_document: dict[str, Any]
) -> None:
    """Of all pixels: that of the patients' shares. Of classes: patients first, then classes."""
    finetune = tiny_document["finetune"] | {"label_counts": [1, "all"], "seeds": [0, 1, 2]}
    studies = one_study(make_plan(tiny_study(finetune=finetune)))
    finish_all(studies.first)
    results = read_results(studies)
    points = {
        it.quantity.target: it
        for it in panel_points(studies, results)
        if it.arm.is_scratch and it.labels == 1
    }
    binary, classes = points["binary"], points["multiclass"]
    runs = [it for it in results if it.place.arm.is_scratch and it.place.labels == 1]
    shares_SP = [
        [it.patients[patient][binary.quantity.metric.key] for patient in PATIENTS]
        for it in runs
        if it.place.target == "binary"
    ]
    expected = estimates({1: cell(shares_SP)}, may_collapse=True)[1]
    assert binary.mean == pytest.approx(expected.value)
    assert binary.interval == expected.interval
    # Dice d, d / 2 and d / 4; the first is known of three patients, who are the worst.
    dice_SP = np.array([dice_of(run) for run in studies.first.grid[:3]])
    cells = [
        cell(each_SP)
        for each_SP in (np.where(np.arange(6) < 3, dice_SP, np.nan), dice_SP / 2, dice_SP / 4)
    ]
    draws_B = [draw_resamples(cells).means_B(it) for it in cells]
    assert classes.interval == pytest.approx(percentiles(np.mean(draws_B, axis=0)))


def test_a_point_without_the_cases_of_every_run_has_no_interval(
    tiny_study: Callable[..., Study], tiny_document: dict[str, Any]
) -> None:
    finetune = tiny_document["finetune"] | {"label_counts": [1, 4], "seeds": [0, 1]}
    studies = one_study(make_plan(tiny_study(finetune=finetune)))
    finish_all(studies.first)
    run = studies.first.grid[0]
    studies.first.folder_of(run).cases.unlink()
    points = panel_points(studies, read_results(studies))
    assert all(it.mean is not None for it in points if it.labels is not None)
    bare = {
        it.labels
        for it in points
        if it.arm == run.place.arm and it.quantity.target == "binary" and it.interval is None
    }
    assert bare == {1}
