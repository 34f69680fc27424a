"""The study that a report is about, or the two that it compares: the second minus the first.

Only what may be compared is: the same protocol, the same data, the same test patients, the same
evaluation. The arms of two studies carry their study's name.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, get_args

import yaml

from fewscan.experiments.spec import PROTOCOL, Evaluation, Postprocess, Target
from fewscan.harness.arms import SCRATCH, Arm
from fewscan.harness.label_budget import LabelBudget, label_budgets
from fewscan.harness.plan import Plan
from fewscan.harness.report.bootstrap import ERROR
from fewscan.harness.study import Published
from fewscan.harness.study_file import dump_study
from fewscan.storage.errors import RunError, StudyError
from fewscan.storage.runs import RunFolder

Labelled = tuple[Arm, int | None]
"""An arm and its labelled scans; None: the unsupervised scores, which have no label."""

PLACES = frozenset(
    {"name", "store", "folder", "resources", "slurm", "published", "report", "power"}
)
"""Of a study file: nothing in there changes a number."""


@dataclass(frozen=True)
class Studies:
    """One study, or two."""

    plans: tuple[Plan, ...]

    @property
    def first(self) -> Plan:
        """Two studies that may be compared share what is asked of it: store and evaluation."""
        return self.plans[0]

    @property
    def are_compared(self) -> bool:
        return len(self.plans) > 1

    @property
    def names(self) -> list[str]:
        return [plan.study.name for plan in self.plans]

    @property
    def name(self) -> str:
        return " against ".join(reversed(self.names))

    @property
    def reference(self) -> str:
        """In words, what arms are compared with: "scratch", or the name of the first study."""
        return self.names[0] if self.are_compared else SCRATCH

    @property
    def error(self) -> float:
        """Probability of a false finding of all that a report tests: smaller where there are
        several looks at a study that grows."""
        return min((plan.look.error for plan in self.plans if plan.look), default=ERROR)

    @property
    def report_folder(self) -> Path:
        """Where the report goes."""
        folder = self.first.folder
        return folder.report_against(self.names[1]) if self.are_compared else folder.report

    @property
    def evaluation(self) -> Evaluation:
        return self.first.study.evaluation

    @property
    def targets(self) -> tuple[Target, ...]:
        """Those that all of them have; those of the first if they have none in common."""
        each = [plan.study.finetune.targets for plan in self.plans]
        shared = set.intersection(*map(set, each)) or set(each[0])
        return tuple(target for target in get_args(Target) if target in shared)

    @property
    def reach(self) -> dict[Target, float]:
        """Target → the score that a study file names; of two studies' that of the first."""
        asked = [plan.study.report.reach for plan in reversed(self.plans)]
        return {target: score for reach in asked for target, score in reach.items()}

    @property
    def published(self) -> tuple[Published, ...]:
        """The figures of others, from the study files."""
        return tuple(dict.fromkeys(it for plan in self.plans for it in plan.study.published))

    def planned(self, target: Target) -> dict[Labelled, int]:
        """The runs with test numbers that the studies ask for: arm by arm, unlabelled ones last.

        Those of all folds of a cross-validation are one.
        """
        runs = (run for plan in self.plans for run in plan.scores)
        places = dict.fromkeys(run.place.in_all_folds for run in runs)
        arms = list(dict.fromkeys(place.arm for place in places))
        found = Counter((it.arm, it.labels) for it in places if it.target == target)
        order = sorted(found, key=lambda it: (it[1] is None, arms.index(it[0]), it[1] or 0))
        return {place: found[place] for place in order}

    @cached_property
    def budgets(self) -> dict[tuple[Target | None, Arm, int | None], LabelBudget]:
        """Target, arm and labelled scans → the labels that its scores depend on; of several seeds
        those of the one that depends on most."""
        found: dict[tuple[Target | None, Arm, int | None], LabelBudget] = {}
        for plan in self.plans:
            budgets = label_budgets(plan)
            for run in plan.scores:
                place, own = run.place, budgets[run.run_id]
                key = place.target, place.arm, place.labels
                if key not in found or own.in_all > found[key].in_all:
                    found[key] = own
        return found

    def in_all(self, target: Target | None, arm: Arm, labels: int | None) -> int | None:
        """How many scans' labels the scores of a place depend on; None: no run is planned there."""
        budget = self.budgets.get((target, arm, labels))
        return None if budget is None else budget.in_all

    def labels_counted(self, target: Target) -> str:
        """For under a figure: how many labels its points depend on, at the ends of each curve."""
        ends: dict[Arm, dict[int | None, int]] = {}
        for arm, labels in self.planned(target):
            ends.setdefault(arm, {})[labels] = self.budgets[target, arm, labels].in_all
        parts = []
        for arm, found in ends.items():
            places = [
                str(found[n]) if n is None else f"{found[n]} at {n}"
                for n in dict.fromkeys([next(iter(found)), [*found][-1]])
            ]
            parts.append(f"{arm.title} {', '.join(places)}")
        return f"Scans whose labels count, at so many labelled scans: {'; '.join(parts)}."

    def references(self) -> dict[Arm, Arm]:
        """Fine-tuned arm → what it is compared with: scratch, or the first study's same arm.

        Scratch in the same schedule, with as much oversampling and as many networks where the study
        has it, so that what is compared is pre-training and not the schedule (`Arm.scratch`); else
        plain scratch, and without that the first that there is. An ensemble of random weights is
        compared with the single network.
        """
        first, *second = [dict.fromkeys(run.place.arm for run in it.grid) for it in self.plans]
        if not second:
            return {arm: _reference(arm, [*first]) for arm in first if arm.is_compared}
        twins = {arm: arm.of_study(self.names[0]) for arm in second[0]}
        return {arm: same for arm, same in twins.items() if same in first}

    def ranked(self, target: Target) -> list[Arm]:
        """The arms that are ranked: those with all label counts of the grid; none of two studies.

        A baseline such as scratch on all labels alone is no arm of the grid.
        """
        if self.are_compared:
            return []
        counts: dict[Arm, set[int | None]] = {}
        for arm, labels in self.planned(target):
            if arm.is_ranked:
                counts.setdefault(arm, set()).add(labels)
        every = [it for arm, it in counts.items() if not arm.folds]  # those lack small counts
        grids = [it for arm, it in counts.items() if arm.is_compared and not arm.folds] or every
        grid = set.intersection(*grids) if grids else set()
        return [arm for arm, it in counts.items() if grid and grid <= it]

    def differences(self) -> list[tuple[str, ...]]:
        """What the study files say differently: the key, and each one's value."""
        each = [dict(_settings(plan)) for plan in self.plans]
        keys = dict.fromkeys(key for settings in each for key in settings)
        rows = [(key, *(settings.get(key, "–") for settings in each)) for key in keys]
        return [row for row in rows if len(set(row[1:])) > 1]


def _reference(arm: Arm, arms: Sequence[Arm]) -> Arm:
    """What an arm of a study is compared with."""
    if arm.init is None:
        return arm.single
    plain = Arm("fine-tuning")
    as_many = replace(plain, members=arm.members, folds=arm.folds, partner=arm.partner)
    wanted = (arm.scratch, as_many, plain, *filter(lambda it: it.is_scratch, arms))
    return next((it for it in wanted if it in arms), plain)


def one_study(plan: Plan) -> Studies:
    """A report about a study."""
    return Studies((plan,))


def two_studies(first: Plan, second: Plan) -> Studies:
    """A report that compares two, whose arms and runs carry their study's name from here on.

    Raises `StudyError` unless a difference between the two is about their arms alone.
    """
    for found, expected, remedy in _obstacles(first, second):
        raise StudyError(
            f"{first.study.name} and {second.study.name} cannot be compared: {found}",
            where=f"{first.folder.path} and {second.folder.path}",
            expected=expected,
            remedy=remedy,
        )
    names = _names(first, second)
    return Studies((_named(first, names[0]), _named(second, names[1])))


def has_results(plan: Plan) -> bool:
    """Whether any run has test numbers, so that there is something to report."""
    return any(plan.folder_of(run).result.exists() for run in plan.scores)


def _obstacles(first: Plan, second: Plan) -> Iterator[tuple[str, str, str]]:
    """What stands against a comparison, what was expected, and what to do."""
    if first.folder.path == second.folder.path:
        yield "they are one folder", "two folders", "name another study"
    for plan in (first, second):
        _require_protocol(plan)
    data = [plan.store.fingerprint for plan in (first, second)]
    if data[0] != data[1]:
        found = f"their data differ: {data[0]} and {data[1]}"
        yield found, "one store, or two of the same content", "sweep both on one store"
    odd = {*first.tested} ^ {*second.tested}
    if odd:
        found = f"their test splits differ: {len(odd)} patients are in one alone"
        yield found, "the same test patients", "prepare both stores with one split"
    # Post-processing is what two studies may differ in, as in how they train.
    evaluations = [
        replace(plan.study.evaluation, postprocess=Postprocess()) for plan in (first, second)
    ]
    if evaluations[0] != evaluations[1]:
        found = f"they are scored differently: {first.study.evaluation}, {second.study.evaluation}"
        yield found, "the same evaluation", "sweep one with the other's evaluation"


def _require_protocol(plan: Plan) -> None:
    """A run of another protocol is none of the plan's, so it would only seem to be missing."""
    for folder in sorted(plan.folder.runs.glob("*")):
        try:
            found = RunFolder(folder).read_spec()["spec"]["protocol"]
        except (RunError, KeyError, TypeError):  # missing or damaged, which its log says
            continue
        if found != PROTOCOL:
            raise StudyError(
                f"{plan.study.name} has runs of protocol {found}",
                where=folder,
                expected=f"protocol {PROTOCOL}, of this version of fewscan, in both studies",
                remedy="sweep it again with this version, or compare with the version that made it",
            )


def _names(first: Plan, second: Plan) -> tuple[str, str]:
    """The studies' names; of two that are called the same, their folders'."""
    if first.study.name != second.study.name:
        return first.study.name, second.study.name
    names = first.folder.path.name, second.folder.path.name
    return names if names[0] != names[1] else (f"{names[0]} (1)", f"{names[1]} (2)")


def _named(plan: Plan, name: str) -> Plan:
    runs = (
        replace(
            run,
            place=replace(run.place, arm=run.place.arm.of_study(name)),
            name=f"{name}: {run.name}",
        )
        for run in plan.runs
    )
    return replace(plan, study=replace(plan.study, name=name), runs=tuple(runs))


def _settings(plan: Plan) -> Iterator[tuple[str, str]]:
    document = yaml.safe_load(dump_study(plan.study))
    yield from _flat({k: v for k, v in document.items() if k not in PLACES})


def _flat(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", str(value)
