"""Scans that are stored in several orientations become slices of one, whoever came first."""

import gzip
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from fake_scans import write_subject, write_subjects

from fewscan.storage import atomic
from fewscan.storage.check import check
from fewscan.storage.geometry import Turn, orientation
from fewscan.storage.manifest import Manifest
from fewscan.storage.nifti import read_nifti, write_nifti
from fewscan.storage.prepare import prepare
from fewscan.storage.slices import SliceStore

SIZE = 12
IDS = [f"BraTS2021_{n:05d}" for n in range(4)]


@pytest.fixture(autouse=True)
def _no_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(atomic.os, "fsync", lambda descriptor: None)


@pytest.fixture
def scans(tmp_path: Path) -> Path:
    """Four scans, all LPS."""
    write_subjects(tmp_path / "scans", 4)
    return tmp_path / "scans"


def store_in(folder: Path, to: str) -> None:
    """Store a scan's files in another orientation."""
    for path in folder.iterdir():
        volume = read_nifti(path)
        turn = Turn.between(orientation(volume.affine), to)
        affine = turn.affine(volume.affine, volume.voxels_XYZ.shape)
        write_nifti(path, turn.there(volume.voxels_XYZ), affine)


def forget_codes(folder: Path) -> None:
    for path in folder.iterdir():
        plain = bytearray(gzip.decompress(path.read_bytes()))
        plain[252:256] = bytes(4)  # qform_code and sform_code
        path.write_bytes(gzip.compress(bytes(plain)))


def slices_of(store: Path) -> dict[str, tuple[list[int], bytes, bytes]]:
    opened = SliceStore.open(store)
    found = {}
    for id_ in opened.subjects:
        slices = opened.read_subject(id_)
        positions = list(opened.subjects[id_].positions)
        found[id_] = positions, slices.images_NCHW.tobytes(), slices.labels_NHW.tobytes()
    return found


def test_scans_of_another_orientation_are_turned_to_that_of_most(
    scans: Path, tmp_path: Path
) -> None:
    straight = prepare(scans, tmp_path / "straight", SIZE, workers=1)
    store_in(scans / IDS[1], "SRA")
    mixed = prepare(scans, tmp_path / "mixed", SIZE, workers=1)
    assert slices_of(tmp_path / "mixed") == slices_of(tmp_path / "straight")
    assert mixed.fingerprint == straight.fingerprint, "the content is the same"
    store = SliceStore.open(tmp_path / "mixed")
    assert store.manifest.parameters.orientation == "LPS"
    turned, kept = store.subjects[IDS[1]], store.subjects[IDS[0]]
    assert turned.shape_XYZ == kept.shape_XYZ
    np.testing.assert_allclose(turned.affine, kept.affine)
    check(tmp_path / "mixed")


def test_where_all_scans_agree_nothing_is_recorded(scans: Path, tmp_path: Path) -> None:
    prepare(scans, tmp_path / "s", SIZE, workers=1)
    assert "orientation" not in json.loads((tmp_path / "s" / "manifest.json").read_text())


def test_what_comes_later_is_turned_to_what_is_there(scans: Path, tmp_path: Path) -> None:
    straight = prepare(scans, tmp_path / "straight", SIZE, workers=1)
    for id_ in IDS[1:]:
        store_in(scans / id_, "RAS")
    first = tmp_path / "first"
    shutil.copytree(scans / IDS[0], first / IDS[0])
    prepare(first, tmp_path / "s", SIZE, workers=1)
    report = prepare(scans, tmp_path / "s", SIZE, workers=1)
    assert report.fingerprint == straight.fingerprint
    assert Manifest.read(tmp_path / "s" / "manifest.json").parameters.orientation == "LPS"
    write_subject(scans, "BraTS2021_00009", seed=9)
    store_in(scans / "BraTS2021_00009", "ASL")
    again = prepare(scans, tmp_path / "s", SIZE, workers=1)
    assert again.subjects == 5
    affines = [s.affine for s in SliceStore.open(tmp_path / "s").subjects.values()]
    assert {orientation(np.array(affine)) for affine in affines} == {"LPS"}


def test_an_interrupted_store_goes_on_in_its_orientation(
    scans: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store_in(scans / IDS[0], "RAS")
    prepare(scans, tmp_path / "whole", SIZE, workers=1)

    class Killed(BaseException):
        pass

    def kill(done: int, all_: int) -> None:
        if done == 1:
            raise Killed

    with pytest.raises(Killed):
        prepare(scans, tmp_path / "s", SIZE, workers=1, progress=kill)
    prepare(scans, tmp_path / "s", SIZE, workers=1)
    assert slices_of(tmp_path / "s") == slices_of(tmp_path / "whole")


def test_a_scan_of_unknown_orientation_is_taken_as_it_is(scans: Path, tmp_path: Path) -> None:
    straight = prepare(scans, tmp_path / "straight", SIZE, workers=1)
    forget_codes(scans / IDS[2])
    store_in(scans / IDS[3], "RAS")
    report = prepare(scans, tmp_path / "s", SIZE, workers=1)
    assert report.fingerprint == straight.fingerprint
    assert SliceStore.open(tmp_path / "s").manifest.parameters.orientation == "LPS"
