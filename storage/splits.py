"""Who trains, who validates, who tests; and which of the training scans have labels.

The split is the one of Kascenas et al. (2022), by the rule in their published code: sort the ids,
shuffle them with seed 0, give 75 % to training, 5 % to validation, the rest to the test. On the
1251 subjects of BraTS 2021 it gives the published lists, in order. On others the rule is the same
unless a split is given as a file; but 5 % of a small set is a patient or two, who would choose all
models and thresholds. So at least `FEWEST_VALIDATED` patients validate and as many are tested, or
as many as a person says.

Or a study asks for cross-validation: then each labelled scan is tested once (`split_of_fold`).

A patient is never divided. Where patients have several scans, patients are shuffled in place of
scans, and the parts end where a patient does; label counts go on counting scans.
"""

import random
import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from itertools import accumulate, chain, pairwise
from pathlib import Path

from fewscan.storage.errors import StudyError, named

SPLIT_RULE = "ids sorted, shuffled by random.Random(0); 75 % train, 5 % validation, the rest test"
PATIENT_RULE = (
    "patients in the order of their first ids, shuffled by random.Random(0); 75 % of the scans "
    "train, 5 % validation, the rest test, each to the nearest patient"
)
"""the same rule where patients have several scans"""
PUBLISHED_SUBJECTS = 1251
PUBLISHED_SHA256 = "76e936ad190deac8e2d8c41fe1a41d0b7731989b905bf1362105befa241d4179"
PARTS = ("train", "validation", "test")
FEWEST_SUBJECTS = 20  # int(0.05 * 20) is the first validation subject
FEWEST_VALIDATED = 5
"""patients in validation, and in the test, unless another number is asked for"""
_PATIENTS_FOR_EACH = 5
"""so many times as many patients there must be: three fifths are left to train"""
_EXPECTED = "three lists of subject ids: train, validation, test"


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

    def require_whole_patients(
        self, patient_of: Mapping[str, str], where: str | Path | None = None
    ) -> None:
        """Raise `StudyError` that names two scans of one patient in two parts, if there are such.

        An id that `patient_of` does not have is a patient of its own.
        """
        first: dict[str, tuple[str, str]] = {}
        for part in PARTS:
            for id_ in getattr(self, part):
                patient = patient_of.get(id_, id_)
                other, other_part = first.setdefault(patient, (id_, part))
                if other_part != part:
                    raise StudyError(
                        f"patient {patient} is in two parts: {other} in {other_part}, "
                        f"{id_} in {part}",
                        where=where,
                        expected="all scans of a patient in one part",
                        remedy="move one of them to the other's part, or leave one out",
                    )


def split_rule(several_scans: bool, fewest: int = 0) -> str:
    """What `split_by_rule` does, in words."""
    rule = PATIENT_RULE if several_scans else SPLIT_RULE
    least = f"; validation and test have at least {fewest} patient{'' if fewest == 1 else 's'}"
    return rule + (least if fewest else "")


def published_split(
    subject_ids: Iterable[str], patient_of: Mapping[str, str] | None = None
) -> Split:
    """Split the subjects as published: `split_by_rule`, whatever 5 % of them are."""
    return split_by_rule(subject_ids, patient_of, fewest=0)


def split_by_rule(
    subject_ids: Iterable[str], patient_of: Mapping[str, str] | None, fewest: int
) -> Split:
    """Split the subjects by `SPLIT_RULE`, or by `PATIENT_RULE` if patients have several of them.

    `patient_of` tells the patient of an id; an id that it does not have is a patient of its own. At
    least `fewest` patients validate and as many are tested; with 0 it is as published, where
    `FEWEST_SUBJECTS` are enough. From 20 × `fewest` patients of one scan on it is as published
    anyway.

    Raises `StudyError` if an id comes twice or there are too few subjects or patients for all three
    parts.
    """
    ids = sorted(subject_ids)
    _require_once(ids)
    patients = _scans_by_patient(ids, patient_of)
    if fewest:
        _require_patients(len(patients), fewest)
    else:
        _require_enough(ids)
    random.Random(0).shuffle(patients)
    sizes = list(map(len, patients))
    train, validation = _ends(sizes, max(1, fewest))
    parts = patients[:train], patients[train:validation], patients[validation:]
    published = len(patients) == len(ids) and is_published(ids)
    published = published and (train, validation) == _ends(sizes, 1)
    train_ids, validation_ids, test_ids = (tuple(chain(*part)) for part in parts)
    return Split(train_ids, validation_ids, test_ids, published)


@dataclass(frozen=True)
class Fold:
    """One of the parts in which cross-validation tests all labelled scans, each once.

    An outer fold, as people say where labelled scans are divided once more (`folds`).
    """

    number: int
    """from 1"""
    of: int

    def __str__(self) -> str:
        return f"outer fold {self.number} of {self.of}"

    @property
    def suffix(self) -> str:
        """What the fingerprint of a store's data ends with, where this is tested."""
        return f"+fold{self.number}of{self.of}"

    @classmethod
    def of_fingerprint(cls, text: str) -> "Fold | None":
        """The fold that a fingerprint ends with."""
        found = re.search(r"\+fold(\d+)of(\d+)$", text)
        return None if found is None else cls(int(found[1]), int(found[2]))


def split_of_fold(
    subject_ids: Iterable[str], patient_of: Mapping[str, str] | None, fold: Fold, fewest: int
) -> Split:
    """Split the subjects for one fold of a cross-validation, in which each is tested once.

    Patients are shuffled as by `SPLIT_RULE`, and dealt into parts (`folds`). The fold's part is
    tested. Of the others, beginning with the next part, patients validate until they have 5 % of
    all scans, and are at least `fewest` and at least one; the rest train.

    Raises `StudyError` if an id comes twice or there are too few patients.
    """
    ids = sorted(subject_ids)
    _require_once(ids)
    patients = _scans_by_patient(ids, patient_of)
    fewest = max(1, fewest)
    random.Random(0).shuffle(patients)
    shuffled = tuple(chain(*patients))
    parts = folds(shuffled, fold.of, patient_of) if fold.of <= len(patients) else ()
    tested_at_most = max((len(_scans_by_patient(it, patient_of)) for it in parts), default=0)
    if not parts or len(patients) - tested_at_most <= fewest:
        raise StudyError(
            f"{len(patients)} patients are too few for {fold.of} folds and {fewest} patients in "
            "validation",
            where="split.folds",
            expected="a patient for each fold, and some left to train",
            remedy="ask for fewer folds, or prepare the scans with a smaller `--validation`",
        )
    before, tested, after = parts[: fold.number - 1], parts[fold.number - 1], parts[fold.number :]
    others = _scans_by_patient(tuple(chain(*after, *before)), patient_of)
    up_to = [*accumulate(map(len, others))]
    enough = next(n for n, scans in enumerate(up_to, 1) if scans >= int(0.05 * len(ids)))
    validated = tuple(chain(*others[: min(max(fewest, enough), len(others) - 1)]))
    left = {*ids} - {*tested, *validated}
    return Split(tuple(id_ for id_ in shuffled if id_ in left), validated, tested)


def is_published(subject_ids: Iterable[str]) -> bool:
    """Tell whether these are exactly the subjects that the published lists hold."""
    ids = sorted(subject_ids)
    return len(ids) == PUBLISHED_SUBJECTS and ids_sha256(ids) == PUBLISHED_SHA256


def ids_sha256(ids: Sequence[str]) -> str:
    """SHA-256 of the ids joined by newlines, in the order given."""
    return sha256("\n".join(ids).encode()).hexdigest()


def label_subset(
    train_ids: Sequence[str],
    count: int,
    seed: int,
    patient_of: Mapping[str, str] | None = None,
) -> tuple[str, ...]:
    """Choose the `count` training scans whose labels may be used, patient after patient.

    Nested: the subset of 2 lies in the subset of 4 of the same seed; every arm gets the same.
    `patient_of` tells the patient of an id; an id that it does not have is a patient of its own.
    Raises `StudyError` if there are not that many training scans.
    """
    if not 1 <= count <= len(train_ids):
        raise StudyError(
            f"a label count of {count}",
            expected=f"between 1 and the {len(train_ids)} training scans",
            remedy="change the label counts of the study, or prepare more scans",
        )
    patients = _scans_by_patient(sorted(train_ids), patient_of)
    random.Random(seed).shuffle(patients)
    return tuple(chain(*patients))[:count]


FEWEST_TO_HOLD_OUT = 4
"""Labelled scans of which one may be spared: a quarter; later a fifth, as nnU-Net's folds."""


def hold_out(
    labelled: Sequence[str], patient_of: Mapping[str, str] | None = None
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Divide labelled scans into those to learn from and those that choose a model.

    The last fifth is held out, at least one scan, and whole patients; none of fewer than
    `FEWEST_TO_HOLD_OUT` scans, or of the scans of one patient.
    """
    patients = _scans_by_patient(labelled, patient_of)
    wanted = max(1, len(labelled) // 5) if len(labelled) >= FEWEST_TO_HOLD_OUT else 0
    held: list[str] = []
    while len(held) < wanted and len(patients) > 1:
        held = [*patients.pop(), *held]
    return tuple(id_ for id_ in labelled if id_ not in held), tuple(held)


def folds(
    labelled: Sequence[str], count: int, patient_of: Mapping[str, str] | None = None
) -> tuple[tuple[str, ...], ...]:
    """Divide labelled scans into `count` parts of whole patients, for cross-validation.

    Patients are dealt in the order in which they come, each to the part that has the fewest scans
    so far, of equals to the first. Raises `StudyError` if there are fewer patients than parts.
    """
    patients = _scans_by_patient(labelled, patient_of)
    if not 2 <= count <= len(patients):
        raise StudyError(
            f"{count} folds of {len(labelled)} labelled scans of {len(patients)} patients",
            expected="at least 2 folds, and a patient for each",
            remedy="ask for fewer folds, or for more labelled scans",
        )
    parts: list[list[str]] = [[] for _ in range(count)]
    for scans in patients:
        min(parts, key=len).extend(scans)
    return tuple(tuple(part) for part in parts)


def read_split(path: Path, known_ids: Collection[str]) -> Split:
    """Read a split that a person gives: YAML or JSON with the lists train, validation and test.

    Raises `StudyError` if the file is no such file, a part is empty, or an id stands twice or is
    not among `known_ids`.
    """
    split = _parse(path)
    for part in PARTS:
        if not getattr(split, part):
            raise StudyError(f"the part {part} is empty", where=path, expected="at least one id")
    counts = Counter([*split.train, *split.validation, *split.test])
    _require_none(sorted(i for i, n in counts.items() if n > 1), "more than once", path)
    _require_none(sorted(split.ids - set(known_ids)), "not among the scans", path)
    return split


def read_ids(path: Path, known_ids: Collection[str]) -> frozenset[str]:
    """Read a list of scans that a person gives: an id a line; `#` begins a comment.

    Raises `StudyError` if it cannot be read, or an id is not among `known_ids`.
    """
    expected = "a text file with the id of a scan in each line"
    try:
        lines = [line.partition("#")[0].strip() for line in path.read_text().splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise StudyError(
            f"the list cannot be read: {error}", where=path, expected=expected
        ) from error
    ids = frozenset(filter(None, lines))
    _require_none(sorted(ids - set(known_ids)), "not among the scans", path)
    return ids


def _scans_by_patient(
    sorted_ids: Sequence[str], patient_of: Mapping[str, str] | None
) -> list[list[str]]:
    """The ids of each patient, both in the order in which they come."""
    patients: dict[str, list[str]] = defaultdict(list)
    for id_ in sorted_ids:
        patients[(patient_of or {}).get(id_, id_)].append(id_)
    return list(patients.values())


def _ends(scans: Sequence[int], fewest: int) -> tuple[int, int]:
    """How many patients, of so many scans each, are before the end of train and of validation.

    A part ends after the patient that brings it nearest to its share of the scans, the earlier of
    two as near; train has a patient, the others have `fewest`. Raises `StudyError` if there are
    fewer than three patients.
    """
    if len(scans) < len(PARTS):
        raise StudyError(
            f"{sum(scans)} subjects of {len(scans)} patients cannot be split",
            expected=f"at least {len(PARTS)} patients ({PATIENT_RULE})",
            remedy="prepare scans of more patients into the store",
        )
    up_to = list(accumulate(scans, initial=0))
    train_wanted = int(up_to[-1] * 0.75)
    validation_wanted = train_wanted + int(up_to[-1] * 0.05)
    last = len(scans) - fewest
    train = min(range(1, last - fewest + 1), key=lambda end: abs(up_to[end] - train_wanted))
    validation = min(
        range(train + fewest, last + 1), key=lambda end: abs(up_to[end] - validation_wanted)
    )
    return train, validation


def _require_once(ids: Sequence[str]) -> None:
    if len(set(ids)) < len(ids):
        twice = next(a for a, b in pairwise(ids) if a == b)
        raise StudyError(f"subject {twice} comes twice", expected="each subject once")


def _require_patients(patients: int, fewest: int) -> None:
    if patients < _PATIENTS_FOR_EACH * fewest:
        possible = patients // _PATIENTS_FOR_EACH
        fewer = f"ask for fewer with `fewscan prepare SCANS STORE --validation {possible}`, "
        raise StudyError(
            f"{patients} patients are too few for {fewest} in validation and {fewest} in the test",
            expected=f"at least {_PATIENTS_FOR_EACH * fewest} patients",
            remedy=f"{fewer if possible else ''}choose the parts yourself with `--split FILE`, or "
            "prepare scans of more patients into the store",
        )


def _require_enough(ids: Sequence[str]) -> None:
    if len(ids) < FEWEST_SUBJECTS:
        raise StudyError(
            f"{len(ids)} subjects leave none for validation",
            expected=f"at least {FEWEST_SUBJECTS} subjects ({SPLIT_RULE})",
            remedy="prepare more scans into the store, or give it a split (prepare --split FILE)",
        )


def _parse(path: Path) -> Split:
    import yaml  # not on every machine that trains

    try:
        # All scalars as text: an id such as 007 must not become a number.
        value = yaml.load(path.read_text(), Loader=yaml.BaseLoader)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise StudyError(
            f"the split cannot be read: {error}", where=path, expected=_EXPECTED
        ) from error
    if isinstance(value, list):
        raise StudyError(
            f"a list of {len(value)} entries, perhaps nnU-Net's folds",
            where=path,
            expected=_EXPECTED,
            remedy="write a file of the three parts; of folds, say: the val of one fold as test, "
            "the val of another as validation, the rest as train",
        )
    lists = value if isinstance(value, dict) else {}
    if set(lists) != set(PARTS) or not all(
        isinstance(ids, list) and all(isinstance(id_, str) for id_ in ids) for ids in lists.values()
    ):
        found = f"the keys {', '.join(lists)}" if lists else "no lists"
        raise StudyError(found, where=path, expected=_EXPECTED)
    return Split.from_json(lists)


def _require_none(ids: list[str], what: str, path: Path) -> None:
    if ids:
        raise StudyError(
            f"{len(ids)} ids {what}: {named(ids)}",
            where=path,
            expected="each subject of the data set at most once",
            remedy="correct the lists; `fewscan check STORE` and the folder of scans show the ids",
        )
