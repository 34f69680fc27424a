"""Adaptive sweeps: which runs are added after a look, for whom, and when it is over."""

import io
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import yaml
from fake_runs import finish
from rich.console import Console

import fewscan.harness.sweep
from fewscan.harness.adaptive import so_far
from fewscan.harness.listing import growing
from fewscan.harness.plan import Plan
from fewscan.harness.planner import make_plan
from fewscan.harness.report.evidence import gather
from fewscan.harness.report.results import read_results
from fewscan.harness.report.studies import one_study
from fewscan.harness.study import Study
from fewscan.harness.study_file import dump_study, parse_study
from fewscan.harness.sweep import sweep
from fewscan.storage.errors import StudyError

TRAINING = {"iterations": 4, "validate_every": 2, "batch_size": 4, "lr": 0.01}
Make = Callable[..., Study]


@pytest.fixture
def make(tiny_study: Make) -> Make:
    """A study of two pre-trainings, one for each seed, two label counts, up to six seeds."""

    def made(names: tuple[str, ...] = ("denoise",), **adaptive: Any) -> Study:
        wish = {"scheme": {"kind": "denoise"}, "training": TRAINING, "seeds": [0, 1]}
        pretrain = {
            name: wish | {"training": TRAINING | {"lr": 0.01 * (k + 1)}}
            for k, name in enumerate(names)
        }
        grid = {
            "label_counts": [1, 2],
            "seeds": [0, 1],
            "inits": ["scratch", *names],
            "targets": ["binary"],
            "training": TRAINING,
        }
        wanted = {"at_most": 6, "until": "decided"} | adaptive
        baselines = ["unsupervised"]
        return tiny_study(pretrain=pretrain, finetune=grid, adaptive=wanted, baselines=baselines)

    return made


def finish_new(plan: Plan, noise: float, helps: tuple[str, ...] = ()) -> None:
    """Finish what is not; every arm is as good as scratch but for those that help by 0.2."""
    for run in plan.runs:
        if plan.folder_of(run).result.exists():
            continue
        arm = run.place.arm
        rng = np.random.default_rng(list(f"{run.name}".encode()))
        bonus = noise * float(rng.standard_normal())
        if arm.kind == "fine-tuning" and not arm.is_scratch and arm.init not in helps:
            bonus -= 0.2  # what `finish` gives it
        finish(plan, run, bonus)


def seeds_by_cell(plan: Plan) -> dict[tuple[str, int | None], list[int]]:
    found: dict[tuple[str, int | None], list[int]] = {}
    for run in plan.grid:
        found.setdefault((run.place.arm.key, run.place.labels), []).append(run.place.seed)
    return found


def ids(plan: Plan) -> set[str]:
    return {run.run_id for run in plan.runs}


def test_it_begins_with_the_runs_of_the_study_without_it(make: Make, tiny_study: Make) -> None:
    study = make()
    begun = so_far(make_plan(study))
    plain = parse_study(document(study) | {"adaptive": None}, "plain")
    assert begun.runs == make_plan(plain).runs
    assert begun.look is not None
    assert (begun.look.number, begun.looked) == (1, ())


def document(study: Study) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(dump_study(study))
    return found


def test_a_look_waits_for_every_run(make: Make) -> None:
    begun = so_far(make_plan(make()))
    for run in begun.runs[:-1]:
        finish(begun, run)
    assert so_far(begun).runs == begun.runs
    assert so_far(begun).looked == ()


def test_a_look_waits_for_a_damaged_result_to_be_computed_again(make: Make) -> None:
    begun = so_far(make_plan(make()))
    finish_new(begun, noise=0.1)
    assert so_far(begun).runs != begun.runs
    result = begun.folder_of(begun.grid[0]).result
    whole = result.read_text()
    result.write_text(whole[: len(whole) // 2])
    waiting = so_far(begun)
    assert (waiting.runs, waiting.looked) == (begun.runs, ())
    result.write_text(whole)
    assert so_far(begun).runs != begun.runs


def test_what_is_decided_at_the_first_look_is_over(make: Make) -> None:
    begun = so_far(make_plan(make()))
    finish_new(begun, noise=0.0, helps=("denoise",))
    over = so_far(begun)
    assert over.runs == begun.runs
    assert over.looked[0].startswith("look 1 of at most 4: binary · denoise, 2 seeds: +0.200 ")
    assert over.looked[0].endswith("known as asked for")


def test_what_is_open_gets_seeds_with_pretrainings_and_their_scores(make: Make) -> None:
    begun = so_far(make_plan(make()))
    finish_new(begun, noise=0.1)
    grown = so_far(begun)
    assert ids(begun) < ids(grown)
    assert seeds_by_cell(grown)["denoise", 2] == [0, 1, 2]
    assert seeds_by_cell(grown)["scratch", 2] == [0, 1, 2]
    named = {run.name for run in grown.runs}
    assert {"pre-train denoise · seed 2", "unsupervised · denoise · seed 2"} <= named
    assert not any("seed 3" in name for name in named)
    starts = {run.place.seed: run.place.pretraining for run in grown.grid if run.place.arm.init}
    assert starts == {0: 0, 1: 1, 2: 2}


def test_at_the_last_look_every_cell_has_all_seeds_and_it_is_over(make: Make) -> None:
    plan = so_far(make_plan(make()))
    sizes = []
    while plan.look and len(plan.looked) < plan.look.number:
        finish_new(plan, noise=0.1)
        plan = so_far(plan)
        sizes.append(len(plan.runs))
    assert sizes == sorted(sizes)
    assert plan.look is not None
    assert plan.look.is_last
    assert len(plan.looked) == plan.look.of
    assert set(map(tuple, seeds_by_cell(plan).values())) == {(0, 1, 2, 3, 4, 5)}
    assert ids(plan) == ids(make_plan(make().with_all_seeds()))


def test_seeds_go_to_the_arm_that_is_open(make: Make) -> None:
    begun = so_far(make_plan(make(("good", "useless"))))
    finish_new(begun, noise=0.001, helps=("good",))
    grown = so_far(begun)
    assert "good, 2 seeds: +0.201 (+0.165 to +0.225), known as asked for" in grown.looked[0]
    assert seeds_by_cell(grown)["good", 2] == [0, 1]
    assert seeds_by_cell(grown)["useless", 2] == [0, 1, 2]


def test_it_ends_when_the_interval_is_as_narrow_as_asked_for(make: Make) -> None:
    begun = so_far(make_plan(make(until=None, half_width=2.0)))
    finish_new(begun, noise=0.01)
    assert so_far(begun).runs == begun.runs
    narrower = so_far(make_plan(make(until=None, half_width=1e-6)))
    assert ids(narrower) > ids(begun)


def test_a_look_tests_at_its_own_error_probability(make: Make) -> None:
    begun = so_far(make_plan(make()))
    finish_new(begun, noise=0.02)
    plain, looked = (
        next(iter(gather(one_study(plan), read_results(one_study(plan)), leading=True)))
        for plan in (make_plan(make()), begun)
    )
    (arm,) = plain.references
    first, second = plain.areas[arm], looked.areas[arm]
    assert first.p == second.p
    assert begun.look is not None
    assert second.p_corrected == pytest.approx(min(1, first.p_corrected * 0.05 / begun.look.error))
    assert first.difference is not None
    assert second.difference is not None
    assert second.difference.value == first.difference.value
    assert second.difference.low < first.difference.low < first.difference.high
    assert first.difference.high < second.difference.high


def test_the_status_says_what_was_seen_and_what_comes(make: Make) -> None:
    begun = so_far(make_plan(make()))
    (said,) = growing(begun)
    assert said.startswith("look 1 of at most 4 is taken when these runs are")
    finish_new(begun, noise=0.1)
    first, then = growing(so_far(begun))
    assert first.startswith("look 1 of at most 4: binary · denoise, 2 seeds: ")
    assert then.startswith("look 2 of at most 4 is taken")


def test_one_sweep_goes_from_look_to_look(
    make: Make, monkeypatch: pytest.MonkeyPatch, undrawn: None
) -> None:
    def run(plan: Plan, *rest: object) -> None:
        finish_new(plan, noise=0.1)

    monkeypatch.setattr(fewscan.harness.sweep, "_run_on_ray", run)
    monkeypatch.setattr(fewscan.harness.sweep.MlflowUpdates, "_try", lambda self, action: None)
    console = Console(width=200, file=io.StringIO(), record=True)
    status = sweep(so_far(make_plan(make())), console)
    assert status.is_finished
    assert ids(status.plan) == ids(make_plan(make().with_all_seeds()))
    shown = console.export_text()
    assert "runs are added" in shown
    assert "look 4 of at most 4" in shown
    again = sweep(so_far(make_plan(make())), console)
    assert ids(again.plan) == ids(status.plan)


@pytest.mark.parametrize(
    ("adaptive", "words"),
    [
        ({"at_most": 6}, "say when it ends"),
        ({"at_most": 3, "until": "decided"}, ""),
        ({"at_most": 2, "until": "decided"}, "greater than or equal to 3"),
        ({"at_most": 6, "until": "never"}, "decided"),
        ({"at_most": 6, "half_width": 0.0}, "greater than 0"),
    ],
)
def test_what_makes_no_sense_is_refused(
    tiny_document: dict[str, Any], adaptive: dict[str, Any], words: str
) -> None:
    tiny_document["finetune"]["seeds"] = [0, 1]
    if not words:
        parse_study(tiny_document | {"adaptive": adaptive}, "tiny")
        return
    with pytest.raises(StudyError, match=words):
        parse_study(tiny_document | {"adaptive": adaptive}, "tiny")


def test_it_takes_two_seeds_to_begin_with(tiny_document: dict[str, Any]) -> None:
    wish = {"at_most": 6, "until": "decided"}
    with pytest.raises(StudyError, match="takes two to begin with"):
        parse_study(tiny_document | {"adaptive": wish}, "tiny")


def test_further_seeds_pass_over_those_of_trials(make: Make) -> None:
    study = parse_study(
        document(make())
        | {
            "finetune": document(make())["finetune"]
            | {"tune": {"lr": [0.1, 0.2], "on": {"labels": 2, "seed": 3}}}
        },
        "tuned",
    )
    assert study.with_all_seeds().finetune.seeds == (0, 1, 2, 4, 5, 6)
    assert study.with_all_seeds().pretrain["denoise"].seeds == (0, 1, 2, 4, 5, 6)
