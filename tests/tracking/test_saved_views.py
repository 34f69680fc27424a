"""The views that MLflow's UI opens with."""

import json
from dataclasses import replace
from pathlib import Path

from fake_folders import make_plan
from mlflow.utils.validation import MAX_EXPERIMENT_TAG_VAL_LENGTH

from fewscan.harness.loading import load_plan
from fewscan.harness.tracking.mlflow_run import view_of
from fewscan.harness.tracking.saved_views import saved_views


def test_every_chart_and_column_shows_something_that_runs_have(finished_study: Path) -> None:
    plan = load_plan(finished_study)
    views = [view_of(plan, run, "finished", "FINISHED") for run in plan.runs]
    metrics = {point.key for view in views for point in view.results}
    params = {name for view in views for name in view.params}
    for saved in saved_views(plan, "0123456789"):
        for chart in saved.state.get("compareRunCharts", []):
            assert chart["metricKey"] in metrics
        for column in saved.state["selectedColumns"]:
            kind, _, name = column.replace("`", "").partition(".")
            known = {"params": params, "metrics": metrics | {"test/class_dice_mean"}}
            assert name in known.get(kind, {"Models"})


def test_a_study_is_known_by_its_own_runs_and_fits_into_a_tag(tmp_path: Path) -> None:
    plan = make_plan(tmp_path)
    finetune = replace(plan.study.finetune, targets=("binary", "multiclass"))
    both = replace(plan, study=replace(plan.study, finetune=finetune))
    views = saved_views(both, "0123456789")
    assert [view.key for view in views] == [
        "binary-01234567",
        "multiclass-01234567",
        "runs-01234567",
    ]
    for view in views:
        key, value = view.tag
        assert key == f"mlflow.sharedViewState.{view.key}"
        assert len(value) < MAX_EXPERIMENT_TAG_VAL_LENGTH
        assert "tags.study = '01234567'" in json.loads(json.loads(value)["state"])["searchFilter"]
