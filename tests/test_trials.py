"""Learning rates tried at equal numbers for every arm, by runs of the plan."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from tiny import run_in_process

from fewscan.experiments import train as train_module
from fewscan.experiments.results import Result
from fewscan.experiments.spec import Finetune, Pretrain
from fewscan.experiments.trials import with_rate
from fewscan.harness.plan import Plan, PlannedRun
from fewscan.harness.planner import make_plan
from fewscan.harness.study import Study
from fewscan.harness.study_file import parse_study
from fewscan.storage.errors import RunError, StudyError

RATES = [1e-3, 1e-2, 3e-2]


@pytest.fixture
def tuned(tiny_study: Callable[..., Study], tiny_document: dict[str, Any]) -> Plan:
    wish = tiny_document["pretrain"]["denoise"] | {"tune": {"lr": RATES, "seed": 50}}
    tune = {"lr": RATES, "on": {"labels": 2, "seed": 100}}
    grid = tiny_document["finetune"] | {"label_counts": [1], "targets": ["binary"], "tune": tune}
    study = tiny_study(
        pretrain={"denoise": wish}, finetune=grid, baselines=["unsupervised", "supervised long"]
    )
    return make_plan(study)


def trials_of(plan: Plan, run: PlannedRun) -> list[PlannedRun]:
    assert isinstance(run.spec, Pretrain | Finetune)
    return [it for it in plan.runs if it.run_id in run.spec.rate_from]


def test_every_arm_has_the_same_trials(tuned: Plan) -> None:
    """Scratch included; at a count and a seed that are not scored."""
    trained = [run for run in tuned.runs if run.kind == "finetune" and run.place.is_cell]
    assert {run.place.arm.key for run in trained} == {"scratch", "scratch (long)", "denoise"}
    for run in trained:
        found = [trial.spec for trial in trials_of(tuned, run)]
        assert [it.training.lr for it in found if isinstance(it, Finetune)] == RATES
        first = found[0]
        assert isinstance(first, Finetune)
        assert isinstance(run.spec, Finetune)
        assert (first.init, first.label_count, first.seed) == (run.spec.init, 2, 100)
        assert {replace(it, training=first.training) for it in found} == {first}
    scored = {parent for run in tuned.scores for parent in run.parents}
    assert not scored & {run.run_id for run in tuned.runs if run.place.arm.kind == "tuning"}


def test_each_takes_the_rate_of_its_best_trial(tuned: Plan) -> None:
    runs = [run for run in tuned.runs if run.kind != "score"]
    run_in_process(tuned, runs)
    chosen: dict[str, float] = {}
    for run in runs:
        if trials := trials_of(tuned, run):
            losses = {}
            for trial in trials:
                assert isinstance(trial.spec, Pretrain | Finetune)
                loss = Result.read(tuned.folder_of(trial)).validation_loss
                losses[loss] = trial.spec.training.lr
            chosen[run.name] = losses[min(losses)]
            folder = tuned.folder_of(run)
            assert Result.read(folder).lr == chosen[run.name]
            rates = [
                event.values["lr"] for event in folder.committed_events() if "lr" in event.values
            ]
            assert max(rates) <= chosen[run.name]
            assert rates[0] > chosen[run.name] / 4, "it is what the training used"
    assert len(chosen) == 4, "the pre-training and the three arms"


def test_a_trial_that_diverges_is_not_chosen(tuned: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor does it stop what waits for it."""
    (run,) = [
        run for run in tuned.runs if run.kind == "pretrain" and run.place.arm.kind != "tuning"
    ]
    trials = trials_of(tuned, run)
    step = train_module.Loop.step

    def diverging(loop: train_module.Loop) -> None:
        step(loop)
        if loop.training.lr in RATES[1:]:
            loop.state.window += math.inf

    monkeypatch.setattr(train_module.Loop, "step", diverging)
    run_in_process(tuned, trials)
    losses = [Result.read(tuned.folder_of(trial)).validation_loss for trial in trials]
    assert losses[0] is not None
    assert losses[1:] == [None, None]
    spec, folder = run.spec, tuned.folder_of(run)
    assert isinstance(spec, Pretrain)
    assert with_rate(spec, folder)[1] == RATES[0]
    only_bad = replace(spec, rate_from=spec.rate_from[1:])
    with pytest.raises(RunError, match="no trial of a learning rate has a finite loss"):
        with_rate(only_bad, folder)


def test_a_run_that_is_no_trial_fails_when_it_diverges(
    tiny_study: Callable[..., Study], monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = make_plan(tiny_study())
    step = train_module.Loop.step

    def diverging(loop: train_module.Loop) -> None:
        step(loop)
        loop.state.window += math.inf

    monkeypatch.setattr(train_module.Loop, "step", diverging)
    with pytest.raises(RunError, match="not finite"):
        run_in_process(plan, plan.runs[:1])


def test_a_scored_seed_is_no_seed_for_trials(tiny_document: dict[str, Any]) -> None:
    tune = {"lr": [1e-3], "on": {"labels": 2, "seed": 0}}
    grid = tiny_document["finetune"] | {"tune": tune}
    with pytest.raises(StudyError, match=r"tune\.on\.seed 0 is one of seeds"):
        parse_study(tiny_document | {"finetune": grid}, "tiny")
    wish = tiny_document["pretrain"]["denoise"] | {"tune": {"lr": [1e-3], "seed": 0}}
    with pytest.raises(StudyError, match=r"tune\.seed 0 is one of seeds"):
        parse_study(tiny_document | {"pretrain": {"denoise": wish}}, "tiny")


def test_a_trial_says_that_it_is_one(tuned: Plan) -> None:
    names = [run.name for run in tuned.runs if run.place.arm.kind == "tuning"]
    assert names[:3] == [f"tune pre-training denoise · lr {lr:g}" for lr in RATES]
    assert "tune binary · scratch · lr 0.001" in names
    for run in tuned.runs:
        if run.kind in ("pretrain", "finetune"):
            assert isinstance(run.spec, Pretrain | Finetune)
            assert run.spec.is_trial == (run.place.arm.kind == "tuning")
