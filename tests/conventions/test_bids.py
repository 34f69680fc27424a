"""BIDS: channels by suffix, segmentations in derivatives; what is not clear is asked."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from convention_suite import ConventionSuite
from fake_nnunet import AFFINE, fake_case

from fewscan.storage.catalog import Selection
from fewscan.storage.conventions.bids import Bids
from fewscan.storage.errors import ScanError
from fewscan.storage.find import find_scan, find_scans
from fewscan.storage.nifti import write_nifti
from fewscan.storage.scans import read_scan

DSEG = "_dseg"


def write_scan(folder: Path, scan: str, seed: int = 0, label: str = DSEG) -> None:
    """T1w and FLAIR with their texts, and a segmentation in derivatives."""
    inside = Path(*scan.split("_"), "anat")
    (folder / inside).mkdir(parents=True, exist_ok=True)
    channels, labels = fake_case(seed)
    for suffix, voxels in zip(("T1w", "FLAIR"), channels, strict=True):
        write_nifti(folder / inside / f"{scan}_{suffix}.nii.gz", voxels, AFFINE)
        (folder / inside / f"{scan}_{suffix}.json").write_text("{}")
    place = folder / "derivatives" / "manual" / inside
    place.mkdir(parents=True, exist_ok=True)
    values = labels if label.endswith("seg") else (labels > 0).astype(np.uint8)
    write_nifti(place / f"{scan}{label}.nii.gz", values, AFFINE)


def explain(folder: Path, text: str = "index\tname\n0\tbackground\n1\touter\n2\ttumour\n") -> None:
    (folder / "derivatives" / "manual" / "dseg.tsv").write_text(text)


class TestTheContract(ConventionSuite):
    kind = Bids
    ids = ("sub-03", "sub-04", "sub-05_ses-pre")
    time_points = ("sub-7_ses-01", "sub-7_ses-02")
    patient = "sub-7"
    texts = ("derivatives/manual/dseg.tsv",)

    def write(self, folder: Path, ids: Sequence[str]) -> None:
        for seed, id_ in enumerate(ids):
            write_scan(folder, id_, seed)
        explain(folder)


def test_a_mask_has_the_class_of_its_name(tmp_path: Path) -> None:
    for label, expected in (
        ("_label-stroke_mask", "stroke"),
        ("_mask", "lesion"),
        ("_roi", "lesion"),
    ):
        folder = tmp_path / label
        write_scan(folder, "sub-01", label=label)
        catalog = find_scans(folder)
        assert (catalog.channels, catalog.classes) == (("FLAIR", "T1w"), (expected,))
        (scan,) = catalog.scans
        assert scan.label_values == (1,)
        channels, labels = fake_case(0)
        read = read_scan(scan)
        assert np.array_equal(read.channels_XYZ[1], channels[0])
        assert np.array_equal(read.labels_XYZ, labels > 0)


def test_values_that_nothing_explains_are_asked_for(tmp_path: Path) -> None:
    write_scan(tmp_path, "sub-01")
    with pytest.raises(ScanError, match="nothing explains") as caught:
        find_scans(tmp_path)
    assert "--labels" in str(caught.value.remedy)
    catalog = find_scans(tmp_path, Selection(labels="1=outer,2=tumour"))
    assert catalog.classes == ("outer", "tumour")
    explain(tmp_path, "index\tcolour\n1\tred\n")
    with pytest.raises(ScanError, match="columns index, colour"):
        find_scans(tmp_path)
    explain(tmp_path, "index\tname\n1\touter\n1\ttumour\n")
    with pytest.raises(ScanError, match="index '1'") as caught:
        find_scans(tmp_path)
    assert "line 3" in str(caught.value.where)


def test_segmentations_of_brains_and_tissues_are_no_lesions(tmp_path: Path) -> None:
    write_scan(tmp_path, "sub-01", label="_label-lesion_mask")
    anat = tmp_path / "derivatives" / "fmriprep" / "sub-01" / "anat"
    anat.mkdir(parents=True)
    for name in ("desc-brain_mask", "label-GM_probseg", "desc-aseg_dseg", "desc-preproc_T1w"):
        (anat / f"sub-01_{name}.nii.gz").write_bytes(b"")
    catalog = find_scans(tmp_path)
    assert catalog.classes == ("lesion",)
    assert [scan.id for scan in catalog.scans] == ["sub-01"]
    assert catalog.problems == {}


def test_two_kinds_of_segmentations_are_refused_with_the_command_that_settles_it(
    tmp_path: Path,
) -> None:
    write_scan(tmp_path, "sub-01", label="_label-lesion_mask")
    write_scan(tmp_path, "sub-01", label="_label-oedema_mask")
    with pytest.raises(ScanError, match="2 kinds of segmentations") as caught:
        find_scans(tmp_path)
    assert "manual/label-oedema_mask of 1 scans" in caught.value.found
    assert "fewscan table" in str(caught.value.remedy)


def test_contrast_makes_another_channel_and_two_runs_are_ambiguous(tmp_path: Path) -> None:
    for seed, scan in enumerate(("sub-01", "sub-02", "sub-03")):
        write_scan(tmp_path, scan, seed, "_mask")
        anat = tmp_path / scan / "anat"
        write_nifti(anat / f"{scan}_ce-gad_T1w.nii.gz", fake_case(seed + 9)[0][0], AFFINE)
    anat = tmp_path / "sub-02" / "anat"
    plain = anat / "sub-02_T1w.nii.gz"
    for run in (1, 2):
        (anat / f"sub-02_run-{run}_T1w.nii.gz").write_bytes(plain.read_bytes())
    plain.unlink()
    write_nifti(tmp_path / "sub-03" / "anat" / "sub-03_T2w.nii.gz", fake_case(8)[0][0], AFFINE)
    catalog = find_scans(tmp_path)
    assert catalog.channels == ("FLAIR", "T1w", "ce-gad_T1w")
    assert [scan.id for scan in catalog.scans] == ["sub-01", "sub-03"]
    assert "2 files for T1w" in catalog.problems["sub-02"].found
    assert "fewscan table" in str(catalog.problems["sub-02"].remedy)
    assert "1 of 3 scans" in catalog.left_out["the channel T2w"]
    some = find_scans(tmp_path, Selection(channels=("ce-gad_T1w", "FLAIR")))
    assert [scan.id for scan in some.scans] == ["sub-01", "sub-02", "sub-03"]


def test_a_suffix_may_stand_for_one_kind_in_each_scan(tmp_path: Path) -> None:
    for scan, acquisition in (("sub-01", "acq-a_"), ("sub-02", "acq-b_")):
        write_scan(tmp_path, scan, label="_mask")
        anat = tmp_path / scan / "anat"
        (anat / f"{scan}_T1w.nii.gz").rename(anat / f"{scan}_{acquisition}T1w.nii.gz")
        (anat / f"{scan}_FLAIR.nii.gz").unlink()
    with pytest.raises(ScanError, match="no channel that most of 2 scans have") as caught:
        find_scans(tmp_path)
    assert "--channels" in str(caught.value.remedy)
    catalog = find_scans(tmp_path, Selection(channels=("T1w",)))
    assert [len(scan.channel_files) for scan in catalog.scans] == [1, 1]
    found = find_scan([tmp_path / "sub-01" / "anat"], ["T1w"], ["lesion"])
    assert found.channel_files == catalog.scans[0].channel_files


def test_other_folders_are_named(tmp_path: Path) -> None:
    write_scan(tmp_path, "sub-01", label="_mask")
    (tmp_path / "sub-01" / "func").mkdir()
    (tmp_path / "sub-01" / "func" / "sub-01_bold.nii.gz").write_bytes(b"")
    assert find_scans(tmp_path).left_out == {"func": "only anat is read"}
