"""Cross-validation: every labelled scan is tested once, by networks that have never seen it."""

import csv
import io
import json
import math
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_runs import finish
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from tiny import run_in_process

from fewscan.experiments.spec import Finetune, Pretrain
from fewscan.harness.adaptive import so_far
from fewscan.harness.listing import render_plan
from fewscan.harness.plan import Plan
from fewscan.harness.planner import make_plan
from fewscan.harness.report.methods import methods
from fewscan.harness.report.power import planned_comparisons
from fewscan.harness.report.results import panel_points, read_patients, read_results
from fewscan.harness.report.studies import one_study
from fewscan.harness.report.write import write_report
from fewscan.harness.study import Study
from fewscan.storage.errors import StudyError
from fewscan.storage.slices import SliceStore
from fewscan.storage.splits import PARTS, Fold, Split, split_of_fold

FOLDS = 3


@pytest.fixture
def plan(tiny_study: Callable[..., Study], tiny_document: dict[str, Any]) -> Plan:
    finetune = tiny_document["finetune"] | {"targets": ["binary"], "seeds": [0, 1]}
    return make_plan(tiny_study(split={"folds": FOLDS}, finetune=finetune))


@given(
    patients=st.lists(st.integers(1, 3), min_size=4, max_size=30),
    count=st.integers(2, 6),
    fewest=st.integers(0, 3),
)
def test_each_scan_is_tested_once_and_no_patient_is_divided(
    patients: list[int], count: int, fewest: int
) -> None:
    patient_of = {
        f"P{p:02d}-{n}": f"P{p:02d}" for p, scans in enumerate(patients) for n in range(scans)
    }
    folds = [Fold(number, count) for number in range(1, count + 1)]
    too_few = len(patients) - math.ceil(len(patients) / count) <= max(1, fewest)
    try:
        splits = [split_of_fold(patient_of, patient_of, fold, fewest) for fold in folds]
    except StudyError:
        assert too_few or count > len(patients) or max(patients) > 1
        return
    assert not too_few or max(patients) > 1
    assert Counter(id_ for it in splits for id_ in it.test) == Counter([*patient_of])
    for it in splits:
        assert it.ids == {*patient_of}
        assert sum(len(getattr(it, part)) for part in PARTS) == len(patient_of)
        assert it.train
        assert len({patient_of[id_] for id_ in it.validation}) >= max(1, fewest)
        it.require_whole_patients(patient_of)
    assert len({it.validation for it in splits}) == count, "others validate in each"


def test_the_rule_is_what_it_was() -> None:
    """Else finished runs would be those of another split."""
    ids = [f"s{number:02d}" for number in range(12)]
    found = split_of_fold(ids, None, Fold(2, 3), fewest=2)
    assert found == Split(
        train=("s01", "s05", "s03", "s04", "s00", "s06"),
        validation=("s08", "s02"),
        test=("s09", "s10", "s07", "s11"),
    )


def test_a_fold_is_part_of_what_a_run_is(store_path: Path) -> None:
    store = SliceStore.open(store_path)
    folds = store.outer_folds(FOLDS)
    assert store.outer_folds(0) == (store,)
    assert len({store.fingerprint, *(it.fingerprint for it in folds)}) == 1 + FOLDS
    again = SliceStore.open(store_path, Fold.of_fingerprint(folds[1].fingerprint))
    assert (again.fold, again.split) == (Fold(2, FOLDS), folds[1].split)
    assert Fold.of_fingerprint(store.fingerprint) is None


def test_who_was_given_a_split_has_said_who_is_tested(store_path: Path) -> None:
    store = SliceStore.open(store_path)
    given_split = SliceStore(store.folder, replace(store.manifest, given_split=store.split))
    with pytest.raises(StudyError, match="3 folds of a store whose split was given"):
        given_split.outer_folds(FOLDS)


def test_the_whole_study_is_planned_once_a_fold(
    plan: Plan, tiny_study: Callable[..., Study], tiny_document: dict[str, Any]
) -> None:
    finetune = tiny_document["finetune"] | {"targets": ["binary"], "seeds": [0, 1]}
    plain = make_plan(tiny_study(finetune=finetune))
    assert len(plan.runs) == FOLDS * len(plain.runs)
    assert {it.run_id for it in plan.runs}.isdisjoint(it.run_id for it in plain.runs)
    assert len({it.name for it in plan.runs}) == len(plan.runs)
    names = {run.name.replace("18 scans", f"{plan.everything} scans") for run in plain.runs}
    assert {run.name_in_all_folds for run in plan.runs} == names
    parents = {run.run_id: run for run in plan.runs}
    for run in plan.runs:
        assert all(parents[it].place.fold == run.place.fold for it in run.parents)
    smallest = min(len(store.split.train) for store in plan.folds)
    assert plan.everything == smallest == max(run.place.labels or 0 for run in plan.runs)
    assert {*plan.tested} == {*plan.store.subjects}
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(render_plan(plan))
    (line,) = [it for it in console.export_text().splitlines() if "pre-train denoise" in it]
    assert "outer fold" not in line, "one line for all folds"


def test_what_learns_from_another_store_is_learnt_once(
    tiny_study: Callable[..., Study],
    tiny_document: dict[str, Any],
    store_path: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("fewscan.harness.weights.require_fitting_store", lambda *args: None)
    pretrain = tiny_document["pretrain"]
    pretrain["denoise"]["store"] = str(store_path)
    found = make_plan(tiny_study(split={"folds": FOLDS}, pretrain=pretrain))
    learnt = [run for run in found.runs if isinstance(run.spec, Pretrain)]
    assert [(run.place.fold, run.name) for run in learnt] == [(None, "pre-train denoise")]
    starts = {run.spec.init for run in found.runs if isinstance(run.spec, Finetune)}
    assert starts == {None, learnt[0].run_id}


def finish_fold_by_fold(plan: Plan, complete: bool = True, noise: float = 0.0) -> None:
    """Each fold tests its own patients; with `complete` false the last one lacks a run."""
    rng = np.random.default_rng(0)
    for run in plan.runs if complete else plan.runs[:-1]:
        finish(plan, run, bonus=rng.normal(0, noise))
        cases = plan.folder_of(run).cases
        if cases.exists():
            assert run.store is not None
            head, *rows = cases.read_text().splitlines()
            tested = run.store.split.test
            lines = [
                f"{id_},{row.partition(',')[2]}"
                for id_, row in zip(tested, chain(rows, rows), strict=False)
            ]
            cases.write_text("\n".join([head, *lines]) + "\n")


def test_the_folds_are_one_result_of_all_patients(plan: Plan) -> None:
    finish_fold_by_fold(plan)
    results = read_results(one_study(plan))
    assert len(results) * FOLDS == len(plan.scores)
    for it in results:
        assert {*it.patients} == {*plan.tested}
        assert it.place.fold is None
        own = {run.place.fold: run for run in it.runs}
        assert len(own) == FOLDS
        weights = [len(run.patients) for run in it.runs]
        mean = sum(
            w * float(run.test["pooled_ap"] or 0) for w, run in zip(weights, it.runs, strict=True)
        )
        assert it.test["pooled_ap"] == pytest.approx(mean / sum(weights))
    (point,) = {
        (it.runs, it.planned)
        for it in panel_points(one_study(plan), results)
        if it.arm.key == "denoise" and it.quantity.target == "binary"
    }
    assert point == (2, 2), "seeds, not seeds times folds"
    assert {it.patients for it in planned_comparisons(plan)} == {len(plan.tested)}


def test_what_lacks_a_fold_is_not_there(plan: Plan) -> None:
    finish_fold_by_fold(plan, complete=False)
    results = read_results(one_study(plan))
    assert len(results) == len(plan.scores) // FOLDS - 1
    assert all(len(it.runs) == FOLDS for it in results)


def test_a_number_that_no_fold_defines_is_not_defined(plan: Plan) -> None:
    finish_fold_by_fold(plan)
    nowhere, once = {}, {"pooled_ap": None}
    for number, run in enumerate(it for it in plan.scores if it.place.labels == 1):
        folder = plan.folder_of(run)
        value = folder.read_result()
        value["test"] |= {"class_dice_mean": None} | (once if number == 0 else nowhere)
        folder.result.write_text(json.dumps(value))
    found = [it for it in read_results(one_study(plan)) if it.place.labels == 1]
    assert all(it.test["class_dice_mean"] is None for it in found)
    assert all(it.test["pooled_ap"] is not None for it in found)


@pytest.mark.usefixtures("undrawn")
def test_the_report_says_how_it_was_tested(plan: Plan) -> None:
    finish_fold_by_fold(plan)
    write_report(one_study(plan))
    said = dict(methods(one_study(plan)))["Data"]
    assert "cross-validation in 3 outer folds" in said
    assert "24 test patients" in said
    with (plan.folder.report / "numbers.csv").open() as file:
        rows = [*csv.DictReader(file)]
    assert {row["fold"] for row in rows} == {f"outer fold {n} of 3" for n in (1, 2, 3)}
    assert len({row["run_id"] for row in rows}) == len(plan.scores)


def test_an_adaptive_study_adds_seeds_in_all_folds(
    tiny_study: Callable[..., Study], tiny_document: dict[str, Any]
) -> None:
    finetune = tiny_document["finetune"] | {"targets": ["binary"], "seeds": [0, 1]}
    pretrain = {"denoise": tiny_document["pretrain"]["denoise"] | {"seeds": [0, 1]}}
    adaptive = {"until": "decided", "at_most": 4}
    study = tiny_study(
        split={"folds": FOLDS}, finetune=finetune, pretrain=pretrain, adaptive=adaptive
    )
    begun = so_far(make_plan(study))
    finish_fold_by_fold(begun, noise=0.3)
    grown = so_far(begun)
    assert len(grown.looked) == 1
    added = {run.place for run in grown.grid} - {run.place for run in begun.grid}
    assert added
    folds = Counter(place.in_all_folds for place in added)
    assert {*folds.values()} == {FOLDS}


def test_a_fold_is_trained_and_tested_as_planned(plan: Plan) -> None:
    """With real runs: who is tested has been seen by none of them."""
    scores = [
        run
        for run in plan.scores
        if run.place.fold == Fold(2, FOLDS) and run.place.labels == 1 and run.place.seed == 0
    ]
    wanted = {run.run_id for run in scores}
    for run in reversed(plan.runs):
        wanted |= {*run.parents} if run.run_id in wanted else set()
    run_in_process(plan, [run for run in plan.runs if run.run_id in wanted])
    split = plan.folds[1].split
    for run in scores:
        assert {*read_patients(plan.folder_of(run).cases)} == {*split.test}
        assert {*plan.folder_of(run).read_result()["labelled"]} <= {*split.train}
