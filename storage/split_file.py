"""A split that a person gives: a YAML or JSON file with the lists train, validation and test."""

from collections import Counter
from collections.abc import Collection
from pathlib import Path

import yaml

from fewscan.storage.errors import StudyError
from fewscan.storage.splits import PARTS, Split

_EXPECTED = "three lists of subject ids: train, validation, test"


def read_split(path: Path, known_ids: Collection[str]) -> Split:
    """Read a split of some of the subjects `known_ids`.

    Raises `StudyError` if the file is no such file, a part is empty, an id stands twice or is
    unknown.
    """
    split = _parse(path)
    for part in PARTS:
        if not getattr(split, part):
            raise StudyError(f"the part {part} is empty", where=path, expected="at least one id")
    counts = Counter([*split.train, *split.validation, *split.test])
    _require_none(sorted(i for i, n in counts.items() if n > 1), "more than once", path)
    _require_none(sorted(split.ids - set(known_ids)), "not among the scans", path)
    return split


def _parse(path: Path) -> Split:
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
            f"{len(ids)} ids {what}: {', '.join(ids)}",
            where=path,
            expected="each subject of the data set at most once",
            remedy="correct the lists; `fewscan check STORE` and the folder of scans show the ids",
        )
