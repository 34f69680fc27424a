"""An nnU-Net raw data set is read as it is; what is not supported is refused with its reason."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from convention_suite import ConventionSuite
from fake_nnunet import AFFINE, fake_case, write_cases, write_nnunet

from fewscan.storage.catalog import Selection
from fewscan.storage.check import check
from fewscan.storage.conventions.nnunet import NnUNet
from fewscan.storage.errors import ScanError
from fewscan.storage.find import find_scans
from fewscan.storage.nifti import read_nifti, write_nifti
from fewscan.storage.phantom.as_nnunet import SPACING_MM
from fewscan.storage.phantom.draw import make_phantom
from fewscan.storage.phantom.write import write_phantoms
from fewscan.storage.prepare import prepare
from fewscan.storage.preprocess import preprocess
from fewscan.storage.scans import read_scan
from fewscan.storage.slices import SliceStore


class TestTheContract(ConventionSuite):
    kind = NnUNet
    ids = ("case_000", "case_001", "prostate")
    time_points = ("sub-7_ses-01", "sub-7_ses-02")
    patient = "sub-7"
    texts = ("dataset.json",)

    def write(self, folder: Path, ids: Sequence[str]) -> None:
        write_cases(folder, ids)


def test_catalog(tmp_path: Path) -> None:
    ids = write_nnunet(tmp_path, 3)
    (tmp_path / "imagesTs").mkdir()
    (tmp_path / "imagesTs" / "case_900_0000.nii.gz").write_bytes(b"never looked at")
    catalog = find_scans(tmp_path)
    assert catalog.channels == ("T2", "CT")
    assert catalog.classes == ("whole_gland_outer", "tumour")
    assert [files.id for files in catalog.scans] == ids
    assert catalog.problems == {}
    scan = read_scan(catalog.scans[1])
    channels, labels = fake_case(1)
    for read, written in zip(scan.channels_XYZ, channels, strict=True):
        assert np.array_equal(read, written)
    assert np.array_equal(scan.labels_XYZ, labels)


def test_the_store_has_its_own_axis_channels_classes_and_normalisation(tmp_path: Path) -> None:
    write_nnunet(tmp_path / "raw", 3)
    prepare(tmp_path / "raw", tmp_path / "store", size=16, workers=1)
    store = SliceStore.open(tmp_path / "store")
    assert (store.channels, store.classes) == (("T2", "CT"), ("whole_gland_outer", "tumour"))
    parameters = store.manifest.parameters
    assert (parameters.axis, parameters.normalisation) == (1, "percentiles")
    (files, *_) = find_scans(tmp_path / "raw").scans
    expected = preprocess(read_scan(files), 16, axis=1, normalisation="percentiles")
    slices = store.read_subject(files.id)
    assert np.array_equal(slices.images_NCHW, expected.images_NCHW)
    assert np.array_equal(slices.labels_NHW, expected.labels_NHW)
    assert 0 <= slices.images_NCHW.min() < slices.images_NCHW.max() <= 1
    assert store.subjects[files.id].shape_XYZ == (20, 6, 28)
    shown = check(tmp_path / "store").render()
    assert "along axis 1, voxels normalised by percentiles" in shown
    assert "tumour " in shown


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"labels": {"background": 0, "a": 1, "b": 4}}, r"label values \[0, 1, 4\]"),
        ({"labels": {"background": 0, "a": [1, 4]}}, r"label values \[0, 1, 4\]"),
        ({"labels": {"background": 0}}, r"label values \[0\]"),
        ({"labels": {"background": 0, "a b": 1, "a_b": 2}}, "class names a_b, a_b"),
        ({"labels": {"background": 0, "a": "one"}}, "labels that have no numbers: a"),
        ({"labels": {"background": 0, "a": []}}, "labels that have no numbers: a"),
        ({"labels": ["background", "a"]}, "no labels"),
        ({"file_ending": ".nrrd"}, r"file_ending '\.nrrd'"),
        ({"dataset": ["a"]}, "a `dataset` of no cases"),
        ({"channel_names": {"1": "T2"}}, "channel_names {'1': 'T2'}"),
        ({"channel_names": "T2"}, "channel_names T2"),
    ],
)
def test_what_is_not_supported(tmp_path: Path, changes: dict[str, Any], found: str) -> None:
    write_nnunet(tmp_path, 1, **changes)
    with pytest.raises(ScanError, match=found) as caught:
        find_scans(tmp_path)
    assert caught.value.where == str(tmp_path / "dataset.json")
    assert caught.value.expected


def test_remedies_fit_the_cause(tmp_path: Path) -> None:
    write_nnunet(tmp_path, 1, labels={"0": "background", "1": "a", "2": 3})
    with pytest.raises(ScanError) as caught:
        find_scans(tmp_path)
    assert "turn labels round" in str(caught.value.remedy)
    (tmp_path / "dataset.json").write_text(json.dumps({"modality": {"0": "MRI"}}))
    with pytest.raises(ScanError, match="channel_names") as caught:
        find_scans(tmp_path)
    assert "nnUNetv2_convert_MSD_dataset" in str(caught.value.remedy)
    (tmp_path / "dataset.json").write_text(json.dumps({"labels": {"a": 1}}))
    with pytest.raises(ScanError, match="channel_names") as caught:
        find_scans(tmp_path)
    assert "convert" not in str(caught.value.remedy)


def test_labels_may_be_written_the_other_way_round_or_as_lists_of_one(tmp_path: Path) -> None:
    for labels in (
        {"0": "background", "1": "outer", "2": "tumour"},
        {"background": 0, "outer": [1], "tumour": ["2"]},
        {"tumour": "2", "outer": "1", "background": "0"},
    ):
        write_nnunet(tmp_path, 1, labels=labels)
        catalog = find_scans(tmp_path)
        assert (catalog.classes, catalog.regions) == (("outer", "tumour"), ())
        assert catalog.scans[0].label_values == (1, 2)


def test_nested_regions_become_classes_and_are_kept(tmp_path: Path) -> None:
    labels = {
        "background": 0,
        "whole tumor": [1, 2, 3],
        "tumor core": [2, 3],
        "enhancing tumor": [3],
    }
    write_nnunet(tmp_path, 1, labels=labels, regions_class_order=[1, 2, 3])
    catalog = find_scans(tmp_path)
    classes = ("whole_tumor_rest", "tumor_core_rest", "enhancing_tumor")
    assert catalog.classes == classes
    assert catalog.regions == (("whole_tumor", classes), ("tumor_core", classes[1:]))
    assert catalog.scans[0].label_values == (1, 2, 3)
    assert catalog.problems == {}


def test_values_of_the_same_regions_are_one_class(tmp_path: Path) -> None:
    labels = {"background": 0, "whole": [1, 2, 3, 4], "core": [3, 4]}
    write_nnunet(tmp_path, 1, labels=labels)
    catalog = find_scans(tmp_path)
    assert (catalog.classes, catalog.regions) == (
        ("whole_rest", "core"),
        (("whole", ("whole_rest", "core")),),
    )
    (scan,) = catalog.scans
    assert (scan.label_values, scan.aliases) == ((1, 3), ((2, 1), (4, 3)))
    _, labels_XYZ = fake_case(0)
    assert scan.label_file is not None
    write_nifti(scan.label_file, np.array([0, 4, 2], np.uint8)[labels_XYZ], AFFINE)
    expected = np.array([0, 2, 1], np.uint8)[labels_XYZ]
    assert np.array_equal(read_scan(scan).labels_XYZ, expected)


def test_regions_that_overlap_become_the_parts_they_cut_each_other_into(tmp_path: Path) -> None:
    labels = {"background": 0, "left": [1, 2], "bright": [2, 3], "ignore": 4}
    write_nnunet(tmp_path, 1, labels=labels)
    catalog = find_scans(tmp_path)
    assert catalog.classes == ("left_rest", "bright_and_left", "bright_rest")
    assert dict(catalog.regions) == {
        "left": ("left_rest", "bright_and_left"),
        "bright": ("bright_and_left", "bright_rest"),
    }
    assert catalog.scans[0].ignore_value == 4


def test_what_is_to_be_ignored_is_no_class(tmp_path: Path) -> None:
    write_nnunet(tmp_path, 1, labels={"background": 0, "tumour": 1, "ignore": 2})
    catalog = find_scans(tmp_path)
    assert catalog.classes == ("tumour",)
    assert (catalog.scans[0].label_values, catalog.scans[0].ignore_value) == ((1,), 2)


def test_test_images_are_unlabelled_scans(tmp_path: Path) -> None:
    write_nnunet(tmp_path, 2)
    (tmp_path / "imagesTs").mkdir()
    for path in sorted((tmp_path / "imagesTr").glob("case_001_*")):
        target = path.name.replace("case_001", "case_900")
        (tmp_path / "imagesTs" / target).write_bytes(path.read_bytes())
    catalog = find_scans(tmp_path)
    assert [scan.id for scan in catalog.scans] == ["case_000", "case_001"]
    assert "--unlabelled" in catalog.left_out["case_900"]
    catalog = find_scans(tmp_path, Selection(unlabelled=True))
    assert {scan.id for scan in catalog.scans if scan.label_file is None} == {"case_900"}
    assert (catalog.left_out, catalog.problems) == ({}, {})
    (tmp_path / "imagesVal").mkdir()
    for path in sorted((tmp_path / "imagesTr").glob("case_001_*")):
        (tmp_path / "imagesVal" / path.name).write_bytes(path.read_bytes())
    problem = find_scans(tmp_path).problems["case_001"]
    assert "twice" in problem.found


@pytest.mark.parametrize("count", ["2", 2.0, "2.0"])
def test_a_count_may_be_written_as_text(tmp_path: Path, count: Any) -> None:
    write_nnunet(tmp_path, 2, numTraining=count)
    catalog = find_scans(tmp_path)
    assert (catalog.problems, catalog.left_out) == ({}, {})


def test_links_to_nowhere_and_folders_are_named(tmp_path: Path) -> None:
    write_nnunet(tmp_path, 3)
    for name in ("imagesTr/case_000_0000.nii.gz", "labelsTr/case_001.nii.gz"):
        (tmp_path / name).unlink()
        (tmp_path / name).symlink_to(tmp_path / "gone.nii.gz")
    (tmp_path / "imagesTr" / "case_009").mkdir()
    (tmp_path / "imagesTr" / "case_002.nii").write_bytes(b"")
    catalog = find_scans(tmp_path)
    assert "imagesTr/case_009" in catalog.left_out
    assert "file_ending" in str(catalog.problems["case_002.nii"].remedy)
    assert [scan.id for scan in catalog.scans] == ["case_000", "case_001", "case_002"]
    for scan in catalog.scans[:2]:
        with pytest.raises(ScanError, match="cannot be read"):
            read_scan(scan)


def test_a_count_that_is_wrong_is_worth_a_word_if_all_files_are_there(tmp_path: Path) -> None:
    write_nnunet(tmp_path, 2, numTraining="many")
    catalog = find_scans(tmp_path)
    assert catalog.problems == {}
    assert "numTraining, many" in catalog.left_out["dataset.json"]


def test_files_may_be_listed(tmp_path: Path) -> None:
    write_nnunet(tmp_path, 2)
    first = {"images": [f"imagesTr/case_000_000{k}.nii.gz" for k in range(2)]}
    listed = {
        "one": {**first, "label": "labelsTr/case_000.nii.gz"},
        "two": {"images": [str(tmp_path / "imagesTr" / "case_001_0000.nii.gz")]},
        "three": {"images": "nothing"},
    }
    path = tmp_path / "dataset.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "dataset": listed}))
    catalog = find_scans(tmp_path, Selection(unlabelled=True))
    assert [scan.id for scan in catalog.scans] == ["one"]
    assert read_scan(catalog.scans[0]).labels_XYZ is not None
    assert catalog.problems["two"].found == "missing: two_0001.nii.gz"
    assert "nothing" in catalog.problems["three"].found


def test_what_is_missing_or_too_much_is_listed(tmp_path: Path) -> None:
    write_nnunet(tmp_path, 4, numTraining=5)
    images, labels = tmp_path / "imagesTr", tmp_path / "labelsTr"
    (images / "case_000_0001.nii.gz").unlink()
    (labels / "case_001.nii.gz").unlink()
    (images / "case_002_0002.nii.gz").write_bytes(b"")
    (images / "readme.txt").write_text("")
    catalog = find_scans(tmp_path)
    problems = {name: error.found for name, error in catalog.problems.items()}
    assert problems == {
        "case_000": "missing: case_000_0001.nii.gz",
        "case_002": "too many: case_002_0002.nii.gz",
        "dataset.json": "3 files in labelsTr",
    }
    assert "readme.txt" in catalog.left_out
    assert "case_001" in catalog.left_out
    report = prepare(tmp_path, tmp_path / "store", size=16, workers=1)
    assert report.subjects == 1


def test_the_phantom_data_set(tmp_path: Path) -> None:
    """Slabs hold the mean of the phantom's voxels, and lie where those lay."""
    write_phantoms(tmp_path, 1, seed=3, workers=1, form="nnunet")
    catalog = find_scans(tmp_path)
    assert (catalog.channels, catalog.classes) == (("FLAIR", "T1ce"), ("oedema", "core"))
    assert catalog.problems == {}
    scan = read_scan(catalog.scans[0])
    assert scan.spacing_mm == SPACING_MM
    phantom = make_phantom(0, seed=3)
    t1ce = scan.channels_XYZ[1].astype(float) + 1024
    voxels_mm3 = np.prod(SPACING_MM)
    assert t1ce.sum() * voxels_mm3 == pytest.approx(phantom.images_MXYZ[2].sum(), rel=1e-3)
    assert scan.labels_XYZ is not None
    core = np.isin(phantom.labels_XYZ, (1, 4))
    assert (scan.labels_XYZ == 2).sum() * voxels_mm3 == pytest.approx(core.sum(), rel=0.1)

    def centre_mm(mask: np.ndarray, affine: np.ndarray) -> np.ndarray:
        return affine[:3, :3] @ np.argwhere(mask).mean(axis=0) + affine[:3, 3]

    from fewscan.storage.phantom.draw import AFFINE as PHANTOM

    here = centre_mm(scan.labels_XYZ == 2, scan.affine)
    np.testing.assert_allclose(here, centre_mm(core, PHANTOM), atol=1)
    with pytest.raises(ScanError, match="the folder holds"):
        write_phantoms(tmp_path, 1, seed=3)


def test_a_case_keeps_its_affine(tmp_path: Path) -> None:
    write_nnunet(tmp_path, 1)
    assert np.array_equal(read_nifti(tmp_path / "labelsTr" / "case_000.nii.gz").affine, AFFINE)
