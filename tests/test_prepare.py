"""Scans become a store: the same one wherever and however often the work was interrupted."""

import errno
import fcntl
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from fake_scans import AFFINE, write_subject, write_subjects

from fewscan.storage import atomic, prepare_scan
from fewscan.storage.check import check
from fewscan.storage.errors import DiskFullError, FewscanError, ScanError, StoreError
from fewscan.storage.find import find_scans
from fewscan.storage.manifest import Manifest, Parameters, StoreFolder
from fewscan.storage.nifti import read_nifti, write_nifti
from fewscan.storage.prepare import prepare
from fewscan.storage.prepare_scan import ScanToPrepare, killed_at
from fewscan.storage.preprocess import preprocess
from fewscan.storage.scans import read_scan
from fewscan.storage.slices import SliceStore

SIZE = 12


@pytest.fixture(autouse=True)
def _no_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(atomic.os, "fsync", lambda descriptor: None)


@pytest.fixture(scope="module")
def scans(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six good scans."""
    folder = tmp_path_factory.mktemp("scans")
    write_subjects(folder, 6)
    return folder


@pytest.fixture(scope="module")
def uninterrupted(scans: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Their store, made at one go."""
    store = tmp_path_factory.mktemp("stores") / "store"
    prepare(scans, store, SIZE, workers=1)
    return store


def files_of(store: Path) -> dict[str, bytes]:
    return {
        path.relative_to(store).as_posix(): path.read_bytes()
        for path in store.rglob("*")
        if path.is_file()
    }


def prepare_what_is_missing(scans: Path, store: Path) -> int:
    """Prepare, and return how many scans that took."""
    done: list[int] = []
    prepare(scans, store, SIZE, workers=1, progress=lambda step, _: done.append(step))
    return len(done)


def test_the_store_holds_the_preprocessed_slices(scans: Path, uninterrupted: Path) -> None:
    store = SliceStore.open(uninterrupted)
    for files in find_scans(scans).scans:
        scan = read_scan(files)
        expected = preprocess(scan, SIZE)
        slices = store.read_subject(files.id)
        assert np.array_equal(slices.images_NCHW, expected.images_NCHW)
        assert np.array_equal(slices.labels_NHW, expected.labels_NHW)
        subject = store.subjects[files.id]
        assert subject.quantiles == expected.quantiles
        assert np.array_equal(subject.affine, AFFINE)
        assert subject.shape_XYZ == scan.channels_XYZ[0].shape
        assert subject.spacing_mm == (1.0, 1.0, 1.5)
        assert subject.naming == "BraTS 2021"
        assert subject.label_values == (1, 2, 4)
        assert subject.files[0] == f"{files.id}/{files.id}_flair.nii.gz"
        counts = [np.count_nonzero(scan.labels_XYZ == k) * 1.5 for k in (1, 2, 3)]
        assert subject.lesion_mm3 == pytest.approx(counts)
        pixels = [[(image == k).sum() for k in (1, 2, 3)] for image in slices.labels_NHW]
        assert subject.lesion_pixels_NK.tolist() == pixels


def test_report_and_files(scans: Path, tmp_path: Path) -> None:
    steps: list[tuple[int, int]] = []
    report = prepare(
        scans, tmp_path / "s", SIZE, workers=1, progress=lambda *step: steps.append(step)
    )
    assert (report.subjects, report.skipped) == (6, ())
    assert report.seconds > 0
    assert steps == [(k, 6) for k in range(1, 7)]
    assert [path.name for path in tmp_path.iterdir()] == ["s"]
    assert set(files_of(tmp_path / "s")) == {
        "lock",
        "manifest.json",
        "zarr.json",
        *(f"{name}/zarr.json" for name in ("images", "labels")),
        *(f"images/c.{row}.0.0.0.0" for row in range(6)),
        *(f"labels/c.{row}.0.0.0" for row in range(6)),
        *(f"scan_labels/{row}" for row in range(6)),
    }


def test_workers_do_not_show_in_the_store(scans: Path, uninterrupted: Path, tmp_path: Path) -> None:
    prepare(scans, tmp_path / "s", SIZE, workers=2)
    assert files_of(tmp_path / "s") == files_of(uninterrupted)


def test_the_fingerprint_depends_on_content_and_size_alone(
    scans: Path, uninterrupted: Path, tmp_path: Path
) -> None:
    elsewhere = tmp_path / "elsewhere"
    for number, folder in enumerate(sorted(scans.iterdir(), reverse=True)):
        shutil.copytree(folder, elsewhere / f"site {number}")
    first = SliceStore.open(uninterrupted).fingerprint
    assert prepare(elsewhere, tmp_path / "moved", SIZE, 1).fingerprint == first
    assert prepare(scans, tmp_path / "other size", SIZE + 1, 1).fingerprint != first
    path = next(elsewhere.rglob("*00003_t2.nii.gz"))
    voxels = read_nifti(path).voxels_XYZ.copy()
    voxels[12, 10, 5] += 20
    write_nifti(path, voxels, AFFINE)
    assert prepare(elsewhere, tmp_path / "changed", SIZE, 1).fingerprint != first


def test_a_finished_store_has_nothing_to_do(uninterrupted: Path, scans: Path) -> None:
    before = files_of(uninterrupted)
    assert prepare_what_is_missing(scans, uninterrupted) == 0
    assert files_of(uninterrupted) == before


class Killed(BaseException):
    """Stands for kill -9 just before the n-th file would be put in place."""


def killed_before_file(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    place, written = os.replace, iter(range(10**6))

    def replace(source: str, target: str) -> None:
        if next(written) == number:
            raise Killed
        place(source, target)

    monkeypatch.setattr(atomic.os, "replace", replace)


@pytest.mark.parametrize("file", range(0, 24, 2))
def test_interrupted_before_any_file_it_goes_on_to_the_same_store(
    scans: Path,
    uninterrupted: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    file: int,
) -> None:
    with monkeypatch.context() as patch:
        killed_before_file(patch, file)
        with pytest.raises(Killed):
            prepare(scans, tmp_path / "s", SIZE, workers=1)
    if not (tmp_path / "s").exists():
        with pytest.raises(StoreError, match="not finished") as caught:
            SliceStore.open(tmp_path / "s")
        assert "goes on" in (caught.value.remedy or "")
    done = len(list((tmp_path / "s.partial" / "records").glob("*.json")))
    assert prepare_what_is_missing(scans, tmp_path / "s") == 6 - done
    assert files_of(tmp_path / "s") == files_of(uninterrupted)


def prepare_in_another_process(scans: Path, store: Path, workers: int) -> subprocess.Popen[bytes]:
    """Start it in a session of its own, as a terminal would."""
    script = store.with_suffix(".py")
    script.write_text(
        "from pathlib import Path\nfrom fewscan.storage.prepare import prepare\n"
        "if __name__ == '__main__':\n"
        f"    prepare(Path({str(scans)!r}), Path({str(store)!r}), {SIZE}, {workers})\n"
    )
    return subprocess.Popen([sys.executable, script], start_new_session=True)


def wait_until(true: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.001)


def test_killed_with_its_workers_left_it_goes_on(tmp_path: Path) -> None:
    scans, store = tmp_path / "scans", tmp_path / "s"
    write_subjects(scans, 20)
    process = prepare_in_another_process(scans, store, workers=2)
    records = store.with_suffix(".partial") / "records"
    wait_until(lambda: any(records.glob("*.json")))
    process.kill()
    process.wait()
    wait_until(lambda: not members_of_session(process.pid))
    done = len(list(records.glob("*.json")))
    assert 1 <= done < 20
    assert prepare_what_is_missing(scans, store) == 20 - done
    prepare(scans, tmp_path / "plain", SIZE, workers=1)
    assert files_of(store) == files_of(tmp_path / "plain")


def members_of_session(session: int) -> list[int]:
    members = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            stat = Path("/proc", pid, "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(stat[3]) == session and stat[0] != "Z":
            members.append(int(pid))
    return members


def test_a_worker_that_dies_costs_nothing(scans: Path, uninterrupted: Path, tmp_path: Path) -> None:
    killed: list[int] = []

    def die(*_: object) -> None:
        workers = multiprocessing.active_children()
        if workers and not killed:
            killed.append(workers[0].pid or 0)
            os.kill(killed[0], signal.SIGKILL)

    prepare(scans, tmp_path / "s", SIZE, workers=2, progress=die)
    assert killed
    assert files_of(tmp_path / "s") == files_of(uninterrupted)


def test_a_scan_that_kills_its_worker_is_named(scans: Path, tmp_path: Path) -> None:
    files = find_scans(scans).scans[2]
    parameters = Parameters(1, SIZE, 10, ("a", "b", "c", "d"), ("e", "f", "g"))
    work = ScanToPrepare(files, scans, 0, StoreFolder(tmp_path), parameters)
    id_, error = killed_at(work, FewscanError("killed", remedy="fewer workers"))
    assert id_ == files.id
    assert (error.found, error.remedy) == ("killed", "fewer workers")
    assert error.where == str(files.channel_files[0])


@pytest.mark.parametrize("module", ["read_scan", "preprocess"])
def test_whatever_is_raised_is_told_with_its_scan(
    scans: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str
) -> None:
    plain = getattr(prepare_scan, module)
    seen: list[int] = []

    def strange_once(*arguments: object) -> object:
        seen.append(1)
        if len(seen) == 3:
            raise LookupError("a case that nobody thought of " * 100)
        return plain(*arguments)

    monkeypatch.setattr(prepare_scan, module, strange_once)
    report = prepare(scans, tmp_path / "s", SIZE, workers=1)
    assert report.subjects == 5
    ((subject, reason),) = report.skipped
    assert subject == "BraTS2021_00002"
    assert "BraTS2021_00002_flair.nii.gz" in reason
    assert "LookupError" in reason
    assert len(reason) < 1000


def test_not_enough_memory_for_a_scan(
    scans: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def too_large(files: object) -> None:
        raise MemoryError

    monkeypatch.setattr(prepare_scan, "read_scan", too_large)
    with pytest.raises(ScanError, match=r"(\n.*not enough memory.*){5}") as caught:
        prepare(scans, tmp_path / "s", SIZE, workers=1)
    assert "fewer workers" in str(caught.value)


def test_an_id_that_is_too_long_for_a_file_name(scans: Path, tmp_path: Path) -> None:
    folder = tmp_path / "scans"
    shutil.copytree(scans, folder)
    write_subject(folder, "x" * 190 + "é" * 6)
    report = prepare(folder, tmp_path / "s", SIZE, workers=1)
    assert report.subjects == 6
    assert "an id of 202 bytes" in report.skipped[0][1]
    write_subject(folder, "y" * 200, seed=77)
    assert prepare(folder, tmp_path / "s", SIZE, workers=1).subjects == 7


@pytest.mark.parametrize("file", [0, 1, 5, 19, 22])
def test_a_full_disk_stops_it_and_it_goes_on(
    scans: Path,
    uninterrupted: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    file: int,
) -> None:
    synced = iter(range(10**6))

    def full(descriptor: int) -> None:
        if next(synced) >= 2 * file:  # two a file: the file and its folder
            raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(atomic.os, "fsync", full)
        with pytest.raises(DiskFullError) as caught:
            prepare(scans, tmp_path / "s", SIZE, workers=1)
    assert "same command again" in (caught.value.remedy or "")
    assert not (tmp_path / "s").exists()
    assert not list((tmp_path / "s.partial").rglob(".*"))
    prepare(scans, tmp_path / "s", SIZE, workers=1)
    assert files_of(tmp_path / "s") == files_of(uninterrupted)


def spoil(scans: Path) -> None:
    """Give the folder scans that cannot be used, each for its own reason."""
    write_subject(scans, "BraTS2021_00100")
    (scans / "BraTS2021_00100" / "BraTS2021_00100_seg.nii.gz").unlink()
    write_subject(scans, "BraTS2021_00101")
    (scans / "BraTS2021_00101" / "BraTS2021_00101_t1.nii.gz").unlink()
    path = write_subject(scans, "BraTS2021_00102") / "BraTS2021_00102_flair.nii.gz"
    path.write_bytes(path.read_bytes()[:500])
    write_subject(scans, "BraTS2021_00103")
    write_subject(scans / "again", "BraTS2021_00103")
    (scans / "BraTS2021_00104").mkdir()


UNLABELLED = {"BraTS2021_00100": "no segmentation; --unlabelled takes it in"}
REASONS = {
    "BraTS2021_00101": "missing: BraTS2021_00101_t1.nii.gz",
    "BraTS2021_00102": "ended before the end-of-stream marker",
    "BraTS2021_00103": "the same subject twice",
    "BraTS2021_00104": "an empty folder",
}


def require_reasons(skipped: dict[str, str]) -> None:
    assert skipped.keys() == REASONS.keys()
    for subject, reason in REASONS.items():
        assert reason in skipped[subject]
        assert "\n" not in skipped[subject]


def test_bad_scans_are_listed_and_do_not_stop_the_good(uninterrupted: Path, tmp_path: Path) -> None:
    write_subjects(tmp_path / "scans", 6)
    spoil(tmp_path / "scans")
    report = prepare(tmp_path / "scans", tmp_path / "s", SIZE, workers=2)
    require_reasons(dict(report.skipped))
    store = SliceStore.open(tmp_path / "s")
    require_reasons(store.manifest.skipped)
    assert store.manifest.not_taken == UNLABELLED
    assert store.fingerprint == SliceStore.open(uninterrupted).fingerprint


def test_fixed_and_new_scans_are_added_and_rows_stay(tmp_path: Path) -> None:
    scans = tmp_path / "scans"
    write_subjects(scans, 3)
    spoil(scans)
    prepare(scans, tmp_path / "s", SIZE, workers=1)
    rows = {
        subject.id: subject.row for subject in SliceStore.open(tmp_path / "s").subjects.values()
    }
    reader = SliceStore.open(tmp_path / "s")
    seen = reader.read(list(rows)).images_NCHW
    write_subject(scans, "BraTS2021_00102", seed=9)
    write_subject(scans, "BraTS-GLI-00001-002", seed=10)
    report = prepare(scans, tmp_path / "s", SIZE, workers=1)
    assert report.subjects == 5
    assert dict(report.skipped).keys() == REASONS.keys() - {"BraTS2021_00102"}
    store = SliceStore.open(tmp_path / "s")
    assert {id_: store.subjects[id_].row for id_ in rows} == rows
    assert len({subject.row for subject in store.subjects.values()}) == 5
    assert np.array_equal(reader.read(list(rows)).images_NCHW, seen)
    assert check(tmp_path / "s").subjects == 5
    shutil.rmtree(tmp_path / "s")
    assert prepare(scans, tmp_path / "s", SIZE, workers=1).fingerprint == report.fingerprint


def test_adding_to_a_store_can_be_interrupted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scans = tmp_path / "scans"
    write_subjects(scans, 2)
    prepare(scans, tmp_path / "s", SIZE, workers=1)
    old = SliceStore.open(tmp_path / "s").fingerprint
    write_subjects(scans, 5)
    for file in (1, 5, 8):
        with monkeypatch.context() as patch:
            killed_before_file(patch, file)
            with pytest.raises(Killed):
                prepare(scans, tmp_path / "s", SIZE, workers=1)
        assert check(tmp_path / "s").fingerprint == old
    assert prepare(scans, tmp_path / "s", SIZE, workers=1).subjects == 5
    prepare(scans, tmp_path / "plain", SIZE, workers=1)
    assert files_of(tmp_path / "s") == files_of(tmp_path / "plain")


def test_a_person_already_in_the_store_is_not_added_under_another_name(
    tmp_path: Path,
) -> None:
    write_subject(tmp_path / "old", "BraTS2021_00001")
    write_subject(tmp_path / "new", "BraTS-GLI-00001-000")
    write_subject(tmp_path / "new", "BraTS-GLI-00002-000", seed=1)
    prepare(tmp_path / "old", tmp_path / "s", SIZE, workers=1)
    report = prepare(tmp_path / "new", tmp_path / "s", SIZE, workers=1)
    assert report.subjects == 2
    ((subject, reason),) = report.skipped
    assert subject == "BraTS-GLI-00001-000"
    assert "BraTS2021_00001" in reason


def test_rows_that_stay_free_do_no_harm(tmp_path: Path) -> None:
    scans = tmp_path / "scans"
    write_subjects(scans, 5)
    for number in (0, 1, 2):
        (scans / f"BraTS2021_{number:05d}" / f"BraTS2021_{number:05d}_t2.nii.gz").write_bytes(b"")
    prepare(scans, tmp_path / "s", SIZE, workers=1)
    for number in (1, 2):
        shutil.rmtree(scans / f"BraTS2021_{number:05d}")
    write_subject(scans, "BraTS2021_00000")
    prepare(scans, tmp_path / "s", SIZE, workers=1)
    rows = [subject.row for subject in SliceStore.open(tmp_path / "s").subjects.values()]
    assert rows == [0, 3, 4]
    check(tmp_path / "s")


def test_a_row_given_to_another_subject_keeps_nothing_of_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed between a lesion's shard and the record; then another scan comes first."""
    scans = tmp_path / "scans"
    write_subject(scans, "BraTS2021_00005")
    with monkeypatch.context() as patch:
        killed_before_file(patch, 3)
        with pytest.raises(Killed):
            prepare(scans, tmp_path / "s", SIZE, workers=1)
    assert (tmp_path / "s.partial" / "labels" / "c.0.0.0.0").exists()
    path = write_subject(scans, "BraTS2021_00001") / "BraTS2021_00001_seg.nii.gz"
    write_nifti(path, read_nifti(path).voxels_XYZ * 0, AFFINE)
    prepare(scans, tmp_path / "s", SIZE, workers=1)
    store = SliceStore.open(tmp_path / "s")
    assert store.subjects["BraTS2021_00001"].row == 0
    assert not store.arrays()[1][0].any()
    check(tmp_path / "s")


def test_no_good_scan_leaves_nothing(tmp_path: Path) -> None:
    scans = tmp_path / "scans"
    spoil(scans)
    with pytest.raises(ScanError, match="none of 5 scans can be used") as caught:
        prepare(scans, tmp_path / "s", SIZE, workers=1)
    for subject, reason in {**REASONS, **UNLABELLED}.items():
        assert subject in caught.value.found
        assert reason in caught.value.found
    assert [path.name for path in tmp_path.iterdir()] == ["scans"]


def test_a_folder_that_is_not_there_or_empty_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "scans").mkdir()
    for name in ("scans", "none"):
        with pytest.raises(ScanError):
            prepare(tmp_path / name, tmp_path / "s", SIZE, workers=1)
    assert [path.name for path in tmp_path.iterdir()] == ["scans"]


def test_other_parameters_than_those_of_the_store(
    scans: Path, uninterrupted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(StoreError, match="size 12") as caught:
        prepare(scans, uninterrupted, SIZE + 1, workers=1)
    assert "13" in (caught.value.expected or "")
    with monkeypatch.context() as patch:
        killed_before_file(patch, 8)
        with pytest.raises(Killed):
            prepare(scans, tmp_path / "s", SIZE, workers=1)
    with pytest.raises(StoreError, match="size 12") as caught:
        prepare(scans, tmp_path / "s", SIZE + 1, workers=1)
    assert caught.value.where == str(tmp_path / "s.partial")
    parameters = tmp_path / "s.partial" / "parameters.json"
    parameters.write_text(parameters.read_text().replace('"protocol": 1', '"protocol": 0'))
    with pytest.raises(StoreError, match="protocol 0"):
        prepare(scans, tmp_path / "s", SIZE, workers=1)


def test_a_scan_with_more_slices_than_the_store_has_room_for(tmp_path: Path) -> None:
    write_subjects(tmp_path / "scans", 1)
    prepare(tmp_path / "scans", tmp_path / "s", SIZE, workers=1)
    place = write_subject(tmp_path / "scans", "BraTS2021_00009")
    for path in place.iterdir():
        write_nifti(path, np.repeat(read_nifti(path).voxels_XYZ, 2, axis=2), AFFINE)
    ((subject, reason),) = prepare(tmp_path / "scans", tmp_path / "s", SIZE, workers=1).skipped
    assert subject == "BraTS2021_00009"
    assert "20 slices" in reason
    assert "at most 10" in reason
    assert prepare(tmp_path / "scans", tmp_path / "new", SIZE, workers=1).subjects == 2


def test_one_prepare_at_a_time(scans: Path, uninterrupted: Path, tmp_path: Path) -> None:
    partial = StoreFolder.at(tmp_path / "s").partial
    partial.path.mkdir()
    for folder, store in [(partial, tmp_path / "s"), (StoreFolder(uninterrupted), uninterrupted)]:
        with folder.lock.open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            with pytest.raises(StoreError, match="another `prepare`"):
                prepare(scans, store, SIZE, workers=1)
    assert prepare(scans, tmp_path / "s", SIZE, workers=1).subjects == 6


def test_a_folder_of_something_else_is_not_touched(scans: Path, tmp_path: Path) -> None:
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "thesis.tex").write_text("mine")
    with pytest.raises(StoreError, match="no slice store"):
        prepare(scans, tmp_path / "s", SIZE, workers=1)
    assert [path.name for path in tmp_path.rglob("*")] == ["s", "thesis.tex"]


def test_an_empty_folder_may_become_the_store(scans: Path, tmp_path: Path) -> None:
    (tmp_path / "s").mkdir()
    assert prepare(scans, tmp_path / "s", SIZE, workers=1).subjects == 6


def test_the_manifest_can_be_read_by_anybody(uninterrupted: Path) -> None:
    value = json.loads((uninterrupted / "manifest.json").read_text())
    assert value["protocol"] == 1
    assert value["size"] == SIZE
    assert value["channels"] == ["flair", "t1", "t1ce", "t2"]
    assert value["classes"] == ["necrotic_core", "oedema", "enhancing"]
    assert "75 %" in value["split_rule"]
    assert value["fingerprint"] == Manifest.read(uninterrupted / "manifest.json").fingerprint
    assert len(value["subjects"]["BraTS2021_00000"]["lesion_pixels_NK"]) == 8
