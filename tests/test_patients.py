"""A store knows whose its scans are: in its split, label subsets, fingerprint and words."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from fake_scans import write_subject, write_subjects

from fewscan.harness.cli import main
from fewscan.storage.check import check
from fewscan.storage.errors import StoreError
from fewscan.storage.manifest import Manifest, StoreFolder
from fewscan.storage.prepare import prepare
from fewscan.storage.slices import SliceStore
from fewscan.storage.splits import FEWEST_VALIDATED, split_rule

SIZE = 8
PATIENTS, TIMES = 8, (100, 101, 103)


def write_time_points(folder: Path, patients: int = PATIENTS) -> None:
    for p in range(patients):
        for k, time in enumerate(TIMES):
            write_subject(folder, f"BraTS-GLI-{p:05d}-{time}", seed=10 * p + k)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("patients")
    write_time_points(folder / "scans")
    prepare(folder / "scans", folder / "s", SIZE, workers=1, validation=1)
    return folder / "s"


def manifest_json(store: Path) -> dict[str, dict[str, object]]:
    return json.loads((store / "manifest.json").read_text())


def test_the_split_leaves_patients_whole(path: Path) -> None:
    store = SliceStore.open(path)
    whose = [{store.patient(i) for i in ids} for ids in store.split.to_json().values()]
    assert sum(map(len, whose)) == len(set.union(*whose)) == PATIENTS
    assert store.patient("BraTS-GLI-00003-101") == "BraTS-GLI-00003"
    with pytest.raises(StoreError, match="no subject"):
        store.patient("BraTS-GLI-00003")


def test_labels_are_of_whole_patients_as_far_as_they_go(path: Path) -> None:
    store = SliceStore.open(path)
    labelled = store.labelled_subset(4, seed=1)
    assert len({store.patient(id_) for id_ in labelled}) == 2
    assert labelled[:3] == store.labelled_subset(3, seed=1)
    assert set(labelled) <= set(store.split.train)


def test_check_and_prepare_count_patients(path: Path, tmp_path: Path) -> None:
    report = check(path)
    assert (report.subjects, report.patients) == (24, 8)
    assert "subjects        24 of 8 patients" in report.render()
    done = CliRunner().invoke(
        main, ["prepare", str(path.parent / "scans"), str(path), "--size", f"{SIZE}"]
    )
    assert "24 subjects of 8 patients in" in done.output
    write_subjects(tmp_path / "scans", 2)
    prepare(tmp_path / "scans", tmp_path / "s", SIZE, workers=1)
    assert "subjects        2\n" in check(tmp_path / "s").render()


def test_the_manifest_says_it_where_a_patient_is_not_the_scan(path: Path, tmp_path: Path) -> None:
    value = manifest_json(path)
    assert value["subjects"]["BraTS-GLI-00003-101"]["patient"] == "BraTS-GLI-00003"
    assert value["split_rule"] == split_rule(True, 1)
    write_subjects(tmp_path / "scans", 2)
    prepare(tmp_path / "scans", tmp_path / "s", SIZE, workers=1)
    value = manifest_json(tmp_path / "s")
    assert "patient" not in value["subjects"]["BraTS2021_00001"]
    assert value["split_rule"] == split_rule(False, FEWEST_VALIDATED)


def forget_patients(store: Path) -> None:
    """As a store of before is: it knows no patients."""
    path = StoreFolder.at(store).manifest
    manifest = Manifest.read(path)
    for subject in manifest.subjects.values():
        object.__setattr__(subject, "patient", subject.id)
    manifest.write(path)


def test_a_store_of_before_keeps_its_fingerprint_until_it_learns_its_patients(
    tmp_path: Path,
) -> None:
    write_time_points(tmp_path / "scans", 2)
    new = prepare(tmp_path / "scans", tmp_path / "s", SIZE, workers=1).fingerprint
    forget_patients(tmp_path / "s")
    old = SliceStore.open(tmp_path / "s")
    assert old.fingerprint != new
    assert old.patient("BraTS-GLI-00001-100") == "BraTS-GLI-00001-100"
    assert "by their ids the scans are of 2 patients" in check(tmp_path / "s").render()
    report = prepare(tmp_path / "scans", tmp_path / "s", SIZE, workers=1)
    assert (report.fingerprint, report.patients) == (new, 2)
    assert "by their ids" not in check(tmp_path / "s").render()


def test_patients_with_one_scan_each_change_no_fingerprint(tmp_path: Path) -> None:
    for number in range(3):
        write_subject(tmp_path / "scans", f"BraTS-GLI-{number:05d}-000", number)
    new = prepare(tmp_path / "scans", tmp_path / "s", SIZE, workers=1).fingerprint
    forget_patients(tmp_path / "s")
    assert SliceStore.open(tmp_path / "s").fingerprint == new


def test_a_patient_of_2021_is_the_one_of_2023(tmp_path: Path) -> None:
    """Also if the later scan comes later; the store is the same then."""
    write_subject(tmp_path / "old", "BraTS2021_00001", seed=0)
    write_subject(tmp_path / "old", "BraTS2021_00002", seed=1)
    write_subject(tmp_path / "new", "BraTS-GLI-00001-001", seed=2)
    prepare(tmp_path / "old", tmp_path / "s", SIZE, workers=1)
    report = prepare(tmp_path / "new", tmp_path / "s", SIZE, workers=1)
    assert (report.subjects, report.patients) == (3, 2)
    store = SliceStore.open(tmp_path / "s")
    assert store.patient("BraTS2021_00001") == "BraTS-GLI-00001"
    assert store.patient("BraTS2021_00002") == "BraTS2021_00002"
    write_subject(tmp_path / "old", "BraTS-GLI-00001-001", seed=2)
    once = prepare(tmp_path / "old", tmp_path / "once", SIZE, workers=1)
    assert once.fingerprint == report.fingerprint
