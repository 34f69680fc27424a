"""One scan under two ids is refused, whenever it comes, and leaves nothing behind."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from fake_nnunet import write_cases
from fake_scans import AFFINE, write_subject, write_subjects

from fewscan.storage.check import check
from fewscan.storage.nifti import read_nifti, write_nifti
from fewscan.storage.prepare import PrepareReport, prepare
from fewscan.storage.slices import SliceStore

SIZE = 12
FIRST, COPY = "BraTS2021_00001", "BraTS2021_00007"


def prepared(scans: Path, workers: int = 1) -> PrepareReport:
    return prepare(scans, scans.with_name("s"), SIZE, workers)


def require_refused(report: PrepareReport, copy: str, first: str) -> None:
    ((subject, reason),) = report.skipped
    assert subject == copy
    for part in (first, copy, f"{first}_flair.nii.gz", f"{copy}_flair.nii.gz", "remove one"):
        assert part in reason


@pytest.fixture
def scans(tmp_path: Path) -> Path:
    """Four scans, the ids 0, 1, 2, 3."""
    write_subjects(tmp_path / "scans", 4)
    return tmp_path / "scans"


def test_the_second_by_id_is_refused_and_named_with_the_first(scans: Path) -> None:
    alone = prepared(scans)
    store = scans.with_name("s")
    store.rename(scans.with_name("alone"))
    write_subject(scans, COPY, seed=1)
    report = prepared(scans)
    require_refused(report, COPY, FIRST)
    assert report.fingerprint == alone.fingerprint
    assert COPY not in SliceStore.open(store).subjects
    assert len(list((store / "images").glob("c.*"))) == 4
    assert len(list((store / "labels").glob("c.*"))) == 4
    check(store)


def test_it_is_refused_in_every_later_call_and_its_row_is_free(scans: Path) -> None:
    store = scans.with_name("s")
    prepared(scans)
    write_subject(scans, COPY, seed=1)
    for _ in range(2):
        require_refused(prepared(scans), COPY, FIRST)
        assert not (store / "records").exists()
    write_subject(scans, "BraTS2021_00009", seed=9)
    require_refused(prepared(scans), COPY, FIRST)
    shutil.rmtree(scans / COPY)
    write_subject(scans, "BraTS2021_00011", seed=11)
    assert prepared(scans).skipped == ()
    rows = [subject.row for subject in SliceStore.open(store).subjects.values()]
    assert rows == [0, 1, 2, 3, 5, 4]
    check(store)


def test_what_is_in_the_store_stays_though_the_new_one_comes_first_by_id(tmp_path: Path) -> None:
    write_subject(tmp_path / "scans", COPY, seed=1)
    prepared(tmp_path / "scans")
    write_subject(tmp_path / "scans", FIRST, seed=1)
    require_refused(prepared(tmp_path / "scans"), FIRST, COPY)
    assert list(SliceStore.open(tmp_path / "s").subjects) == [COPY]


def test_equal_images_with_other_labels_are_a_copy(scans: Path) -> None:
    labels = write_subject(scans, COPY, seed=1) / f"{COPY}_seg.nii.gz"
    write_nifti(labels, np.roll(read_nifti(labels).voxels_XYZ, 3, axis=0), AFFINE)
    require_refused(prepared(scans), COPY, FIRST)


def test_one_other_voxel_is_another_scan(scans: Path) -> None:
    image = write_subject(scans, COPY, seed=1) / f"{COPY}_t2.nii.gz"
    voxels = read_nifti(image).voxels_XYZ.copy()
    voxels[12, 10, 5] += 20
    write_nifti(image, voxels, AFFINE)
    report = prepared(scans)
    assert (report.subjects, report.skipped) == (5, ())


def test_equal_scans_of_one_patient_are_listed_by_check(tmp_path: Path) -> None:
    """They are in one part of any split; which of them is wrong, only a person can tell."""
    ids = ["sub-01_ses-1", "sub-01_ses-2", "sub-02_ses-1"]
    write_cases(tmp_path / "scans", ids)
    for path in (tmp_path / "scans").rglob("sub-01_ses-1*"):
        path.with_name(path.name.replace("ses-1", "ses-2")).write_bytes(path.read_bytes())
    report = prepared(tmp_path / "scans")
    assert (report.subjects, report.skipped) == (3, ())
    assert "equal slices    sub-01_ses-1, sub-01_ses-2" in check(tmp_path / "s").render()
