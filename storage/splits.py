"""Who trains, who validates, who tests; and which of the training scans have labels.

The split is the one of Kascenas et al. (2022), by the rule in their published code: sort the ids,
shuffle them with seed 0, give 75 % to training, 5 % to validation, the rest to the test. On the
1251 subjects of BraTS 2021 it gives the published lists, in order; on others the rule is the same,
unless a split is given (`split_file`).
"""

import random
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from itertools import pairwise

from fewscan.storage.errors import StudyError

SPLIT_RULE = "ids sorted, shuffled by random.Random(0); 75 % train, 5 % validation, the rest test"
PUBLISHED_SUBJECTS = 1251
PUBLISHED_SHA256 = "76e936ad190deac8e2d8c41fe1a41d0b7731989b905bf1362105befa241d4179"
PARTS = ("train", "validation", "test")
FEWEST_SUBJECTS = 20  # int(0.05 * 20) is the first validation subject


@dataclass(frozen=True)
class Split:
    """The ids of each part, in published order."""

    train: tuple[str, ...]
    """fits the weights; also where labelled scans and healthy slices come from"""
    validation: tuple[str, ...]
    """chooses the checkpoint"""
    test: tuple[str, ...]
    """scored once, at the end"""
    published: bool = False
    """whether these are the published lists, so that figures may be compared with the paper's"""

    @property
    def ids(self) -> set[str]:
        """Of all three parts."""
        return {*self.train, *self.validation, *self.test}

    def to_json(self) -> dict[str, list[str]]:
        """The lists of ids by part."""
        return {part: list(getattr(self, part)) for part in PARTS}

    @classmethod
    def from_json(cls, value: Mapping[str, Sequence[str]]) -> "Split":
        """A split that was given as lists of ids by part."""
        return cls(tuple(value["train"]), tuple(value["validation"]), tuple(value["test"]))

    def among(self, subject_ids: Collection[str]) -> "Split":
        """The split of those that are among `subject_ids`."""
        parts = ([i for i in getattr(self, part) if i in subject_ids] for part in PARTS)
        return Split.from_json(dict(zip(PARTS, parts, strict=True)))


def published_split(subject_ids: Iterable[str]) -> Split:
    """Split the subjects by `SPLIT_RULE`.

    Raises `StudyError` if an id comes twice or there are too few subjects for all three parts.
    """
    ids = sorted(subject_ids)
    _require_enough(ids)
    random.Random(0).shuffle(ids)
    train = int(len(ids) * 0.75)
    validation = train + int(len(ids) * 0.05)
    return Split(
        train=tuple(ids[:train]),
        validation=tuple(ids[train:validation]),
        test=tuple(ids[validation:]),
        published=is_published(ids),
    )


def is_published(subject_ids: Iterable[str]) -> bool:
    """Tell whether these are exactly the subjects that the published lists hold."""
    ids = sorted(subject_ids)
    return len(ids) == PUBLISHED_SUBJECTS and ids_sha256(ids) == PUBLISHED_SHA256


def ids_sha256(ids: Sequence[str]) -> str:
    """SHA-256 of the ids joined by newlines, in the order given."""
    return sha256("\n".join(ids).encode()).hexdigest()


def label_subset(train_ids: Sequence[str], count: int, seed: int) -> tuple[str, ...]:
    """Choose the `count` training scans whose labels may be used.

    Nested: the subset of 2 lies in the subset of 4 of the same seed; every arm gets the same.
    Raises `StudyError` if there are not that many training scans.
    """
    if not 1 <= count <= len(train_ids):
        raise StudyError(
            f"a label count of {count}",
            expected=f"between 1 and the {len(train_ids)} training scans",
            remedy="change the label counts of the study, or prepare more scans",
        )
    order = sorted(train_ids)
    random.Random(seed).shuffle(order)
    return tuple(order[:count])


def _require_enough(ids: Sequence[str]) -> None:
    if len(set(ids)) < len(ids):
        twice = next(a for a, b in pairwise(ids) if a == b)
        raise StudyError(f"subject {twice} comes twice", expected="each subject once")
    if len(ids) < FEWEST_SUBJECTS:
        raise StudyError(
            f"{len(ids)} subjects leave none for validation",
            expected=f"at least {FEWEST_SUBJECTS} subjects ({SPLIT_RULE})",
            remedy="prepare more scans into the store, or give it a split (prepare --split FILE)",
        )
