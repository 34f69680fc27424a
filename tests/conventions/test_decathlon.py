"""The Medical Segmentation Decathlon as it is downloaded: a file of several channels a scan."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from convention_suite import ConventionSuite
from fake_decathlon import write_task
from fake_scans import AFFINE, fake_images

from fewscan.storage.catalog import ScanFiles, Selection
from fewscan.storage.conventions.decathlon import Decathlon
from fewscan.storage.errors import ScanError
from fewscan.storage.find import find_scan, find_scans
from fewscan.storage.nifti import write_nifti
from fewscan.storage.prepare import prepare
from fewscan.storage.preprocess import preprocess
from fewscan.storage.scans import Scan, read_scan
from fewscan.storage.slices import SliceStore

CHANNELS = ("FLAIR", "T1w", "t1gd", "T2w")
CLASSES = ("edema", "non-enhancing_tumor", "enhancing_tumour")


class TestTheContract(ConventionSuite):
    kind = Decathlon
    ids = ("BRATS_001", "BRATS_002", "BRATS_003")
    time_points = ("sub-7_ses-01", "sub-7_ses-02")
    patient = "sub-7"
    texts = ("dataset.json",)

    def write(self, folder: Path, ids: Sequence[str]) -> None:
        write_task(folder, ids)

    def unlabel(self, folder: Path, scan: ScanFiles) -> None:
        path = folder / "dataset.json"
        value = json.loads(path.read_text())
        own = next(e for e in value["training"] if scan.id in e["image"])
        value["training"].remove(own)
        value["test"].append(own["image"])
        path.write_text(json.dumps({**value, "numTraining": 2}))


def test_a_task_becomes_a_store(tmp_path: Path) -> None:
    write_task(tmp_path / "task", ["BRATS_001", "BRATS_002", "BRATS_003"], test=["BRATS_900"])
    catalog = find_scans(tmp_path / "task")
    assert (catalog.channels, catalog.classes) == (CHANNELS, CLASSES)
    assert catalog.problems == {}
    assert set(catalog.left_out) == {"BRATS_900"}
    wanted = Selection(unlabelled=True, channels=("T2w", "FLAIR"))
    report = prepare(
        tmp_path / "task", tmp_path / "store", size=16, workers=1, axis=2, selection=wanted
    )
    assert (report.subjects, report.skipped) == (4, ())
    store = SliceStore.open(tmp_path / "store")
    assert store.manifest.unlabelled == ("BRATS_900",)
    channels, labels = fake_images(1)
    plain = Scan(tuple(channels[k] for k in (3, 0)), labels, AFFINE, (1.0, 1.0, 1.5))
    expected = preprocess(plain, 16, axis=2, normalisation="percentiles")
    slices = store.read_subject("BRATS_002")
    assert np.array_equal(slices.images_NCHW, expected.images_NCHW)
    assert np.array_equal(slices.labels_NHW, expected.labels_NHW)


def test_one_channel_is_a_file_of_three_axes(tmp_path: Path) -> None:
    modality, labels = {"0": "CT"}, {"0": "background", "1": "liver", "2": "cancer", "3": "x"}
    write_task(tmp_path, ["liver_0"], modality=modality, labels=labels)
    channels, _ = fake_images(0)
    write_nifti(tmp_path / "imagesTr" / "liver_0.nii.gz", channels[0], AFFINE)
    catalog = find_scans(tmp_path, Selection(lesion=("cancer",)))
    assert (catalog.channels, catalog.lesion) == (("CT",), ("cancer",))
    (scan,) = catalog.scans
    assert np.array_equal(read_scan(scan).channels_XYZ[0], channels[0])
    found = find_scan(scan.channel_files, ["CT"], ["liver", "cancer", "x"])
    assert (found.id, found.volumes, found.label_values) == ("liver_0", (), (1, 2, 3))


def test_the_first_nnunet_has_a_file_a_channel(tmp_path: Path) -> None:
    write_task(tmp_path, ["BRATS_001"])
    (tmp_path / "imagesTr" / "BRATS_001.nii.gz").unlink()
    channels, _ = fake_images(0)
    for k, voxels in enumerate(channels):
        write_nifti(tmp_path / "imagesTr" / f"BRATS_001_{k:04d}.nii.gz", voxels, AFFINE)
    (scan,) = find_scans(tmp_path).scans
    for read, written in zip(read_scan(scan).channels_XYZ, channels, strict=True):
        assert np.array_equal(read, written)
    found = find_scan(scan.channel_files[::-1], CHANNELS, CLASSES)
    assert (found.id, found.channel_files) == (scan.id, scan.channel_files)
    scan.channel_files[2].unlink()
    assert "BRATS_001_0002" in find_scans(tmp_path).problems["BRATS_001"].found


def test_a_file_of_several_channels_needs_no_description(tmp_path: Path) -> None:
    channels, _ = fake_images(0)
    write_nifti(tmp_path / "mine.nii.gz", np.stack(channels, axis=3), AFFINE)
    scan = find_scan([tmp_path / "mine.nii.gz"], CHANNELS, CLASSES)
    assert scan.id == "mine"
    for read, written in zip(read_scan(scan).channels_XYZ, channels, strict=True):
        assert np.array_equal(read, written)
    for other in ([*CHANNELS, "PET"], CHANNELS[:2]):
        with pytest.raises(ScanError, match="4 channels") as caught:
            find_scan([tmp_path / "mine.nii.gz"], other, CLASSES)
        assert f"the model's {len(other)} channels" in str(caught.value.expected)


def test_a_file_has_the_channels_that_are_described(tmp_path: Path) -> None:
    write_task(tmp_path, ["BRATS_001"])
    channels, _ = fake_images(0)
    write_nifti(tmp_path / "imagesTr" / "BRATS_001.nii.gz", np.stack(channels[:3], 3), AFFINE)
    (scan,) = find_scans(tmp_path).scans
    with pytest.raises(ScanError, match="3 channels in one file") as caught:
        read_scan(scan)
    assert "at least 4" in str(caught.value.expected)


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"modality": {"1": "MRI"}}, "modality"),
        ({"labels": {"background": 0, "tumour": 1}}, "labels"),
        ({"labels": None}, "labels None"),
        ({"labels": {"0": "background", "1": "a", "2": "a", "01": "b"}}, "labels"),
    ],
)
def test_what_cannot_be_read(tmp_path: Path, changes: dict[str, Any], found: str) -> None:
    write_task(tmp_path, ["BRATS_001"], **changes)
    with pytest.raises(ScanError, match=found) as caught:
        find_scans(tmp_path)
    assert caught.value.where == str(tmp_path / "dataset.json")
    assert caught.value.expected


def test_what_is_missing_or_not_listed_is_named(tmp_path: Path) -> None:
    ids = [f"BRATS_00{k}" for k in range(5)]
    write_task(tmp_path, ids)
    path = tmp_path / "dataset.json"
    value = json.loads(path.read_text())
    value["training"] = [*value["training"][:4], "nothing", value["training"][0]]
    path.write_text(json.dumps(value))
    (tmp_path / "imagesTr" / "BRATS_001.nii.gz").unlink()
    (tmp_path / "labelsTr" / "BRATS_002.nii.gz").unlink()
    catalog = find_scans(tmp_path)
    assert [scan.id for scan in catalog.scans] == ["BRATS_003"]
    assert "imagesTr/BRATS_001.nii.gz" in catalog.problems["BRATS_001"].found
    assert "labelsTr/BRATS_002.nii.gz" in catalog.problems["BRATS_002"].found
    assert "twice" in catalog.problems["BRATS_000"].found
    assert len(catalog.problems) == 4
    assert catalog.left_out["BRATS_004.nii.gz"] == "not in dataset.json"
    assert "numTraining, 5" in catalog.left_out["dataset.json"]
