"""Valid headers are read as nibabel reads them; damaged ones are named, or do no harm."""

import gzip
import json
import shutil
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from fake_nnunet import write_simplest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fewscan.storage.errors import FewscanError, ScanError
from fewscan.storage.find import find_scans
from fewscan.storage.geometry import Turn, orientation
from fewscan.storage.nifti import read_grid, read_nifti, write_nifti, write_nifti_like
from fewscan.storage.prepare import prepare
from fewscan.storage.preprocess import preprocess
from fewscan.storage.scans import Scan
from fewscan.storage.slices import SliceStore

MILLIMETRES = {"unknown": 1, "meter": 1000, "mm": 1, "micron": 1e-3}
ONE_PLACE = settings(
    deadline=None,
    max_examples=120,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


@dataclass(frozen=True)
class Written:
    """A file as nibabel was asked to write it."""

    path: Path
    unit: str
    codes: tuple[int, int]
    """of sform and qform"""


def affines(draw: Any) -> np.ndarray:
    """Axes permuted, flipped, a little oblique; without shear, which no quaternion can say."""
    permuted = np.eye(3)[draw(st.permutations(range(3)))]
    signs = np.diag(draw(st.lists(st.sampled_from([-1.0, 1.0]), min_size=3, max_size=3)))
    angle = draw(st.sampled_from([0.0, 0.0, 0.1, -0.3]))
    oblique = np.eye(3)
    oblique[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    spacing = draw(st.lists(st.sampled_from([0.5, 1.0, 1.25, 4.0]), min_size=3, max_size=3))
    affine = np.eye(4)
    affine[:3, :3] = oblique @ permuted @ signs @ np.diag(spacing)
    affine[:3, 3] = draw(st.lists(st.integers(-90, 90), min_size=3, max_size=3))
    return affine


@st.composite
def written(draw: Any, folder: Path) -> Written:
    """A file whose voxels are not all alike."""
    shape = draw(st.tuples(*[st.integers(2, 6)] * 3))
    kinds = [np.uint8, np.int8, np.int16, np.uint16, np.int32, np.float32, np.float64]
    dtype = np.dtype(draw(st.sampled_from(kinds)))
    order = draw(st.sampled_from("<>"))
    values = np.arange(int(np.prod(shape))) % 97 + 1
    voxels = np.random.default_rng(draw(st.integers(0, 99))).permutation(values).reshape(shape)
    Header, Image = draw(
        st.sampled_from(
            [
                (nibabel.Nifti1Header, nibabel.Nifti1Image),
                (nibabel.Nifti2Header, nibabel.Nifti2Image),
            ]
        )
    )
    affine = affines(draw)
    header = Header(endianness=order)
    header.set_data_dtype(dtype.newbyteorder(order))
    image = Image(voxels.astype(dtype), affine, header)
    unit = draw(st.sampled_from(list(MILLIMETRES)))
    image.header.set_xyzt_units(unit)
    codes = draw(st.sampled_from([(1, 0), (0, 1), (2, 3), (4, 1), (0, 0)]))
    image.set_sform(affine, codes[0])
    image.set_qform(affine, codes[1])
    image.header.set_slope_inter(*draw(st.sampled_from([(1, 0), (2, 0), (0.5, -3), (None, None)])))
    path = folder / draw(st.sampled_from(["a.nii", "a.nii.gz"]))
    data = bytearray(image.to_bytes())
    path.write_bytes(gzip.compress(bytes(data)) if path.suffix == ".gz" else bytes(data))
    return Written(path, unit, codes)


@ONE_PLACE
@given(data=st.data())
def test_any_valid_header_is_read_as_nibabel_reads_it(data: st.DataObject, tmp_path: Path) -> None:
    made = data.draw(written(tmp_path))
    plain = nibabel.load(made.path)
    affine = np.diag([*[MILLIMETRES[made.unit]] * 3, 1]) @ plain.affine
    volume = read_nifti(made.path)
    np.testing.assert_array_equal(volume.voxels_XYZ, plain.get_fdata())
    np.testing.assert_allclose(volume.affine, affine, rtol=1e-12)
    for grid in (volume.grid, read_grid(made.path)):
        assert grid.shape == plain.shape
        assert grid.has_orientation == any(made.codes)
        np.testing.assert_allclose(grid.affine, affine, rtol=1e-12)
    write_nifti_like(made.path.with_name("b.nii.gz"), volume.voxels_XYZ, made.path)
    copy = nibabel.load(made.path.with_name("b.nii.gz"))
    np.testing.assert_array_equal(copy.affine, plain.affine)
    assert copy.header.get_xyzt_units() == plain.header.get_xyzt_units()
    assert (copy.header["sform_code"], copy.header["qform_code"]) == made.codes


@ONE_PLACE
@given(data=st.data(), towards=st.sampled_from(["LPS", "RAS", "PIR", "SAL"]))
def test_every_stored_pixel_is_the_voxel_that_nibabel_has_there(
    data: st.DataObject, towards: str, tmp_path: Path
) -> None:
    """Where nothing is resized: squares of isotropic voxels, turned to another orientation."""
    made = data.draw(written(tmp_path))
    plain = nibabel.load(made.path)
    volume = read_nifti(made.path)
    voxels_XYZ = np.abs(volume.voxels_XYZ) + 1
    own = orientation(volume.affine)
    cube = np.zeros((6, 6, 6))
    cube[tuple(slice(0, n) for n in voxels_XYZ.shape)] = voxels_XYZ
    affine = volume.affine.copy()
    affine[:3, :3] /= np.linalg.norm(affine[:3, :3], axis=0)
    scan = Scan((cube,), None, affine, (1, 1, 1))
    turned = scan.turned(scan.turn_to(towards))
    slices = preprocess(turned, 6)
    by_nibabel = nibabel.orientations.ornt_transform(
        nibabel.orientations.axcodes2ornt(own), nibabel.orientations.axcodes2ornt(towards)
    )
    expected = nibabel.orientations.apply_orientation(cube, by_nibabel)
    assert own == "".join(nibabel.aff2axcodes(plain.affine))
    for n, z in enumerate(range(slices.first, slices.first + len(slices.images_NCHW))):
        pixels = (expected[:, :, z] / slices.quantiles[0]).astype(np.float16)
        np.testing.assert_array_equal(slices.images_NCHW[n, 0], pixels)
    kept = slice(slices.first, slices.first + len(slices.images_NCHW))
    assert not np.delete(expected, kept, axis=2).any()


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set of two cases."""
    folder = tmp_path_factory.mktemp("raw")
    write_simplest(folder, 2)
    return folder


DAMAGED = ("imagesTr/case_001_0000.nii.gz", "labelsTr/case_001.nii.gz")


@ONE_PLACE
@given(
    name=st.sampled_from(DAMAGED),
    inside=st.booleans(),
    places=st.lists(st.tuples(st.integers(0, 351), st.integers(0, 255)), min_size=1, max_size=4),
)
def test_damaged_bytes_of_a_header_or_a_stream_are_named_or_change_nothing_else(
    raw: Path, tmp_path: Path, name: str, inside: bool, places: list[tuple[int, int]]
) -> None:
    """The other scan is in the store, the damaged one too, or it is skipped with its file named."""
    folder, store = tmp_path / "scans", tmp_path / "s"
    for path in (folder, store, store.with_name("s.partial")):
        shutil.rmtree(path, ignore_errors=True)
    shutil.copytree(raw, folder)
    path = folder / name
    data = bytearray(gzip.decompress(path.read_bytes()) if inside else path.read_bytes())
    for place, value in places:
        data[place % len(data)] = value
    path.write_bytes(gzip.compress(bytes(data), 1) if inside else bytes(data))
    report = prepare(folder, store, 16, workers=1)
    if report.subjects == 1:
        ((subject, reason),) = report.skipped
        assert subject == "case_001"
        assert any(f"{folder / damaged}" in reason for damaged in DAMAGED)
        assert "Traceback" not in reason
        assert len(reason) < 1500
    else:
        assert report.skipped == ()


@ONE_PLACE
@given(places=st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), min_size=1, max_size=5))
def test_damaged_bytes_of_a_description_are_named_or_harmless(
    raw: Path, tmp_path: Path, places: list[tuple[int, int]]
) -> None:
    folder = tmp_path / "scans"
    if not folder.exists():
        shutil.copytree(raw, folder)
    path = folder / "dataset.json"
    data = bytearray((raw / "dataset.json").read_bytes())
    for place, value in places:
        data[place % len(data)] = value
    path.write_bytes(bytes(data))
    try:
        catalog, refused = find_scans(folder), None
    except FewscanError as error:
        catalog, refused = None, error
    if refused is not None:
        assert str(folder) in str(refused.where)
        assert len(str(refused)) < 3000
        return
    assert catalog is not None
    told = {files.id for files in catalog.scans} | set(catalog.problems)
    assert {"case_000", "case_001"} <= told | set(catalog.left_out)


AFFINE = np.array([[-1.0, 0, 0, 10], [0, -2.0, 0, 20], [0, 0, 3.0, -5], [0, 0, 0, 1]])
VOXELS = np.random.default_rng(0).integers(1, 999, (7, 6, 5)).astype(np.int16)


def with_header(path: Path, voxels: np.ndarray = VOXELS, **fields: Any) -> Path:
    """A file of which some header fields are set to what nibabel would not write."""
    image = nibabel.Nifti1Image(voxels, AFFINE)
    image.set_qform(AFFINE, 1)
    data = bytearray(image.to_bytes())
    header = np.frombuffer(data, image.header.binaryblock and image.header._structarr.dtype, 1)
    header = header.copy()
    for name, value in fields.items():
        header[name] = value
    data[:348] = header.tobytes()
    path.write_bytes(bytes(data))
    return path


def test_a_quaternion_a_hair_too_long_is_a_turn_by_180_degrees(tmp_path: Path) -> None:
    quaternion = {"quatern_b": 0, "quatern_c": 0.70711, "quatern_d": 0.70711}
    path = with_header(tmp_path / "a.nii", sform_code=0, **quaternion)
    with pytest.raises(Exception, match="w2"):
        _ = nibabel.load(path).affine
    affine = read_nifti(path).affine
    expected = np.diag([-1.0, 0, 0, 1])
    expected[1, 2], expected[2, 1] = 3, 2
    pixdim = read_grid(path).spacing_mm
    assert pixdim == pytest.approx((1, 2, 3))
    np.testing.assert_allclose(np.abs(affine[:3, :3]), np.abs(expected[:3, :3]), atol=1e-6)
    longer = with_header(tmp_path / "b.nii", sform_code=0, quatern_b=0, quatern_c=1, quatern_d=1)
    with pytest.raises(ScanError, match="cannot be read") as caught:
        read_nifti(longer)
    assert caught.value.where == str(longer)


@pytest.mark.parametrize("intercept", [np.nan, np.inf])
def test_a_slope_without_an_intercept(tmp_path: Path, intercept: float) -> None:
    path = with_header(tmp_path / "a.nii", scl_slope=2, scl_inter=intercept)
    assert np.array_equal(read_nifti(path).voxels_XYZ, VOXELS * 2.0)


@pytest.mark.parametrize("slope", [0, np.nan, np.inf])
def test_no_slope(tmp_path: Path, slope: float) -> None:
    path = with_header(tmp_path / "a.nii", scl_slope=slope, scl_inter=5)
    assert np.array_equal(read_nifti(path).voxels_XYZ, VOXELS)


def test_an_offset_that_is_no_number_is_named(tmp_path: Path) -> None:
    path = with_header(tmp_path / "a.nii", vox_offset=np.nan)
    with pytest.raises(ScanError, match="broken NIfTI header") as caught:
        read_nifti(path)
    assert caught.value.where == str(path)


@pytest.mark.parametrize(("unit", "scale"), [(0, 1), (1, 1000), (2, 1), (3, 1e-3), (5, 1)])
def test_lengths_are_millimetres(tmp_path: Path, unit: int, scale: float) -> None:
    path = with_header(tmp_path / "a.nii", xyzt_units=unit | 8)
    np.testing.assert_allclose(read_nifti(path).affine[:3], AFFINE[:3] * scale)
    assert read_grid(path).spacing_mm == pytest.approx([scale, 2 * scale, 3 * scale])


def test_voxels_below_a_micron_and_a_flat_one(tmp_path: Path) -> None:
    small = np.diag([2e-4, 2e-4, 3e-4, 1])
    write_nifti(tmp_path / "a.nii", VOXELS, small)
    assert read_nifti(tmp_path / "a.nii").spacing_mm == pytest.approx((2e-4, 2e-4, 3e-4))
    flat = with_header(tmp_path / "b.nii", srow_x=[1, 1, 0, 0], srow_y=[1, 1, 0, 0])
    with pytest.raises(ScanError, match="not invertible"):
        read_nifti(flat)


@pytest.mark.parametrize("thickness", [0, 4])
def test_an_image_with_two_axes_is_one_slice(tmp_path: Path, thickness: float) -> None:
    image = nibabel.Nifti1Image(VOXELS[:, :, 0], AFFINE)
    image.set_qform(AFFINE, 1)
    image.set_sform(None, 0)
    data = bytearray(image.to_bytes())
    data[88:92] = struct.pack("<f", thickness)  # pixdim[3]
    (tmp_path / "a.nii").write_bytes(data)
    volume = read_nifti(tmp_path / "a.nii")
    assert volume.voxels_XYZ.shape == read_grid(tmp_path / "a.nii").shape == (7, 6, 1)
    assert volume.spacing_mm == pytest.approx((1, 2, thickness or 1))
    write_nifti_like(tmp_path / "b.nii", volume.voxels_XYZ, tmp_path / "a.nii")
    assert nibabel.load(tmp_path / "b.nii").shape == (7, 6)
    maps = np.stack([volume.voxels_XYZ] * 2, axis=-1)
    write_nifti_like(tmp_path / "c.nii", maps, tmp_path / "a.nii")
    assert nibabel.load(tmp_path / "c.nii").shape == (7, 6, 1, 2)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_images_of_one_slice_become_slices(tmp_path: Path, axis: int) -> None:
    raw, flat = tmp_path / "raw", tmp_path / "flat"
    for folder in (raw, flat):
        write_simplest(folder, 3)
    for n in range(3):
        for name in (f"imagesTr/case_{n:03d}_0000.nii.gz", f"labelsTr/case_{n:03d}.nii.gz"):
            volume = read_nifti(raw / name)
            middle = volume.voxels_XYZ.shape[2] // 2
            slice_HW = volume.voxels_XYZ[:, :, middle]
            write_nifti(raw / name, np.expand_dims(slice_HW, axis), np.eye(4))
            nibabel.save(nibabel.Nifti1Image(slice_HW, np.eye(4)), flat / name)
    prepare(raw, tmp_path / "s", 16, workers=1)
    store = SliceStore.open(tmp_path / "s")
    assert store.manifest.parameters.axis == axis
    assert [len(subject.positions) for subject in store.subjects.values()] == [1, 1, 1]
    prepare(flat, tmp_path / "t", 16, workers=1)
    for id_ in store.subjects:
        one, other = store.read_subject(id_), SliceStore.open(tmp_path / "t").read_subject(id_)
        assert np.array_equal(one.images_NCHW, other.images_NCHW)
        assert np.array_equal(one.labels_NHW, other.labels_NHW)


def test_whatever_is_raised_names_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = with_header(tmp_path / "a.nii")
    for error in (PermissionError(13, "Permission denied"), OverflowError("x" * 5000)):

        def fail(self: Path, error: Exception = error) -> bytes:
            raise error

        monkeypatch.setattr(Path, "read_bytes", fail)
        with pytest.raises(ScanError, match="cannot be read") as caught:
            read_nifti(path)
        assert caught.value.where == str(path)
        assert len(str(caught.value)) < 500


def test_turns_agree_with_shapes() -> None:
    turn = Turn.between("SRA", "LPS")
    assert turn.shape((2, 3, 4)) == turn.there(np.zeros((2, 3, 4))).shape == (3, 4, 2)
    assert Turn.between("LPS", "LPS").changes_nothing
    assert not turn.changes_nothing
    assert not Turn.between("LPS", "RPS").changes_nothing


def test_descriptions_are_what_the_fuzz_damages(raw: Path) -> None:
    assert set(json.loads((raw / "dataset.json").read_text())) >= {"channel_names", "labels"}
    assert [files.id for files in find_scans(raw).scans] == ["case_000", "case_001"]
