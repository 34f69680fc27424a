import errno
import json
from pathlib import Path

import numpy as np
import pytest
from scipy.ndimage import binary_erosion

from fewscan.storage.errors import DiskFullError, ScanError
from fewscan.storage.find import find_scans
from fewscan.storage.nifti import read_nifti
from fewscan.storage.phantom import as_brats, write
from fewscan.storage.phantom.draw import AFFINE, Phantom, make_phantom
from fewscan.storage.phantom.write import write_phantoms

KINDS = ("flair", "t1", "t1ce", "t2", "seg")
GOLDEN_COUNTS = [[8838808, 24439, 51606, 0, 13147], [8788197, 18797, 113130, 0, 7876]]


@pytest.fixture(scope="module")
def phantoms() -> list[Phantom]:
    return [make_phantom(index, seed=0) for index in range(6)]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("phantoms") / "scans"
    write_phantoms(out, subjects=2, seed=3, workers=2)
    return out


def volume_path(out: Path, index: int, kind: str) -> Path:
    return out / f"BraTS2021_{index:05d}" / f"BraTS2021_{index:05d}_{kind}.nii.gz"


def bytes_of(out: Path, index: int) -> list[bytes]:
    return [volume_path(out, index, kind).read_bytes() for kind in KINDS]


def test_shape_and_type_are_those_of_brats(phantoms: list[Phantom]) -> None:
    for subject in phantoms:
        assert subject.images_MXYZ.shape == (4, 240, 240, 155)
        assert subject.images_MXYZ.dtype == np.int16
        assert subject.labels_XYZ.shape == (240, 240, 155)
        assert set(np.unique(subject.labels_XYZ)) <= {0, 1, 2, 4}


def test_all_labels_occur_and_some_tumours_do_not_enhance(phantoms: list[Phantom]) -> None:
    enhancing = [(subject.labels_XYZ == 4).any() for subject in phantoms]
    assert any(enhancing)
    assert not all(enhancing)
    assert all((subject.labels_XYZ == 2).any() for subject in phantoms)
    assert any((subject.labels_XYZ == 1).any() for subject in phantoms)


def test_skull_stripped_in_all_modalities_alike(phantoms: list[Phantom]) -> None:
    for subject in phantoms:
        brain_XYZ = subject.images_MXYZ[0] > 0
        assert 1.0e6 < brain_XYZ.sum() < 1.8e6  # mm³, as adults have
        assert ((subject.images_MXYZ > 0) == brain_XYZ).all()
        assert subject.images_MXYZ.min() == 0
        assert brain_XYZ[subject.labels_XYZ > 0].all()


def test_intensities_are_of_the_size_of_real_ones(phantoms: list[Phantom]) -> None:
    for subject in phantoms[:2]:
        for image_XYZ in subject.images_MXYZ[..., ::3]:
            assert 150 < np.quantile(image_XYZ[image_XYZ > 0], 0.99) < 8000


def test_a_quarter_of_the_slices_is_free_of_tumour(phantoms: list[Phantom]) -> None:
    for subject in phantoms:
        brain_Z = (subject.images_MXYZ[0] > 0).any(axis=(0, 1))
        tumour_Z = (subject.labels_XYZ > 0).any(axis=(0, 1))
        assert (brain_Z & ~tumour_Z).sum() >= 0.25 * brain_Z.sum()


def test_lesions_show_in_their_modalities(phantoms: list[Phantom]) -> None:
    for subject in phantoms:
        flair, _, t1ce, t2 = subject.images_MXYZ[..., ::3]
        brain, labels = flair > 0, subject.labels_XYZ[..., ::3]
        assert np.median(flair[labels == 2]) > np.median(flair[brain])
        assert np.median(t2[labels == 2]) > np.median(t2[brain])
        if (labels == 4).any():
            assert np.median(t1ce[labels == 4]) > np.median(t1ce[brain])


def test_what_skull_stripping_left_is_bright_where_the_brain_ends(phantoms: list[Phantom]) -> None:
    for subject in phantoms[:2]:
        flair_XYZ = subject.images_MXYZ[0]
        brain_XYZ = flair_XYZ > 0
        within_XYZ = binary_erosion(brain_XYZ)
        edge = flair_XYZ[brain_XYZ & ~within_XYZ & (subject.labels_XYZ == 0)]
        assert np.median(edge) > 1.3 * np.median(flair_XYZ[within_XYZ])


def test_a_threshold_on_flair_is_not_enough(phantoms: list[Phantom]) -> None:
    """The best threshold, on scans scaled by their 99th percentile, stays below a Dice of 0.6."""
    lesion, healthy = np.zeros(2001), np.zeros(2001)
    for subject in phantoms:
        flair, labels = subject.images_MXYZ[0, ..., ::2], subject.labels_XYZ[..., ::2]
        inside = flair > 0
        scaled = flair[inside] / np.quantile(flair[inside], 0.99)
        level = np.minimum(scaled * 1000, 2000).astype(int)
        lesion += np.bincount(level[labels[inside] > 0], minlength=2001)
        healthy += np.bincount(level[labels[inside] == 0], minlength=2001)
    found, wrong = lesion[::-1].cumsum(), healthy[::-1].cumsum()
    dice = 2 * found / (found + wrong + lesion.sum())
    assert 0.1 < dice.max() < 0.6


def test_subjects_differ(phantoms: list[Phantom]) -> None:
    volumes_ml = [(subject.labels_XYZ > 0).sum() / 1000 for subject in phantoms]
    assert len(set(volumes_ml)) == len(volumes_ml)
    assert max(volumes_ml) > 4 * min(volumes_ml)
    assert not np.array_equal(phantoms[0].images_MXYZ, make_phantom(0, seed=1).images_MXYZ)


def test_this_generator_draws_what_it_drew(phantoms: list[Phantom]) -> None:
    """If this fails on purpose, raise `write.GENERATOR`: folders begun before must not go on."""
    counts = [np.bincount(subject.labels_XYZ.ravel(), minlength=5) for subject in phantoms[:2]]
    assert write.GENERATOR == 2
    np.testing.assert_allclose(counts, GOLDEN_COUNTS, rtol=1e-3)


def test_files_hold_the_phantom(written: Path) -> None:
    subject = make_phantom(1, seed=3)
    volumes = [*subject.images_MXYZ, subject.labels_XYZ]
    for kind, volume_XYZ in zip(KINDS, volumes, strict=True):
        file = read_nifti(volume_path(written, 1, kind))
        assert file.voxels_XYZ.dtype == volume_XYZ.dtype
        np.testing.assert_array_equal(file.voxels_XYZ, volume_XYZ)
        np.testing.assert_array_equal(file.affine, AFFINE)
        assert file.spacing_mm == (1, 1, 1)


def test_bytes_depend_on_seed_and_number_alone(written: Path, tmp_path: Path) -> None:
    write_phantoms(tmp_path, subjects=1, seed=3, workers=1)
    assert bytes_of(tmp_path, 0) == bytes_of(written, 0)
    assert bytes_of(written, 0) != bytes_of(written, 1)


def test_nothing_but_subjects_and_the_record_is_left(written: Path) -> None:
    names = sorted(path.name for path in written.iterdir())
    assert names == [".phantom.json", "BraTS2021_00000", "BraTS2021_00001"]
    assert all(len(list(folder.iterdir())) == 5 for folder in written.glob("BraTS*"))


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Phantoms that cost nothing; the list collects the subjects drawn."""
    drawn: list[int] = []

    def draw(index: int, seed: int) -> Phantom:
        drawn.append(index)
        return Phantom(np.full((4, 2, 2, 2), index, np.int16), np.zeros((2, 2, 2), np.uint8))

    monkeypatch.setattr(write, "make_phantom", draw)
    return drawn


def test_a_killed_run_goes_on(tmp_path: Path, quick: list[int]) -> None:
    write_phantoms(tmp_path, subjects=3, workers=1)
    volume_path(tmp_path, 1, "t2").unlink()
    unfinished = tmp_path / ".BraTS2021_00003.partial"
    unfinished.mkdir()
    (unfinished / "BraTS2021_00003_flair.nii.gz").write_bytes(b"half")
    quick.clear()
    told: list[int] = []
    write_phantoms(tmp_path, subjects=4, workers=1, progress=told.append)
    assert quick == [1, 3]
    assert told == [2, 3, 4]
    assert volume_path(tmp_path, 1, "t2").is_file()
    assert not unfinished.exists()
    assert read_nifti(volume_path(tmp_path, 3, "flair")).voxels_XYZ.max() == 3


@pytest.mark.usefixtures("quick")
def test_phantoms_of_another_seed_or_generator_are_refused(tmp_path: Path) -> None:
    write_phantoms(tmp_path, subjects=1, seed=1, workers=1)
    with pytest.raises(ScanError, match="remedy: choose another folder"):
        write_phantoms(tmp_path, subjects=1, seed=2, workers=1)
    (tmp_path / ".phantom.json").write_text(json.dumps({"generator": 0, "seed": 1}))
    with pytest.raises(ScanError, match="'generator': 0"):
        write_phantoms(tmp_path, subjects=1, seed=1, workers=1)


def test_a_folder_of_an_earlier_version_goes_on(tmp_path: Path, quick: list[int]) -> None:
    """Its record was in view."""
    write_phantoms(tmp_path, subjects=1, seed=1, workers=1)
    (tmp_path / ".phantom.json").rename(tmp_path / "phantom.json")
    with pytest.raises(ScanError, match="'seed': 1"):
        write_phantoms(tmp_path, subjects=2, seed=2, workers=1)
    quick.clear()
    write_phantoms(tmp_path, subjects=2, seed=1, workers=1)
    assert quick == [1]
    assert not (tmp_path / "phantom.json").exists()


def test_nothing_of_a_folder_of_phantoms_is_left_out(written: Path, tmp_path: Path) -> None:
    """Once `prepare` told of its record: "left out: no images: phantom.json"."""
    write_phantoms(tmp_path, subjects=1, workers=1, form="nnunet")
    for folder in (written, tmp_path):
        assert not find_scans(folder).left_out


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(
    "other", ["BraTS2021_00000/BraTS2021_00000_t1.nii.gz", "phantom.json", ".phantom.json"]
)
def test_a_folder_of_other_things_is_refused_and_kept(tmp_path: Path, other: str) -> None:
    path = tmp_path / other
    path.parent.mkdir(exist_ok=True)
    path.write_text("precious")
    with pytest.raises(ScanError, match="other things"):
        write_phantoms(tmp_path, subjects=1, workers=1)
    assert path.read_text() == "precious"


def test_a_file_in_the_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "scans").write_text("precious")
    with pytest.raises(ScanError, match="other things"):
        write_phantoms(tmp_path / "scans", subjects=1)


@pytest.mark.parametrize(("subjects", "seed"), [(0, 0), (1, -1)])
def test_numbers_without_sense_are_refused(tmp_path: Path, subjects: int, seed: int) -> None:
    with pytest.raises(ScanError, match="at least one subject"):
        write_phantoms(tmp_path / "scans", subjects, seed)
    assert not (tmp_path / "scans").exists()


@pytest.mark.usefixtures("quick")
def test_a_full_disk_leaves_no_half_subject(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, *_: object) -> None:
        path.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(as_brats, "write_nifti", full)
    with pytest.raises(DiskFullError):
        write_phantoms(tmp_path, subjects=1, workers=1)
    assert [path.name for path in tmp_path.iterdir()] == [".phantom.json"]
