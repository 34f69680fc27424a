"""What the report says of how trainings went."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from fewscan.experiments.results import Result
from fewscan.experiments.spec import Finetune, Pretrain
from fewscan.harness.plan import Plan, PlannedRun
from fewscan.harness.planner import make_plan
from fewscan.harness.report.studies import one_study
from fewscan.harness.report.tables import to_csv
from fewscan.harness.report.trainings import (
    TrainingCell,
    read_trainings,
    trainings_table,
    trials_of,
    trials_table,
    warnings_of,
)
from fewscan.harness.study import Study


@pytest.fixture
def plan(tiny_study: Callable[..., Study], tiny_document: dict[str, Any]) -> Plan:
    tune = {"lr": [0.01, 0.02], "on": {"labels": 2, "seed": 100}}
    grid = tiny_document["finetune"] | {"targets": ["binary"], "seeds": [0, 1, 2], "tune": tune}
    return make_plan(tiny_study(finetune=grid))


def finish(plan: Plan, run: PlannedRun, **result: Any) -> None:
    folder = plan.folder_of(run)
    plan.record(run).write(folder)
    Result(run.kind, **{"best_step": 2, "validation_loss": 0.5} | result).write(folder)


def of_name(plan: Plan, name: str, labels: int | None = None) -> TrainingCell:
    trainings, _ = read_trainings(one_study(plan))
    (found,) = [it for it in trainings if (it.name, it.labels) == (name, labels)]
    return found


def test_epochs_are_of_the_slices_that_are_learnt_from(plan: Plan) -> None:
    """4 steps of 4 slices; a tiny scan has 6 slices, 3 of them healthy."""
    assert of_name(plan, "scratch", 1).epochs == pytest.approx(16 / 6)
    assert of_name(plan, "scratch", 18).epochs == pytest.approx(16 / (18 * 6))
    assert of_name(plan, "pre-train denoise").epochs == pytest.approx(16 / (18 * 3))


def test_slices_held_out_are_not_learnt_from(
    tiny_study: Callable[..., Study], tiny_document: dict[str, Any]
) -> None:
    grid = tiny_document["finetune"] | {"selection": "within", "label_counts": [10]}
    plan = make_plan(tiny_study(finetune=grid))
    (found,) = [
        it
        for it in read_trainings(one_study(plan))[0]
        if (it.name, it.target, it.labels) == ("scratch", "binary", 10)
    ]
    assert found.epochs == pytest.approx(16 / (8 * 6))


def test_a_cell_whose_best_model_is_the_last_is_flagged(plan: Plan) -> None:
    runs = [
        run
        for run in plan.runs
        if run.kind == "finetune" and run.place.is_cell and run.place.labels == 18
    ]
    scratch, denoise = runs[:3], runs[3:]
    for run, best in zip(scratch, (4, 4, 2), strict=True):
        finish(plan, run, best_step=best)
    for run, best in zip(denoise, (4, 2, 2), strict=True):
        finish(plan, run, best_step=best)
    trainings, _ = read_trainings(one_study(plan))
    (said,) = warnings_of(trainings)
    assert said.startswith("scratch, binary, 18 scans: in 2 of 3 runs the last model was the best")
    assert of_name(plan, "denoise", 18).chosen_last == 1


def test_where_nothing_chooses_no_model_is_called_best(
    tiny_study: Callable[..., Study], tiny_document: dict[str, Any]
) -> None:
    grid = tiny_document["finetune"] | {"selection": "last", "targets": ["binary"]}
    plan = make_plan(tiny_study(finetune=grid))
    for run in plan.runs:
        if run.kind == "finetune":
            finish(plan, run, best_step=4)
    trainings, _ = read_trainings(one_study(plan))
    assert list(warnings_of(trainings)) == []
    assert of_name(plan, "scratch", 1).chosen_last is None


def test_dead_levels_are_named(plan: Plan) -> None:
    finish(plan, plan.runs[0], gains={"down_1": 0.9, "down_2": 0.04, "up_1": 0.1})
    trainings, _ = read_trainings(one_study(plan))
    (said,) = warnings_of(trainings)
    assert said.startswith("dead levels in pre-train denoise: the mean gain of down_2 (0.04) is")
    row = next(
        line for line in to_csv(trainings_table(trainings)).splitlines() if "denoise" in line
    )
    assert row.endswith(",1,0,0.04,down_2")


def test_all_trials_are_shown_and_the_chosen_one(plan: Plan) -> None:
    trials = [run for run in plan.runs if run.place.arm.kind == "tuning"]
    for run, loss in zip(trials, (0.4, 0.3, None, 0.7), strict=True):
        finish(plan, run, validation_loss=loss)
    _, groups = read_trainings(one_study(plan))
    lines = to_csv(trials_table(trials_of(groups))).splitlines()
    assert lines == [
        "arm,target,label_count,seed,lr,validation_loss,chosen",
        "tuning: scratch,binary,2,100,0.01,0.4,False",
        "tuning: scratch,binary,2,100,0.02,0.3,True",
        "tuning: denoise,binary,2,100,0.01,,False",
        "tuning: denoise,binary,2,100,0.02,0.7,True",
    ]


def test_nothing_is_chosen_before_all_are_tried(plan: Plan) -> None:
    first = next(run for run in plan.runs if run.place.arm.kind == "tuning")
    finish(plan, first, validation_loss=0.1)
    _, groups = read_trainings(one_study(plan))
    assert not any(trial.chosen for trial in trials_of(groups))
    assert of_name(plan, "scratch", 1).rates == ""


def test_the_rate_of_a_tuned_run_is_the_chosen_one(plan: Plan) -> None:
    run = next(it for it in plan.runs if it.kind == "finetune" and it.place.is_cell)
    assert isinstance(run.spec, Finetune)
    assert run.spec.training == replace(run.spec.training, lr=0.0)
    finish(plan, run, lr=0.02)
    assert of_name(plan, "scratch", 1).rates == "0.02"
    pretrained = plan.runs[0].spec
    assert isinstance(pretrained, Pretrain)
    assert of_name(plan, "pre-train denoise").rates == f"{pretrained.training.lr:g}"
