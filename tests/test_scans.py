"""Scans are found under either naming; what cannot be used is named with its reason."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from fake_scans import AFFINE, fake_images, write_subject

from fewscan.storage.errors import ScanError
from fewscan.storage.find import find_scans
from fewscan.storage.nifti import read_nifti, write_nifti
from fewscan.storage.scans import Scan, read_scan

OLD, NEW = "BraTS2021_00007", "BraTS-GLI-00008-001"


def read_only_scan(folder: Path) -> Scan:
    (files,) = find_scans(folder).scans
    return read_scan(files)


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("subject", [OLD, NEW])
def test_both_namings_give_the_same_scan(tmp_path: Path, subject: str, suffix: str) -> None:
    write_subject(tmp_path, subject, seed=3, suffix=suffix)
    channels, classes = fake_images(seed=3)
    scan = read_only_scan(tmp_path)
    for read, written in zip(scan.channels_XYZ, channels, strict=True):
        assert np.array_equal(read, written)
    assert np.array_equal(scan.labels_XYZ, classes)
    assert scan.labels_XYZ.dtype == np.uint8
    assert np.array_equal(scan.affine, AFFINE)
    assert scan.spacing_mm == (1.0, 1.0, 1.5)


def test_nothing_to_find(tmp_path: Path) -> None:
    with pytest.raises(ScanError, match="no such folder") as caught:
        find_scans(tmp_path / "none")
    assert caught.value.where == str(tmp_path / "none")
    with pytest.raises(ScanError, match="no scans"):
        find_scans(tmp_path)


def rewrite(
    change: Callable[[np.ndarray], np.ndarray], part: str = "t2", affine: np.ndarray = AFFINE
) -> Callable[[Path], None]:
    def damage(place: Path) -> None:
        path = place / f"{OLD}_{part}.nii.gz"
        write_nifti(path, change(read_nifti(path).voxels_XYZ), affine)

    return damage


def with_one(value: float) -> Callable[[np.ndarray], np.ndarray]:
    def change(voxels_XYZ: np.ndarray) -> np.ndarray:
        changed = voxels_XYZ.astype(np.float32)
        changed[12, 10, 5] = value
        return changed

    return change


@pytest.mark.parametrize(
    ("damage", "found"),
    [
        (rewrite(lambda v: v[:-1]), r"shape \(23, 20, 10\)"),
        (rewrite(lambda v: v[..., :-1], "seg"), r"shape \(24, 20, 9\)"),
        (rewrite(lambda v: v, affine=np.diag([1.0, -1, 1.5, 1])), "affine"),
        (rewrite(lambda v: v, "seg", np.diag([-1.0, -1, 1, 1])), "affine"),
        (rewrite(lambda v: v * 0), "empty image"),
        (rewrite(with_one(np.nan)), "1 NaN or infinite"),
        (rewrite(with_one(np.inf)), "1 NaN or infinite"),
        (rewrite(with_one(-np.inf)), "1 NaN or infinite"),
        (rewrite(with_one(7), "seg"), r"label values \[7"),
        (rewrite(with_one(3), "seg"), r"label values \[3"),
        (rewrite(with_one(1.5), "seg"), r"label values \[1\.5\]"),
        (lambda place: (place / f"{OLD}_t1.nii.gz").write_bytes(b"hello"), "no NIfTI header"),
    ],
)
def test_a_scan_that_does_not_fit_together(
    tmp_path: Path, damage: Callable[[Path], None], found: str
) -> None:
    damage(write_subject(tmp_path, OLD))
    with pytest.raises(ScanError, match=found) as caught:
        read_only_scan(tmp_path)
    assert str(tmp_path / OLD) in caught.value.where
    assert caught.value.expected
    assert caught.value.remedy
