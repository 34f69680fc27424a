"""Rules that change a mask after it was predicted, chosen on the scans that chose its threshold.

The rule of choice is nnU-Net's (Isensee et al., Nature Methods 18, 2021; v2's
`remove_connected_components.py`): a change is tried on all classes together first, then on each
class, always on what the changes before have left; it is kept if the mean Dice rises and no class
falls. There it is tried with the largest component alone; here with the smallest lesion and with
holes as well, in this order, as what is removed may leave a hole. Of several volumes of the
smallest lesion the one with the highest mean is tried on. Dice and its means are those of the
report: a scan without the class does not count, patients first, then classes.

Voxels are connected to their 26 neighbours; a hole is what cannot be left through the faces of
voxels. Volumes are in mm³: what was chosen on the grid of the slices is used on the scan's own grid
as it is.

Letters in names: Z slices of a scan, H and W rows and columns of a slice, K classes.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from functools import reduce
from itertools import groupby
from operator import methodcaller
from typing import Any, Literal

import numpy as np

from fewscan.experiments.cases import Row, mean_defined, mean_over_patients
from fewscan.experiments.components import box_of, components_of
from fewscan.experiments.spec import Postprocess
from fewscan.storage.labels import where_one_of

_OF_A_VOXEL = 1e-3
"""So much may rounding take from a volume: a header's lengths are in single precision."""

Spacing = tuple[float, float, float]


@dataclass(frozen=True)
class Rule:
    """One change of a mask of classes."""

    kind: Literal["largest component", "smallest lesion", "holes"]
    labels: tuple[int, ...]
    """The classes that it is about, all together: 1, 2, …; 1 is the lesion of a binary mask."""
    mm3: float = 0.0
    """The volume of the smallest lesion that is kept."""

    def apply(self, labels_ZHW: np.ndarray, spacing_mm_ZHW: Spacing) -> np.ndarray:
        """A changed copy of the uint8 labels; what is removed becomes 0, what is filled was 0."""
        mask_ZHW: np.ndarray = where_one_of(labels_ZHW, self.labels)
        match self.kind:
            case "holes":
                filled_ZHW = _filled(mask_ZHW) & (labels_ZHW == 0)
                return np.where(filled_ZHW, np.uint8(self.labels[0]), labels_ZHW)
            case "largest component":
                kept_ZHW = _kept(mask_ZHW, lambda sizes: _is_first(sizes, int(sizes.argmax())))
            case "smallest lesion":
                voxels = math.ceil(self.mm3 / math.prod(spacing_mm_ZHW) - _OF_A_VOXEL)
                kept_ZHW = _kept(mask_ZHW, lambda sizes: sizes >= voxels)
        return np.where(mask_ZHW & ~kept_ZHW, np.uint8(0), labels_ZHW)

    def words(self, names: Sequence[str]) -> str:
        """For people: "largest component of oedema"; `names` are those of all classes."""
        each = [names[label - 1].replace("_", " ") for label in self.labels]
        of = "all classes together" if len(each) == len(names) > 1 else " and ".join(each)
        return {
            "largest component": f"largest component of {of}",
            "smallest lesion": f"no component of {of} below {self.mm3:g} mm³",
            "holes": f"holes of {of} filled",
        }[self.kind]

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "Rule":
        """The inverse of `dataclasses.asdict`. Raises TypeError or KeyError for anything else."""
        return cls(**{**value, "labels": tuple(value["labels"])})


def _kept(mask_ZHW: np.ndarray, which: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """The components of a mask that `which` picks by their sizes in voxels."""
    component_ZHW, components = components_of(mask_ZHW)
    if not components:
        return mask_ZHW
    picked = which(np.bincount(component_ZHW.ravel())[1:])
    kept_ZHW: np.ndarray = np.concatenate([[False], picked])[component_ZHW]
    return kept_ZHW


def _is_first(sizes: np.ndarray, index: int) -> np.ndarray:
    """Of several components of the largest size the first."""
    first: np.ndarray = np.arange(len(sizes)) == index
    return first


def _filled(mask_ZHW: np.ndarray) -> np.ndarray:
    from scipy import ndimage

    filled_ZHW: np.ndarray = ndimage.binary_fill_holes(mask_ZHW)
    return filled_ZHW


def apply(rules: Sequence[Rule], labels_ZHW: np.ndarray, spacing_mm_ZHW: Spacing) -> np.ndarray:
    """The uint8 labels after all rules; without a rule the same array, else a copy.

    It works on the box that holds all that is predicted, as nothing outside can change.
    """
    box = box_of(labels_ZHW > 0) if rules else None
    if box is None:
        return labels_ZHW
    changed_ZHW = labels_ZHW.copy()
    changed_ZHW[box] = reduce(
        lambda found_ZHW, rule: rule.apply(found_ZHW, spacing_mm_ZHW), rules, labels_ZHW[box]
    )
    return changed_ZHW


@dataclass(frozen=True, eq=False)
class Example:
    """A scan that rules are tried on."""

    patient: str
    found_ZHW: np.ndarray
    """uint8: the classes, or 1 for a lesion."""
    truth_ZHW: np.ndarray
    """uint8, in the same meaning."""
    spacing_mm_ZHW: Spacing

    def cropped(self) -> "Example":
        """Without what is neither predicted nor there; sixty whole scans would take much memory."""
        box = box_of((self.found_ZHW > 0) | (self.truth_ZHW > 0))
        if box is None:
            box = slice(0, 1), slice(0, 1), slice(0, 1)
        found_ZHW, truth_ZHW = self.found_ZHW[box].copy(), self.truth_ZHW[box].copy()
        return replace(self, found_ZHW=found_ZHW, truth_ZHW=truth_ZHW)

    def changed_by(self, rule: Rule) -> "Example":
        """The same after a rule."""
        return replace(self, found_ZHW=rule.apply(self.found_ZHW, self.spacing_mm_ZHW))

    def row(self, names: Sequence[str]) -> Row:
        """Dice of each class; nan where it is not in the truth."""
        values = len(names) + 1
        pairs = self.truth_ZHW.astype(np.int32) * values + self.found_ZHW
        counts = np.bincount(pairs.ravel(), minlength=values**2).reshape(values, values)
        row: Row = {"patient": self.patient}
        for label, name in enumerate(names, start=1):
            true, found = int(counts[label].sum()), int(counts[:, label].sum())
            row[f"dice_{name}"] = (
                2 * int(counts[label, label]) / (true + found) if true else math.nan
            )
        return row


@dataclass(frozen=True)
class Dice:
    """What a set of masks is worth."""

    classes: Mapping[str, float]
    """Mean over patients; nan for a class that none has."""

    @property
    def mean(self) -> float:
        """Over the classes that are there."""
        return mean_defined(np.array([*self.classes.values()]))

    def falls_from(self, other: "Dice") -> list[str]:
        """The classes that were better before."""
        return [name for name, dice in self.classes.items() if dice < other.classes[name]]


@dataclass(frozen=True)
class Tried:
    """A rule, and what it would have done."""

    rule: Rule
    before: float
    """Mean Dice."""
    after: float
    falls: tuple[str, ...]
    """Classes that are worse after it."""
    kept: bool


@dataclass(frozen=True)
class Fitted:
    """What was chosen, on how many scans, and why."""

    scans: int = 0
    """0: no label was there to choose by, so there is no rule."""
    rules: tuple[Rule, ...] = ()
    before: Mapping[str, float] = field(default_factory=dict)
    """Class → Dice on those scans, without any rule."""
    after: Mapping[str, float] = field(default_factory=dict)
    """… and with all that were chosen."""
    tried: tuple[Tried, ...] = ()
    """In the order of trying."""

    def to_json(self) -> dict[str, Any]:
        """For `Result.postprocess`: as it is read back, with None for what is not defined."""
        found: dict[str, Any] = _plain(asdict(self))
        return found


def _plain(value: Any) -> Any:
    match value:
        case dict():
            return {name: _plain(inner) for name, inner in value.items()}
        case tuple():
            return [_plain(inner) for inner in value]
        case float():
            return None if math.isnan(value) else value
    return value


def rules_of(postprocess: Mapping[str, Any]) -> tuple[Rule, ...]:
    """The rules of a result's `postprocess`, in their order; none if it has none."""
    return tuple(map(Rule.from_json, postprocess.get("rules", ())))


def candidates(
    wanted: Postprocess, classes: Sequence[int], lesion: Sequence[int]
) -> Iterator[list[Rule]]:
    """What is tried, step by step: of a step's rules one is kept at most.

    `classes` are the labels that a mask can have, `lesion` those that are lesions: an organ has no
    smallest lesion.
    """
    if wanted.largest_component:
        yield from ([Rule("largest component", labels)] for labels in _together_and_each(classes))
    for labels in _together_and_each(lesion) if wanted.min_lesion_mm3 else ():
        yield [Rule("smallest lesion", labels, mm3) for mm3 in sorted(wanted.min_lesion_mm3)]
    if wanted.fill_holes:
        yield from ([Rule("holes", (label,))] for label in classes)


def _together_and_each(labels: Sequence[int]) -> list[tuple[int, ...]]:
    """All of them, then one by one; of a single one no more than that."""
    return [key for key, _ in groupby([tuple(labels), *((label,) for label in labels)])]


def fit(
    wanted: Postprocess,
    examples: Sequence[Example],
    names: Sequence[str],
    lesion: Sequence[int],
    threads: int = 1,
) -> Fitted:
    """The rules that raise Dice on these scans, chosen as this module says.

    `names` are those of the labels 1, 2, …; `lesion` the labels that are lesions.
    """
    with ThreadPoolExecutor(threads) as pool:

        def worth(examples: Sequence[Example]) -> Dice:
            rows = [*pool.map(lambda it: it.row(names), examples)]
            return Dice({name: mean_over_patients(rows, f"dice_{name}") for name in names})

        first = now = worth(examples)
        rules: list[Rule] = []
        tried: list[Tried] = []
        for step in candidates(wanted, range(1, len(names) + 1), lesion):
            best: tuple[Rule, Sequence[Example], Dice] | None = None
            found = []
            for rule in step:
                changed = [*pool.map(methodcaller("changed_by", rule), examples)]
                then = worth(changed)
                found.append((rule, then))
                better = then.mean > (now if best is None else best[2]).mean
                if better and not then.falls_from(now):
                    best = rule, changed, then
            kept = None if best is None else best[0]
            tried += [
                Tried(rule, now.mean, then.mean, tuple(then.falls_from(now)), rule == kept)
                for rule, then in found
            ]
            if best is not None:
                rule, examples, now = best
                rules.append(rule)
    return Fitted(len(examples), tuple(rules), first.classes, now.classes, tuple(tried))
