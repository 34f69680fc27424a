"""NIfTI files survive a round trip, agree with nibabel, and damaged ones are named."""

import gzip
from pathlib import Path

import nibabel
import numpy as np
import pytest

from fewscan.storage.errors import ScanError
from fewscan.storage.nifti import read_grid, read_nifti, write_nifti

AFFINE = np.array([[-1.0, 0, 0, 10], [0, -2.0, 0, 20], [0, 0, 3.0, -5], [0, 0, 0, 1]])


@pytest.fixture
def voxels_XYZ() -> np.ndarray:
    return np.random.default_rng(0).integers(-9, 999, (7, 6, 5)).astype(np.int16)


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
@pytest.mark.parametrize("dtype", [np.int16, np.uint8, np.float32, np.float64])
def test_what_is_written_is_read(
    tmp_path: Path, voxels_XYZ: np.ndarray, name: str, dtype: type
) -> None:
    write_nifti(tmp_path / name, voxels_XYZ.astype(dtype), AFFINE)
    volume = read_nifti(tmp_path / name)
    assert volume.voxels_XYZ.dtype == dtype
    assert np.array_equal(volume.voxels_XYZ, voxels_XYZ.astype(dtype))
    assert np.array_equal(volume.affine, AFFINE)
    assert volume.spacing_mm == (1.0, 2.0, 3.0)
    assert read_grid(tmp_path / name).shape == volume.voxels_XYZ.shape
    assert nibabel.load(tmp_path / name).get_fdata().tolist() == volume.voxels_XYZ.tolist()


def test_the_bytes_depend_on_the_arguments_alone(tmp_path: Path, voxels_XYZ: np.ndarray) -> None:
    for name in ("a.nii.gz", "b.nii.gz"):
        write_nifti(tmp_path / name, voxels_XYZ, AFFINE)
    data = (tmp_path / "a.nii.gz").read_bytes()
    assert data == (tmp_path / "b.nii.gz").read_bytes()
    assert data[3:8] == bytes(5), "neither flags (a name) nor a time in the gzip header"
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["a.nii.gz", "b.nii.gz"]


def test_scaled_big_endian_and_nifti2_files_read_as_nibabel_reads_them(
    tmp_path: Path, voxels_XYZ: np.ndarray
) -> None:
    scaled = nibabel.Nifti1Image(voxels_XYZ, AFFINE)
    scaled.header.set_slope_inter(0.5, 3)
    swapped = nibabel.Nifti1Image(voxels_XYZ, AFFINE, nibabel.Nifti1Header(endianness=">"))
    second = nibabel.Nifti2Image(voxels_XYZ[..., None], AFFINE)
    for image in (scaled, swapped, second):
        nibabel.save(image, tmp_path / "a.nii.gz")
        plain = np.asarray(nibabel.load(tmp_path / "a.nii.gz").get_fdata()).reshape(7, 6, 5)
        volume = read_nifti(tmp_path / "a.nii.gz")
        assert volume.voxels_XYZ.dtype.isnative
        assert np.array_equal(volume.voxels_XYZ, plain)
        assert read_grid(tmp_path / "a.nii.gz").shape == (7, 6, 5)


def damaged_files(whole: bytes) -> dict[str, bytes]:
    plain = gzip.decompress(whole)
    return {
        "empty": b"",
        "a web page": b"<html>404</html>",
        "gzip cut short": whole[: len(whole) // 2],
        "gzip without its end": whole[:-3],
        "gzip with a flipped byte": whole[:-60]
        + bytes([byte ^ 255 for byte in whole[-60:-59]])
        + whole[-59:],
        "gzip of something else": gzip.compress(b"hello" * 200),
        "voxels cut short": plain[:-1],
        "header cut short": plain[:200],
        "rubbish in the header": plain[:40] + b"\xff" * 300 + plain[340:],
    }


@pytest.mark.parametrize("damage", damaged_files(gzip.compress(bytes(99))))
def test_damaged_file(tmp_path: Path, voxels_XYZ: np.ndarray, damage: str) -> None:
    path = tmp_path / "a.nii.gz"
    write_nifti(path, voxels_XYZ, AFFINE)
    path.write_bytes(damaged_files(path.read_bytes())[damage])
    with pytest.raises(ScanError) as caught:
        read_nifti(path)
    assert caught.value.where == str(path)
    assert caught.value.remedy or caught.value.expected


def test_wrong_dimensions_and_affine(tmp_path: Path, voxels_XYZ: np.ndarray) -> None:
    nibabel.save(nibabel.Nifti1Image(np.zeros((4, 4, 4, 2), np.int16), AFFINE), tmp_path / "a.nii")
    with pytest.raises(ScanError, match=r"\(4, 4, 4, 2\)"):
        read_nifti(tmp_path / "a.nii")
    image = nibabel.Nifti1Image(voxels_XYZ, AFFINE)
    image.header["srow_x"] = 0
    (tmp_path / "b.nii").write_bytes(image.header.binaryblock + bytes(1000))
    with pytest.raises(ScanError, match="not invertible"):
        read_nifti(tmp_path / "b.nii")


def test_missing_file_and_wrong_name(tmp_path: Path, voxels_XYZ: np.ndarray) -> None:
    with pytest.raises(ScanError, match="cannot be read"):
        read_nifti(tmp_path / "none.nii.gz")
    with pytest.raises(ScanError, match="cannot be read"):
        read_grid(tmp_path / "none.nii.gz")
    (tmp_path / "short.nii.gz").write_bytes(b"\x1f\x8b")
    with pytest.raises(ScanError, match="cannot be read"):
        read_grid(tmp_path / "short.nii.gz")
    with pytest.raises(ScanError, match=r"\.png"):
        write_nifti(tmp_path / "a.png", voxels_XYZ, AFFINE)


def test_several_gzip_streams_in_a_file_are_one_scan(
    tmp_path: Path, voxels_XYZ: np.ndarray
) -> None:
    path = tmp_path / "a.nii.gz"
    write_nifti(path, voxels_XYZ, AFFINE)
    data = gzip.decompress(path.read_bytes())
    path.write_bytes(gzip.compress(data[:500]) + gzip.compress(data[500:]))
    assert np.array_equal(read_nifti(path).voxels_XYZ, voxels_XYZ)


def test_a_header_with_an_extension_is_read(tmp_path: Path, voxels_XYZ: np.ndarray) -> None:
    image = nibabel.Nifti1Image(voxels_XYZ, AFFINE)
    image.header.extensions.append(nibabel.nifti1.Nifti1Extension("comment", b"hello" * 300))
    nibabel.save(image, tmp_path / "a.nii.gz")
    assert np.array_equal(read_nifti(tmp_path / "a.nii.gz").voxels_XYZ, voxels_XYZ)
    assert read_grid(tmp_path / "a.nii.gz").shape == voxels_XYZ.shape
