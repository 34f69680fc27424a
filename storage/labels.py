"""What the values in a store's label arrays mean.

0 is none of the classes, k the k-th class, `IGNORED` a pixel whose truth nobody knows. Some classes
may be organs: lesions are those that a healthy slice has none of, and that a binary target means.
"""

from collections.abc import Collection
from dataclasses import dataclass
from functools import reduce
from operator import or_
from typing import Any, Literal

from fewscan.storage.errors import ScanError

IGNORED = 255
"""neither trained on nor scored; so a store has at most 254 classes"""
MOST_CLASSES = IGNORED - 1
PretrainSlices = Literal["healthy", "all"]
"""healthy: slices without a lesion, as published: of labelled scans, whose masks tell, and of scans
known to be healthy. all: those of unlabelled scans too, and no mask is looked at."""
Region = tuple[str, tuple[str, ...]]
"""a name and the classes that together are one: scored beside them"""


@dataclass(frozen=True)
class LabelMeaning:
    """The classes of a store, and which are lesions."""

    classes: tuple[str, ...]
    """names: label k is the k-th"""
    lesion: tuple[str, ...] = ()
    """those of them that are lesions; empty: all"""
    has_ignored: bool = False
    """whether a label may be `IGNORED`"""

    @property
    def lesion_values(self) -> tuple[int, ...]:
        """The labels of the lesion classes, ascending."""
        lesion = self.lesion or self.classes
        return tuple(k for k, name in enumerate(self.classes, start=1) if name in lesion)

    def is_lesion(self, labels: Any) -> Any:
        """Where an array or tensor of labels shows a lesion: bool, of the same shape."""
        if not self.has_ignored and len(self.lesion_values) == len(self.classes):
            return labels > 0
        return where_one_of(labels, self.lesion_values)

    def is_known(self, labels: Any) -> Any:
        """Where the truth is known: bool, of the same shape."""
        return labels != IGNORED

    def values_of(self, names: Collection[str]) -> tuple[int, ...]:
        """The labels of some classes, ascending."""
        return tuple(k for k, name in enumerate(self.classes, start=1) if name in names)


def where_one_of(labels: Any, values: Collection[int]) -> Any:
    """Where an array or tensor holds one of the values: bool, of the same shape."""
    return reduce(or_, [labels == value for value in values], labels != labels)


def require_classes(
    classes: Collection[str], lesion: Collection[str], regions: Collection[Region], where: Any
) -> None:
    """Raise `ScanError` unless there are 1 to 254 classes and the others name some of them."""
    if not 1 <= len(classes) <= MOST_CLASSES:
        raise ScanError(
            f"{len(classes)} classes", where=where, expected=f"1 to {MOST_CLASSES} classes a store"
        )
    for what, names in (("--lesion", lesion), *((f"region {name}", it) for name, it in regions)):
        unknown = [name for name in names if name not in classes]
        if unknown:
            raise ScanError(
                f"{what} names {', '.join(unknown)}, which is no class of these scans",
                where=where,
                expected=f"some of: {', '.join(classes)}",
                remedy="correct the names",
            )
