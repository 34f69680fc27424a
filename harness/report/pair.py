"""Two studies as one, to be compared: arms of the same name, the second minus the first.

Only what may be compared is: the same protocol, the same data, the same test patients, the same
evaluation. Arms are called STUDY/ARM.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from fewscan.experiments.spec import PROTOCOL
from fewscan.harness.plan import Plan, PlannedRun
from fewscan.harness.study import dump_study
from fewscan.storage.errors import StudyError
from fewscan.storage.runs import RunFolder

PLACES = frozenset({"name", "store", "folder", "resources", "slurm", "published"})
"""Of a study file: nothing in there changes a number."""


@dataclass(frozen=True)
class Pair(Plan):
    """The runs of two plans, each in its own folder."""

    plans: tuple[Plan, Plan]
    names: tuple[str, str]
    folders: dict[PlannedRun, RunFolder]

    def folder_of(self, run: PlannedRun) -> RunFolder:
        return self.folders[run]

    @property
    def report_folder(self) -> Path:
        return self.plans[0].folder.report_against(self.names[1])

    def references(self) -> dict[str, str]:
        """Each arm of the second study → the arm of that name in the first, if there is one."""
        first, second = (dict.fromkeys(plan.study.finetune.inits) for plan in self.plans)
        there, here = self.names
        return {f"{here}/{arm}": f"{there}/{arm}" for arm in second if arm in first}

    def differences(self) -> list[tuple[str, str, str]]:
        """What the two study files say differently: key and both values."""
        first, second = (dict(_settings(plan)) for plan in self.plans)
        keys = dict.fromkeys([*first, *second])
        unlike = [key for key in keys if first.get(key) != second.get(key)]
        return [(key, first.get(key, "–"), second.get(key, "–")) for key in unlike]


def pair(first: Plan, second: Plan) -> Pair:
    """Both studies as one plan. Raises `StudyError` that says why they may not be compared."""
    require_comparable(first, second)
    names = _names(first, second)
    folders: dict[PlannedRun, RunFolder] = {}
    for plan, name in zip((first, second), names, strict=True):
        for run in plan.runs:
            renamed = replace(run, init=f"{name}/{run.init}", name=f"{name}: {run.name}")
            folders[renamed] = plan.folder_of(run)
    targets = tuple(t for t in first.study.finetune.targets if t in second.study.finetune.targets)
    study = replace(
        first.study,
        name=f"{names[1]} against {names[0]}",
        finetune=replace(first.study.finetune, targets=targets or first.study.finetune.targets),
    )
    return Pair(study, first.store, tuple(folders), (first, second), names, folders)


def require_comparable(first: Plan, second: Plan) -> None:
    """Raise `StudyError` unless a difference between the two is about their arms alone."""
    if first.folder.path == second.folder.path:
        raise _not_comparable(
            first, second, "they are one folder", "two folders", "name another study"
        )
    for plan in (first, second):
        _require_protocol(plan)
    if first.store.fingerprint != second.store.fingerprint:
        found = f"their data differ: {first.store.fingerprint} and {second.store.fingerprint}"
        raise _not_comparable(
            first, second, found, "one store, or two of the same content", "sweep both on one store"
        )
    odd = {*first.store.split.test} ^ {*second.store.split.test}
    if odd:
        found = f"their test splits differ: {len(odd)} patients are in one alone"
        raise _not_comparable(
            first, second, found, "the same test patients", "prepare both stores with one split"
        )
    if first.study.evaluation != second.study.evaluation:
        found = f"they are scored differently: {first.study.evaluation}, {second.study.evaluation}"
        raise _not_comparable(
            first, second, found, "the same evaluation", "sweep one with the other's evaluation"
        )


def _require_protocol(plan: Plan) -> None:
    """A run of another protocol is none of the plan's, so it would only seem to be missing."""
    for folder in sorted(plan.folder.runs.glob("*")):
        run = RunFolder(folder)
        if run.spec.exists() and (found := run.read_spec()["spec"]["protocol"]) != PROTOCOL:
            raise StudyError(
                f"{plan.study.name} has runs of protocol {found}",
                where=folder,
                expected=f"protocol {PROTOCOL}, of this version of fewscan, in both studies",
                remedy="sweep it again with this version, or compare with the version that made it",
            )


def _not_comparable(
    first: Plan, second: Plan, found: str, expected: str, remedy: str
) -> StudyError:
    where = f"{first.folder.path} and {second.folder.path}"
    return StudyError(
        f"{first.study.name} and {second.study.name} cannot be compared: {found}",
        where=where,
        expected=expected,
        remedy=remedy,
    )


def _names(first: Plan, second: Plan) -> tuple[str, str]:
    """The studies' names; of two that are called the same, their folders'."""
    if first.study.name != second.study.name:
        return first.study.name, second.study.name
    names = first.folder.path.name, second.folder.path.name
    return names if names[0] != names[1] else (f"{names[0]} (1)", f"{names[1]} (2)")


def _settings(plan: Plan) -> Iterator[tuple[str, str]]:
    document = yaml.safe_load(dump_study(plan.study))
    yield from _flat({k: v for k, v in document.items() if k not in PLACES})


def _flat(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", str(value)
