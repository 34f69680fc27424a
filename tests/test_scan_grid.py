"""Dice at the scan's own resolution: which labels, which slices, and what a store keeps for it."""

import csv
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from fake_nnunet import write_nnunet
from tiny import AFFINE, run_in_process, tiny_values, write_tiny_scan
from torch import Tensor, nn

from fewscan.experiments import score as score_module
from fewscan.experiments.devices import Devices
from fewscan.experiments.predictor import Predictor
from fewscan.experiments.results import Result, RunRecord
from fewscan.experiments.score import score
from fewscan.experiments.spec import Evaluation, Score
from fewscan.harness.concerns import concerns
from fewscan.harness.plan import Plan
from fewscan.harness.planner import make_plan
from fewscan.harness.report.studies import one_study
from fewscan.harness.report.write import write_report
from fewscan.harness.study_file import parse_study
from fewscan.storage.check import check
from fewscan.storage.errors import RunError, StoreError
from fewscan.storage.find import find_scans
from fewscan.storage.manifest import Manifest, StoreFolder
from fewscan.storage.nifti import read_nifti, write_nifti
from fewscan.storage.prepare import prepare
from fewscan.storage.runs import RunFolder
from fewscan.storage.scans import read_scan
from fewscan.storage.slice_format import SliceFormat
from fewscan.storage.slices import SliceStore

IDS = [f"BraTS2021_{index:05d}" for index in range(3)]
IGNORED_IN_FILE = 9


def split_file(folder: Path, ids: list[str]) -> Path:
    path = folder / "split.json"
    path.write_text(json.dumps({"train": ids[:1], "validation": ids[1:2], "test": ids[2:]}))
    return path


@pytest.fixture
def ends_left_out(tmp_path: Path) -> SliceStore:
    """Scans with lesions in their first two slices too, where the images show nothing."""
    for index in range(3):
        write_tiny_scan(tmp_path / "scans", index)
    for path in (tmp_path / "scans").glob("*/*.nii.gz"):
        voxels_XYZ = read_nifti(path).voxels_XYZ.copy()
        voxels_XYZ[:, :, :2] = 0
        if path.name.endswith("_seg.nii.gz"):
            voxels_XYZ[8:12, 8:12, :2] = 2
        write_nifti(path, voxels_XYZ, AFFINE)
    prepare(tmp_path / "scans", tmp_path / "store", 16, 1, split=split_file(tmp_path, IDS))
    return SliceStore.open(tmp_path / "store")


class Bright(Predictor):
    """Without a network: how bright the first channel is."""

    def __init__(self) -> None:
        super().__init__((nn.Linear(1, 1),), "binary")

    def to(self, device: str) -> Predictor:
        return self

    def _of(
        self,
        network: nn.Module,
        images_NCHW: Tensor,
        spacing_mm_HW: tuple[float, ...] | None,
    ) -> Tensor:
        bright_NHW = images_NCHW[:, 0].clamp(0, 1)
        return torch.stack([1 - bright_NHW, bright_NHW], dim=1)


@pytest.fixture
def scored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[SliceStore], RunFolder]:
    def make(store: SliceStore, **changes: Any) -> RunFolder:
        monkeypatch.setattr(score_module, "predictor_of_score", lambda *_: Bright())
        folder = RunFolder(tmp_path / "score")
        spec = Score(store.fingerprint, Evaluation(nsd_tolerance_mm=None), (), **changes)
        RunRecord(spec, "study", "score", SliceFormat.of_store(store), store.path).write(folder)
        score(spec, folder, Devices()).write(folder)
        return folder

    return make


def found_on_the_scan(store: SliceStore, subject: str, threshold: float) -> np.ndarray:
    """bool ZHW, slice by slice."""
    slices = store.read_subject(subject)
    bright = torch.from_numpy(slices.images_NCHW[:, :1].astype(np.float32)).clamp(0, 1)
    back = F.interpolate(bright, (20, 20), mode="bilinear", align_corners=False)[:, 0]
    found_ZHW = np.zeros((6, 20, 20), bool)
    found_ZHW[slices.positions_N] = (back.half() > np.float16(threshold)).numpy()
    return found_ZHW


def check_rows(folder: RunFolder, store: SliceStore, known: Callable[[np.ndarray], Any]) -> None:
    rows = list(csv.DictReader(folder.cases.open()))
    assert [row["subject"] for row in rows] == list(store.split.test)
    each = []
    for row in rows:
        labels_ZHW = store.read_scan_labels(row["subject"])
        found = found_on_the_scan(store, row["subject"], Result.read(folder).threshold or 0.0)
        found &= known(labels_ZHW)
        truth = (labels_ZHW > 0) & known(labels_ZHW)
        each.append(2 * (found & truth).sum() / (found.sum() + truth.sum()))
        assert float(row["dice_scan_lesion"]) == pytest.approx(each[-1], rel=1e-12)
        assert row["dice_scan_lesion"] != row["dice_at_chosen_threshold"]
    assert min(each) > 0
    mean = Result.read(folder).test["patient_dice_scan_lesion"]
    assert mean == pytest.approx(np.mean(each))


def test_slices_that_are_left_out_count_as_background(
    ends_left_out: SliceStore, scored: Callable[[SliceStore], RunFolder]
) -> None:
    store = ends_left_out
    assert store.read_scan_labels(IDS[2])[:2].any()
    assert store.subjects[IDS[2]].positions == range(2, 6)
    check_rows(scored(store), store, lambda labels_ZHW: labels_ZHW >= 0)


def test_where_the_truth_is_not_known_nothing_is_found_on_the_scan_either(
    tmp_path: Path, scored: Callable[[SliceStore], RunFolder]
) -> None:
    ids = write_nnunet(
        tmp_path / "raw",
        3,
        channel_names={"0": "T2", "1": "CT"},
        labels={"background": 0, "a": 1, "b": 2, "ignore": 3},
    )
    for case in ids:
        path = tmp_path / "raw" / "labelsTr" / f"{case}.nii.gz"
        read = read_nifti(path)
        labels_XYZ = read.voxels_XYZ.copy()
        labels_XYZ[:10] = 3
        write_nifti(path, labels_XYZ, read.grid.affine)
    split = split_file(tmp_path, ids)
    prepare(tmp_path / "raw", tmp_path / "store", 16, 1, split=split)
    store = SliceStore.open(tmp_path / "store")
    (row,) = csv.DictReader(scored(store).cases.open())
    frame, labels_ZHW = store.frame(ids[2]), store.read_scan_labels(ids[2])
    slices = store.read_subject(ids[2])
    bright = torch.from_numpy(slices.images_NCHW[:, :1].astype(np.float32)).clamp(0, 1)
    inner = bright[:, :, *frame.window]
    back = F.interpolate(inner, frame.shape_HW, mode="bilinear", align_corners=False)[:, 0]
    threshold = Result.read(RunFolder(tmp_path / "score")).threshold
    found = np.zeros(labels_ZHW.shape, bool)
    found[slices.positions_N] = (back.half() > np.float16(threshold)).numpy()
    anywhere = found.sum()
    found &= labels_ZHW != 255
    assert found.sum() < anywhere
    truth = np.isin(labels_ZHW, (1, 2))
    expected = 2 * (found & truth).sum() / (found.sum() + truth.sum())
    assert float(row["dice_scan_lesion"]) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("kind", ["brats", "nnunet"])
def test_the_labels_are_those_of_the_file_at_its_resolution(kind: str, tmp_path: Path) -> None:
    """Along the slices' axis, which is the second of the nnU-Net cases."""
    scans = tmp_path / "scans"
    if kind == "brats":
        for index in range(3):
            write_tiny_scan(scans, index)
    else:
        write_nnunet(scans, 3)
    prepare(scans, tmp_path / "store", 16, 1)
    store = SliceStore.open(tmp_path / "store")
    for files in find_scans(scans).scans:
        labels_XYZ = read_scan(files).labels_XYZ
        assert labels_XYZ is not None
        expected_ZHW = np.moveaxis(labels_XYZ, 2 if kind == "brats" else 1, 0)
        np.testing.assert_array_equal(store.read_scan_labels(files.id), expected_ZHW)
    check(store.path)


def test_a_mask_of_zeros_is_kept_without_a_file(tmp_path: Path) -> None:
    write_tiny_scan(tmp_path / "scans", 0)
    (path,) = (tmp_path / "scans").glob("*/*_seg.nii.gz")
    write_nifti(path, np.zeros((20, 20, 6), np.uint8), AFFINE)
    prepare(tmp_path / "scans", tmp_path / "store", 16, 1)
    store = SliceStore.open(tmp_path / "store")
    assert not store.folder.scan_labels(0).exists()
    assert store.read_scan_labels(IDS[0]).shape == (6, 20, 20)
    assert not store.read_scan_labels(IDS[0]).any()
    check(store.path)


@pytest.mark.parametrize("how", ["a byte", "gone", "another's"])
def test_labels_that_are_not_what_was_written_are_noticed(
    how: str, store_path: Path, tmp_path: Path
) -> None:
    shutil.copytree(store_path, tmp_path / "store")
    store = SliceStore.open(tmp_path / "store")
    subject = next(iter(store.subjects.values()))
    path = store.folder.scan_labels(subject.row)
    content = bytearray(path.read_bytes())
    if how == "a byte":
        content[len(content) // 3] ^= 1
        path.write_bytes(content)
    elif how == "gone":
        path.unlink()
    else:
        shutil.copy(store.folder.scan_labels(subject.row + 1), path)
    with pytest.raises(StoreError, match=f"labels on the scan's own grid of subject {subject.id}"):
        check(store.path)


@pytest.fixture
def earlier(store_path: Path, tmp_path: Path) -> Path:
    """The tiny store as earlier versions made it."""
    path = shutil.copytree(store_path, tmp_path / "earlier")
    shutil.rmtree(path / "scan_labels")
    folder = StoreFolder.at(path)
    manifest = Manifest.read(folder.manifest)
    subjects = {i: replace(it, scan_labels="") for i, it in manifest.subjects.items()}
    replace(manifest, subjects=subjects).write(folder.manifest)
    assert "scan_labels" not in folder.manifest.read_text()
    return path


def test_a_store_of_an_earlier_version_has_the_same_data_and_no_such_number(
    earlier: Path, store_path: Path, tmp_path: Path, undrawn: None
) -> None:
    """Its runs are the same but for the scores, which are others where there is such a number."""
    plans = {}
    for name, path in (("earlier", earlier), ("now", store_path)):
        values = tiny_values(path, tmp_path / name)
        values["finetune"] |= {"label_counts": [2], "inits": ["scratch"]}
        plans[name] = make_plan(parse_study(values | {"pretrain": {}}, "tiny"))
    assert plans["earlier"].store.fingerprint == plans["now"].store.fingerprint
    check(earlier)
    with pytest.raises(StoreError, match="no labels are kept"):
        plans["earlier"].store.read_scan_labels(IDS[0])
    ids = {name: [run.run_id for run in plan.runs] for name, plan in plans.items()}
    for same, *pair in zip(
        [run.kind != "score" for run in plans["now"].runs], *ids.values(), strict=True
    ):
        assert (pair[0] == pair[1]) is same
    for name, plan in plans.items():
        run_in_process(plan, plan.runs)
        has = name == "now"
        assert any("scans' own resolution" in it for it in concerns(plan)) is not has
        test = [Result.read(plan.folder_of(run)).test for run in plan.scores]
        assert [any("dice_scan" in key for key in it) for it in test] == [has] * len(test)
        assert said_on_the_page(plan) is has


def said_on_the_page(plan: Plan) -> bool:
    write_report(one_study(plan))
    page = (plan.folder.path / "report" / "report.html").read_text()
    assert "on the grid of the slices" in page
    return "Dice at the scan&#39;s own resolution" in page


def test_a_score_of_labels_that_the_store_lacks_says_so(
    earlier: Path, scored: Callable[..., RunFolder]
) -> None:
    with pytest.raises(RunError, match="asks for dice_scan"):
        scored(SliceStore.open(earlier), metrics=("pooled_ap", "dice_scan"))


def test_a_new_scan_in_a_store_of_an_earlier_version_gives_it_no_such_number(
    earlier: Path, scans: Path, tmp_path: Path
) -> None:
    """Some test scans have labels on their own grids then, and the others have not."""
    shutil.copytree(scans, tmp_path / "more")
    for index in (24, 25, 26, 27):
        write_tiny_scan(tmp_path / "more", index)
    prepare(tmp_path / "more", earlier, 16, 1)
    store = SliceStore.open(earlier)
    kept = [i for i in store.subjects if store.subjects[i].scan_labels]
    assert kept == [f"BraTS2021_{index:05d}" for index in (24, 25, 26, 27)]
    assert store.keeps_scan_labels is set(store.split.test).issubset(kept) is False
