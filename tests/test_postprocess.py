"""Post-processing: what each rule does, when it is chosen, and that only allowed labels choose."""

import json
import math
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from fewscan.experiments.postprocess import (
    Example,
    Rule,
    apply,
    candidates,
    fit,
    rules_of,
)
from fewscan.experiments.spec import Evaluation, Postprocess, Score, from_json, run_id, to_json
from fewscan.harness.concerns import concerns
from fewscan.harness.planner import make_plan
from fewscan.harness.study import Study
from fewscan.harness.study_file import dump_study, parse_study
from fewscan.storage.errors import StudyError

SHAPE_ZHW = (8, 12, 12)
ONE_MM = (1.0, 1.0, 1.0)
ALL = Postprocess(largest_component=True, min_lesion_mm3=(5.0, 30.0), fill_holes=True)


def box(first_ZHW: tuple[int, int, int], size_ZHW: tuple[int, int, int]) -> np.ndarray:
    mask = np.zeros(SHAPE_ZHW, np.uint8)
    mask[tuple(slice(a, a + n) for a, n in zip(first_ZHW, size_ZHW, strict=True))] = 1
    return mask


NOTHING = np.zeros(SHAPE_ZHW, np.uint8)
BIG = box((1, 1, 1), (5, 5, 5))
SPECK = box((1, 9, 9), (1, 2, 2))  # 4 voxels
MIDDLE = box((5, 8, 8), (3, 3, 3))  # 27 voxels


def test_the_largest_component_alone_is_kept() -> None:
    """Of all classes together: what another class joins to it stays."""
    labels = BIG + SPECK + 2 * box((6, 1, 1), (1, 2, 2)) + 2 * box((1, 9, 1), (2, 2, 2))
    together = Rule("largest component", (1, 2)).apply(labels, ONE_MM)
    assert (together == BIG + 2 * box((6, 1, 1), (1, 2, 2))).all()
    of_two = Rule("largest component", (2,)).apply(labels, ONE_MM)
    assert (of_two == BIG + SPECK + 2 * box((1, 9, 1), (2, 2, 2))).all()


def test_of_two_as_large_the_first_is_kept() -> None:
    kept = Rule("largest component", (1,)).apply(SPECK + box((4, 1, 1), (1, 2, 2)), ONE_MM)
    assert (kept == SPECK).all()


def test_components_smaller_than_the_smallest_lesion_are_removed() -> None:
    """One of exactly that size stays, whatever a voxel measures; corners join components."""
    labels = BIG + SPECK + MIDDLE
    assert (Rule("smallest lesion", (1,), 4.0).apply(labels, ONE_MM) == labels).all()
    assert (Rule("smallest lesion", (1,), 4.1).apply(labels, ONE_MM) == BIG + MIDDLE).all()
    thick = (2.0, 1.0, np.float32(1.1))  # of single precision, as in a header
    assert (Rule("smallest lesion", (1,), 27 * 2.2).apply(labels, thick) == BIG + MIDDLE).all()
    assert (Rule("smallest lesion", (1,), 27 * 2.2 + 1).apply(labels, thick) == BIG).all()
    diagonal = np.zeros(SHAPE_ZHW, np.uint8)
    diagonal[[1, 2, 3], [1, 2, 3], [1, 2, 3]] = 1
    assert (Rule("smallest lesion", (1,), 3.0).apply(diagonal, ONE_MM) == diagonal).all()


def test_holes_are_filled_where_no_other_class_is() -> None:
    ring = BIG - box((3, 3, 3), (1, 1, 1)) - box((2, 2, 2), (1, 1, 1))
    labels = ring + 2 * box((2, 2, 2), (1, 1, 1))
    filled = Rule("holes", (1,)).apply(labels, ONE_MM)
    assert (filled == BIG + box((2, 2, 2), (1, 1, 1))).all(), "class 2 stays"
    tunnel = BIG - box((1, 3, 3), (5, 1, 1))
    assert (Rule("holes", (1,)).apply(tunnel, ONE_MM) == tunnel).all(), "open at both ends"


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 2**31), st.floats(0, 0.5))
def test_in_its_box_a_mask_changes_as_in_the_whole_scan(seed: int, share: float) -> None:
    rng = np.random.default_rng(seed)
    labels = np.zeros((7, 9, 8), np.uint8)
    labels[2:6, 1:7, 3:7] = rng.integers(1, 3, (4, 6, 4)) * (rng.random((4, 6, 4)) < share)
    before = labels.copy()
    rules = [step[-1] for step in candidates(ALL, (1, 2), (1, 2))]
    plain = labels
    for rule in rules:
        plain = rule.apply(plain, ONE_MM)
    assert (apply(rules, labels, ONE_MM) == plain).all()
    assert (labels == before).all(), "the prediction itself is not changed"
    assert apply((), labels, ONE_MM) is labels


def example(found: np.ndarray, truth: np.ndarray, patient: str = "P") -> Example:
    return Example(patient, found, truth, ONE_MM)


def chosen(examples: list[Example], wanted: Postprocess, names: tuple[str, ...]) -> list[str]:
    found = fit(wanted, examples, names, range(1, len(names) + 1), threads=2)
    return [rule.words(names) for rule in found.rules]


LARGEST = Postprocess(largest_component=True)


def test_a_rule_is_kept_if_the_mean_rises_and_no_class_falls() -> None:
    """Worked out by hand: of all classes together it would take b away, so each is tried."""
    truth = BIG + 2 * MIDDLE
    one = example(BIG + SPECK + 2 * MIDDLE, truth)
    found = fit(LARGEST, [one], ("a", "b"), (1, 2))
    assert [(it.rule.labels, it.falls, it.kept) for it in found.tried] == [
        ((1, 2), ("b",), False),
        ((1,), (), True),
        ((2,), (), False),
    ]
    assert found.before == {"a": pytest.approx(250 / 254), "b": 1}
    assert found.after == {"a": 1, "b": 1}
    assert found.tried[0].after == pytest.approx(0.5)
    assert found.scans == 1


def test_all_classes_together_come_first() -> None:
    truth = BIG + 2 * box((6, 1, 1), (1, 5, 5))
    found = [example(truth + SPECK + 2 * MIDDLE, truth)]
    names = ("a", "b")
    assert chosen(found, LARGEST, names) == ["largest component of all classes together"]
    assert chosen(found[:0], LARGEST, names) == []


def test_what_helps_one_patient_and_harms_more_is_not_kept() -> None:
    two = BIG + MIDDLE
    help_, harm = example(two, BIG, "P"), example(two, two, "Q")
    assert chosen([help_], LARGEST, ("lesion",)) == ["largest component of lesion"]
    assert chosen([help_, harm, replace(harm, patient="R")], LARGEST, ("lesion",)) == []


def test_scans_of_one_patient_count_as_one_and_those_without_the_class_do_not() -> None:
    """As in the report: the truth alone decides. Two scans that gain against one that loses."""
    two = BIG + MIDDLE
    gain, loss = example(two, BIG, "P"), example(two, two, "Q")
    assert chosen([gain, gain, loss], LARGEST, ("lesion",)) == []
    gains = [gain, replace(gain, patient="R"), replace(gain, patient="S"), loss]
    each = {"P": 2 * 125 / 277, "Q": 1.0}
    found = fit(LARGEST, gains, ("lesion",), (1,))
    assert found.before["lesion"] == pytest.approx((3 * each["P"] + 1) / 4)
    healthy = example(two, NOTHING, "H")
    assert fit(LARGEST, [healthy], ("lesion",), (1,)).rules == ()
    assert math.isnan(fit(LARGEST, [healthy], ("lesion",), (1,)).before["lesion"])


def test_of_several_volumes_the_one_with_the_highest_mean_is_kept() -> None:
    wanted = Postprocess(min_lesion_mm3=(100.0, 5.0, 10.0, 1.0))
    examples = [example(BIG + SPECK, BIG, "P"), example(BIG + MIDDLE + SPECK, BIG + MIDDLE, "Q")]
    assert chosen(examples, wanted, ("lesion",)) == ["no component of lesion below 5 mm³"]


def test_an_organ_has_no_smallest_lesion() -> None:
    steps = [*candidates(ALL, (1, 2, 3), (2, 3))]
    of = [(step[0].kind, step[0].labels) for step in steps]
    assert of == [
        ("largest component", (1, 2, 3)),
        *(("largest component", (k,)) for k in (1, 2, 3)),
        ("smallest lesion", (2, 3)),
        ("smallest lesion", (2,)),
        ("smallest lesion", (3,)),
        *(("holes", (k,)) for k in (1, 2, 3)),
    ]
    assert [it.mm3 for it in steps[4]] == [5, 30]
    assert len([*candidates(ALL, (1,), (1,))]) == 3, "one class is not tried twice"


def test_a_class_may_be_called_anything() -> None:
    one = example(BIG + SPECK, BIG)
    assert chosen([one], LARGEST, ("patient",)) == ["largest component of patient"]


def test_what_was_chosen_survives_json() -> None:
    found = fit(ALL, [example(BIG + SPECK - box((3, 3, 3), (1, 1, 1)), BIG)], ("lesion",), (1,))
    assert len(found.rules) == 2
    assert rules_of(json.loads(json.dumps(found.to_json(), allow_nan=False))) == found.rules
    assert rules_of({}) == ()
    healthy = fit(ALL, [example(BIG, NOTHING)], ("lesion",), (1,)).to_json()
    assert healthy["before"] == {"lesion": None}
    assert {it["after"] for it in healthy["tried"]} == {None}
    assert healthy == json.loads(json.dumps(healthy, allow_nan=False))


def test_unless_it_is_asked_for_it_is_in_no_id() -> None:
    """A finished study keeps its scores."""
    score = Score("data", Evaluation(20), ("abc",))
    off = replace(score, evaluation=Evaluation(20, postprocess=Postprocess()))
    on = replace(score, evaluation=Evaluation(20, postprocess=ALL))
    assert run_id(off) == run_id(score) == "6ff191acd73e", "as before there was any"
    assert run_id(on) != run_id(score)
    assert from_json(json.loads(json.dumps(to_json(on)))) == on


def test_a_study_asks_for_all_rules_or_for_some(
    tiny_study: Callable[..., Study], tiny_document: dict[str, Any]
) -> None:
    every = tiny_study(evaluation={"postprocess": True}).evaluation.postprocess
    assert every == Postprocess(True, (10.0, 30.0, 100.0, 300.0, 1000.0), True)
    some = tiny_study(evaluation={"postprocess": {"min_lesion_mm3": [10, 50]}})
    assert some.evaluation.postprocess == Postprocess(min_lesion_mm3=(10.0, 50.0))
    off = tiny_study(evaluation={"postprocess": False})
    assert off.evaluation == Evaluation()
    for study in (some, off):
        again = parse_study(yaml.safe_load(dump_study(study)), "again")
        assert again.evaluation == study.evaluation
    with pytest.raises(StudyError, match="did you mean 'fill_holes'"):
        tiny_study(evaluation={"postprocess": {"fill_hole": True}})
    with pytest.raises(StudyError, match="above 0, each once"):
        tiny_study(evaluation={"postprocess": {"min_lesion_mm3": [0]}})


def test_scans_that_choose_nothing_fit_nothing(
    tiny_study: Callable[..., Study], tiny_document: dict[str, Any]
) -> None:
    """`last` has none, so the plan refuses; `within` has none of fewer than four, which it says."""
    asked = {"evaluation": {"postprocess": True}}
    finetune = tiny_document["finetune"]
    with pytest.raises(StudyError, match="no fine-tuning has any"):
        make_plan(tiny_study(finetune=finetune | {"selection": "last"}, **asked))
    plan = make_plan(tiny_study(finetune=finetune | {"selection": "within"}, **asked))
    (said,) = [it for it in concerns(plan) if "post-processed" in it]
    assert said.startswith("fine-tunings with label counts 1 are not post-processed")
    plain = make_plan(tiny_study(finetune=finetune | {"selection": "within"}))
    assert not [it for it in concerns(plain) if "post-processed" in it]
    scores = [run.spec for run in plan.scores]
    assert all(asdict(it)["evaluation"]["postprocess"]["fill_holes"] for it in scores)
    trained = [{r.run_id for r in it.runs if r.kind != "score"} for it in (plan, plain)]
    assert trained[0] == trained[1], "no training is repeated"
