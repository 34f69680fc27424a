"""Ensembles within a label budget: members on the same labelled scans, folds of them, mirroring."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from fake_runs import finish_all
from hypothesis import given
from hypothesis import strategies as st
from tiny import run_in_process, tiny_values

from fewscan.experiments.checkpoint import load_model
from fewscan.experiments.cost import run_flops
from fewscan.experiments.labelled import labelled_scans
from fewscan.experiments.metrics import PixelScores
from fewscan.experiments.predictor import above, lesion_score, load_predictor
from fewscan.experiments.results import Result
from fewscan.experiments.spec import Finetune, Postprocess, Score
from fewscan.harness.arms import Arm
from fewscan.harness.cli import main
from fewscan.harness.concerns import concerns
from fewscan.harness.label_budget import label_budgets
from fewscan.harness.named_runs import named_runs
from fewscan.harness.plan import Plan, PlannedRun
from fewscan.harness.planner import make_plan
from fewscan.harness.predict import predict
from fewscan.harness.report.power import Deviations, planned_comparisons
from fewscan.harness.report.results import read_results
from fewscan.harness.report.studies import one_study
from fewscan.harness.report.write import write_report
from fewscan.harness.status import read_status
from fewscan.harness.study import Study
from fewscan.harness.study_file import parse_study
from fewscan.harness.tracking.mlflow_run import FROM_OUTSIDE, view_of
from fewscan.harness.trained import load_together, load_trained
from fewscan.storage.errors import RunError, StudyError
from fewscan.storage.splits import folds

Make = Callable[..., Plan]
INITS = ("scratch", "denoise")


@pytest.fixture
def plan_of(tiny_study: Callable[..., Study], tiny_document: dict[str, Any]) -> Make:
    """The plan of the tiny study with these settings of its fine-tuning."""

    def make(evaluation: Any = None, score: Any = None, **changes: Any) -> Plan:
        finetune = tiny_document["finetune"] | {"targets": ["binary"], "label_counts": [1, 6]}
        more = {"score": score} if score else {}
        return make_plan(tiny_study(finetune=finetune | changes, **more))

    return make


def new_in(after: Plan, before: Plan) -> list[PlannedRun]:
    known = {run.run_id for run in before.runs}
    return [run for run in after.runs if run.run_id not in known]


def trained_for(plan: Plan, score: PlannedRun) -> list[Finetune]:
    by_id = {run.run_id: run.spec for run in plan.runs}
    found = [by_id[run_id] for run_id in score.parents]
    assert all(isinstance(spec, Finetune) for spec in found)
    return found  # type: ignore[return-value]


def score_of(plan: Plan, arm: str, labels: int, seed: int = 0) -> PlannedRun:
    (found,) = [
        run
        for run in plan.grid
        if (run.place.arm.key, run.place.labels, run.place.seed) == (arm, labels, seed)
    ]
    return found


def test_a_finished_study_that_asks_for_members_trains_the_others_alone(plan_of: Make) -> None:
    before, after = plan_of(seeds=[0, 1]), plan_of(seeds=[0, 1], members=3)
    finish_all(before)
    status = read_status(after)
    missing = status.in_state("missing")
    assert missing == new_in(after, before)
    trained = [run.spec for run in missing if isinstance(run.spec, Finetune)]
    scored = [run for run in missing if run.kind == "score"]
    assert len(missing) == len(trained) + len(scored)
    assert {spec.member for spec in trained} == {1, 2}
    cells = 2 * 2 * 2  # arms, label counts, seeds
    assert (len(trained), len(scored)) == (2 * cells, cells)
    assert all(run.place.arm.members == 3 for run in scored)
    assert status.count()["finished"] == len(before.runs)
    assert plan_of(seeds=[0, 1], members=1).runs == before.runs


def test_mirroring_repeats_scores_and_no_training(plan_of: Make) -> None:
    before, after = plan_of(), plan_of(score={"mirror": True})
    new = new_in(after, before)
    assert new == list(after.scores), "networks are asked four times, pre-trained ones too"
    assert all(isinstance(run.spec, Score) and run.spec.mirror for run in new)
    old = before.scores[0]
    assert new[0].flops == 4 * old.flops
    assert isinstance(old.spec, Score)
    assert run_flops(old.spec, before.study.network, before.store) == old.flops


def test_what_needs_no_network_is_not_mirrored(
    tiny_study: Callable[..., Study], tiny_document: dict[str, Any]
) -> None:
    bare = {"pretrain": {}, "finetune": tiny_document["finetune"] | {"inits": ["scratch"]}}
    plans = [
        make_plan(tiny_study(baselines=["channel flair"], score={"mirror": mirror}, **bare))
        for mirror in (False, True)
    ]
    images = [run for run in plans[1].scores if not run.parents]
    assert images
    assert {run.run_id for run in images} <= {run.run_id for run in plans[0].runs}


def test_members_differ_in_their_draws_alone(plan_of: Make) -> None:
    """And member m of each arm is drawn as that of any other."""
    plan = plan_of(members=3)
    for arm in ("scratch (3 members)", "denoise (3 members)"):
        networks = trained_for(plan, score_of(plan, arm, 6))
        assert [replace(it, member=0) for it in networks] == [networks[0]] * 3
        assert [it.stream for it in networks] == [
            ("finetune", 0),
            ("finetune", 0, "member", 1),
            ("finetune", 0, "member", 2),
        ]
        assert len({labelled_scans(it, plan.store) for it in networks}) == 1
    scratch, denoise = (
        trained_for(plan, score_of(plan, f"{init} (3 members)", 6)) for init in INITS
    )
    assert [replace(it, init=None) for it in denoise] == scratch
    assert len({it.init for it in denoise}) == 1, "all start from the pre-training of the cell"


@given(
    st.lists(st.integers(0, 9), min_size=2, max_size=30).filter(lambda it: len(set(it)) > 1),
    st.data(),
)
def test_folds_are_whole_patients_and_as_equal_as_they_allow(
    owners: list[int], data: st.DataObject
) -> None:
    labelled = [f"s{n}" for n in range(len(owners))]
    patient_of = {id_: str(owner) for id_, owner in zip(labelled, owners, strict=True)}
    count = data.draw(st.integers(2, len(set(owners))))
    parts = folds(labelled, count, patient_of)
    assert sorted(id_ for part in parts for id_ in part) == sorted(labelled)
    assert len(parts) == count
    assert all(parts)
    of_patients = [{patient_of[id_] for id_ in part} for part in parts]
    assert sum(map(len, of_patients)) == len(set(owners)), "no patient is in two"
    most = max(owners.count(owner) for owner in owners)
    assert max(map(len, parts)) - min(map(len, parts)) <= most
    with pytest.raises(StudyError, match="folds of"):
        folds(labelled, len(set(owners)) + 1, patient_of)


def test_each_fold_is_held_out_by_one_network(plan_of: Make) -> None:
    plan = plan_of(folds=3)
    networks = trained_for(plan, score_of(plan, "scratch (3 folds)", 6))
    assert [it.member for it in networks] == [0, 1, 2]
    labelled = plan.store.labelled_subset(6, 0)
    each = [labelled_scans(it, plan.store) for it in networks]
    assert sorted(id_ for _, held_out in each for id_ in held_out) == sorted(labelled)
    for learnt, held_out in each:
        assert (len(learnt), len(held_out)) == (4, 2)
        assert {*learnt} | {*held_out} == {*labelled}


def test_folds_need_a_patient_each(plan_of: Make) -> None:
    plan = plan_of(folds=3)
    counts = {run.place.labels for run in plan.grid if run.place.arm.folds}
    assert counts == {6}
    (said,) = [it for it in concerns(plan) if "finetune.folds" in it]
    assert said.startswith("finetune.folds: none of 1 labelled scans")
    assert list(concerns(plan_of(folds=3, label_counts=[6]))) != []
    with pytest.raises(StudyError, match=r"(?s)7 folds, and no label count.*there are 1, 6"):
        plan_of(folds=7)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"members": "seeds"}, "labels of all of them.*not offered"),
        ({"members": 0}, "finetune.members"),
        ({"members": 10**9}, "finetune.members"),
        ({"folds": 1}, "expected 0, none, or at least 2"),
        ({"folds": 5, "selection": "last"}, "write selection: within, or members: 5"),
    ],
)
def test_what_is_no_ensemble_is_explained(
    tiny_document: dict[str, Any], changes: dict[str, Any], message: str
) -> None:
    finetune = tiny_document["finetune"] | changes
    with pytest.raises(StudyError, match=rf"(?s){message}"):
        parse_study(tiny_document | {"finetune": finetune}, "tiny")


@pytest.mark.parametrize("changes", [{"folds": 2}, {"folds": 2, "member": 2}, {"folds": 1}])
def test_a_spec_of_impossible_folds_is_refused(plan_of: Make, changes: dict[str, int]) -> None:
    """Such as one that the validation split chooses."""
    plan = plan_of()
    (spec,) = trained_for(plan, score_of(plan, "scratch", 6))
    selection = {"selection": "within"} if "member" in changes else {}
    with pytest.raises(ValueError, match="expected at least 2 folds"):
        replace(spec, **selection, **changes)


def test_the_rate_of_all_members_is_that_of_the_arm(plan_of: Make) -> None:
    tune = {"lr": [0.01, 0.02], "on": {"labels": 4, "seed": 100}}
    before, plan = plan_of(tune=tune), plan_of(tune=tune, members=2, folds=2)
    assert not [run for run in new_in(plan, before) if run.place.arm.kind == "tuning"]
    for arm in ("scratch", "scratch (2 members)", "scratch (2 folds)"):
        networks = trained_for(plan, score_of(plan, arm, 6))
        assert len({it.rate_from for it in networks}) == 1
        assert len(networks[0].rate_from) == 2


def test_an_ensemble_is_compared_with_as_many_from_scratch(plan_of: Make) -> None:
    plan = plan_of(members=2, folds=3)
    scratch, denoise = Arm("fine-tuning"), Arm("fine-tuning", "denoise")
    assert one_study(plan).references() == {
        denoise: scratch,
        replace(scratch, members=2): scratch,
        replace(scratch, folds=3): scratch,
        replace(denoise, members=2): replace(scratch, members=2),
        replace(denoise, folds=3): replace(scratch, folds=3),
    }
    frozen = plan_of(members=2, inits={"init": ["scratch", "denoise"], "schedule": "frozen"})
    own = Arm("fine-tuning", schedule="frozen")
    assert one_study(frozen).references()[replace(own, members=2)] == own
    ranked = one_study(plan).ranked("binary")
    assert [arm.key for arm in ranked] == [
        "scratch",
        "scratch (2 members)",
        "denoise",
        "denoise (2 members)",
    ], "folds lack a label count"
    assert replace(denoise, members=2).title == "pre-trained: denoise (2 members)"
    assert replace(scratch, folds=3).title == "from scratch (3 folds)"


def test_the_power_of_an_ensemble_from_scratch_is_about_no_pretraining(plan_of: Make) -> None:
    own, denoise, both = (it for it in planned_comparisons(plan_of(members=2, seeds=[0, 1, 2])))
    assert (own.arm.key, own.units, own.one_pretraining) == (
        "scratch (2 members)",
        (1, 1, 1),
        False,
    )
    lucky, plain = Deviations(0.02, 0.05, 0.1, 0.5), Deviations(0.02, 0.05, 0.1, 0.0)
    assert own.parts(lucky) == own.parts(plain)
    assert denoise.one_pretraining
    assert both.one_pretraining


def test_probes_and_baselines_have_no_ensemble(
    tiny_study: Callable[..., Study], tiny_document: dict[str, Any]
) -> None:
    grid = tiny_document["finetune"] | {"label_counts": [1], "members": 2, "probes": {}}
    plan = make_plan(tiny_study(finetune=grid, baselines=["supervised", "supervised long"]))
    ensembles = {(r.place.arm.key, r.place.labels) for r in plan.grid if r.place.arm.is_ensemble}
    assert ensembles == {("scratch (2 members)", 1), ("denoise (2 members)", 1)}


@pytest.mark.parametrize("selection", ["validation", "within"])
def test_an_ensemble_costs_no_label_more(plan_of: Make, selection: str) -> None:
    plan = plan_of(members=3, folds=3, selection=selection)
    budgets = label_budgets(plan)
    single, members, folded = (
        budgets[score_of(plan, f"scratch{how}", 6).run_id]
        for how in ("", " (3 members)", " (3 folds)")
    )
    assert single == members
    assert folded.training == folded.choice == single.training
    assert len(folded.training) == folded.in_all == 6
    validation = {(plan.store.fingerprint, id_) for id_ in plan.store.split.validation}
    assert (single.choice >= validation) == (selection == "validation")


@pytest.fixture(scope="module")
def finished(store_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Plan:
    """A study of one cell, two members and three folds, both scored mirrored and not."""
    document = tiny_values(store_path, tmp_path_factory.mktemp("ensembles") / "study")
    document |= {"pretrain": {}, "baselines": [], "evaluation": {"nsd_tolerance_mm": None}}
    document["finetune"] |= {
        "inits": ["scratch"],
        "label_counts": [6],
        "targets": ["binary"],
        "members": 2,
        "folds": 3,
    }
    plan = make_plan(parse_study(document, "tiny"))
    run_in_process(plan, plan.runs)
    return plan


def scan_of(scans: Path) -> Path:
    return scans / "BraTS2021_00003"


def test_the_threshold_of_folds_is_from_what_each_says_of_its_own_part(finished: Plan) -> None:
    score = score_of(finished, "scratch (3 folds)", 6)
    pooled = PixelScores()
    for run_id in score.parents:
        folder = finished.folder.run(run_id)
        result, predictor = Result.read(folder), load_predictor([folder])
        assert len(result.held_out) == 2
        assert result.best_step is not None
        for id_ in result.held_out:
            slices = finished.store.read_subject(id_)
            (maps,) = predictor.in_batches(torch.from_numpy(slices.images_NCHW))
            pooled.update(lesion_score(maps), torch.from_numpy(slices.labels_NHW) > 0)
    result = Result.read(finished.folder_of(score))
    dice, threshold = pooled.best_dice()
    assert result.validation["pooled_best_dice"] == dice
    assert result.threshold == threshold
    assert sorted(result.held_out) == sorted(finished.store.labelled_subset(6, 0))
    assert sorted(result.labelled) == sorted(result.held_out)


def test_folds_are_post_processed_as_each_network_says_of_its_own_part(finished: Plan) -> None:
    """Not as all networks say together: two of three have learnt from the scan."""
    score = score_of(finished, "scratch (3 folds)", 6)
    threshold = Result.read(finished.folder_of(score)).threshold
    assert threshold is not None
    dices = []
    for run_id in score.parents:
        folder = finished.folder.run(run_id)
        predictor = load_predictor([folder])
        for id_ in Result.read(folder).held_out:
            slices = finished.store.read_subject(id_)
            (maps,) = predictor.in_batches(torch.from_numpy(slices.images_NCHW))
            found, truth = above(lesion_score(maps), threshold), slices.labels_NHW > 0
            if truth.any():
                hits = (found.numpy() & truth).sum()
                dices.append(2 * hits / (found.sum().item() + truth.sum()))
    study = finished.study
    changed = replace(study.evaluation, postprocess=Postprocess(largest_component=True))
    plan = make_plan(replace(study, evaluation=changed))
    again = score_of(plan, "scratch (3 folds)", 6)
    run_in_process(plan, [again])
    fitted = Result.read(plan.folder_of(again)).postprocess
    assert fitted["scans"] == 6
    assert fitted["before"]["lesion"] == pytest.approx(np.mean(dices))


def test_members_are_other_networks_of_the_same_scans(finished: Plan) -> None:
    score = score_of(finished, "scratch (2 members)", 6)
    folders = [finished.folder.run(run_id) for run_id in score.parents]
    weights = [load_model(folder.model).state_dict()["last.weight"] for folder in folders]
    assert not torch.equal(*weights)
    results = [Result.read(folder) for folder in (*folders, finished.folder_of(score))]
    assert len({result.labelled for result in results}) == 1
    assert results[2].threshold is not None


def test_the_report_shows_single_networks_and_ensembles(finished: Plan, undrawn: None) -> None:
    studies = one_study(finished)
    arms = {it.place.arm.key for it in read_results(studies)}
    assert arms == {"scratch", "scratch (2 members)", "scratch (3 folds)"}
    write_report(studies)
    page = (studies.report_folder / "report.html").read_text()
    for title in ("from scratch (2 members)", "from scratch (3 folds)"):
        assert title in page
    assert "6 learnt from, 6 to choose: 6 in all" in page


def test_mlflow_tells_the_members_apart(finished: Plan) -> None:
    views = [view_of(finished, run, "finished", FROM_OUTSIDE["finished"]) for run in finished.runs]
    assert len({view.name for view in views}) == len(views)
    by_name = {view.name: view for view in views}
    member = by_name["6 scans · seed 0 · scratch (2 members) · binary · training · member 1"]
    assert (member.params["member"], member.params["networks"]) == ("1", "2")
    together = by_name["6 scans · seed 0 · scratch (2 members) · binary"]
    assert together.model is None, "several networks are no one model"
    assert "networks" not in by_name["6 scans · seed 0 · scratch · binary"].params


def study_file(plan: Plan, path: Path) -> Path:
    from fewscan.harness.study_file import dump_study

    path.write_text(dump_study(plan.study))
    return path


def test_several_runs_predict_together(finished: Plan, scans: Path) -> None:
    """As the score of just these networks, with its threshold; a run within a list may be one."""
    score = score_of(finished, "scratch (2 members)", 6)
    paths = [str(finished.folder.run(run_id).path) for run_id in score.parents]
    scored = predict(finished.folder_of(score).path, scan_of(scans))
    for names in (",".join(paths), ", ".join(reversed(paths))):
        together = predict(names, scan_of(scans))
        np.testing.assert_allclose(together.maps_XYZK, scored.maps_XYZK, atol=1e-6)
        assert np.array_equal(together.labels_XYZ, scored.labels_XYZ)
    each = [predict(path, scan_of(scans), threshold=0.5).maps_XYZK for path in paths]
    np.testing.assert_allclose(scored.maps_XYZK, (each[0] + each[1]) / 2, atol=1e-6)


def test_runs_without_a_score_together_need_a_threshold(finished: Plan, scans: Path) -> None:
    one, two = (score_of(finished, f"scratch ({how})", 6) for how in ("2 members", "3 folds"))
    both = [finished.folder_of(run).path for run in (one, two)]
    with pytest.raises(RunError, match="have not been scored together"):
        predict(both, scan_of(scans))
    assert len(load_together(both).predictor.networks) == 5
    assert predict(both, scan_of(scans), threshold=0.5).labels_XYZ is not None
    single = finished.folder_of(score_of(finished, "scratch", 6)).path
    with pytest.raises(RunError, match="comes twice"):
        load_together([both[0], single])


def test_other_slices_are_not_averaged(finished: Plan, tmp_path: Path) -> None:
    one, two = (
        finished.folder.run(id_) for id_ in score_of(finished, "scratch (3 folds)", 6).parents[:2]
    )
    copy = tmp_path / two.run_id
    shutil.copytree(two.path, copy)
    text = (copy / "spec.json").read_text()
    (copy / "spec.json").write_text(text.replace('"slice_size": 16', '"slice_size": 32'))
    with pytest.raises(RunError, match=r"(?s)different slices cannot be averaged.*slice_size=32"):
        load_together([one.path, copy])


def test_a_run_predicts_as_it_was_scored(finished: Plan, tmp_path: Path, scans: Path) -> None:
    mirrored = make_plan(replace(finished.study, score=replace(finished.study.score, mirror=True)))
    run = score_of(mirrored, "scratch (2 members)", 6)
    run_in_process(mirrored, [run])
    path = mirrored.folder_of(run).path
    assert load_trained(path).predictor.mirror
    found = predict(path, scan_of(scans))
    plain = finished.folder_of(score_of(finished, "scratch (2 members)", 6)).path
    asked = predict(plain, scan_of(scans), mirror=True)
    assert np.array_equal(found.maps_XYZK, asked.maps_XYZK)
    assert not np.array_equal(found.maps_XYZK, predict(plain, scan_of(scans)).maps_XYZK)
    score, before = (Result.read(finished.folder.run(it.name)) for it in (path, plain))
    assert score.validation["pooled_ap"] != before.validation["pooled_ap"]


def test_an_arm_of_a_study_by_its_name(finished: Plan, tmp_path: Path) -> None:
    study = study_file(finished, tmp_path / "mine.yaml")
    for arm in ("scratch", "scratch (2 members)", "scratch (3 folds)"):
        run = score_of(finished, arm, 6)
        found = named_runs(f"{study}:{arm}@6")
        assert found.runs == (str(finished.folder_of(run).path),)
        assert run.run_id in found.said[0]
        assert run.name in found.said[0]
    both = named_runs(f"{study}:scratch (2 members)@6,{study}:scratch (3 folds)@6")
    assert len(both.runs) == len(both.said) == 2
    assert named_runs("models:/m-1,runs/abc").runs == ("models:/m-1", "runs/abc")
    assert named_runs(str(tmp_path)).runs == (str(tmp_path),)


def test_what_a_study_does_not_have_is_listed(finished: Plan, tmp_path: Path) -> None:
    study = study_file(finished, tmp_path / "mine.yaml")
    for name, how, found, there in (
        ("dae@6", {}, "no arm 'dae'", r"scratch, scratch \(2 members\), scratch \(3 folds\)"),
        ("scratch@4", {}, "no run of binary with 4 labelled scans", "one of: scratch@6"),
        ("scratch", {}, "with no labelled scans", "one of: scratch@6"),
        ("scratch@6", {"seed": 7}, "no seed 7", "one of: 0"),
        ("scratch@6", {"target": "multiclass"}, "no target multiclass", "one of: binary"),
    ):
        with pytest.raises(RunError, match=rf"(?s){found}.*{there}"):
            named_runs(f"{study}:{name}", **how)
    with pytest.raises(RunError, match=r"(?s)is missing.*scratch@6 --seed 0"):
        named_runs(f"{study}:scratch@6", seed=1, overrides=("finetune.seeds=[0,1]",))
    with pytest.raises(RunError, match="a run without a name"):
        named_runs("runs/abc,")


def test_the_command_takes_an_arm(finished: Plan, tmp_path: Path, scans: Path) -> None:
    study = study_file(finished, tmp_path / "mine.yaml")
    out = tmp_path / "lesion.nii.gz"
    name = f"{study}:scratch (2 members)@6"
    done = CliRunner().invoke(main, ["predict", name, str(scan_of(scans)), str(out)])
    assert done.exit_code == 0, done.output
    assert "seed 0, 2 networks" in done.output
    assert out.exists()
