"""The split is the published rule; label subsets are nested."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fewscan.storage.errors import StudyError
from fewscan.storage.splits import (
    PUBLISHED_SHA256,
    ids_sha256,
    is_published,
    label_subset,
    published_split,
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
