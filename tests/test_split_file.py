"""A split that is given: who is where, what is wrong with it, and that no result is shared."""

import json
from pathlib import Path

import pytest
import yaml
from fake_nnunet import write_cases, write_nnunet

from fewscan.storage.check import check
from fewscan.storage.errors import StudyError
from fewscan.storage.prepare import prepare
from fewscan.storage.slices import SliceStore
from fewscan.storage.splits import published_split, read_split

IDS = [f"{number:03d}" for number in range(6)]
GOOD = {"train": ["003", "001"], "validation": ["000"], "test": ["005", "004"]}


def write(path: Path, value: object) -> Path:
    path.write_text(yaml.safe_dump(value) if path.suffix == ".yaml" else json.dumps(value))
    return path


@pytest.mark.parametrize("name", ["split.yaml", "split.json"])
def test_lists_are_kept_in_their_order(tmp_path: Path, name: str) -> None:
    split = read_split(write(tmp_path / name, GOOD), IDS)
    assert split.to_json() == GOOD
    assert not split.published


def test_ids_that_look_like_numbers_stay_text(tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text("train: [003, 001]\nvalidation: [000]\ntest: [005]\n")
    assert read_split(tmp_path / "s.yaml", IDS).train == ("003", "001")


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"test": ["005", "003"]}, "1 ids more than once: 003"),
        ({"train": ["003", "003"]}, "1 ids more than once: 003"),
        ({"train": ["003", "9", "8"]}, "2 ids not among the scans: 8, 9"),
        ({"validation": []}, "the part validation is empty"),
        ({"extra": ["002"]}, "the keys train, validation, test, extra"),
        ({"train": "003"}, "the keys"),
        ({"train": [["003"]]}, "the keys"),
    ],
)
def test_a_wrong_split(tmp_path: Path, changes: dict[str, object], found: str) -> None:
    path = write(tmp_path / "split.json", GOOD | changes)
    with pytest.raises(StudyError, match=found) as caught:
        read_split(path, IDS)
    assert caught.value.where == str(path)


def test_files_that_are_no_split(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match="cannot be read"):
        read_split(tmp_path / "none.yaml", IDS)
    folds = [{"train": ["001"], "val": ["002"]}, {"train": ["002"], "val": ["001"]}]
    with pytest.raises(StudyError, match="nnU-Net's folds") as caught:
        read_split(write(tmp_path / "splits_final.json", folds), IDS)
    assert "as test" in str(caught.value.remedy)


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    write_nnunet(tmp_path / "raw", 6)
    return tmp_path / "raw"


def parts(train: str, validation: str, test: str) -> dict[str, list[str]]:
    lists = (train, validation, test)
    named = ([f"case_00{digit}" for digit in digits] for digits in lists)
    return dict(zip(("train", "validation", "test"), named, strict=True))


def test_the_split_is_part_of_the_fingerprint(raw: Path, tmp_path: Path) -> None:
    def fingerprint(**lists: list[str]) -> str:
        file = write(tmp_path / "split.yaml", lists)
        return prepare(raw, tmp_path / "store", 16, 1, split=file).fingerprint

    without = prepare(raw, tmp_path / "store", 16, 1).fingerprint
    one = fingerprint(**parts("01", "2", "345"))
    assert len({without, one, fingerprint(**parts("10", "2", "345"))}) == 3
    assert len({without, one, fingerprint(**parts("01", "3", "245"))}) == 3
    assert fingerprint(**parts("01", "2", "345")) == one


def test_a_store_keeps_its_split_and_lists_who_is_left_out(raw: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    file = write(tmp_path / "split.yaml", parts("01", "2", "3"))
    assert prepare(raw, store, 16, 1, split=file).left_out == ("case_004", "case_005")
    assert prepare(raw, store, 16, 1).left_out == ("case_004", "case_005")
    assert SliceStore.open(store).split.to_json() == parts("01", "2", "3")
    shown = check(store).render()
    assert "train 2, validation 1, test 1 (as given)" in shown
    assert "in no part      case_004" in shown


def test_a_scan_that_cannot_be_used_comes_back_to_its_part(raw: Path, tmp_path: Path) -> None:
    store, broken = tmp_path / "store", raw / "labelsTr" / "case_001.nii.gz"
    file = write(tmp_path / "split.yaml", parts("015", "2", "34"))
    whole = broken.read_bytes()
    broken.write_bytes(whole[:40])
    report = prepare(raw, store, 16, 1, split=file)
    assert dict(report.skipped).keys() == {"case_001"}
    assert SliceStore.open(store).split.train == ("case_000", "case_005")
    broken.write_bytes(whole)
    assert prepare(raw, store, 16, 1).left_out == ()
    assert SliceStore.open(store).split.train == ("case_000", "case_001", "case_005")


def test_a_part_without_any_usable_scan_is_refused(raw: Path, tmp_path: Path) -> None:
    (raw / "labelsTr" / "case_002.nii.gz").write_bytes(b"")
    file = write(tmp_path / "split.yaml", parts("01", "2", "34"))
    with pytest.raises(StudyError, match="part validation of the split can be used"):
        prepare(raw, tmp_path / "store", 16, 1, split=file)


def test_the_published_split_given_as_a_file_is_the_published_split(tmp_path: Path) -> None:
    ids = write_nnunet(tmp_path / "raw", 20)
    by_rule = prepare(tmp_path / "raw", tmp_path / "one", 16, 1, validation=1)
    prepare(tmp_path / "raw", tmp_path / "two", 16, 1, validation=1)
    file = write(tmp_path / "split.json", published_split(ids).to_json())
    given = prepare(tmp_path / "raw", tmp_path / "two", 16, 1, split=file)
    assert given.fingerprint == by_rule.fingerprint
    other = prepare(tmp_path / "raw", tmp_path / "three", 16, 1, split=file)
    assert SliceStore.open(tmp_path / "three").split == SliceStore.open(tmp_path / "one").split
    assert other.fingerprint != by_rule.fingerprint, "5 would validate by the rule of this store"


def test_a_patient_in_two_parts_is_refused_with_the_scans(tmp_path: Path) -> None:
    ids = ["sub-01_ses-1", "sub-01_ses-2", "sub-02_ses-1", "sub-03_ses-1"]
    write_cases(tmp_path / "raw", ids)
    lists = {"train": [ids[0]], "validation": [ids[2]], "test": [ids[3], ids[1]]}
    file = write(tmp_path / "split.yaml", lists)
    with pytest.raises(StudyError) as caught:
        prepare(tmp_path / "raw", tmp_path / "store", 16, 1, split=file)
    assert caught.value.found == (
        "patient sub-01 is in two parts: sub-01_ses-1 in train, sub-01_ses-2 in test"
    )
    assert caught.value.where == str(file)
    assert caught.value.remedy
    whole = {"train": ids[:2], "validation": [ids[2]], "test": [ids[3]]}
    prepare(tmp_path / "raw", tmp_path / "store", 16, 1, split=write(file, whole))
    assert SliceStore.open(tmp_path / "store").split.to_json() == whole


def test_a_new_scan_of_a_patient_of_another_part_is_left_out(tmp_path: Path) -> None:
    """It is in no part until the split names it, which it may do in the patient's part alone."""
    ids = ["sub-01_ses-1", "sub-02_ses-1", "sub-03_ses-1"]
    write_cases(tmp_path / "raw", ids)
    lists = dict(zip(("train", "validation", "test"), ([i] for i in ids), strict=True))
    file = write(tmp_path / "split.yaml", lists)
    prepare(tmp_path / "raw", tmp_path / "store", 16, 1, split=file)
    write_cases(tmp_path / "raw", [*ids, "sub-03_ses-2"])
    report = prepare(tmp_path / "raw", tmp_path / "store", 16, 1)
    assert report.left_out == ("sub-03_ses-2",)
    file = write(file, lists | {"train": [ids[0], "sub-03_ses-2"]})
    with pytest.raises(StudyError, match="patient sub-03 is in two parts"):
        prepare(tmp_path / "raw", tmp_path / "store", 16, 1, split=file)
