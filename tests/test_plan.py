from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from fewscan.experiments import catalogue
from fewscan.experiments.catalogue import Metric
from fewscan.experiments.cost import forward_flops
from fewscan.experiments.spec import Finetune, Network
from fewscan.harness.planner import make_plan
from fewscan.harness.status import read_status
from fewscan.harness.study import Study
from fewscan.storage.errors import StoreError, StudyError


def test_the_plan_is_the_grid(tiny_study: Callable[..., Study]) -> None:
    plan = make_plan(tiny_study())
    kinds = [run.kind for run in plan.runs]
    assert kinds == ["pretrain", "score"] + ["finetune", "score"] * 8
    assert len({run.run_id for run in plan.runs}) == 18
    seen: set[str] = set()
    for run in plan.runs:
        assert seen.issuperset(run.parents), "parents come first"
        seen.add(run.run_id)
    assert {run.place.labels for run in plan.grid} == {1, 18}
    for score in plan.grid:
        (trained,) = [run for run in plan.runs if (run.run_id,) == score.parents]
        assert (trained.kind, trained.place) == ("finetune", score.place)


def test_the_supervised_baseline_is_in_the_plan_once(tiny_study: Callable[..., Study]) -> None:
    def fully_supervised(plan: Any) -> list[Any]:
        return [run for run in plan.grid if run.place.labels == 18]

    few = replace(tiny_study().finetune, label_counts=(1,), inits=("scratch",))
    assert len(fully_supervised(make_plan(tiny_study(finetune=asdict(few))))) == 2
    without = make_plan(tiny_study(finetune=asdict(few), baselines=[]))
    assert fully_supervised(without) == []
    assert without.scores == without.grid


def test_arms_share_everything_but_their_init(tiny_study: Callable[..., Study]) -> None:
    runs = [r for r in make_plan(tiny_study()).runs if isinstance(r.spec, Finetune)]
    scratch = {replace(r.spec, init=None) for r in runs if r.place.arm.is_scratch}
    pretrained = {replace(r.spec, init=None) for r in runs if r.place.arm.init == "denoise"}
    assert scratch == pretrained
    assert len(scratch) == 4


@pytest.mark.parametrize(
    ("evaluation", "other"),
    [({"nsd_tolerance_mm": 1.5}, "score"), ({"min_component_mm3": 5}, "score")],
)
def test_another_evaluation_repeats_scores_and_no_training(
    tiny_study: Callable[..., Study], evaluation: dict[str, Any], other: str
) -> None:
    before, after = make_plan(tiny_study()), make_plan(tiny_study(evaluation=evaluation))
    new = {run.run_id for run in after.runs} - {run.run_id for run in before.runs}
    assert {run.kind for run in after.runs if run.run_id in new} == {other}
    assert len(new) == len(after.scores)


def test_another_metric_repeats_scores_and_no_training(
    tiny_study: Callable[..., Study], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = make_plan(tiny_study())
    more = Metric("more", "more", "patient", "One more.", targets=("binary",))
    monkeypatch.setattr(catalogue, "CATALOGUE", (*catalogue.CATALOGUE, more))
    after = make_plan(tiny_study())
    new = {run.run_id for run in after.runs} - {run.run_id for run in before.runs}
    assert new == {run.run_id for run in after.scores if run.place.target == "binary"}


def test_a_scheme_without_an_anomaly_score_has_no_unsupervised_baseline(
    tiny_study: Callable[..., Study], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fewscan.experiments.schemes.denoise.Denoise.has_anomaly_score", False)
    plan = make_plan(tiny_study())
    assert plan.scores == plan.grid


def test_what_is_transferred_is_part_of_the_arm(
    tiny_study: Callable[..., Study],
    tiny_document: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    finetune = tiny_document["finetune"] | {"transfer": "encoder"}
    grid = make_plan(tiny_study(finetune=finetune)).grid
    assert {run.place.arm.key for run in grid} == {"scratch", "denoise (encoder)"}
    monkeypatch.setattr("fewscan.experiments.schemes.denoise.Denoise.skips", False)
    assert make_plan(tiny_study(finetune=finetune)).grid == grid
    with pytest.raises(StudyError, match=r"(?s)without skip connections.*set finetune.transfer"):
        make_plan(tiny_study(finetune=finetune | {"transfer": "all"}))


def test_what_a_run_gets_of_a_machine_is_no_part_of_what_it_is(
    tiny_study: Callable[..., Study],
) -> None:
    plain, nice = make_plan(tiny_study()), make_plan(tiny_study(resources={"niceness": 19}))
    assert [run.run_id for run in nice.runs] == [run.run_id for run in plain.runs]


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
    study = tiny_study(
        pretrain={"a": wish, "b": wish},
        finetune=tiny_document["finetune"] | {"inits": ["a", "b"]},
    )
    with pytest.raises(StudyError, match=r"(?s)'pre-train a' and 'pre-train b' are the same run"):
        make_plan(study)


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
    plan.record(plan.runs[0]).write(pretraining)
    pretraining.fail(ValueError("no"))
    status = read_status(plan)
    assert [run.run_id for run in status.failed()] == [plan.runs[0].run_id]
    assert {run.place.arm.init for run in status.blocked()} == {"denoise"}
    assert len(status.blocked()) == 1 + 4 * 2
    assert not status.is_finished


def test_the_published_network_takes_18_gflop_a_slice() -> None:
    assert forward_flops(Network(), 4, 4, 128) == pytest.approx(18.4e9, rel=0.01)


def test_each_seed_starts_from_the_pretraining_of_its_own_seed(
    tiny_study: Callable[..., Study], tiny_document: dict[str, Any]
) -> None:
    wishes = tiny_document["pretrain"]
    wishes = {
        "denoise": wishes["denoise"] | {"seeds": [0, 1, 2]},
        "longer": wishes["denoise"] | {"seeds": [0, 1], "init": "denoise"},
    }
    grid = tiny_document["finetune"] | {"seeds": [0, 1, 2, 3], "inits": ["scratch", *wishes]}
    plan = make_plan(tiny_study(pretrain=wishes, finetune=grid))
    trained = {run.run_id: run for run in plan.runs if run.kind == "pretrain"}
    assert {run.name for run in trained.values()} == {
        *(f"pre-train denoise · seed {seed}" for seed in (0, 1, 2)),
        *(f"pre-train longer · seed {seed}" for seed in (0, 1)),
    }
    started: dict[tuple[str | None, int], int | None] = {}
    for run in plan.runs:
        if isinstance(run.spec, Finetune):
            if run.spec.init is None:
                assert run.place.pretraining is None
            else:
                parent = trained[run.spec.init]
                assert parent.place.seed == run.place.pretraining
                started[run.place.arm.init, run.place.seed] = run.place.pretraining
        elif run.place.arm.kind == "pre-training" and run.parents:
            assert trained[run.parents[0]].place.seed == run.place.pretraining == run.place.seed
    assert started == {
        **{("denoise", seed): seed % 3 for seed in range(4)},
        **{("longer", seed): seed % 2 for seed in range(4)},
    }
    alone = [run.place for run in plan.scores if run.place.arm.kind == "unsupervised"]
    assert [(place.arm.init, place.seed) for place in alone] == [
        *(("denoise", seed) for seed in (0, 1, 2)),
        *(("longer", seed) for seed in (0, 1)),
    ]


def test_one_seed_may_be_written_alone(
    tiny_study: Callable[..., Study], tiny_document: dict[str, Any]
) -> None:
    wish = tiny_document["pretrain"]["denoise"]
    study = tiny_study(pretrain={"denoise": wish | {"seed": 7}})
    assert study == tiny_study(pretrain={"denoise": wish | {"seeds": [7]}})
    names = [run.name for run in make_plan(study).runs if run.kind == "pretrain"]
    assert names == ["pre-train denoise"]
