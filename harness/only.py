"""A part of a study, to run it first: `--only denoise --only labels=1,4 --only seeds=0`.

Ids do not change: the same sweep without it goes on with the rest.
"""

from collections.abc import Collection, Sequence
from dataclasses import replace

from fewscan.harness.plan import Plan, PlannedRun
from fewscan.storage.errors import StudyError

KEYS = ("labels", "seeds", "targets")


def only(plan: Plan, wishes: Sequence[str]) -> Plan:
    """The scores that fit all wishes, and what they start from, directly or not.

    A wish is the name of an arm, or labels, seeds or targets with values; of several names, or
    values of a key, any fits. Without a name the cells of all arms are meant. Raises `StudyError`
    for what the study does not have, with what there is.
    """
    if not wishes:
        return plan
    everything = str(plan.everything)
    named: set[str] = set()
    values: dict[str, set[str]] = {}
    for wish in wishes:
        key, equals, text = wish.partition("=")
        if equals and key in KEYS:
            found = {it.strip() for it in text.split(",")}
            values.setdefault(key, set()).update(everything if it == "all" else it for it in found)
        else:
            named.add(wish)
    _require("an arm", named, [run.place.arm.key for run in plan.scores])
    chosen = [r for r in plan.scores if r.place.arm.key in named or (not named and r.place.is_cell)]
    for key, wanted in values.items():
        _require(key, wanted, [_value(run, key) for run in chosen])
        chosen = [run for run in chosen if _value(run, key) in wanted]
    kept = {run.run_id for run in chosen}
    for run in reversed(plan.runs):  # parents come before children
        if run.run_id in kept:
            kept.update(run.parents)
    runs = tuple(run for run in plan.runs if run.run_id in kept)
    return replace(plan, runs=runs, only=tuple(wishes))


def _value(run: PlannedRun, key: str) -> str:
    place = run.place
    return str({"labels": place.labels, "seeds": place.seed, "targets": place.target}[key])


def _require(what: str, wanted: Collection[str], there: Sequence[str]) -> None:
    known = list(dict.fromkeys(there))
    for it in sorted(wanted):
        if it not in known:
            raise StudyError(
                f"--only asks for {it!r}, and the study has no such {what.removeprefix('an ')}",
                where="--only",
                expected=f"one of: {', '.join(known)}",
                remedy="`fewscan plan STUDY` shows arms, label counts and seeds; write, for "
                "example: --only denoise --only labels=1,4 --only seeds=0",
            )
