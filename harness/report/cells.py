"""One cell of a study, an arm at a label count, and which cells may be paired.

A difference between two arms is only about the arms if both received the same labelled scans and
were tested on the same patients, seed by seed.

Letters in names: S seeds, P patients.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np

from fewscan.storage.errors import StudyError

Pretraining = tuple[str, int | None]
"""What it is called in the study, and its seed; None: imported weights, which have none."""


@dataclass(frozen=True, eq=False)
class Cell:
    """One quantity of one arm at one label count, for each patient of the test split.

    Raises ValueError if the parts do not fit together.
    """

    name: str
    """For errors: "scratch, 8 scans"."""
    seeds: tuple[int, ...]
    patients: tuple[str, ...]
    subsets: tuple[tuple[str, ...], ...]
    """For each seed, the scans whose labels it received."""
    scores_SP: np.ndarray
    """nan: not defined for that patient."""
    pretrainings: tuple[frozenset[Pretraining], ...] = ()
    """For each seed, the pre-training that it started from, in a difference those of both arms;
    empty: no seed started from any."""

    def __post_init__(self) -> None:
        shape = (len(self.seeds), len(self.patients))
        if self.scores_SP.shape != shape or len(self.subsets) != len(self.seeds):
            raise ValueError(
                f"{self.name}: {len(self.subsets)} subsets and scores of shape "
                f"{self.scores_SP.shape} for {shape[0]} seeds and {shape[1]} patients"
            )
        if len(self.pretrainings) not in (0, shape[0]):
            raise ValueError(
                f"{self.name}: {len(self.pretrainings)} pre-trainings for {shape[0]} seeds"
            )
        if len(set(self.seeds)) < shape[0] or len(set(self.patients)) < shape[1]:
            raise ValueError(f"{self.name}: a seed or a patient comes twice")

    def select(self, seeds: Sequence[int], patients: Sequence[str]) -> "Cell":
        """These seeds and patients alone, in this order."""
        rows = positions(self.seeds, seeds)
        columns = positions(self.patients, patients)
        subsets = tuple(self.subsets[row] for row in rows)
        scores_SP = self.scores_SP[np.ix_(rows, columns)]
        pretrainings = tuple(self.pretrainings[row] for row in rows if self.pretrainings)
        return Cell(self.name, tuple(seeds), tuple(patients), subsets, scores_SP, pretrainings)

    def started_from(self) -> dict[int, frozenset[Pretraining]]:
        """Seed → the pre-trainings that it started from."""
        none = (frozenset[Pretraining](),) * len(self.seeds)
        return dict(zip(self.seeds, self.pretrainings or none, strict=True))

    def defined(self) -> "Cell":
        """Without the seeds and the patients that have no score at all."""
        there_SP = ~np.isnan(self.scores_SP)
        if there_SP.any(axis=1).all() and there_SP.any(axis=0).all():
            return self
        seeds = [seed for seed, any_ in zip(self.seeds, there_SP.any(axis=1), strict=True) if any_]
        patients = np.array(self.patients, dtype=object)[there_SP.any(axis=0)]
        return self.select(seeds, patients.tolist())


@dataclass(frozen=True)
class Units:
    """What may be drawn independently of each other: seeds, or seeds that belong together.

    Seeds that start from the same pre-training share its luck, so they are one unit. Where all
    start from one and the same, the seeds are the units, and what is said is about that one.
    """

    of_seed: Mapping[int, int]
    """Seed → its unit, numbered from 0."""
    one_pretraining: bool
    """Whether there is a pre-training that all seeds with its name start from."""

    def __len__(self) -> int:
        return len({*self.of_seed.values()})


def units_of(cells: Iterable[Cell]) -> Units:
    """The units of cells that are drawn together: the coarser grouping, if theirs differ."""
    started: dict[int, set[Pretraining]] = {}
    for cell in cells:
        for seed, pretrainings in cell.started_from().items():
            started.setdefault(seed, set()).update(pretrainings)
    all_of_name: dict[str, set[Pretraining]] = {}
    for pretraining in sorted({*chain(*started.values())}, key=str):
        all_of_name.setdefault(pretraining[0], set()).add(pretraining)
    unit_of = {seed: seed for seed in sorted(started)}
    for pretraining in chain(*(several for several in all_of_name.values() if len(several) > 1)):
        joined = {unit_of[seed] for seed in started if pretraining in started[seed]}
        unit_of = {s: min(joined) if unit in joined else unit for s, unit in unit_of.items()}
    number = {unit: index for index, unit in enumerate(dict.fromkeys(unit_of.values()))}
    one_pretraining = any(len(several) == 1 for several in all_of_name.values())
    return Units({seed: number[unit] for seed, unit in unit_of.items()}, one_pretraining)


def positions(names: Sequence[object], wanted: Sequence[object]) -> list[int]:
    """Where each of the wanted names stands; KeyError for one that is not there."""
    if names == wanted:
        return [*range(len(names))]
    place = {name: index for index, name in enumerate(names)}
    return [place[name] for name in wanted]


def difference(first: Cell, second: Cell) -> Cell:
    """First minus second, over the seeds that both have; nan where either is.

    Raises `StudyError` if they cannot be paired: no seed in common, a seed that received other
    labelled scans, other test patients.
    """
    require_same_patients(first, second)
    require_same_subsets(first, second)
    seeds = sorted({*first.seeds} & {*second.seeds})
    if not seeds:
        raise StudyError(
            f"no seed in common: {_some(first.seeds)} against {_some(second.seeds)}",
            where=_both(first, second),
            expected="finished runs of both arms with the same seed",
            remedy="go on with the sweep, or give both arms the same seeds",
        )
    first, second = (cell.select(seeds, first.patients) for cell in (first, second))
    name = f"{first.name} minus {second.name}"
    scores_SP = first.scores_SP - second.scores_SP
    from_either = zip(first.started_from().values(), second.started_from().values(), strict=True)
    pretrainings = tuple(one | other for one, other in from_either)
    return Cell(name, first.seeds, first.patients, first.subsets, scores_SP, pretrainings)


def require_same_patients(first: Cell, second: Cell) -> None:
    """Raise `StudyError` unless both were tested on the same patients, in whatever order."""
    odd = {*first.patients} ^ {*second.patients}
    if odd:
        raise StudyError(
            f"different test patients: {len(odd)} in one alone ({_some(sorted(odd))})",
            where=_both(first, second),
            expected="the same test split for both arms",
            remedy="compare runs of the same store and protocol version",
        )


def require_same_subsets(first: Cell, second: Cell) -> None:
    """Raise `StudyError` if a seed that both have received other labelled scans."""
    received = dict(zip(second.seeds, second.subsets, strict=True))
    for seed, subset in zip(first.seeds, first.subsets, strict=True):
        odd = {*subset} ^ {*received.get(seed, subset)}
        if odd:
            raise StudyError(
                f"different labelled scans for seed {seed}: "
                f"{len(odd)} received by one alone ({_some(sorted(odd))})",
                where=_both(first, second),
                expected="the same labelled scans for both arms, seed by seed",
                remedy="compare runs of the same store and protocol version, or rerun one arm",
            )


def _both(first: Cell, second: Cell) -> str:
    return f"{first.name} / {second.name}"


def _some(names: Sequence[object]) -> str:
    return ", ".join(map(str, names[:3])) + (", …" if len(names) > 3 else "")
