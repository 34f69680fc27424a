"""The split is the published rule, label subsets are nested, and no patient is divided."""

import random
from itertools import groupby, permutations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fewscan.storage.errors import StudyError
from fewscan.storage.splits import (
    PUBLISHED_SHA256,
    Split,
    ids_sha256,
    is_published,
    label_subset,
    published_split,
    split_by_rule,
)

COUNTS = st.integers(20, 2000)


def subjects(count: int) -> list[str]:
    return [f"S{number:05d}" for number in range(count)]


def test_the_rule_is_the_published_one() -> None:
    """As the published code draws it: indices shuffled by the global generator with seed 0."""
    ids = subjects(1251)
    random.seed(0)
    order = list(range(1251))
    random.shuffle(order)
    split = published_split(ids[::-1])
    assert split.train == tuple(ids[index] for index in order[:938])
    assert split.validation == tuple(ids[index] for index in order[938:1000])
    assert split.test == tuple(ids[index] for index in order[1000:])
    assert not split.published


def test_the_first_published_ids_have_these_places_in_the_order() -> None:
    """Training begins with BraTS 2021's 00674, 01280 and 00809: its ids number 472, 864 and 565."""
    split = published_split(subjects(1251))
    assert split.train[:3] == ("S00472", "S00864", "S00565")
    assert split.validation[:2] == ("S00212", "S00182")
    assert split.test[:2] == ("S00894", "S00203")


def test_the_published_subjects_are_recognised_by_their_hash(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ids = subjects(1251)
    assert not is_published(ids)
    monkeypatch.setattr("fewscan.storage.splits.PUBLISHED_SHA256", ids_sha256(ids))
    assert is_published(reversed(ids))
    assert published_split(ids).published
    assert not is_published(ids[1:])
    assert not is_published([*ids[1:], "S99999"])
    assert ids_sha256(ids) != PUBLISHED_SHA256


@settings(deadline=None, max_examples=30)
@given(COUNTS, st.randoms())
def test_every_subject_is_in_one_part(count: int, shuffler: random.Random) -> None:
    ids = subjects(count)
    shuffler.shuffle(ids)
    split = published_split(ids)
    assert sorted(split.train + split.validation + split.test) == sorted(ids)
    assert len(split.train) == int(count * 0.75)
    assert len(split.validation) == int(count * 0.05) >= 1
    assert len(split.test) >= 1


def test_too_few_subjects_and_a_subject_twice() -> None:
    with pytest.raises(StudyError, match="19 subjects leave none for validation"):
        published_split(subjects(19))
    with pytest.raises(StudyError, match="S00003 comes twice"):
        published_split([*subjects(30), "S00003"])


@pytest.mark.parametrize(
    ("count", "fewest", "sizes"),
    [
        (25, 5, (15, 5, 5)),
        (36, 5, (26, 5, 5)),
        (37, 5, (27, 5, 5)),
        (40, 5, (30, 5, 5)),  # the demo
        (60, 5, (45, 5, 10)),
        (99, 5, (74, 5, 20)),
        (100, 5, (75, 5, 20)),
        (24, 1, (18, 1, 5)),
        (5, 1, (3, 1, 1)),
        (50, 10, (30, 10, 10)),
    ],
)
def test_at_least_so_many_validate_and_are_tested(
    count: int, fewest: int, sizes: tuple[int, int, int]
) -> None:
    split = split_by_rule(subjects(count), None, fewest)
    assert tuple(map(len, split.to_json().values())) == sizes
    order = subjects(count)
    random.Random(0).shuffle(order)
    assert [*split.train, *split.validation, *split.test] == order


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 30), st.integers(0, 500))
def test_from_twenty_times_as_many_patients_on_it_is_the_published_rule(
    fewest: int, more: int
) -> None:
    ids = subjects(max(20, 20 * fewest) + more)
    assert split_by_rule(ids, None, fewest) == published_split(ids)


def test_the_published_lists_are_recognised_where_the_rule_gives_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ids = subjects(1251)
    monkeypatch.setattr("fewscan.storage.splits.PUBLISHED_SHA256", ids_sha256(ids))
    assert split_by_rule(ids, None, 5) == published_split(ids)
    assert split_by_rule(ids, None, 5).published
    assert not split_by_rule(ids, None, 100).published, "other lists of the same subjects"


@settings(deadline=None, max_examples=30)
@given(st.lists(st.integers(1, 6), min_size=25, max_size=60), st.integers(1, 5))
def test_at_least_so_many_patients_whole(counts: list[int], fewest: int) -> None:
    """Patients, not their scans: five scans of one person are one opinion."""
    patient_of = scans_of_patients(counts)
    split = split_by_rule(patient_of, patient_of, fewest)
    split.require_whole_patients(patient_of)
    assert split.ids == set(patient_of)
    patients = [{patient_of[i] for i in ids} for ids in split.to_json().values()]
    assert min(map(len, patients)) >= fewest


def test_too_few_patients_and_how_to_choose() -> None:
    """Scans of one patient do not make it more; how many can be asked for is said."""
    patient_of = scans_of_patients([3] * 24)
    with pytest.raises(StudyError, match="24 patients are too few for 5 in validation") as caught:
        split_by_rule(patient_of, patient_of, 5)
    remedy = caught.value.remedy or ""
    assert "--validation 4" in remedy
    assert "--split FILE" in remedy
    assert min(map(len, split_by_rule(patient_of, patient_of, 4).to_json().values())) >= 4
    with pytest.raises(StudyError, match="4 patients are too few for 1") as caught:
        split_by_rule(subjects(4), None, 1)
    assert "--validation" not in (caught.value.remedy or "")


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 200), st.integers(0, 2**32), st.data())
def test_label_subsets_are_nested(train: int, seed: int, data: st.DataObject) -> None:
    ids = subjects(train)
    larger = data.draw(st.integers(1, train))
    smaller = data.draw(st.integers(1, larger))
    subset = label_subset(ids, larger, seed)
    assert subset[:smaller] == label_subset(ids[::-1], smaller, seed)
    assert len(set(subset)) == larger
    assert set(subset) <= set(ids)


def test_label_subsets_differ_between_seeds() -> None:
    ids = subjects(100)
    assert len({label_subset(ids, 5, seed) for seed in range(20)}) == 20


@pytest.mark.parametrize("count", [0, -1, 11])
def test_a_label_count_that_the_training_set_cannot_give(count: int) -> None:
    with pytest.raises(StudyError, match=f"label count of {count}"):
        label_subset(subjects(10), count, 0)


SCANS_OF = st.lists(st.integers(1, 6), min_size=20, max_size=60)


def scans_of_patients(counts: list[int]) -> dict[str, str]:
    """Scan → patient, of so many scans each."""
    return {f"P{p:02d}-{k}": f"P{p:02d}" for p, count in enumerate(counts) for k in range(count)}


@settings(deadline=None, max_examples=30)
@given(COUNTS, st.integers(0, 2**32), st.data())
def test_one_scan_a_patient_changes_nothing(count: int, seed: int, data: st.DataObject) -> None:
    ids = subjects(count)
    patient_of = {id_: f"patient {id_}" for id_ in ids}
    assert published_split(ids, patient_of) == published_split(ids)
    labels = data.draw(st.integers(1, count))
    assert label_subset(ids, labels, seed, patient_of) == label_subset(ids, labels, seed)


@settings(deadline=None, max_examples=50)
@given(SCANS_OF, st.randoms())
def test_no_patient_is_divided(counts: list[int], shuffler: random.Random) -> None:
    patient_of = scans_of_patients(counts)
    ids = list(patient_of)
    shuffler.shuffle(ids)
    split = published_split(ids, patient_of)
    split.require_whole_patients(patient_of)
    assert sorted(split.train + split.validation + split.test) == sorted(ids)
    assert min(len(split.train), len(split.validation), len(split.test)) >= 1
    assert abs(len(split.train) - 0.75 * len(ids)) <= max(counts)
    assert not split.published


@pytest.mark.parametrize("parts", list(permutations(("train", "validation", "test"), 2)))
def test_a_patient_in_any_two_parts_is_refused(parts: tuple[str, str]) -> None:
    lists = {part: [f"{part}-0"] for part in ("train", "validation", "test")}
    for part in parts:
        lists[part].append(f"{part}-1")
    split = Split.from_json(lists)
    patient_of = {f"{part}-1": "P" for part in parts}
    with pytest.raises(StudyError, match="patient P is in two parts") as caught:
        split.require_whole_patients(patient_of)
    assert all(f"{part}-1 in {part}" in caught.value.found for part in parts)


def test_the_rule_for_patients() -> None:
    """Ten of three scans: training wants 22 and gets 21, and with validation 23 and gets 24."""
    patient_of = scans_of_patients([3] * 10)
    split = published_split(patient_of, patient_of)
    assert list(map(len, split.to_json().values())) == [21, 3, 6]
    patients = [f"P{p:02d}" for p in range(10)]
    random.Random(0).shuffle(patients)
    assert list(split.train) == [f"{p}-{k}" for p in patients[:7] for k in range(3)]


def test_too_few_patients_for_three_parts() -> None:
    patient_of = scans_of_patients([20, 20])
    with pytest.raises(StudyError, match="40 subjects of 2 patients cannot be split") as caught:
        published_split(patient_of, patient_of)
    assert caught.value.remedy == "prepare scans of more patients into the store"
    for large in range(3):  # first, in the middle or last in the shuffled order
        lopsided = scans_of_patients([40 if p == large else 1 for p in range(3)])
        split = published_split(lopsided, lopsided)
        assert sorted(map(len, split.to_json().values())) == [1, 1, 40]


@settings(deadline=None, max_examples=50)
@given(SCANS_OF, st.integers(0, 2**32), st.data())
def test_label_subsets_go_patient_after_patient(
    counts: list[int], seed: int, data: st.DataObject
) -> None:
    patient_of = scans_of_patients(counts)
    larger = data.draw(st.integers(1, len(patient_of)))
    smaller = data.draw(st.integers(1, larger))
    subset = label_subset(list(patient_of), larger, seed, patient_of)
    assert len(subset) == larger
    assert subset[:smaller] == label_subset(list(patient_of)[::-1], smaller, seed, patient_of)
    together = [(patient, list(ids)) for patient, ids in groupby(subset, patient_of.__getitem__)]
    assert len({patient for patient, _ in together}) == len(together)
    assert all(ids == sorted(ids) for _, ids in together)
