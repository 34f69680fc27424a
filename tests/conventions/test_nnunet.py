"""An nnU-Net raw data set is read as it is; what is not supported is refused with its reason."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from convention_suite import ConventionSuite
from fake_nnunet import AFFINE, fake_case, write_cases, write_nnunet

from fewscan.storage.check import check
from fewscan.storage.conventions.nnunet import NnUNet
from fewscan.storage.errors import ScanError
from fewscan.storage.find import find_scans
from fewscan.storage.nifti import read_nifti
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
        ({"labels": {"background": 0, "whole": [1, 2], "core": 2}}, "regions: whole"),
        ({"labels": {"background": 0, "a": 1, "ignore": 2}}, "ignore label"),
        ({"labels": {"background": 0, "a": 1, "b": 4}}, r"label values \[0, 1, 4\]"),
        ({"labels": {"background": 0}}, r"label values \[0\]"),
        ({"labels": {"background": 0, "a b": 1, "a_b": 2}}, "class names a_b, a_b"),
        ({"labels": {"0": "background", "1": "a"}}, "regions"),
        ({"file_ending": ".png"}, r"file_ending '\.png'"),
        ({"dataset": {"a": {}}}, "a list of files"),
        ({"channel_names": {"1": "T2"}}, "cannot be used"),
    ],
)
def test_what_is_not_supported(tmp_path: Path, changes: dict[str, Any], found: str) -> None:
    write_nnunet(tmp_path, 1, **changes)
    with pytest.raises(ScanError, match=found) as caught:
        find_scans(tmp_path)
    assert caught.value.where == str(tmp_path / "dataset.json")
    assert caught.value.expected


def test_the_format_of_before_is_refused_with_the_way_to_convert_it(tmp_path: Path) -> None:
    (tmp_path / "dataset.json").write_text(json.dumps({"modality": {"0": "MRI"}}))
    with pytest.raises(ScanError, match="channel_names") as caught:
        find_scans(tmp_path)
    assert "nnUNetv2_convert_MSD_dataset" in str(caught.value.remedy)


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
        "readme.txt": "no known file name",
        "dataset.json": "3 files in labelsTr",
    }
    report = prepare(tmp_path, tmp_path / "store", size=16, workers=1)
    assert report.subjects == 1
    assert dict(report.skipped)["case_001"].startswith("no segmentation")


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
