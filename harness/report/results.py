"""What finished runs measured on the test split: all pixels at once, and patient by patient.

The one place where the report reads `result.json` and `cases.csv`. A run that is not finished is
not there, one without `cases.csv` is in no number of patients; nothing is imputed.
"""

import csv
import statistics
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from fewscan.experiments.catalogue import LESION, Metric, computed, panels, structures
from fewscan.experiments.results import Result
from fewscan.experiments.spec import Target
from fewscan.harness.arms import Arm, Place
from fewscan.harness.report.bootstrap import Estimate, draw_resamples, mean, with_interval
from fewscan.harness.report.cells import Cell, Pretraining
from fewscan.harness.report.collapses import collapses
from fewscan.harness.report.studies import Labelled, Studies
from fewscan.storage.errors import RunError, StudyError
from fewscan.storage.runs import RunFolder


@dataclass(frozen=True, eq=False)
class RunResults:
    """What one finished run measured."""

    folder: RunFolder
    place: Place
    test: Mapping[str, float | None]
    """Key of `result.json` → number over the split; None: not defined there."""
    labelled: tuple[str, ...]
    """The scans whose labels it received."""

    patients: Mapping[str, Mapping[str, float]]
    """Patient → column of `cases.csv` → number; nan: not defined for that patient."""
    postprocess: Mapping[str, Any] = field(default_factory=dict)
    """What was fitted, as `result.json` has it; empty: nothing was asked for."""
    folds: tuple["RunResults", ...] = ()
    """Of a cross-validation the runs that these are made of, one a fold; empty: it is one run."""

    @property
    def runs(self) -> tuple["RunResults", ...]:
        """Each run of it."""
        return self.folds or (self,)

    def value(self, patient: str, columns: Iterable[str]) -> float:
        """Mean over the columns that are defined for a patient; nan if none is."""
        row = self.patients[patient]
        return _mean_defined(row.get(column, np.nan) for column in columns)


def read_results(studies: Studies) -> list[RunResults]:
    """The results of every finished run that has test numbers.

    Of a cross-validation, of every place in the grid that is finished in all folds.
    """
    found = []
    for plan in studies.plans:
        own: dict[Place, list[RunResults]] = {}
        for run in plan.scores:
            folder = plan.folder_of(run)
            if folder.result.exists():
                with suppress(RunError):  # the run's log names it
                    result, patients = Result.read(folder), read_patients(folder.cases)
                    measured = (result.test, result.labelled, patients, result.postprocess)
                    there = own.setdefault(run.place.in_all_folds, [])
                    there.append(RunResults(folder, run.place, *measured))
        if plan.folds:
            found += [together(it) for it in own.values() if len(it) == len(plan.folds)]
        else:
            found += [it for each in own.values() for it in each]
    return found


def together(folds: Sequence[RunResults]) -> RunResults:
    """The folds of a cross-validation as one: each patient as the network scored her that had not
    seen her; numbers over a split in the mean over folds, as many times as they have patients."""
    first = folds[0]
    weights = np.array([max(1, len(it.patients)) for it in folds])
    test: dict[str, float | None] = {}
    for key in dict.fromkeys(key for it in folds for key in it.test):
        values = np.array([it.test.get(key) for it in folds], float)  # None is nan
        there = ~np.isnan(values)
        mean_ = np.average(values[there], weights=weights[there]) if there.any() else None
        test[key] = None if mean_ is None else float(mean_)
    return RunResults(
        first.folder,
        first.place.in_all_folds,
        test,
        labelled=tuple(f"{id_}, {it.place.fold}" for it in folds for id_ in it.labelled),
        patients={patient: row for it in folds for patient, row in it.patients.items()},
        folds=tuple(folds),
    )


def read_patients(path: Path) -> dict[str, dict[str, float]]:
    """Patient → column → number: of several scans the mean over those for which it is defined.

    Files without the column `patient` are older than it: there each scan is a patient. Raises
    `RunError` if it is damaged.
    """
    if not path.exists():
        return {}
    scans: dict[str, list[dict[str, float]]] = {}
    try:
        with path.open(newline="") as file:
            for row in csv.DictReader(file):
                subject = row.pop("subject")
                numbers = scans.setdefault(row.pop("patient", subject), [])
                numbers.append({name: float(text or "nan") for name, text in row.items()})
    except (ValueError, KeyError, TypeError, csv.Error) as error:
        raise RunError(
            f"not a table of numbers ({type(error).__name__}: {error})",
            where=path,
            expected="the table that a score writes",
            remedy="the next sweep computes it again",
        ) from error
    return {
        patient: {name: _mean_defined(scan[name] for scan in numbers) for name in numbers[0]}
        for patient, numbers in scans.items()
    }


def _mean_defined(values: Iterable[float]) -> float:
    defined = [value for value in values if value == value]
    return float(np.mean(defined)) if len(defined) > 1 else defined[0] if defined else float("nan")


@dataclass(frozen=True)
class Quantity:
    """A number to compare arms by: a metric, of one structure or in the mean over them."""

    target: Target
    metric: Metric
    key: str
    """Its name in CSV files."""
    title: str
    """For people."""
    columns: tuple[str, ...] = ()
    """Of `cases.csv`; several are averaged over those that are defined for the patient."""
    leads: bool = False
    """Whether the target's verdict is about it."""
    is_mean: bool = False
    """Whether it is a mean over structures."""


def quantities(studies: Studies) -> list[Quantity]:
    """What patients are compared or described by, target by target, as the catalogue has it."""
    return [
        quantity
        for target in studies.targets
        for metric in computed(studies.evaluation, target, studies.first.store.keeps_scan_labels)
        if metric.compared != "no" and target in metric.compared_for
        for quantity in _quantities(studies, target, metric)
    ]


def _quantities(studies: Studies, target: Target, metric: Metric) -> list[Quantity]:
    """The mean over structures first, where means are compared and there are classes."""
    title, leads = metric.title_under(studies.evaluation), target in metric.leads
    unit = f", {metric.unit}" if metric.unit else ""
    if target == "binary" or metric.scope != "structure":
        column = metric.column(LESION)
        return [Quantity(target, metric, column, title + unit, (column,), leads)]
    joint = " of" if metric.compared == "quartiles" else ","
    store = studies.first.store
    each = {}
    for name in metric.structures(target, store.meaning, store.regions):
        column, words = metric.column(name), f"{title}{joint} {name.replace('_', ' ')}{unit}"
        each[name] = Quantity(target, metric, column, words, (column,))
    if metric.compared == "quartiles":
        return [*each.values()]
    key, title = f"{metric.key}_class_mean", f"class-mean {title}{unit}"
    columns = tuple(each[name].key for name in metric.averaged(store.meaning))
    mean_ = Quantity(target, metric, key, title, columns, leads, is_mean=True)
    return [mean_, *each.values()]


def overall_quantity(studies: Studies, target: Target, metric: Metric) -> Quantity:
    """The one number that a metric has for a patient: of the lesion, or the mean over classes."""
    return _quantities(studies, target, metric)[0]


Runs = dict[Labelled, list[RunResults]]
"""An arm and its labelled scans → its finished runs, which differ in seed alone."""


def runs_of_target(results: Iterable[RunResults], target: Target | None) -> Runs:
    """The runs that share all but the seed, together."""
    found: Runs = {}
    for it in results:
        if it.place.target == target:
            found.setdefault((it.place.arm, it.place.labels), []).append(it)
    return found


def collect_cells(results: Iterable[RunResults], quantity: Quantity) -> dict[Labelled, Cell]:
    """The cells of a quantity: each seed is a finished run, each column a test patient.

    Raises `StudyError` if the runs of one cell were tested on different patients.
    """
    with_patients = [it for it in results if it.patients]
    runs = runs_of_target(with_patients, quantity.target)
    return {place: _cell(quantity, cell_name(*place), found) for place, found in runs.items()}


def cell_name(arm: Arm, labels: int | None) -> str:
    """For errors and captions: "scratch, 4 scans"."""
    return arm.key if labels is None else f"{arm.key}, {labels} scan{'' if labels == 1 else 's'}"


def _cell(quantity: Quantity, name: str, results: Iterable[RunResults]) -> Cell:
    results = sorted(results, key=lambda it: it.place.seed)
    patients = sorted(results[0].patients)
    for it in results:
        if sorted(it.patients) != patients:
            raise StudyError(
                f"the seeds of {name} were tested on different patients",
                where=it.folder.cases,
                expected=f"the {len(patients)} patients of run {results[0].folder.run_id}",
                remedy="delete the run folder that was changed, and sweep again",
            )
    return Cell(
        name,
        seeds=tuple(it.place.seed for it in results),
        patients=tuple(patients),
        subsets=tuple(it.labelled for it in results),
        scores_SP=np.array([[it.value(p, quantity.columns) for p in patients] for it in results]),
        pretrainings=tuple(_pretrainings(it.place) for it in results),
    )


def _pretrainings(place: Place) -> frozenset[Pretraining]:
    """What the run started from, under a name that no other study's has."""
    if place.arm.init is None:
        return frozenset()
    return frozenset({(f"{place.arm.study}/{place.arm.init}", place.pretraining)})


@dataclass(frozen=True)
class PanelPoint:
    """One point of the published figure: runs that differ in seed alone."""

    quantity: Quantity
    arm: Arm
    labels: int | None
    planned: int
    """Runs that the studies ask for."""
    values: tuple[float, ...]
    """One number over the split for each finished run."""
    interval: tuple[float, float] | None = None
    """95 % confidence interval of their mean, over seeds and patients; None: it takes two of each,
    and the `cases.csv` of every run."""
    in_all: int | None = None
    """Scans whose labels it depends on (`label_budget`)."""

    @property
    def estimate(self) -> Estimate:
        return Estimate(self.mean, self.interval)

    @property
    def low(self) -> float | None:
        return self.estimate.low

    @property
    def high(self) -> float | None:
        return self.estimate.high

    @property
    def runs(self) -> int:
        return len(self.values)

    @property
    def mean(self) -> float | None:
        return statistics.fmean(self.values) if self.values else None

    @property
    def std(self) -> float | None:
        """Standard deviation over seeds (n − 1); None for fewer than two runs."""
        return statistics.stdev(self.values) if len(self.values) > 1 else None


def panel_points(studies: Studies, results: Sequence[RunResults]) -> list[PanelPoint]:
    """A point for each panel, arm and label count that is planned; those without a run too."""
    points = []
    classes = studies.first.store.classes
    for target, metric in panels():
        columns = dict.fromkeys(metric.column(name) for name in structures(target, classes))
        quantity = Quantity(
            target, metric, metric.overall_key(target), metric.panel_title, tuple(columns)
        )
        runs = runs_of_target(results, target)
        defined = {
            place: [it for it in found if it.test.get(quantity.key) is not None]
            for place, found in runs.items()
        }
        intervals = _intervals(quantity, defined)
        for place, planned in studies.planned(target).items():
            values = (it.test[quantity.key] for it in defined.get(place, []))
            known = tuple(value for value in values if value is not None)
            in_all = studies.in_all(target, *place)
            points.append(
                PanelPoint(quantity, *place, planned, known, intervals.get(place), in_all)
            )
    return points


def _intervals(quantity: Quantity, runs: Runs) -> dict[Labelled, tuple[float, float]]:
    """Of the means over columns, each of which is a mean over patients, as published.

    As `comparison.estimates` has them, where there is one column.
    """
    metric = quantity.metric
    cells: dict[Labelled, Cell] = {}
    for place, found in runs.items():
        if len(found) > 1 and all(it.patients for it in found):
            with suppress(StudyError):  # other patients: the evidence says so
                cells[place] = _cell(quantity, cell_name(*place), found)
    intervals = {}
    for place, cell in cells.items():
        arm, labels = place
        each = [
            _cell(replace(quantity, columns=(column,)), cell.name, runs[place])
            for column in quantity.columns
        ]
        each = [it for it in each if mean(it) is not None]
        if not each:
            continue
        resampling = draw_resamples(each)
        draws_B = np.mean([resampling.means_B(it) for it in each], axis=0)
        if labels is not None:
            mine = {n: it for (other, n), it in cells.items() if other == arm and n is not None}
            draws_B += collapses(mine).unseen_B({labels: cell}, {labels: 1.0}, len(draws_B), (0, 3))
        interval = with_interval(None, draws_B).within(metric.least, metric.most).interval
        if interval is not None:
            intervals[place] = interval
    return intervals
