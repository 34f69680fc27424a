"""The answer in sentences: does pre-training help, at how many labelled scans, by how much?

A difference is called shown if its bootstrap p-value, corrected for the label counts, is below
`SIGNIFICANT`. Where nothing is shown the sentence says what the data still allow.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from fewscan.experiments.spec import Target
from fewscan.harness.arms import Arm
from fewscan.harness.report.bootstrap import Estimate
from fewscan.harness.report.comparison import Comparison
from fewscan.harness.report.evidence import Evidence
from fewscan.harness.report.labels_saved import LabelsSaved
from fewscan.harness.report.tables import interval, needed, needed_interval, number, scans

SIGNIFICANT = 0.05


@dataclass(frozen=True)
class Finding:
    """What can be said about one arm against its reference, for one target."""

    kind: Literal["helps", "hurts", "mixed", "open"]
    target: Target
    arm: Arm
    reference: Arm
    sentences: tuple[str, ...]


def findings(evidence: Evidence) -> list[Finding]:
    """One finding for each arm that is compared with a reference."""
    return [_finding(evidence, *pair) for pair in evidence.references.items()]


def _finding(evidence: Evidence, arm: Arm, reference: Arm) -> Finding:
    place = (evidence.quantity.target, arm, reference)
    outcomes = evidence.of_arm(arm)
    compared = {n: it.comparison for n, it in outcomes.items() if it.comparison is not None}
    known = {n: it for n, it in compared.items() if it.p_bootstrap_holm is not None}
    shown = [n for n, it in known.items() if (it.p_bootstrap_holm or 0.0) < SIGNIFICANT]
    raised = [n for n in shown if value(known[n]) > 0]
    lowered = [n for n in shown if value(known[n]) <= 0]
    title = evidence.quantity.title
    if not known:
        why = evidence.objections.get(arm, "").partition("\n")[0] or _too_little(compared)
        return Finding("open", *place, (f"Nothing can be concluded about the {title}: {why}.",))
    if not shown:
        return Finding("open", *place, _nothing_shown(title, arm, reference, known))
    sentences = [
        f"{_claim(title, arm, reference, word)} with {_differences(counts, known)}."
        for word, counts in (("higher", raised), ("lower", lowered))
        if counts
    ]
    if rest := [n for n in known if n not in shown]:
        sentences.append(f"With {_counts(rest)} no difference could be shown.")
    better = raised if evidence.quantity.metric.higher_is_better else lowered
    saved = [it for n in better if (it := outcomes[n].saved) is not None]
    sentences += [_saving(it, reference) for it in saved]
    kind: Literal["helps", "hurts", "mixed"] = "helps" if better else "hurts"
    return Finding("mixed" if raised and lowered else kind, *place, tuple(sentences))


def _too_little(compared: Mapping[int, Comparison]) -> str:
    if not compared:
        return "no label count has finished runs of both arms with the same seed"
    return "it takes two seeds and two patients in both arms at one label count"


def _claim(title: str, arm: Arm, reference: Arm, word: str) -> str:
    if _is_about_pretraining(arm, reference):
        return f"Pre-training ({arm.key}) {'raises' if word == 'higher' else 'lowers'} the {title}"
    return f"{arm.key} has a {word} {title} than {reference.key}"


def _is_about_pretraining(arm: Arm, reference: Arm) -> bool:
    """Otherwise it is about two studies."""
    return reference.is_scratch and not arm.is_scratch


def value(comparison: Comparison) -> float:
    """The difference, which every comparison has."""
    assert comparison.difference.value is not None
    return comparison.difference.value


def _nothing_shown(
    title: str, arm: Arm, reference: Arm, known: Mapping[int, Comparison]
) -> tuple[str, ...]:
    what = f"No difference of {title} between {arm.key} and {reference.key}"
    if _is_about_pretraining(arm, reference):
        what = f"No effect of pre-training on the {title}"
    narrowest = min(known, key=lambda n: _width(known[n]))
    difference = known[narrowest].difference
    seeds = min(it.seeds for it in known.values())
    sentences = [
        f"{what} can be concluded (with {_counts(known)}).",
        f"That does not prove that there is none: with {scans(narrowest)}, where most is known, "
        f"the difference may be anything from {interval(difference, '+')}{caution(difference)}.",
    ]
    if seeds < 5:
        sentences.append(f"With {seeds} seeds intervals are wide; five or more are worth running.")
    sentences.append("So nothing can be said of labels saved either.")
    return tuple(sentences)


def caution(difference: Estimate) -> str:
    """For an interval without 0 where nothing is shown: it is about one label count alone."""
    if difference.interval is None or difference.interval[0] <= 0 <= difference.interval[1]:
        return ""
    return ", which leaves out 0 only before the correction for several label counts"


def _width(comparison: Comparison) -> float:
    low, high = comparison.difference.interval or (0.0, math.inf)
    return high - low


def _differences(counts: Iterable[int], known: Mapping[int, Comparison]) -> str:
    return _join(
        f"{scans(n)} by {number(abs(value(known[n])))} "
        f"(95 % interval of the difference {interval(known[n].difference, '+')})"
        for n in counts
    )


def _saving(saved: LabelsSaved, reference: Arm) -> str:
    if saved.needed.value == math.inf:
        return (
            f"What it reaches with {scans(saved.labels)}, {reference.key} does not reach with "
            f"{saved.searched[1]}."
        )
    return (
        f"For what it reaches with {scans(saved.labels)}, {reference.key} needs {needed(saved)} "
        f"(95 % interval {needed_interval(saved)})."
    )


def _counts(counts: Iterable[int]) -> str:
    texts = [f"{n}" for n in counts]
    return f"{_join(texts)} labelled scan{'' if texts == ['1'] else 's'}"


def _join(texts: Iterable[str]) -> str:
    *most, last = texts
    return f"{', '.join(most)} and {last}" if most else last
