"""Scans are found under either naming; what cannot be used is named with its reason."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from fake_scans import AFFINE, fake_images, write_subject

from fewscan.storage.errors import DiskFullError, ScanError
from fewscan.storage.find import find_scans
from fewscan.storage.nifti import read_nifti, write_nifti
from fewscan.storage.scans import Assumptions, Scan, read_scan, told_of_scan

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


def shifted(millimetres: float) -> np.ndarray:
    affine = AFFINE.copy()
    affine[0, 3] += millimetres
    return affine


def rotated(angle: float) -> np.ndarray:
    """About the first voxel; the last one moves by 22 voxels times the angle."""
    turn = np.eye(4)
    turn[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    return AFFINE @ turn


def sheared_slice() -> np.ndarray:
    """Only the farthest slice is away from where it should be."""
    affine = AFFINE.copy()
    affine[0, 2] += 0.06
    return affine


@pytest.mark.parametrize("part", ["seg", "t1"])
@pytest.mark.parametrize(
    "affine", [shifted(9e-4), shifted(2e-3), shifted(0.049), rotated(1e-3), rotated(-0.02)]
)
def test_a_grid_that_is_off_by_rounding_is_the_same_grid(
    tmp_path: Path, part: str, affine: np.ndarray
) -> None:
    rewrite(lambda v: v, part, affine)(write_subject(tmp_path, OLD))
    assert np.array_equal(read_only_scan(tmp_path).affine, AFFINE)


@pytest.mark.parametrize("affine", [shifted(0.06), shifted(1), rotated(0.03), sheared_slice()])
def test_a_grid_that_is_off_by_more_is_another(tmp_path: Path, affine: np.ndarray) -> None:
    rewrite(lambda v: v, "seg", affine)(write_subject(tmp_path, OLD))
    with pytest.raises(ScanError, match=r"voxels up to .* mm from those of") as caught:
        read_only_scan(tmp_path)
    assert "resample" in str(caught.value.remedy)
    assert "copy the header" in str(caught.value.remedy)


def test_the_tolerance_is_of_the_voxel(tmp_path: Path) -> None:
    small = AFFINE @ np.diag([1e-3, 1e-3, 1e-3, 1])
    off = small.copy()
    off[0, 3] += 9e-4
    place = write_subject(tmp_path, OLD)
    for part in ("flair", "t1", "t1ce", "t2"):
        rewrite(lambda v: v, part, small)(place)
    rewrite(lambda v: v, "seg", off)(place)
    with pytest.raises(ScanError, match="voxels up to"):
        read_only_scan(tmp_path)


def test_a_label_whose_header_says_nothing_wants_that_of_its_image(tmp_path: Path) -> None:
    rewrite(lambda v: v, "seg", np.eye(4))(write_subject(tmp_path, OLD))
    with pytest.raises(ScanError) as caught:
        read_only_scan(tmp_path)
    remedy = str(caught.value.remedy)
    assert remedy.startswith("same shape")
    assert f"copy the header of {OLD}_flair.nii.gz onto this file" in remedy
    assert "resample" not in remedy


def off_by(rounding: float) -> Callable[[np.ndarray], np.ndarray]:
    def change(voxels_XYZ: np.ndarray) -> np.ndarray:
        draw = np.random.default_rng(0).uniform(-rounding, rounding, voxels_XYZ.shape)
        return (voxels_XYZ + draw).astype(np.float32)

    return change


def test_label_values_that_are_off_by_rounding_are_whole(tmp_path: Path) -> None:
    place = write_subject(tmp_path, OLD)
    expected = read_only_scan(tmp_path).labels_XYZ
    rewrite(off_by(9e-4), "seg")(place)
    assert np.array_equal(read_only_scan(tmp_path).labels_XYZ, expected)


def many_values(voxels_XYZ: np.ndarray) -> np.ndarray:
    return np.arange(voxels_XYZ.size).reshape(voxels_XYZ.shape) % 999


@pytest.mark.parametrize("change", [off_by(0.01), many_values])
def test_many_label_values_are_named_in_few_words(
    tmp_path: Path, change: Callable[[np.ndarray], np.ndarray]
) -> None:
    rewrite(lambda v: change(v).astype(np.float32), "seg")(write_subject(tmp_path, OLD))
    with pytest.raises(ScanError, match=r"label values \[.*, …\], \d+ of them") as caught:
        read_only_scan(tmp_path)
    assert len(str(caught.value)) < 800


def test_more_classes_than_a_byte_can_tell_apart(tmp_path: Path) -> None:
    write_subject(tmp_path, OLD)
    (files,) = find_scans(tmp_path).scans
    assert read_scan(replace(files, label_values=tuple(range(1, 255)))).class_count == 254
    with pytest.raises(ScanError, match="255 classes") as caught:
        read_scan(replace(files, label_values=tuple(range(1, 256))))
    assert caught.value.where == str(files.label_file)


def test_what_is_raised_without_a_place_gets_the_scans(tmp_path: Path) -> None:
    write_subject(tmp_path, OLD)
    (files,) = find_scans(tmp_path).scans
    with pytest.raises(ScanError, match="no contrast") as caught, told_of_scan(files):
        raise ScanError("no contrast", expected="some", remedy="leave it out")
    assert str(files.channel_files[0]) in str(caught.value.where)
    assert (caught.value.expected, caught.value.remedy) == ("some", "leave it out")
    with pytest.raises(DiskFullError), told_of_scan(files):
        raise DiskFullError("full")


def test_a_scan_is_turned_with_its_labels(tmp_path: Path) -> None:
    write_subject(tmp_path, OLD)
    scan = read_only_scan(tmp_path)
    turned = scan.turned(scan.turn_to("SRA"))
    assert turned.spacing_mm == (1.5, 1.0, 1.0)
    assert turned.assumed.turned_from == "LPS"
    assert scan.labels_XYZ is not None
    assert turned.labels_XYZ is not None
    x, y, z = np.argwhere(scan.labels_XYZ)[0]
    place = np.linalg.solve(turned.affine, scan.affine @ [x, y, z, 1]).round().astype(int)
    assert turned.labels_XYZ[tuple(place[:3])] == scan.labels_XYZ[x, y, z]
    assert turned.channels_XYZ[2][tuple(place[:3])] == scan.channels_XYZ[2][x, y, z]
    unknown = replace(scan, assumed=Assumptions(has_orientation=False))
    assert unknown.turned(unknown.turn_to("SRA")) is unknown
