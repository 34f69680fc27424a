"""What post-processing was fitted, and what it did to validation and to the test split."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal

import numpy as np

from fewscan.experiments.cases import mean_defined
from fewscan.experiments.catalogue import LESION, METRICS, leading
from fewscan.experiments.postprocess import rules_of
from fewscan.experiments.spec import Target
from fewscan.harness.arms import Arm
from fewscan.harness.report.bootstrap import Estimate, estimate, mean
from fewscan.harness.report.cells import Cell, difference
from fewscan.harness.report.results import (
    RunResults,
    collect_cells,
    overall_quantity,
    runs_of_target,
)
from fewscan.harness.report.studies import Labelled, Studies
from fewscan.harness.report.tables import Column, Table, at, interval, label_count, number, signed
from fewscan.storage.errors import StudyError


@dataclass(frozen=True)
class Postprocessed:
    """An arm at a label count, over its finished runs; Dice is that of the leading metric."""

    target: Target
    arm: Arm
    labels: int | None
    seeds: int
    """Finished runs that were asked for it."""
    scans: tuple[int, int]
    """On which it was fitted, the fewest and the most of a run; 0: on none, so that nothing is
    changed."""
    chosen: Mapping[str, int]
    """Rule, in words → runs that it was chosen in."""
    validation: tuple[float | None, float | None]
    """Mean Dice on those scans before and after, over the runs that have some."""
    test: tuple[float | None, float | None]
    """Mean Dice over seeds and patients before and after."""
    change: Estimate
    """After minus before, paired, with its interval over seeds and patients."""

    @property
    def words(self) -> str:
        """ "largest component of lesion (3 of 5 seeds)", or "nothing"."""
        if not any(self.scans):
            return "not fitted: no scan chooses"
        each = [f"{rule} ({n} of {self.seeds} seeds)" for rule, n in self.chosen.items()]
        return "; ".join(each) or "nothing"


def read_postprocessed(studies: Studies, results: Sequence[RunResults]) -> list[Postprocessed]:
    """A row for each arm and label count with a finished run that was asked for it; the unlabelled
    ones last."""
    asked = [run for it in results for run in it.runs if run.postprocess]
    found = []
    for target in studies.targets:
        runs = runs_of_target(asked, target)
        after, before = (
            _cells(studies, asked, target, key)
            for key in (leading(target).key, "dice_before_postprocessing")
        )
        for place in studies.planned(target):
            if place in runs:
                cells = after.get(place), before.get(place)
                found.append(_row(studies, target, place, runs[place], *cells))
    return found


def _cells(
    studies: Studies, results: Sequence[RunResults], target: Target, key: str
) -> dict[Labelled, Cell]:
    with suppress(StudyError):  # other patients: the evidence says so
        return collect_cells(results, overall_quantity(studies, target, METRICS[key]))
    return {}


def _row(
    studies: Studies,
    target: Target,
    place: Labelled,
    runs: Sequence[RunResults],
    after: Cell | None,
    before: Cell | None,
) -> Postprocessed:
    names = studies.first.store.classes if target == "multiclass" else (LESION,)
    scans = [int(it.postprocess["scans"]) for it in runs]
    change = Estimate(None, None)
    if after is not None and before is not None:
        change = estimate(difference(after, before))
    return Postprocessed(
        target,
        *place,
        seeds=len(runs),
        scans=(min(scans), max(scans)),
        chosen=Counter(
            rule.words(names) for it in runs for rule in dict.fromkeys(rules_of(it.postprocess))
        ),
        validation=(_on_validation(runs, "before"), _on_validation(runs, "after")),
        test=(_mean(before), _mean(after)),
        change=change,
    )


def _mean(cell: Cell | None) -> float | None:
    return None if cell is None else mean(cell)


def _on_validation(runs: Sequence[RunResults], when: Literal["before", "after"]) -> float | None:
    """Over runs, of each the mean over its classes."""
    each = [_defined(it.postprocess[when].values()) for it in runs if it.postprocess[when]]
    value = mean_defined(np.array(each)) if each else float("nan")
    return None if np.isnan(value) else value


def _defined(values: Iterable[float | None]) -> float:
    return mean_defined(np.array([np.nan if it is None else it for it in values], dtype=float))


def postprocessing_table(rows: Sequence[Postprocessed]) -> Table:
    """What was chosen, and Dice before and after."""
    columns = (
        Column("target", "target", at("target")),
        Column("arm", "arm", at("arm"), lambda arm: arm.title),
        Column("label_count", "labelled scans", at("labels"), label_count, "right"),
        Column("seeds", "", at("seeds")),
        Column("scans_fewest", "", lambda it: it.scans[0]),
        Column("scans_most", "fitted on", lambda it: it.scans[1], str, "right"),
        Column("chosen", "chosen", at("words")),
        Column("validation_before", "there, before", lambda it: it.validation[0], number, "right"),
        Column("validation_after", "after", lambda it: it.validation[1], number, "right"),
        Column("test_before", "test, before", lambda it: it.test[0], number, "right"),
        Column("test_after", "after", lambda it: it.test[1], number, "right"),
        Column("change", "change", at("change.value"), signed, "right"),
        Column("low", "", at("change.low")),
        Column("high", "", at("change.high")),
        Column("", "95 % interval", at("change"), lambda it: interval(it, sign="+"), "right"),
    )
    return Table(columns, rows)
