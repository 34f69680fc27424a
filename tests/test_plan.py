from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from fewscan.experiments.cost import forward_flops
from fewscan.experiments.spec import Anomaly, Denoise, Network, Segment
from fewscan.harness.plan import make_plan
from fewscan.harness.status import read_status
from fewscan.harness.study import Study
from fewscan.storage.errors import StoreError, StudyError


def test_the_plan_is_the_grid(tiny_study: Callable[..., Study]) -> None:
    plan = make_plan(tiny_study())
    kinds = [type(run.spec) for run in plan.runs]
    assert kinds == [Denoise, Anomaly] + [Segment] * 8
    assert len({run.run_id for run in plan.runs}) == 10
    seen: set[str] = set()
    for run in plan.runs:
        assert seen.issuperset(run.parents), "parents come first"
        seen.add(run.run_id)
    counts = {r.spec.label_count for r in plan.runs if isinstance(r.spec, Segment)}
    assert counts == {1, 18}


def test_the_supervised_baseline_is_in_the_plan_once(tiny_study: Callable[..., Study]) -> None:
    def fully_supervised(plan: Any) -> list[Any]:
        return [r for r in plan.runs if isinstance(r.spec, Segment) and r.spec.label_count == 18]

    few = replace(tiny_study().finetune, label_counts=(1,), inits=("scratch",))
    assert len(fully_supervised(make_plan(tiny_study(finetune=asdict(few))))) == 2
    without = make_plan(tiny_study(finetune=asdict(few), baselines=[]))
    assert fully_supervised(without) == []
    assert not any(isinstance(run.spec, Anomaly) for run in without.runs)


def test_arms_share_everything_but_their_init(tiny_study: Callable[..., Study]) -> None:
    runs = [r for r in make_plan(tiny_study()).runs if isinstance(r.spec, Segment)]
    scratch = {replace(r.spec, init=None) for r in runs if r.init == "scratch"}
    pretrained = {replace(r.spec, init=None) for r in runs if r.init == "denoise"}
    assert scratch == pretrained


def test_the_same_study_has_the_same_ids(tiny_study: Callable[..., Study], tmp_path: Path) -> None:
    here = [run.run_id for run in make_plan(tiny_study()).runs]
    there = [run.run_id for run in make_plan(tiny_study(folder=str(tmp_path / "b"))).runs]
    assert here == there


@pytest.mark.parametrize(
    ("pretrain", "inits", "message"),
    [
        ({"a": "b", "b": "a"}, ["scratch"], r"(?s)start from each other: a → b → a.*change one"),
        ({"a": "a"}, ["scratch"], "start from each other: a → a"),
        ({"a": "c"}, ["scratch"], r"(?s)unknown parent 'c'.*pretrain.a.init.*one of: scratch, a"),
        ({"a": "scratch"}, ["b"], r"(?s)unknown parent 'b'.*finetune.inits"),
        ({"scratch": "scratch"}, ["scratch"], "called 'scratch', which is taken"),
    ],
)
def test_parents_must_make_sense(
    tiny_study: Callable[..., Study],
    tiny_document: dict[str, Any],
    pretrain: dict[str, str],
    inits: list[str],
    message: str,
) -> None:
    wish = tiny_document["pretrain"]["denoise"]
    study = tiny_study(
        pretrain={name: wish | {"init": init} for name, init in pretrain.items()},
        finetune=tiny_document["finetune"] | {"inits": inits},
    )
    with pytest.raises(StudyError, match=message):
        make_plan(study)


def test_pretrainings_may_chain(
    tiny_study: Callable[..., Study], tiny_document: dict[str, Any]
) -> None:
    wish = tiny_document["pretrain"]["denoise"]
    study = tiny_study(
        pretrain={"second": wish | {"init": "first"}, "first": wish},
        finetune=tiny_document["finetune"] | {"inits": ["second"]},
    )
    first, second = make_plan(study).runs[:2]
    assert (first.name, second.name) == ("pre-train first", "pre-train second")
    assert second.parents == (first.run_id,)


def test_two_names_for_the_same_run_are_refused(
    tiny_study: Callable[..., Study], tiny_document: dict[str, Any]
) -> None:
    wish = tiny_document["pretrain"]["denoise"]
    with pytest.raises(StudyError, match=r"(?s)'pre-train a' and 'pre-train b' are the same run"):
        make_plan(tiny_study(pretrain={"a": wish, "b": wish}, finetune=tiny_document["finetune"]))


def test_too_many_labels_are_refused(
    tiny_study: Callable[..., Study], tiny_document: dict[str, Any]
) -> None:
    study = tiny_study(finetune=tiny_document["finetune"] | {"label_counts": [1, 19]})
    with pytest.raises(StudyError, match=r"(?s)label count 19 is larger.*at most 18"):
        make_plan(study)


def test_a_missing_store_is_refused(tiny_study: Callable[..., Study], tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"(?s)no such store.*fewscan prepare"):
        make_plan(tiny_study(store=str(tmp_path / "none.zarr")))


def test_status_counts_and_blocks(tiny_study: Callable[..., Study]) -> None:
    plan = make_plan(tiny_study())
    pretraining = plan.folder_of(plan.runs[0])
    pretraining.create(plan.record(plan.runs[0]))
    pretraining.fail(ValueError("no"))
    status = read_status(plan)
    assert [run.run_id for run in status.failed()] == [plan.runs[0].run_id]
    assert {run.init for run in status.blocked()} == {"denoise"}
    assert len(status.blocked()) == 5
    assert not status.is_finished


def test_the_published_network_takes_18_gflop_a_slice() -> None:
    assert forward_flops(Network(), 4, 4, 128) == pytest.approx(18.4e9, rel=0.01)
