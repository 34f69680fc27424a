"""What a store cannot give a study: refused before anything runs, or said."""

from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from fake_scans import AFFINE, write_subjects
from tiny import run_in_process, tiny_values

from fewscan.harness.concerns import concerns
from fewscan.harness.listing import render_plan
from fewscan.harness.plan import Plan
from fewscan.harness.planner import make_plan
from fewscan.harness.report.studies import one_study
from fewscan.harness.report.write import write_report
from fewscan.harness.study_file import parse_study
from fewscan.storage.errors import StudyError
from fewscan.storage.nifti import write_nifti
from fewscan.storage.prepare import prepare
from fewscan.storage.slices import SliceStore
from fewscan.storage.splits import label_subset, published_split

IDS = [f"BraTS2021_{number:05d}" for number in range(24)]
SPLIT = published_split(IDS)
EVERY_SLICE = -1


def store_with(folder: Path, changed: dict[str, int | None]) -> Path:
    """A store in which these scans have lost a label value (None: all), or are ill all over."""
    write_subjects(folder / "scans", len(IDS))
    for subject, value in changed.items():
        file = folder / "scans" / subject / f"{subject}_seg.nii.gz"
        labels = np.asarray(nibabel.load(file).dataobj).copy()  # type: ignore[attr-defined]
        if value == EVERY_SLICE:
            labels[8:16, 8:12] = 1
        else:
            labels[labels == value if value else labels > 0] = 0
        write_nifti(file, labels.astype(np.uint8), AFFINE)
    prepare(folder / "scans", folder / "store", size=16, workers=1, validation=1)
    return folder / "store"


def plan_on(store: Path, folder: Path, **changes: Any) -> Plan:
    values = tiny_values(store, folder / "study")
    values["finetune"] |= changes.pop("finetune", {})
    return make_plan(parse_study(values | changes, "tiny"))


@pytest.mark.parametrize("part", ["validation", "test"])
def test_a_split_without_a_lesion_is_refused(part: str, tmp_path: Path) -> None:
    store = store_with(tmp_path, dict.fromkeys(getattr(SPLIT, part)))
    with pytest.raises(StudyError, match=f"no lesion in the {part} split: BraTS2021") as caught:
        plan_on(store, tmp_path)
    assert "--split" in str(caught.value)


@pytest.mark.parametrize(
    ("ids", "what"), [(SPLIT.train, "learn from"), (SPLIT.validation, "be validated on")]
)
def test_a_pretraining_without_healthy_slices_is_refused(
    ids: tuple[str, ...], what: str, tmp_path: Path
) -> None:
    store = store_with(tmp_path, dict.fromkeys(ids, EVERY_SLICE))
    with pytest.raises(StudyError, match=f"no healthy slice to {what}") as caught:
        plan_on(store, tmp_path)
    assert "slices to all" in str(caught.value)
    assert plan_on(store, tmp_path, pretrain={}, finetune={"inits": ["scratch"]}, baselines=[])


def test_a_size_that_the_network_cannot_halve_is_refused(tmp_path: Path) -> None:
    write_subjects(tmp_path / "scans", len(IDS))
    prepare(tmp_path / "scans", tmp_path / "store", size=20, workers=1, validation=1)
    with pytest.raises(StudyError, match="20 × 20 pixels cannot be halved 3 times") as caught:
        plan_on(tmp_path / "store", tmp_path, network={"width": 4, "depth": 4})
    assert "slices of 16 or 24 pixels" in str(caught.value)
    assert "network.depth to 3" in str(caught.value)
    assert plan_on(tmp_path / "store", tmp_path, network={"width": 4, "depth": 3})


def test_labelled_scans_that_teach_nothing_are_named(tmp_path: Path) -> None:
    (first,) = label_subset(SPLIT.train, 1, 0)
    store = store_with(tmp_path, {first: None})
    found = [it for it in concerns(plan_on(store, tmp_path)) if it.startswith("labelled")]
    assert found == [f"labelled scans show no lesion: seed 0 at 1 (seed 0: {first})"]
    (other,) = label_subset(SPLIT.train, 1, 1)
    few = plan_on(store, tmp_path, finetune={"seeds": [0, 1], "label_counts": [1, 2]})
    again = [it for it in concerns(few) if it.startswith("labelled")]
    assert ("seed 1" in again[0]) == (other == first)
    text = "".join(str(it) for it in render_plan(few).renderables)  # type: ignore[attr-defined]
    assert found[0] in text


def test_how_many_masks_told_what_is_healthy_is_said(tmp_path: Path) -> None:
    store = store_with(tmp_path, {})
    _, found = concerns(plan_on(store, tmp_path))
    counts = f"{len(SPLIT.train)} training and {len(SPLIT.validation)} validation scans"
    assert counts in found
    values = tiny_values(store, tmp_path)
    values["pretrain"]["denoise"]["slices"] = "all"
    values["finetune"]["selection"] = "last"
    assert not [*concerns(make_plan(parse_study(values, "tiny")))]


def test_labels_beyond_the_label_count_that_choose_are_said(tmp_path: Path) -> None:
    store = store_with(tmp_path, {})
    values = tiny_values(store, tmp_path) | {"baselines": [], "pretrain": {}}

    def said(**changes: Any) -> list[str]:
        grid = values["finetune"] | {"inits": ["scratch"]} | changes
        return [*concerns(make_plan(parse_study(values | {"finetune": grid}, "tiny")))]

    validation, tune = len(SPLIT.validation), {"lr": [0.1], "on": {"labels": 4}}
    (found,) = said()
    assert f"a network of 1 labelled scan depends on those of {1 + validation}" in found
    assert said(selection="last") == said(selection="within") == []
    (found,) = said(selection="last", tune=tune)
    assert found == f"the labels of {validation} validation scans choose the learning rates"
    assert said(selection="within", tune=tune) == []
    (found,) = said(selection="within", tune={"lr": [0.1], "on": {"labels": 3}})
    assert "of 3 labelled scans none can be held out" in found


def test_a_class_that_no_test_scan_has_is_not_defined_and_no_error(tmp_path: Path) -> None:
    store = store_with(tmp_path, dict.fromkeys(SPLIT.test, 4))
    plan = plan_on(store, tmp_path, finetune={"targets": ["multiclass"], "label_counts": [1]})
    assert any("no scan of the test split has enhancing" in it for it in concerns(plan))
    run_in_process(plan, plan.runs)
    for run in plan.grid:
        test = plan.folder_of(run).read_result()["test"]
        assert test["class_dice/enhancing"] in (None, 0.0)
        assert test["class_dice_mean"] is not None
    write_report(one_study(plan))
    page = (plan.folder.report / "report.html").read_text()
    assert "no scan of the test split has enhancing" in page
    assert SliceStore.open(store).split == SPLIT
