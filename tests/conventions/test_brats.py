"""BraTS: both namings, patients and their time points; what cannot be used is named."""

import errno
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from convention_suite import ConventionSuite
from fake_scans import AFFINE, PARTS_2021, fake_images, write_subject

from fewscan.storage.catalog import Selection
from fewscan.storage.conventions.brats import CHANNELS, CLASSES, Brats
from fewscan.storage.errors import ScanError
from fewscan.storage.find import find_new_scans, find_scans
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


GLIOMA = ("necrotic_core", "oedema", "enhancing")
CAVITY = (*GLIOMA, "resection_cavity")
PED = ("enhancing", "non_enhancing", "cystic", "oedema")


@pytest.mark.parametrize(
    ("scan", "labels", "classes", "values"),
    [
        ("BraTS2021_00007", "", GLIOMA, (1, 2, 4)),
        ("BraTS20_Training_007", "", GLIOMA, (1, 2, 4)),
        ("BraTS-GLI-00007-000", "", GLIOMA, (1, 2, 3)),
        ("BraTS-SSA-00007-000", "", GLIOMA, (1, 2, 3)),
        ("BraTS-MEN-00007-000", "", GLIOMA, (1, 2, 3)),
        ("BraTS-GLI-02062-100", "", CAVITY, (1, 2, 3, 4)),
        ("BraTS-GLI-02062-100", "brats-2023", GLIOMA, (1, 2, 3)),
        ("BraTS-MET-00007-000", "", CAVITY, (1, 2, 3, 4)),
        ("BraTS-PED-00007-000", "brats-ped", PED, (1, 2, 3, 4)),
        ("BraTS-PED-00007-000", "brats-ped-2023", (*PED[1::2], PED[0]), (1, 2, 3)),
        ("sub-07", "brats-ped", PED, (1, 2, 3, 4)),
        ("BraTS-PED-00007-000", "1=one,2=two,3=two", ("one", "two"), (1, 2)),
    ],
)
def test_what_labels_mean(
    tmp_path: Path, scan: str, labels: str, classes: tuple[str, ...], values: tuple[int, ...]
) -> None:
    write_subject(tmp_path, scan)
    catalog = find_scans(tmp_path, Selection(labels=labels))
    assert catalog.classes == classes
    assert [files.label_values for files in catalog.scans] == [values]
    files = catalog.scans[0].channel_files
    found = Brats().find_one(files, catalog.channels, catalog.classes)
    assert found is not None
    if not (labels and "=" in labels) and not scan.startswith("sub"):
        assert found.label_values == values


def test_what_the_labels_of_children_mean_is_not_in_their_names(tmp_path: Path) -> None:
    write_subject(tmp_path, "BraTS-PED-00007-000")
    with pytest.raises(ScanError, match="BraTS-PED-00007-000") as caught:
        find_scans(tmp_path)
    for key in ("--labels brats-ped", "--labels brats-ped-2023"):
        assert key in str(caught.value.remedy)
    assert "1 enhancing" in str(caught.value.expected)
    assert "3 enhancing" in str(caught.value.expected)


def test_what_labels_mean_is_no_matter_to_a_model(tmp_path: Path) -> None:
    write_subject(tmp_path, "BraTS-PED-00007-000")
    (scan,) = find_new_scans(tmp_path, CHANNELS[:2], PED).scans
    assert (scan.label_file, scan.label_values) == (None, (1, 2, 3, 4))
    assert len(scan.channel_files) == 2


@pytest.mark.parametrize(
    ("scan", "labels"),
    [
        ("BraTS-GLI-00007-000", "brats-ped"),
        ("BraTS-PED-00007-000", "brats-2023"),
        ("BraTS-GLI-00007-000", "brats-met"),
    ],
)
def test_an_edition_of_another_population_is_refused(
    tmp_path: Path, scan: str, labels: str
) -> None:
    write_subject(tmp_path, scan)
    with pytest.raises(ScanError, match=f"is not of {labels}"):
        find_scans(tmp_path, Selection(labels=labels))


def test_an_edition_may_have_a_class_more(tmp_path: Path) -> None:
    for seed, scan in enumerate((OLD, NEW, "BraTS-GLI-02062-100")):
        write_subject(tmp_path, scan, seed)
    catalog = find_scans(tmp_path)
    assert catalog.classes == CAVITY
    assert {files.id: files.label_values for files in catalog.scans} == {
        OLD: (1, 2, 4, -1),
        NEW: (1, 2, 3, -1),
        "BraTS-GLI-02062-100": (1, 2, 3, 4),
    }
    for files in catalog.scans:
        labels_XYZ = read_scan(files).labels_XYZ
        assert labels_XYZ is not None
        assert set(np.unique(labels_XYZ)) == {0, 1, 2, 3}


def test_other_classes_are_not_mixed(tmp_path: Path) -> None:
    write_subject(tmp_path, OLD)
    write_radiotherapy(tmp_path, "BraTS-MEN-RT-0012-1")
    with pytest.raises(ScanError, match="BraTS-MEN-RT-0012-1") as caught:
        find_scans(tmp_path)
    assert OLD in caught.value.found


def write_radiotherapy(folder: Path, scan: str) -> None:
    channels, labels = fake_images(1)
    (folder / scan).mkdir(parents=True)
    write_nifti(folder / scan / f"{scan}_t1c.nii.gz", channels[2], AFFINE)
    write_nifti(folder / scan / f"{scan}_gtv.nii.gz", (labels > 0).astype(np.uint8), AFFINE)


def test_meningioma_for_radiotherapy_has_one_channel_and_one_class(tmp_path: Path) -> None:
    write_radiotherapy(tmp_path, "BraTS-MEN-RT-0012-1")
    write_radiotherapy(tmp_path, "BraTS-MEN-RT-0012-2")
    catalog = find_scans(tmp_path)
    assert (catalog.channels, catalog.classes) == (("t1ce",), ("gross_tumour_volume",))
    assert {files.patient for files in catalog.scans} == {"BraTS-MEN-RT-0012"}
    assert {files.label_values for files in catalog.scans} == {(1,)}
    assert catalog.problems == {}
    files = catalog.scans[0].channel_files
    assert Brats().find_one(files, catalog.channels, catalog.classes) is not None


def test_channels_by_the_names_of_either_edition(tmp_path: Path) -> None:
    write_subject(tmp_path, OLD)
    write_subject(tmp_path, NEW)
    catalog = find_scans(tmp_path, Selection(channels=("t1c", "T2F")))
    assert catalog.channels == ("t1ce", "flair")
    new, old = catalog.scans
    assert [path.name[-10:-7] for path in new.channel_files] == ["t1c", "t2f"]
    assert [path.name[-8:-7] for path in old.channel_files] == ["e", "r"]


def test_scans_that_used_to_vanish(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In capitals, in another format, or in a folder that may not be read."""
    for number in range(5):
        write_subject(tmp_path, f"BraTS2021_0000{number}", number)
    for path in (tmp_path / "BraTS2021_00001").iterdir():
        path.rename(path.with_name(path.name.upper().replace("BRATS", "BraTS")))
    for path in (tmp_path / "BraTS2021_00002").iterdir():
        path.rename(path.with_name(path.name.replace(".nii.gz", ".nrrd")))
    for path in (tmp_path / "BraTS2021_00003").iterdir():  # beside files of another scan
        path.rename(tmp_path / "BraTS2021_00000" / path.name.replace(".nii.gz", ".mha"))
    (tmp_path / "BraTS2021_00003").rmdir()
    listed = os.scandir

    def refuse(place: str) -> Any:
        if Path(place).name == "BraTS2021_00004":
            raise PermissionError(errno.EACCES, "Permission denied", place)
        return listed(place)

    monkeypatch.setattr(os, "scandir", refuse)
    catalog = find_scans(tmp_path)
    assert [files.id for files in catalog.scans] == ["BraTS2021_00000", "BraTS2021_00001"]
    assert len(catalog.scans[1].channel_files) == 4
    assert set(catalog.problems) == {f"BraTS2021_0000{number}" for number in (2, 3, 4)}
    for number in (2, 3):
        assert "convert" in str(catalog.problems[f"BraTS2021_0000{number}"].remedy)
    assert "Permission denied" in catalog.problems["BraTS2021_00004"].found


def test_images_that_are_no_part_of_a_scan_are_left_out_by_name(tmp_path: Path) -> None:
    place = write_subject(tmp_path, OLD)
    (place / f"{OLD}_prediction.nii.gz").write_bytes(b"")
    catalog = find_scans(tmp_path)
    assert catalog.problems == {}
    assert catalog.left_out == {f"{OLD}_prediction.nii.gz": "named like no part of a scan"}


def test_a_folder_of_scans_to_be_validated_on(tmp_path: Path) -> None:
    write_subject(tmp_path / "training", OLD)
    place = write_subject(tmp_path / "validation", "BraTS2021_00999", 1)
    (place / "BraTS2021_00999_seg.nii.gz").unlink()
    catalog = find_scans(tmp_path)
    assert [files.id for files in catalog.scans] == [OLD]
    assert set(catalog.left_out) == {"BraTS2021_00999"}


def test_a_scan_without_labels_can_be_read_from_its_files(tmp_path: Path) -> None:
    place = write_subject(tmp_path, OLD)
    paths = [place / f"{OLD}_{part}.nii.gz" for part in PARTS_2021]
    files = Brats().find_one(paths[::-1], CHANNELS, CLASSES)
    assert files is not None
    assert files.channel_files == tuple(paths)
    assert files.label_file is None
    assert read_scan(files).labels_XYZ is None


def test_strange_folders_are_problems_of_their_own(tmp_path: Path) -> None:
    write_subject(tmp_path, OLD)
    (tmp_path / "empty").mkdir()
    (tmp_path / "other").mkdir()
    write_nifti(tmp_path / "other" / "brain.nii.gz", np.ones((2, 2, 2)), AFFINE)
    (tmp_path / "BraTS2021_00900").mkdir()
    (tmp_path / "BraTS2021_00900" / "IM000001").write_bytes(b"DICOM without an ending")
    (tmp_path / "documents").mkdir()
    (tmp_path / "documents" / "readme.pdf").write_bytes(b"")
    problems = find_scans(tmp_path).problems
    assert set(problems) == {"empty", "other", "BraTS2021_00900"}
    assert "IM000001" in problems["BraTS2021_00900"].found
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
