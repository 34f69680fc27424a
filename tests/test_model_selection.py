"""Which labels choose the model that is kept and its threshold: validation, within, or none."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from tiny import run_in_process

from fewscan.experiments.results import Result
from fewscan.experiments.score import MIDDLE
from fewscan.harness.plan import Plan, PlannedRun
from fewscan.harness.planner import make_plan
from fewscan.harness.study import Epochs, Study
from fewscan.harness.study_file import parse_study
from fewscan.storage.errors import StudyError
from fewscan.storage.splits import hold_out

IDS = tuple(f"s{n}" for n in range(40))


@pytest.mark.parametrize(
    ("count", "held"), [(1, 0), (3, 0), (4, 1), (5, 1), (9, 1), (10, 2), (40, 8)]
)
def test_a_fifth_is_held_out_of_those_who_have_enough(count: int, held: int) -> None:
    learnt, chooses = hold_out(IDS[:count])
    assert (*learnt, *chooses) == IDS[:count], "the last ones, and none is lost"
    assert len(chooses) == held


def test_patients_are_held_out_whole() -> None:
    patient_of = {id_: f"p{n // 3}" for n, id_ in enumerate(IDS)}
    learnt, chooses = hold_out(IDS[:6], patient_of)
    assert (learnt, chooses) == (IDS[:3], IDS[3:6])
    assert hold_out(IDS[:3], patient_of)[1] == ()
    alone = dict.fromkeys(IDS, "p")
    assert hold_out(IDS, alone) == (IDS, ()), "one patient cannot be divided"


def plan_with(
    tiny_study: Callable[..., Study], tiny_document: dict[str, Any], **changes: Any
) -> Plan:
    grid = tiny_document["finetune"] | {"inits": ["scratch"], "targets": ["binary"]} | changes
    return make_plan(tiny_study(finetune=grid, baselines=[], pretrain={}))


def of_kind(plan: Plan, kind: str, labels: int) -> PlannedRun:
    (run,) = [run for run in plan.runs if run.kind == kind and run.place.labels == labels]
    return run


@pytest.mark.parametrize(("selection", "labels"), [("last", 10), ("last", 1), ("within", 1)])
def test_where_nothing_chooses_the_last_model_is_kept(
    tiny_study: Callable[..., Study], tiny_document: dict[str, Any], selection: str, labels: int
) -> None:
    """Its threshold is the middle, and no validation scan is scored."""
    training = tiny_document["finetune"]["training"] | {"iterations": 6, "lr": 0.3}
    plan = plan_with(
        tiny_study, tiny_document, label_counts=[labels], selection=selection, training=training
    )
    trained, scored = (of_kind(plan, kind, labels) for kind in ("finetune", "score"))
    run_in_process(plan, [trained, scored])
    result, score = Result.read(plan.folder_of(trained)), Result.read(plan.folder_of(scored))
    assert result.best_step == 6
    assert result.held_out == ()
    assert score.validation == {"threshold": MIDDLE} == {"threshold": 0.5}


def test_another_selection_is_another_run(
    tiny_study: Callable[..., Study], tiny_document: dict[str, Any]
) -> None:
    ids = [
        {run.run_id for run in plan_with(tiny_study, tiny_document, selection=it).runs}
        for it in ("validation", "within", "last")
    ]
    assert not ids[0] & ids[1]
    assert not ids[1] & ids[2]
    assert ids[0] == {run.run_id for run in plan_with(tiny_study, tiny_document).runs}


def iterations_of(plan: Plan) -> dict[int | None, tuple[int, int]]:
    return {
        run.place.labels: (run.spec.training.iterations, run.spec.training.validate_every)
        for run in plan.runs
        if run.kind == "finetune"
    }


def test_iterations_by_a_table_go_on_straight_lines(
    tiny_study: Callable[..., Study], tiny_document: dict[str, Any]
) -> None:
    table = {1: 10, 4: 40, 16: 40}
    plan = plan_with(tiny_study, tiny_document, label_counts=[1, 2, 4, 8, 16, 18], iterations=table)
    found = iterations_of(plan)
    assert {n: it for n, (it, _) in found.items()} == {1: 10, 2: 20, 4: 40, 8: 40, 16: 40, 18: 40}
    for iterations, validate_every in found.values():
        assert iterations / validate_every == pytest.approx(2, rel=0.11), "as often as before"


def test_iterations_by_epochs_count_the_slices_of_the_labelled_scans(
    tiny_study: Callable[..., Study], tiny_document: dict[str, Any]
) -> None:
    law = {"epochs": 3, "at_least": 9, "at_most": 50}
    plan = plan_with(tiny_study, tiny_document, label_counts=[1, 8, "all"], iterations=law)
    train = [plan.store.subjects[i] for i in plan.store.split.train]
    each = np.mean([len(subject.positions) for subject in train])
    wanted = {n: float(np.clip(round(3 * n * each / 4), 9, 50)) for n in (1, 8, 18)}
    assert {n: it for n, (it, _) in iterations_of(plan).items()} == wanted
    assert wanted[1] == 9
    assert 9 < wanted[8] < 50 == wanted[18], "the law, between its bounds"


@pytest.mark.parametrize(
    "iterations", [{}, {"epochs": 0}, {"epochs": 2, "at_least": 9, "at_most": 3}, {0: 5}, {1: 0}]
)
def test_impossible_iterations_are_refused(tiny_document: dict[str, Any], iterations: Any) -> None:
    grid = tiny_document["finetune"] | {"iterations": iterations}
    with pytest.raises(StudyError, match=r"finetune"):
        parse_study(tiny_document | {"finetune": grid}, "tiny")


def test_a_law_is_read_as_one(tiny_document: dict[str, Any]) -> None:
    grid = tiny_document["finetune"] | {"iterations": {"epochs": 20, "at_least": 2000}}
    study = parse_study(tiny_document | {"finetune": grid}, "tiny")
    assert study.finetune.iterations == Epochs(20, 2000)
