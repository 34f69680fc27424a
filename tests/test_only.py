"""A part of a study: which runs it is, and that it is a part of the same study."""

from collections.abc import Callable
from typing import Any

import pytest
from fake_runs import finish

from fewscan.harness.only import only
from fewscan.harness.plan import Plan
from fewscan.harness.planner import make_plan
from fewscan.harness.status import read_status
from fewscan.harness.study import Study
from fewscan.storage.errors import StudyError


@pytest.fixture
def plan(tiny_study: Callable[..., Study], tiny_document: dict[str, Any]) -> Plan:
    grid = {"label_counts": [1, 4, "all"], "seeds": [0, 1]}
    return make_plan(tiny_study(finetune=tiny_document["finetune"] | grid))


def cells(plan: Plan) -> set[tuple[str, int | None, int, str | None]]:
    places = [run.place for run in plan.scores]
    return {(it.arm.key, it.labels, it.seed, it.target) for it in places}


def test_an_arm_comes_with_what_it_starts_from(plan: Plan) -> None:
    part = only(plan, ["denoise", "labels=4", "seeds=1", "targets=binary"])
    assert [run.name for run in part.runs] == [
        "pre-train denoise",
        "fine-tune binary · denoise · 4 scans · seed 1",
        "score binary · denoise · 4 scans · seed 1",
    ]
    assert {run.run_id for run in part.runs} < {run.run_id for run in plan.runs}


def test_names_and_values_add_up_and_kinds_narrow_down(plan: Plan) -> None:
    part = only(plan, ["denoise", "scratch", "labels=1", "labels=all", "seeds=0"])
    assert cells(part) == {
        (arm, labels, 0, target)
        for arm in ("scratch", "denoise")
        for labels in (1, 18)
        for target in ("binary", "multiclass")
    }


def test_without_a_name_the_cells_of_all_arms_are_meant(plan: Plan) -> None:
    assert {arm for arm, *_ in cells(only(plan, ["seeds=0"]))} == {"scratch", "denoise"}


def test_a_baseline_has_a_name_too(plan: Plan) -> None:
    part = only(plan, ["unsupervised: denoise"])
    assert [run.name for run in part.runs] == ["pre-train denoise", "unsupervised · denoise"]


def test_the_rest_is_what_is_left(plan: Plan) -> None:
    part = only(plan, ["scratch"])
    for run in part.runs:
        finish(part, run)
    assert read_status(part).is_finished
    left = read_status(plan).count()
    assert (left["finished"], left["missing"]) == (
        len(part.runs),
        len(plan.runs) - len(part.runs),
    )


@pytest.mark.parametrize(
    ("wish", "words"),
    [
        ("denoice", "one of: .*scratch, denoise"),
        ("labels=3", "one of: 1, 4, 18"),
        ("seeds=7", "one of: 0, 1"),
        ("targets=ternary", "one of: binary, multiclass"),
        ("label=1", "no such arm"),
    ],
)
def test_what_the_study_does_not_have_is_refused(plan: Plan, wish: str, words: str) -> None:
    with pytest.raises(StudyError, match=words):
        only(plan, [wish])
