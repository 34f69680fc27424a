"""Many scans in, a folder of segmentations out; files given one by one; what is said of a scan."""

import gzip
import shutil
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from fake_nnunet import write_nnunet, write_simplest
from fake_scans import PARTS_2021, write_subject
from test_predict import Finished, finish_own_data, patient

from fewscan.harness import predict_all as module
from fewscan.harness.cli import main
from fewscan.harness.predict import ScanPredictor, predict
from fewscan.harness.predict_all import predict_all
from fewscan.storage.errors import ScanError
from fewscan.storage.find import find_new_scans, find_scan
from fewscan.storage.geometry import Turn, orientation
from fewscan.storage.nifti import read_nifti, write_nifti


@pytest.fixture(scope="module")
def simplest(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """On one channel and one class."""
    return finish_own_data(tmp_path_factory.mktemp("simplest"), write_simplest)


@pytest.fixture(scope="module")
def own_data(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """On an nnU-Net data set of 2 channels and 2 classes."""
    return finish_own_data(tmp_path_factory.mktemp("own data"), write_nnunet)


def run_of(study: Finished) -> Path:
    return study.folder("score", "multiclass").path


def images_of(study: Finished) -> list[Path]:
    return sorted((study.scans / "imagesTr").glob(f"{patient(study)}_*"))


def fewscan(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, [str(a) for a in arguments])


@pytest.mark.parametrize(
    "name", ["scan_7.nii.gz", "IXI_0123.nii.gz", "patient7_t2.nii.gz", "knee-t1c.nii.gz"]
)
def test_one_file_is_the_one_channel_whatever_its_name_looks_like(
    simplest: Finished, tmp_path: Path, name: str
) -> None:
    (image,) = images_of(simplest)
    shutil.copy(image, tmp_path / name)
    found = predict(run_of(simplest), tmp_path / name)
    assert np.array_equal(found.labels_XYZ, predict(run_of(simplest), image).labels_XYZ)
    assert found.assumed == ()


@pytest.mark.parametrize(
    "names",
    [
        ("IXI_0123.nii.gz", "IXI_0124.nii.gz"),
        ("a_0001.nii.gz", "b_0000.nii.gz"),
        ("a_t2.nii.gz", "a_t1.nii.gz"),
        ("a_0001.nii.gz", "b.nii.gz"),
    ],
)
def test_several_files_are_taken_in_their_order_unless_all_names_tell_another(
    own_data: Finished, tmp_path: Path, names: tuple[str, str]
) -> None:
    run, images = run_of(own_data), images_of(own_data)
    expected = predict(run, images)
    for image, name in zip(images, names, strict=True):
        shutil.copy(image, tmp_path / name)
    found = predict(run, [tmp_path / name for name in names])
    assert np.array_equal(found.maps_XYZK, expected.maps_XYZK)
    assert found.assumed == (f"files taken in the order given: T2 {names[0]}, CT {names[1]}",)
    by_number = predict(run, images[::-1])
    assert np.array_equal(by_number.maps_XYZK, expected.maps_XYZK)
    assert by_number.assumed == ()


def without_codes(path: Path) -> None:
    data = bytearray(gzip.decompress(path.read_bytes()))
    data[252:256] = bytes(4)
    path.write_bytes(gzip.compress(bytes(data)))


def test_a_scan_without_orientation_codes_is_not_turned_and_that_is_said(
    simplest: Finished, tmp_path: Path
) -> None:
    """Its voxels give what they give in the orientation of the training."""
    run, (image,) = run_of(simplest), images_of(simplest)
    copy = tmp_path / "scan.nii.gz"
    shutil.copy(image, copy)
    without_codes(copy)
    found = predict(run, copy)
    assert np.array_equal(found.maps_XYZK, predict(run, image).maps_XYZK)
    done = fewscan("predict", run, copy, tmp_path / "out.nii.gz")
    assert done.exit_code == 0
    assert "note: scan: its files do not say how the patient lies" in done.output
    written = read_nifti(tmp_path / "out.nii.gz")
    assert not written.grid.has_orientation
    assert np.array_equal(written.affine, read_nifti(copy).affine)


def test_what_was_turned_and_scaled_is_said(simplest: Finished, tmp_path: Path) -> None:
    run, (image,) = run_of(simplest), images_of(simplest)
    volume = read_nifti(image)
    own = orientation(volume.affine)
    stored = own[2] + own[0] + own[1]
    turn = Turn.between(own, stored)
    affine = turn.affine(volume.affine, volume.voxels_XYZ.shape)
    copy = tmp_path / "scan.nii.gz"
    write_nifti(copy, turn.there(volume.voxels_XYZ), np.diag([1e-3, 1e-3, 1e-3, 1]) @ affine)
    data = bytearray(gzip.decompress(copy.read_bytes()))
    data[123] = 1  # metres
    copy.write_bytes(gzip.compress(bytes(data)))
    straight, found = predict(run, image), predict(run, copy)
    assert straight.labels_XYZ is not None
    assert np.array_equal(found.labels_XYZ, turn.there(straight.labels_XYZ))
    assert found.volumes_ml == pytest.approx(straight.volumes_ml)
    assert found.assumed == (
        "its lengths are in metres, and were made millimetres",
        f"stored in the orientation {stored}: turned",
    )
    fewscan("predict", run, copy, tmp_path / "out.nii.gz")
    written = read_nifti(tmp_path / "out.nii.gz")
    assert written.grid.unit == "metre"
    np.testing.assert_allclose(written.affine, affine, rtol=1e-6)


@pytest.fixture
def scans(own_data: Finished, tmp_path: Path) -> Path:
    """Three cases as nnU-Net has those that are to be predicted."""
    folder = tmp_path / "imagesTs"
    folder.mkdir()
    for path in (own_data.scans / "imagesTr").iterdir():
        if path.name[:8] in ("case_001", "case_002", "case_003"):
            shutil.copy(path, folder)
    assert len(list(folder.iterdir())) == 6
    return folder


def test_a_folder_of_scans_goes_on_and_names_what_is_bad(
    own_data: Finished, scans: Path, tmp_path: Path
) -> None:
    run, out = run_of(own_data), tmp_path / "out"
    bad = scans / "case_002_0001.nii.gz"
    whole = bad.read_bytes()
    bad.write_bytes(whole[:200])
    done = fewscan("predict", run, scans, out, "--probabilities", tmp_path / "maps")
    assert done.exit_code == 1, done.output
    assert "2 segmentations" in done.output
    assert "skipped case_002: the file cannot be read" in done.output
    assert str(bad) in done.output
    written = {path.name: path.read_bytes() for path in out.iterdir()}
    assert set(written) == {"case_001.nii.gz", "case_003.nii.gz"}
    assert {path.name for path in (tmp_path / "maps").iterdir()} == set(written)
    alone = predict(run, sorted(scans.glob("case_003_*")))
    assert np.array_equal(read_nifti(out / "case_003.nii.gz").voxels_XYZ, alone.labels_XYZ)

    bad.write_bytes(whole)
    (out / "case_001.nii.gz").write_bytes(b"left alone")
    again = fewscan("predict", run, scans, out)
    assert again.exit_code == 0, again.output
    assert "1 segmentations; 2 were there already" in again.output
    assert (out / "case_001.nii.gz").read_bytes() == b"left alone"
    assert fewscan("predict", run, scans, out, "--overwrite").exit_code == 0
    assert (out / "case_001.nii.gz").read_bytes() == written["case_001.nii.gz"]


def test_the_model_is_loaded_once(
    own_data: Finished, scans: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = ScanPredictor.load(run_of(own_data))
    monkeypatch.setattr("fewscan.harness.predict.load_together", None)
    steps: list[tuple[int, int]] = []
    report = predict_all(loaded, scans, tmp_path / "out", progress=lambda *step: steps.append(step))
    assert report.written == ("case_001", "case_002", "case_003")
    assert steps == [(1, 3), (2, 3), (3, 3)]
    assert (report.there, report.problems, report.assumed) == ((), {}, {})


def test_a_whole_data_set_with_and_without_labels(own_data: Finished, tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    shutil.copytree(own_data.scans, raw)
    next((raw / "labelsTr").iterdir()).unlink()
    out = tmp_path / "out"
    assert fewscan("predict", run_of(own_data), raw, out).exit_code == 0
    assert len(list(out.iterdir())) == 6


def test_loose_files_are_scans_of_a_model_of_one_channel(
    simplest: Finished, tmp_path: Path
) -> None:
    (image,) = images_of(simplest)
    folder = tmp_path / "scans"
    folder.mkdir()
    for name in ("a.b.nii.gz", "IXI_0123.nii.gz", "IXI_0124.nii.gz", "c_0000.nii.gz"):
        shutil.copy(image, folder / name)
    catalog = find_new_scans(folder, ("T2",), ("tumour",))
    assert [files.id for files in catalog.scans] == ["IXI_0123", "IXI_0124", "a.b", "c"]
    assert catalog.problems == {}
    assert fewscan("predict", run_of(simplest), folder, tmp_path / "out").exit_code == 0
    assert len(list((tmp_path / "out").iterdir())) == 4


def test_loose_files_that_are_no_scans_of_the_model(own_data: Finished, scans: Path) -> None:
    (scans / "case_001_0001.nii.gz").unlink()
    shutil.copy(images_of(own_data)[0], scans / "strange.nii.gz")
    catalog = find_new_scans(scans, ("T2", "CT"), ("a", "b"))
    assert [files.id for files in catalog.scans] == ["case_002", "case_003"]
    assert set(catalog.problems) == {"case_001", "strange"}
    assert "1 channels" in catalog.problems["strange"].found


def test_an_id_that_is_no_file_name_stops_no_other(
    own_data: Finished, scans: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = module.write_prediction

    def too_long(prediction: object, path: Path, *more: Path) -> None:
        path = path.with_name("x" * 300) if "002" in path.name else path
        plain(prediction, path, *more)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "write_prediction", too_long)
    report = predict_all(ScanPredictor.load(run_of(own_data)), scans, tmp_path / "out")
    assert report.written == ("case_001", "case_003")
    assert list(report.problems) == ["case_002"]


def test_where_a_folder_of_segmentations_may_lie(
    own_data: Finished, scans: Path, tmp_path: Path
) -> None:
    loaded = ScanPredictor.load(run_of(own_data))
    for place in (scans, scans / "out"):
        with pytest.raises(ScanError, match="a folder among the scans"):
            predict_all(loaded, scans, place)
    two = fewscan("predict", run_of(own_data), scans, scans, tmp_path / "out")
    assert two.exit_code == 2
    assert "one folder or table" in two.output
    nothing = fewscan("predict", run_of(own_data), tmp_path / "none", tmp_path / "out")
    assert nothing.exit_code == 1
    assert "no such folder" in nothing.output


def test_a_table_of_scans(own_data: Finished, scans: Path, tmp_path: Path) -> None:
    rows = [f"{n},{scans}/case_00{n}_0000.nii.gz,{scans}/case_00{n}_0001.nii.gz" for n in (1, 2)]
    table = tmp_path / "scans.csv"
    table.write_text("\n".join(["id,T2,CT", *rows]))
    done = fewscan("predict", run_of(own_data), table, tmp_path / "out")
    assert done.exit_code == 0, done.output
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"1.nii.gz", "2.nii.gz"}
    expected = predict(run_of(own_data), sorted(scans.glob("case_001_*")))
    written = read_nifti(tmp_path / "out" / "1.nii.gz").voxels_XYZ
    assert np.array_equal(written, expected.labels_XYZ)


def test_labels_whose_meaning_is_not_clear_do_not_matter(tmp_path: Path) -> None:
    """BraTS-PED has had two; here every scan has the values that it has when it is given alone."""
    classes = ("necrotic_core", "oedema", "enhancing")
    old = write_subject(tmp_path / "scans", "BraTS2021_00001")
    new = write_subject(tmp_path / "scans", "BraTS-GLI-00002-000")
    child = tmp_path / "scans" / "BraTS-PED-00003-000"
    child.mkdir()
    for path in new.iterdir():
        shutil.copy(path, child / path.name.replace(new.name, child.name))
    catalog = find_new_scans(tmp_path / "scans", PARTS_2021, classes)
    assert [files.id for files in catalog.scans] == [new.name, child.name, old.name]
    for files in catalog.scans:
        alone = find_scan([files.channel_files[0].parent], PARTS_2021, classes)
        assert files.label_values == alone.label_values
        assert files.label_file is None
    assert catalog.scans[2].label_values == (1, 2, 4)
