"""Which arms a study has: names, grids of init, transfer and schedule, what cannot be, what it is
compared with."""

import csv
from collections.abc import Callable
from typing import Any

import pytest
import yaml
from tiny import run_in_process

from fewscan.experiments.spec import Finetune
from fewscan.harness.arms import Arm
from fewscan.harness.concerns import concerns
from fewscan.harness.plan import Plan
from fewscan.harness.planner import make_plan
from fewscan.harness.report.studies import one_study, two_studies
from fewscan.harness.report.write import write_report
from fewscan.harness.study import Arms, Study
from fewscan.harness.study_file import dump_study, parse_study
from fewscan.storage.errors import StudyError

Make = Callable[..., Plan]


@pytest.fixture
def plan_of(tiny_study: Callable[..., Study], tiny_document: dict[str, Any]) -> Make:
    """The plan of the tiny study with these settings of its fine-tuning."""

    def make(**changes: Any) -> Plan:
        finetune = tiny_document["finetune"] | {"targets": ["binary"], "label_counts": [1]}
        return make_plan(tiny_study(finetune=finetune | changes, baselines=[]))

    return make


def arms_of(plan: Plan) -> list[Arm]:
    return list(dict.fromkeys(run.place.arm for run in plan.grid))


def keys_of(plan: Plan) -> list[str]:
    return [arm.key for arm in arms_of(plan)]


def specs_of(plan: Plan) -> dict[str, Finetune]:
    runs = {r.place.arm.key: r.spec for r in plan.runs if r.place.is_cell}
    by_id = {run.run_id: run.spec for run in plan.runs}
    found = {key: by_id[spec.parents[0]] for key, spec in runs.items()}
    assert all(isinstance(spec, Finetune) for spec in found.values())
    return found  # type: ignore[return-value]


GRID = {
    "init": ["scratch", "denoise"],
    "transfer": ["all", "encoder"],
    "schedule": ["plain", "sawtooth"],
}


def test_a_grid_in_three_lines(plan_of: Make) -> None:
    """Scratch comes once for each schedule: nothing of it is transferred."""
    plan = plan_of(inits=GRID)
    assert keys_of(plan) == [
        "scratch",
        "scratch (sawtooth)",
        "denoise",
        "denoise (sawtooth)",
        "denoise (encoder)",
        "denoise (encoder, sawtooth)",
    ]
    assert [arm.title for arm in arms_of(plan)][1::2] == [
        "from scratch (sawtooth)",
        "pre-trained: denoise (sawtooth)",
        "pre-trained: denoise (encoder, sawtooth)",
    ]
    for key, spec in specs_of(plan).items():
        assert spec.schedule == ("sawtooth" if "sawtooth" in key else "plain")
        assert spec.transfer == ("encoder" if "encoder" in key else "all")
        assert (spec.init is None) == ("scratch" in key)
    assert plan.left_out == ()
    assert {run.run_id for run in plan_of().runs} < {run.run_id for run in plan.runs}


def test_names_and_grids_in_one_list(plan_of: Make) -> None:
    single = {"init": "denoise", "transfer": "encoder", "schedule": "frozen", "lr_scale": 0.1}
    more = {"init": "denoise", "lr_scale": [1, 0.1], "oversample_foreground": [0, 0.33]}
    plan = plan_of(inits=["scratch", single, more])
    assert keys_of(plan) == [
        "scratch",
        "denoise (encoder, frozen)",
        "denoise",
        "denoise (oversampled 0.33)",
        "denoise (lr × 0.1)",
        "denoise (lr × 0.1, oversampled 0.33)",
    ]
    found = specs_of(plan)["denoise (lr × 0.1, oversampled 0.33)"]
    assert (found.lr_scale, found.oversample_foreground) == (0.1, 0.33)
    assert [it for it in concerns(plan) if "nothing to act on" in it] == [
        "finetune.inits: denoise (encoder, frozen, lr × 0.1) is denoise (encoder, frozen): what it "
        "names besides has nothing to act on"
    ]


def test_what_all_arms_share_is_in_no_name(plan_of: Make) -> None:
    """So that two studies that differ in it have arms of the same names to compare."""
    shared = {"schedule": "warmup", "lr_scale": 0.5, "oversample_foreground": 0.25}
    plan = plan_of(**shared)
    assert keys_of(plan) == ["scratch", "denoise"]
    for key, spec in specs_of(plan).items():
        assert (spec.schedule, spec.oversample_foreground) == ("warmup", 0.25)
        assert spec.lr_scale == (1 if key == "scratch" else 0.5)
    assert keys_of(plan_of(schedule="frozen")) == ["scratch (frozen)", "denoise (frozen)"]


def test_baselines_are_trained_as_the_study_says(
    tiny_study: Callable[..., Study], tiny_document: dict[str, Any]
) -> None:
    grid = tiny_document["finetune"] | {"targets": ["binary"], "label_counts": [1]}
    baselines = ["supervised", "supervised long", "random features"]

    def schedules(**changes: Any) -> dict[str, str]:
        study = tiny_study(finetune=grid | changes, baselines=baselines)
        return {key: spec.schedule for key, spec in specs_of(make_plan(study)).items()}

    assert schedules(schedule="warmup", inits=["denoise"]) == {
        "denoise": "warmup",
        "scratch": "warmup",
        "scratch (long)": "warmup",
        "scratch (probe)": "probe",
    }
    assert schedules(schedule="frozen", inits=["denoise"]) == {
        "denoise (frozen)": "frozen",
        "scratch": "plain",
        "scratch (long)": "plain",
        "scratch (probe)": "probe",
    }


def test_the_reference_is_scratch_in_the_same_schedule(plan_of: Make) -> None:
    """Of a frozen encoder, and of a rate of what is transferred, it is plain scratch."""
    ways = {"schedule": ["plain", "sawtooth", "frozen", "probe"], "lr_scale": [1, 0.1]}
    found = one_study(plan_of(inits={"init": ["scratch", "denoise"], **ways})).references()
    assert {arm.key: reference.key for arm, reference in found.items()} == {
        "denoise": "scratch",
        "denoise (lr × 0.1)": "scratch",
        "denoise (sawtooth)": "scratch (sawtooth)",
        "denoise (sawtooth, lr × 0.1)": "scratch (sawtooth)",
        "denoise (frozen)": "scratch",
        "denoise (frozen, lr × 0.1)": "scratch",
    }
    alone = plan_of(inits=["scratch", {"init": "denoise", "schedule": ["plain", "warmup"]}])
    assert {it.key for it in one_study(alone).references().values()} == {"scratch"}
    risen = [{"init": "scratch", "schedule": "warmup"}, {"init": "denoise", "schedule": "frozen"}]
    found = one_study(plan_of(inits=risen)).references()
    assert [it.key for it in found.values()] == ["scratch (warmup)"]


def test_two_studies_of_other_schedules_are_compared(
    plan_of: Make, tiny_study: Callable[..., Study], tmp_path: Any, tiny_document: dict[str, Any]
) -> None:
    first = plan_of()
    finetune = tiny_document["finetune"] | {"targets": ["binary"], "label_counts": [1]}
    finetune |= {"schedule": "sawtooth"}
    other = tiny_study(finetune=finetune, baselines=[], name="v2", folder=str(tmp_path / "v2"))
    found = two_studies(first, make_plan(other)).references()
    assert {arm.key: it.key for arm, it in found.items()} == {
        "v2/scratch": "tiny/scratch",
        "v2/denoise": "tiny/denoise",
    }


def test_each_arm_has_trials_of_its_own_schedule(plan_of: Make) -> None:
    tune = {"lr": [0.01, 0.1], "on": {"labels": 1, "seed": 9}}
    plan = plan_of(inits=GRID, tune=tune)
    trials = [r for r in plan.runs if isinstance(r.spec, Finetune) and r.spec.is_trial]
    assert len(trials) == 2 * 6
    by_id = {run.run_id: run.spec for run in plan.runs}
    for spec in specs_of(plan).values():
        tried = [by_id[it] for it in spec.rate_from]
        assert len(tried) == 2
        for it in tried:
            assert isinstance(it, Finetune)
            assert (it.init, it.transfer, it.schedule) == (spec.init, spec.transfer, spec.schedule)


def test_what_cannot_be_is_refused_or_left_out_and_said(
    plan_of: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fewscan.experiments.schemes.denoise.Denoise.skips", False)
    with pytest.raises(StudyError, match=r"(?s)denoise cannot be.*without skip connections"):
        plan_of(inits=["scratch", {"init": "denoise", "transfer": "all"}])
    plan = plan_of(inits={"init": ["scratch", "denoise"], "transfer": ["all", "encoder"]})
    assert keys_of(plan) == ["scratch", "denoise (encoder)"]
    (said,) = [it for it in concerns(plan) if "skip connections" in it]
    assert said.startswith("finetune.inits: no denoise: ")
    probe = {"init": "denoise", "transfer": "encoder", "schedule": "probe"}
    with pytest.raises(StudyError, match=r"(?s)through the decoder, which is random.*levels"):
        plan_of(inits=["scratch", probe])
    plan = plan_of(transfer="encoder", probes={"levels": [0, 2]})
    assert keys_of(plan)[2:] == [
        "scratch (probe)",
        "scratch (probe 2)",
        "denoise (encoder, probe 2)",
    ]
    assert any("no denoise (encoder, probe): " in it for it in concerns(plan))


@pytest.mark.parametrize(
    ("finetune", "message"),
    [
        ({"inits": [{"init": "denoise", "schedul": "plain"}]}, r"inits.0.schedul.*mean 'schedule'"),
        ({"inits": {"init": "denoise", "schedule": "fast"}}, r"inits.0.schedule.*'plain'"),
        ({"inits": {"schedule": "plain"}}, "inits.0.init: is missing"),
        ({"inits": {"init": []}}, "init needs at least one value"),
        ({"inits": {"init": "denoise", "lr_scale": 0}}, r"inits.0.lr_scale.*greater than 0"),
        ({"inits": {"init": "denoise", "oversample_foreground": 2}}, r"less than or equal to 1"),
        ({"inits": [3]}, r"finetune.inits.0"),
        ({"inits": [{"init": "what"}]}, "unknown parent 'what'"),
        ({"lr_scale": -1}, "lr_scale: .*greater than 0"),
        ({"schedule": "fast"}, "finetune.schedule: .*'warmup'"),
    ],
)
def test_mistakes_are_named(plan_of: Make, finetune: dict[str, Any], message: str) -> None:
    with pytest.raises(StudyError, match=message):
        plan_of(**finetune)


def test_a_cosine_that_swings_does_not_go_with_a_curve_of_its_own(
    plan_of: Make, tiny_document: dict[str, Any]
) -> None:
    training = tiny_document["finetune"]["training"] | {"lr_half_period": 3}
    plan_of(training=training)
    grid = {"init": ["scratch", "denoise"], "schedule": ["plain", "warmup"]}
    with pytest.raises(StudyError, match="warmup follows a curve of its own"):
        plan_of(training=training, inits=grid)


def test_grids_are_written_as_they_are_read(
    tiny_study: Callable[..., Study], tiny_document: dict[str, Any]
) -> None:
    finetune = tiny_document["finetune"] | {"inits": GRID}
    study = tiny_study(finetune=finetune)
    (grid,) = study.finetune.inits
    assert isinstance(grid, Arms)
    assert parse_study(yaml.safe_load(dump_study(study)), "dumped") == study


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"iterations": {"epochs": 3, "at_leest": 9}}, "iterations.at_leest.*'at_least'"),
        ({"probes": {"level": [0]}}, "probes.level: .*'levels'"),
    ],
)
def test_a_key_that_is_not_there_is_never_overlooked(
    plan_of: Make, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(StudyError, match=message):
        plan_of(**changes)


def test_nor_one_of_a_scheme(tiny_study: Callable[..., Study]) -> None:
    training = {"iterations": 1, "validate_every": 1}
    for scheme, message in (
        ({"nois": {}}, "scheme.nois: .*'noise'"),
        ({"noise": {"resolutoin": 4}}, "scheme.noise.resolutoin: .*'resolution'"),
    ):
        wish = {"training": training, "scheme": {"kind": "denoise", **scheme}}
        with pytest.raises(StudyError, match=message):
            tiny_study(pretrain={"denoise": wish})


@pytest.mark.usefixtures("undrawn")
def test_a_grid_runs_from_pretraining_to_report(
    tiny_study: Callable[..., Study], tiny_document: dict[str, Any]
) -> None:
    inits = [
        "scratch",
        {"init": "denoise", "transfer": ["all", "encoder"], "schedule": ["sawtooth", "frozen"]},
        {"init": "denoise", "lr_scale": 0.1, "oversample_foreground": 0.5},
    ]
    finetune = tiny_document["finetune"] | {"targets": ["binary"], "label_counts": [1]}
    evaluation = {"nsd_tolerance_mm": None}
    study = tiny_study(finetune=finetune | {"inits": inits}, baselines=[], evaluation=evaluation)
    plan = make_plan(study)
    assert len(arms_of(plan)) == 6
    run_in_process(plan, plan.runs)
    write_report(one_study(plan))
    with (plan.folder.report / "ranking.csv").open(newline="") as file:
        ranked = [row["arm"] for row in csv.DictReader(file)]
    assert sorted(ranked) == sorted(keys_of(plan))
