"""A store gives back any slices, fast and plain alike, and notices every kind of damage."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from fake_scans import write_subjects

from fewscan.storage.check import check
from fewscan.storage.errors import StoreError, StudyError
from fewscan.storage.manifest import Manifest
from fewscan.storage.prepare import prepare
from fewscan.storage.slices import SliceStore
from fewscan.storage.splits import ids_sha256, published_split
from fewscan.storage.stream import SliceStream

SIZE = 8


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("store")
    write_subjects(folder / "scans", 21)
    prepare(folder / "scans", folder / "s", SIZE, workers=1, validation=1)
    return folder / "s"


@pytest.fixture
def copy(path: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(path, tmp_path / "s"))


def test_what_a_store_says(path: Path) -> None:
    store = SliceStore.open(path)
    assert store.path == path
    assert store.size == SIZE
    assert store.protocol == 1
    assert len(store.fingerprint) == 64
    assert store.channels == ("flair", "t1", "t1ce", "t2")
    assert store.classes == ("necrotic_core", "oedema", "enhancing")
    assert store.manifest.skipped == {}
    assert list(store.subjects) == [f"BraTS2021_{number:05d}" for number in range(21)]
    assert store.split == published_split(store.subjects)
    assert not store.split.published


def test_the_grid_is_known_in_millimetres(path: Path) -> None:
    """24×20 voxels of 1 mm, 1.5 mm apart: the longer side fills 8 rows, the other 7 columns."""
    assert SliceStore.open(path).spacing_mm_ZHW("BraTS2021_00003") == (1.5, 3.0, 20 / 7)


def test_reading_equals_zarrs_reading(path: Path) -> None:
    store = SliceStore.open(path)
    images, labels = store.arrays()
    ids = list(store.subjects)[::-3]
    slices = store.read(ids)
    assert slices.ids == tuple(ids)
    assert slices.images_NCHW.dtype == np.float16
    assert slices.labels_NHW.dtype == np.uint8
    rows = np.array([store.subjects[id_].row for id_ in ids])[slices.subjects_N]
    for n, (row, z) in enumerate(zip(rows, slices.positions_N, strict=True)):
        assert np.array_equal(slices.images_NCHW[n], images[row, z])
        assert np.array_equal(slices.labels_NHW[n], labels[row, z])
    for k, id_ in enumerate(ids):
        positions = slices.positions_N[slices.subjects_N == k]
        assert positions.tolist() == list(store.subjects[id_].positions)


def test_healthy_slices_are_those_without_a_lesion(path: Path) -> None:
    store = SliceStore.open(path)
    ids = list(store.subjects)[:4]
    slices, healthy = store.read(ids), store.read(ids, "healthy")
    empty = ~slices.labels_NHW.any(axis=(1, 2))
    assert 0 < empty.sum() < len(empty)
    assert np.array_equal(healthy.images_NCHW, slices.images_NCHW[empty])
    assert np.array_equal(healthy.subjects_N, slices.subjects_N[empty])
    assert np.array_equal(healthy.positions_N, slices.positions_N[empty])
    assert not healthy.labels_NHW.any()


def test_one_subject_none_and_progress(path: Path) -> None:
    store = SliceStore.open(path)
    ids = list(store.subjects)[:3]
    steps: list[tuple[int, int]] = []
    slices = store.read(ids, progress=lambda *step: steps.append(step))
    assert steps == [(1, 3), (2, 3), (3, 3)]
    one = store.read_subject(ids[1])
    assert np.array_equal(one.images_NCHW, slices.images_NCHW[slices.subjects_N == 1])
    assert one.ids == (ids[1],)
    assert len(store.read([]).images_NCHW) == 0
    with pytest.raises(StoreError, match="no subject 'nobody'"):
        store.read(["nobody"])


def test_check_says_what_is_there(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = SliceStore.open(path)
    report = check(path)
    slices = store.read(list(store.subjects))
    assert report.fingerprint == store.fingerprint
    assert report.subjects == 21
    assert report.slices == len(slices.labels_NHW)
    hidden = sum(len(subject.hidden_lesions) for subject in store.subjects.values())
    assert report.healthy_slices == (~slices.labels_NHW.any(axis=(1, 2))).sum() - hidden
    assert hidden, "some lesions are smaller than these pixels"
    assert report.split == (15, 1, 5)
    oedema = [subject.lesion_mm3[1] for subject in store.subjects.values()]
    assert report.lesion_mm3["oedema"] == (min(oedema), sorted(oedema)[10], max(oedema))
    text = report.render()
    said = "the published rule on other subjects, at least 1 in validation and in the test"
    assert f"train 15, validation 1, test 5 ({said})" in text
    monkeypatch.setattr("fewscan.storage.splits.PUBLISHED_SUBJECTS", 21)
    monkeypatch.setattr("fewscan.storage.splits.PUBLISHED_SHA256", ids_sha256(list(store.subjects)))
    assert check(path).published
    assert "the published lists" in check(path).render()


def test_a_store_of_few_subjects_has_no_split(tmp_path: Path) -> None:
    write_subjects(tmp_path / "scans", 2)
    prepare(tmp_path / "scans", tmp_path / "s", SIZE, workers=1)
    report = check(tmp_path / "s")
    assert report.split is None
    assert "none: too few patients; `fewscan prepare SCANS STORE --validation N`" in report.render()
    with pytest.raises(StudyError, match="2 patients are too few for 5 in validation"):
        _ = SliceStore.open(tmp_path / "s").split


def flip(file: Path, at: float) -> None:
    data = bytearray(file.read_bytes())
    data[int(at * (len(data) - 1))] ^= 4
    file.write_bytes(data)


@pytest.mark.parametrize("at", [0.0, 0.3, 0.7, 1.0])
@pytest.mark.parametrize("shard", ["images/c.7.0.0.0.0", "labels/c.7.0.0.0"])
def test_a_flipped_byte_is_seen_by_every_reader(copy: Path, shard: str, at: float) -> None:
    flip(copy / shard, at)
    store = SliceStore.open(copy)
    for read in (lambda: store.read_subject("BraTS2021_00007"), lambda: check(copy)):
        with pytest.raises(StoreError, match="BraTS2021_00007") as caught:
            read()
        assert caught.value.where == str(copy / shard)
    array = store.arrays()[0 if shard.startswith("images") else 1]
    with pytest.raises(ValueError, match="checksum"):
        _ = array[7]
    assert len(store.read_subject("BraTS2021_00008").images_NCHW)


@pytest.mark.parametrize("shard", ["images/c.7.0.0.0.0", "labels/c.7.0.0.0"])
def test_a_lost_or_exchanged_shard_is_seen(copy: Path, shard: str) -> None:
    other = copy / shard.replace("c.7.", "c.8.")
    shutil.copy(other, copy / shard)
    with pytest.raises(StoreError, match="BraTS2021_00007"):
        check(copy)
    (copy / shard).unlink()
    with pytest.raises(StoreError, match="BraTS2021_00007"):
        SliceStore.open(copy).read_subject("BraTS2021_00007")


@pytest.mark.parametrize("array", ["images", "labels"])
def test_a_shard_in_the_place_of_another_is_seen_by_every_reader(copy: Path, array: str) -> None:
    """Whole and with its checksums, but of another subject: a copy that went wrong."""
    store = SliceStore.open(copy)
    one, other = (s for s in list(store.subjects.values())[:2] if s.lesion_pixels_NK.any())
    first, second = (sorted((copy / array).glob(f"c.{s.row}.*"))[0] for s in (one, other))
    spare = copy / "spare"
    for source, place in ((first, spare), (second, first), (spare, second)):
        source.rename(place)
    with pytest.raises(StoreError, match="it is another shard"):
        store.read_subject(one.id)
    with pytest.raises(StoreError, match="it is another shard"):
        SliceStream(store, [one.id]).gather(range(len(one.positions)))


def test_a_store_without_marks_is_read_as_ever(copy: Path) -> None:
    manifest = Manifest.read(copy / "manifest.json")
    for subject in manifest.subjects.values():
        assert all(subject.marks) or not subject.lesion_pixels_NK.any()
        object.__setattr__(subject, "marks", ("", ""))
    before = manifest.fingerprint
    manifest.write(copy / "manifest.json")
    assert "marks" not in (copy / "manifest.json").read_text()
    store = SliceStore.open(copy)
    assert store.fingerprint == before
    assert len(store.read(list(store.subjects)).images_NCHW)


@pytest.mark.parametrize("at", np.linspace(0, 1, 12))
def test_a_flipped_byte_in_the_manifest_is_seen(copy: Path, at: float) -> None:
    flip(copy / "manifest.json", at)
    with pytest.raises(StoreError) as caught:
        SliceStore.open(copy)
    assert caught.value.where == str(copy / "manifest.json")


@pytest.mark.parametrize("damage", ["", "{}", "[1]", "{"])
def test_damaged_array_metadata_is_seen_by_check(copy: Path, damage: str) -> None:
    (copy / "images" / "zarr.json").write_text(damage)
    with pytest.raises(StoreError):
        check(copy)


def test_a_store_of_another_protocol(copy: Path) -> None:
    manifest = copy / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"protocol": 1', '"protocol": 2'))
    with pytest.raises(StoreError, match="protocol 2") as caught:
        SliceStore.open(copy)
    assert "protocol 1" in (caught.value.expected or "")
    assert "new store" in (caught.value.remedy or "")


def test_no_store(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("hello")
    for name, found in [("none", "no such store"), ("folder", "no slice"), ("file", "no slice")]:
        with pytest.raises(StoreError, match=found) as caught:
            SliceStore.open(tmp_path / name)
        assert "fewscan prepare" in (caught.value.remedy or "")


def test_a_partial_folder_is_not_a_store(copy: Path) -> None:
    partial = copy.rename(copy.with_name("s.partial"))
    Manifest.read(partial / "manifest.json")
    (partial / "manifest.json").rename(partial / "parameters.json")
    for path in (copy, partial):
        with pytest.raises(StoreError, match="not finished") as caught:
            SliceStore.open(path)
        assert "goes on" in (caught.value.remedy or "")
