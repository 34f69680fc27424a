"""Organs, ignored voxels and regions: from a data set to the numbers of a study."""

import csv
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_nnunet import AFFINE, write_nnunet
from tiny import run_in_process, tiny_values

from fewscan.harness.plan import Plan
from fewscan.harness.planner import make_plan
from fewscan.harness.report.studies import one_study
from fewscan.harness.report.write import write_report
from fewscan.harness.study_file import parse_study
from fewscan.storage.catalog import Selection
from fewscan.storage.labels import IGNORED
from fewscan.storage.nifti import read_nifti, write_nifti
from fewscan.storage.prepare import prepare
from fewscan.storage.slices import SliceStore

CASES = 20


def finished(folder: Path, lesion: tuple[str, ...] = ()) -> Plan:
    """A study of one label count on such a data set, its runs finished."""
    prepare(folder / "raw", folder / "s", 16, 1, selection=Selection(lesion=lesion), validation=1)
    values = tiny_values(folder / "s", folder / "study")
    values["finetune"] |= {"label_counts": [4], "inits": ["scratch"]}
    values["baselines"] = ["unsupervised"]
    plan = make_plan(parse_study(values, "tiny"))
    run_in_process(plan, plan.runs)
    return plan


@pytest.fixture(scope="module")
def with_organ(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    """Value 1 is an organ, 2 a tumour, and what lies in one corner of a body nobody has drawn."""
    folder = tmp_path_factory.mktemp("organ")
    labels = {"background": 0, "organ": 1, "tumour": 2, "ignore": 3}
    for case in write_nnunet(folder / "raw", CASES, labels=labels):
        path = folder / "raw" / "labelsTr" / f"{case}.nii.gz"
        voxels = read_nifti(path).voxels_XYZ.copy()
        voxels[:10, :, 12:14] = 3
        write_nifti(path, voxels, AFFINE)
    return finished(folder, lesion=("tumour",))


def test_slices_with_an_organ_are_healthy_and_those_with_a_tumour_are_not(with_organ: Plan) -> None:
    store = with_organ.store
    healthy = store.read(store.split.train, "healthy").labels_NHW
    assert (healthy == 1).any()
    assert not (healthy == 2).any()
    assert (store.read(store.split.train).labels_NHW == 2).any()


def test_ignored_pixels_are_in_no_score(with_organ: Plan) -> None:
    store = with_organ.store
    for run in with_organ.scores:
        rows = {row["subject"]: row for row in cases_of(with_organ, run)}
        assert rows.keys() == set(store.split.test)
        for subject, row in rows.items():
            labels = store.read_subject(subject).labels_NHW
            assert (labels == IGNORED).any()
            assert int(row["pixels"]) == (labels != IGNORED).sum()
            assert int(row["lesion_pixels"]) == (labels == 2).sum()


def test_what_is_found_where_the_truth_is_not_known_counts_for_nothing(with_organ: Plan) -> None:
    (run,) = [run for run in with_organ.grid if run.place.target == "multiclass"]
    for row in cases_of(with_organ, run):
        labels = with_organ.store.read_subject(row["subject"]).labels_NHW
        voxel_mm3 = np.prod(with_organ.store.spacing_mm_ZHW(row["subject"]))
        found = float(row["volume_mm3_organ"]) + float(row["volume_mm3_tumour"])
        assert found <= (labels != IGNORED).sum() * voxel_mm3 * (1 + 1e-9)
        true = float(row["true_volume_mm3_organ"]) / voxel_mm3
        assert true == pytest.approx((labels == 1).sum())


def test_regions_are_scored_and_reported_beside_the_classes(tmp_path: Path) -> None:
    labels = {"background": 0, "whole": [1, 2], "core": [2]}
    write_nnunet(tmp_path / "raw", CASES, labels=labels, regions_class_order=[1, 2])
    plan = finished(tmp_path)
    store = plan.store
    assert store.classes == ("whole_rest", "core")
    assert store.regions == (("whole", ("whole_rest", "core")),)
    (run,) = [run for run in plan.grid if run.place.target == "multiclass"]
    test = plan.folder_of(run).read_result()["test"]
    keys = {key for key in test if key.startswith("class_dice/")}
    assert keys == {"class_dice/whole_rest", "class_dice/core", "class_dice/whole"}
    classes = [test[f"class_dice/{name}"] for name in store.classes]
    assert test["class_dice_mean"] == pytest.approx(
        np.mean([it for it in classes if it is not None])
    )
    for row in cases_of(plan, run):
        truth = store.read_subject(row["subject"]).labels_NHW
        voxel_mm3 = np.prod(store.spacing_mm_ZHW(row["subject"]))
        assert float(row["true_volume_mm3_whole"]) / voxel_mm3 == pytest.approx((truth > 0).sum())
    write_report(one_study(plan))
    page = (plan.folder.report / "report.html").read_text()
    assert "Dice, whole" in page


def test_other_regions_repeat_scores_and_no_training(tmp_path: Path) -> None:
    labels = {"background": 0, "whole": [1, 2], "core": [2]}
    write_nnunet(tmp_path / "raw", CASES, labels=labels, regions_class_order=[1, 2])
    prepare(tmp_path / "raw", tmp_path / "s", 16, 1, validation=1)
    study = parse_study(tiny_values(tmp_path / "s", tmp_path / "study"), "tiny")
    before, store = make_plan(study), SliceStore.open(tmp_path / "s")
    parameters = replace(store.manifest.parameters, regions=())
    replace(store.manifest, parameters=parameters).write(store.folder.manifest)
    after = {run.run_id for run in make_plan(study).runs}
    changed = [run for run in before.runs if run.run_id not in after]
    assert changed
    assert {(run.kind, run.place.target) for run in changed} == {("score", "multiclass")}


def cases_of(plan: Plan, run: Any) -> list[dict[str, str]]:
    with plan.folder_of(run).cases.open() as file:
        return list(csv.DictReader(file))
