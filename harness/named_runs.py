"""Trained networks by the names that people give them: run folders, MLflow models, arms of studies.

Several are one text with commas between them. An arm of a study is `STUDY:ARM@LABELS`, the study
file, the arm as `fewscan plan` and the report call it, and a label count: "demo.yaml:denoise@4".
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from fewscan.experiments.spec import Target
from fewscan.harness.loading import load_plan
from fewscan.harness.plan import Plan, PlannedRun
from fewscan.storage.errors import RunError

_ARM = re.compile(r"(?P<study>.+?\.ya?ml):(?P<arm>.+?)(@(?P<labels>\d+|all))?")
_BETWEEN = re.compile(r",(?![^(]*\))")
"""A comma, but not one within the brackets of an arm's name."""


@dataclass(frozen=True)
class NamedRuns:
    """What was meant."""

    runs: tuple[str, ...]
    """Run folders, or MLflow URIs of models."""
    said: tuple[str, ...] = ()
    """What the names of arms stand for, as sentences."""


def named_runs(
    text: str,
    *,
    target: Target | None = None,
    seed: int | None = None,
    overrides: tuple[str, ...] = (),
) -> NamedRuns:
    """The runs of a text such as "runs/0123,runs/4567" or "demo.yaml:denoise (5 members)@4".

    Of an arm of a study the score of one cell is meant, whose networks are those of the cell. Left
    out, `target` and `seed` are the first of the study that the arm has; `overrides` are those of
    the study file. Nothing is chosen by a result. Raises `RunError` that lists what there is, or
    as `load_plan` does.
    """
    runs, said = [], []
    for name in [text] if _is_there(text) else _BETWEEN.split(text):
        found = _ARM.fullmatch(name.strip())
        if found is None:
            runs.append(name.strip())
            continue
        plan = load_plan(Path(found["study"]), overrides)
        run = _cell(plan, name.strip(), found["arm"].strip(), found["labels"], target, seed)
        runs.append(str(plan.folder_of(run).path))
        networks = f", {len(run.parents)} networks" if len(run.parents) > 1 else ""
        said.append(f"{name.strip()} is run {run.run_id}: {run.name}{networks}")
    if not all(runs):
        raise RunError(
            f"a run without a name in {text!r}",
            expected="RUN or RUN,RUN…, each a run folder, an MLflow model, or STUDY:ARM@LABELS",
            remedy="take out the comma",
        )
    return NamedRuns(tuple(runs), tuple(said))


def _is_there(text: str) -> bool:
    """Whether it is one path, whatever commas are in it."""
    try:
        return Path(text).exists()
    except OSError:  # too long for one
        return False


def _cell(
    plan: Plan, name: str, arm: str, labels: str | None, target: Target | None, seed: int | None
) -> PlannedRun:
    """The finished score of an arm that is meant."""
    of_arm = [run for run in plan.scores if run.place.arm.key == arm]
    if not of_arm:
        arms = _each(run.place.arm.key for run in plan.scores)
        raise _unknown(plan, name, f"no arm {arm!r}", arms, "write it as it stands there")
    targets = _each(str(run.place.target) for run in of_arm)
    wanted = target or targets[0]
    of_target = [run for run in of_arm if run.place.target == wanted]
    if not of_target:
        found = f"{arm} has no target {wanted}"
        raise _unknown(plan, name, found, targets, "give another --target, or none")
    count = None if labels is None else int(labels) if labels != "all" else plan.everything
    of_count = [run for run in of_target if run.place.labels == count]
    if not of_count:
        counts = _each(_as_written(arm, run) for run in of_target)
        found = f"{arm} has no run of {wanted} with {labels or 'no'} labelled scans"
        raise _unknown(plan, name, found, counts, "name one of them")
    chosen = [run for run in of_count if seed in (None, run.place.seed)]
    if not chosen:
        seeds = _each(str(run.place.seed) for run in of_count)
        raise _unknown(plan, name, f"{arm} has no seed {seed}", seeds, "give another --seed")
    run = chosen[0]
    state = plan.folder_of(run).state()
    if state != "finished":
        finished = _each(
            f"{_as_written(arm, it)} --seed {it.place.seed}"
            for it in of_target
            if plan.folder_of(it).state() == "finished"
        )
        raise RunError(
            f"the run is not finished: {run.name} is {state}",
            where=f"{name}, {plan.folder_of(run).path}",
            expected=f"a finished one of {arm}: {', '.join(finished) or 'there is none yet'}",
            remedy="`fewscan sweep STUDY` goes on with it",
        )
    return run


def _as_written(arm: str, run: PlannedRun) -> str:
    labels = run.place.labels
    return arm if labels is None else f"{arm}@{labels}"


def _each(names: Iterable[str]) -> list[str]:
    return [*dict.fromkeys(names)]


def _unknown(plan: Plan, name: str, found: str, there: Sequence[str], remedy: str) -> RunError:
    return RunError(
        found,
        where=f"{name}, study {plan.study.name}",
        expected=f"one of: {', '.join(there)}",
        remedy=remedy,
    )
