"""BraTS: both namings, patients and their time points; what cannot be used is named."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from convention_suite import ConventionSuite
from fake_scans import AFFINE, PARTS_2021, write_subject

from fewscan.storage.conventions.brats import Brats
from fewscan.storage.find import find_scans
from fewscan.storage.nifti import write_nifti
from fewscan.storage.scans import read_scan

OLD, NEW = "BraTS2021_00007", "BraTS-GLI-00008-001"


class Suite(ConventionSuite):
    kind = Brats

    def write(self, folder: Path, ids: Sequence[str]) -> None:
        for seed, id_ in enumerate(ids):
            write_subject(folder, id_, seed)


class TestTheContractIn2021(Suite):
    ids = ("BraTS2021_00000", "BraTS2021_00001", "BraTS2021_00002")
    time_points = ("sub-7_ses-01", "sub-7_ses-02")
    patient = "sub-7"


class TestTheContractIn2023(Suite):
    ids = ("BraTS-GLI-00001-000", "BraTS-GLI-00002-000", "BraTS-GLI-00003-001")
    time_points = ("BraTS-GLI-02062-100", "BraTS-GLI-02062-101")
    patient = "BraTS-GLI-02062"


@pytest.mark.parametrize(
    ("scan", "patient"),
    [
        ("BraTS-GLI-02062-101", "BraTS-GLI-02062"),
        ("BraTS-MEN-RT-0012-1", "BraTS-MEN-RT-0012"),
        ("BraTS2021_00007", "BraTS2021_00007"),
        ("sub-A1_ses-02_run-1", "sub-A1"),
        ("substance-1", "substance-1"),
        ("BraTS-GLI-02062", "BraTS-GLI-02062"),
    ],
)
def test_whose_a_scan_is(scan: str, patient: str) -> None:
    assert Brats().patient_of(scan) == patient


def test_catalog(tmp_path: Path) -> None:
    write_subject(tmp_path / "a" / "b", OLD)
    write_subject(tmp_path, NEW)
    (tmp_path / NEW / "notes.txt").write_text("not a scan")
    (tmp_path / NEW / f"._{NEW}-t1n.nii.gz").write_bytes(b"left by a Mac")
    catalog = find_scans(tmp_path)
    assert catalog.channels == ("flair", "t1", "t1ce", "t2")
    assert catalog.classes == ("necrotic_core", "oedema", "enhancing")
    assert [files.id for files in catalog.scans] == [NEW, OLD]
    assert [files.naming for files in catalog.scans] == ["BraTS 2023", "BraTS 2021"]
    assert [files.label_values for files in catalog.scans] == [(1, 2, 3), (1, 2, 4)]
    assert [path.name[-9:-7] for path in catalog.scans[0].channel_files] == ["2f", "1n", "1c", "2w"]
    assert catalog.problems == {}


def test_a_scan_without_labels_can_be_read_from_its_files(tmp_path: Path) -> None:
    place = write_subject(tmp_path, OLD)
    paths = [place / f"{OLD}_{part}.nii.gz" for part in PARTS_2021]
    (files,) = Brats().group(reversed(paths)).scans
    assert files.channel_files == tuple(paths)
    assert files.label_file is None
    assert read_scan(files).labels_XYZ is None


def test_strange_folders_are_problems_of_their_own(tmp_path: Path) -> None:
    write_subject(tmp_path, OLD)
    (tmp_path / "empty").mkdir()
    (tmp_path / "other").mkdir()
    write_nifti(tmp_path / "other" / "brain.nii.gz", np.ones((2, 2, 2)), AFFINE)
    problems = find_scans(tmp_path).problems
    assert problems["empty"].found == "an empty folder"
    assert "brain.nii.gz" in problems["other"].found
    assert "flair" in problems["other"].expected


@pytest.mark.parametrize("part", ["flair", "t1ce"])
def test_missing_modality(tmp_path: Path, part: str) -> None:
    (write_subject(tmp_path, OLD) / f"{OLD}_{part}.nii.gz").unlink()
    catalog = find_scans(tmp_path)
    assert catalog.scans == ()
    assert catalog.problems[OLD].found == f"missing: {OLD}_{part}.nii.gz"
    assert catalog.problems[OLD].where == str(tmp_path / OLD)


def test_same_subject_in_two_folders(tmp_path: Path) -> None:
    write_subject(tmp_path / "a", OLD)
    write_subject(tmp_path / "b", OLD)
    problem = find_scans(tmp_path).problems[OLD]
    assert "twice" in problem.found
    assert str(tmp_path / "a") in problem.found
    assert str(tmp_path / "b") in problem.found


def test_same_subject_in_both_editions(tmp_path: Path) -> None:
    write_subject(tmp_path, "BraTS-GLI-00007-000")
    write_subject(tmp_path, OLD)
    write_subject(tmp_path, "BraTS-GLI-00007-001")
    catalog = find_scans(tmp_path)
    assert [files.id for files in catalog.scans] == ["BraTS-GLI-00007-001"], "a later scan is new"
    assert set(catalog.problems) == {OLD, "BraTS-GLI-00007-000"}
    assert "BraTS2021_00007" in catalog.problems["BraTS-GLI-00007-000"].found
