"""The answer in sentences: does pre-training help, by how much, at how many labelled scans?

The verdict is about the area under the label-efficiency curve. A difference is called shown if its
p-value, corrected for all that the report tests, is below `SIGNIFICANT`. Where nothing is shown the
sentence says what the data still allow.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from fewscan.experiments.spec import Target
from fewscan.harness.arms import Arm
from fewscan.harness.report.bootstrap import Estimate
from fewscan.harness.report.comparison import Area, Comparison
from fewscan.harness.report.evidence import Evidence
from fewscan.harness.report.labels_saved import LabelsSaved
from fewscan.harness.report.tables import interval, needed, needed_interval, number, p_text, scans

SIGNIFICANT = 0.05
ENOUGH_SEEDS = 5


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
    area = evidence.areas.get(arm)
    if area is None or area.difference is None or area.difference.interval is None:
        why = evidence.objections.get(arm, "").partition("\n")[0] or _too_little(area)
        title = evidence.quantity.title
        return Finding("open", *place, (f"Nothing can be concluded about the {title}: {why}.",))
    shown = is_shown(area.p_corrected)
    kind, sentences = (_shown if shown else _not_shown)(evidence, arm, reference, area)
    sentences = [*sentences, *_left_out(evidence, arm, reference, area)]
    sentences += [*_about_pretrainings(area, arm, reference), *_collapsed(evidence, arm, reference)]
    return Finding(kind, *place, tuple(sentences))


def is_shown(p_corrected: float | None) -> bool:
    """Whether a difference is called shown."""
    return p_corrected is not None and p_corrected < SIGNIFICANT


def _too_little(area: Area | None) -> str:
    if area is None or area.difference is None:
        return "no label count has finished runs of both arms with the same seed"
    return "it takes two seeds and two patients in both arms at one label count"


Kind = Literal["helps", "hurts", "mixed", "open"]


def _shown(evidence: Evidence, arm: Arm, reference: Arm, area: Area) -> tuple[Kind, list[str]]:
    """The area, then the label counts, then what they save."""
    higher_is_better = evidence.quantity.metric.higher_is_better
    outcomes, gain = evidence.of_arm(arm), _value(area.difference)
    known = {n: it.comparison for n, it in outcomes.items() if it.comparison is not None}
    counts = [n for n, it in known.items() if is_shown(it.p_corrected)]
    raised = [n for n in counts if _value(known[n].difference) > 0]
    lowered = [n for n in counts if _value(known[n].difference) <= 0]
    sentences = [
        f"{_claim(evidence.quantity.title, arm, reference, gain)} by {number(abs(gain))}, "
        f"{_averaged(area)} (95 % interval of the difference {interval(area.difference, '+')}; "
        f"{_p(area, evidence)})."
    ]
    sentences += [
        f"By itself it is shown to be {word} with {_counts(those)} ({_differences(those, known)})."
        for word, those in (("higher", raised), ("lower", lowered))
        if those and len(area.counts) > 1
    ]
    if rest := [n for n in known if n not in counts]:
        sentences.append(f"With {_counts(rest)} alone no difference could be shown.")
    better = raised if higher_is_better else lowered
    saved = [it for n in better if (it := outcomes[n].saved) is not None]
    sentences += _savings(saved, reference)
    helps = (gain > 0) == higher_is_better
    against = lowered if gain > 0 else raised
    return "mixed" if against else "helps" if helps else "hurts", sentences


def _claim(title: str, arm: Arm, reference: Arm, gain: float) -> str:
    if _is_about_pretraining(arm, reference):
        return f"Pre-training ({arm.key}) {'raises' if gain > 0 else 'lowers'} the {title}"
    return f"{arm.key} has a {'higher' if gain > 0 else 'lower'} {title} than {reference.key},"


def _is_about_pretraining(arm: Arm, reference: Arm) -> bool:
    """Otherwise it is about two studies."""
    return reference.is_scratch and not arm.is_scratch


def _averaged(area: Area) -> str:
    if len(area.counts) == 1:
        return f"with {scans(area.counts[0])}"
    return f"averaged over {area.counts[0]} to {scans(area.counts[-1])} on the logarithmic axis"


def _p(area: Area, evidence: Evidence) -> str:
    p = p_text(area.p_corrected)
    text = f"p {p}" if p.startswith("<") else f"p = {p}"
    return text if evidence.tested < 2 else f"{text}, corrected for {evidence.tested} comparisons"


def _value(estimate: Estimate | None) -> float:
    """The number of a difference that is known."""
    assert estimate is not None
    assert estimate.value is not None
    return estimate.value


def _not_shown(evidence: Evidence, arm: Arm, reference: Arm, area: Area) -> tuple[Kind, list[str]]:
    """The primary interval alone: the narrowest of several would be too narrow."""
    title, difference = evidence.quantity.title, area.difference
    assert difference is not None
    if difference.interval == (0, 0):
        return "open", [
            f"{arm.key} and {reference.key} do not differ: the {title} of every patient and seed "
            f"is the same in both, {_averaged(area)}. Either they are the same runs, or what they "
            "differ in has no effect on a number."
        ]
    what = f"No difference of {title} between {arm.key} and {reference.key}"
    if _is_about_pretraining(arm, reference):
        what = f"No effect of pre-training ({arm.key}) on the {title}"
    sentences = [
        f"{what} can be concluded: {_averaged(area)}, the difference is "
        f"{number(_value(difference), '+')} (95 % interval {interval(difference, '+')}"
        f"{caution(difference)}; {_p(area, evidence)}).",
        "That does not prove that there is none: it may be anything in the interval.",
    ]
    if area.seeds < ENOUGH_SEEDS:
        sentences.append(
            f"With {area.seeds} seeds intervals are wide; five or more are worth running."
        )
    sentences.append(
        "So no label count is looked at by itself, and nothing can be said of labels saved either."
    )
    return "open", sentences


def caution(difference: Estimate) -> str:
    """For an interval without 0 where nothing is shown: it is about one comparison alone."""
    if difference.interval is None or difference.interval[0] <= 0 <= difference.interval[1]:
        return ""
    return ", which leaves out 0 only before the correction for several comparisons"


def _left_out(evidence: Evidence, arm: Arm, reference: Arm, area: Area) -> list[str]:
    """Label counts that are planned for both arms and not in the area."""
    planned = {*evidence.of_arm(arm)} & {*evidence.of_arm(reference)}
    left_out = sorted(planned - {*area.counts})
    if not left_out:
        return []
    return [
        f"This is over {_counts(area.counts)}; with {_join(map(str, left_out))} too few runs of "
        "both arms are finished."
    ]


def _about_pretrainings(area: Area, arm: Arm, reference: Arm) -> list[str]:
    """How far it holds beyond the pre-trainings that were run."""
    if reference.is_scratch:
        who, whose = f"All seeds of {arm.key} start", arm.key
    else:
        who, whose = "All seeds of an arm start", f"{arm.key} and {reference.key}"
    sentences = []
    if area.one_pretraining:
        sentences.append(
            f"{who} from one pre-training: this is about these weights, and another pre-training "
            "may differ by more than the interval says."
        )
    if area.units < area.seeds:
        sentences.append(
            f"The {area.seeds} seeds of {whose} start from {area.units} pre-trainings, fewer than "
            "there are seeds: intervals and p are those of so few."
        )
    return sentences


def _collapsed(evidence: Evidence, arm: Arm, reference: Arm) -> list[str]:
    """How many runs have collapsed, where any has."""
    each = []
    for it in (arm, reference):
        outcomes = evidence.of_arm(it).values()
        each.append(
            (it.key, sum(len(o.collapsed) for o in outcomes), sum(o.seeds for o in outcomes))
        )
    if not any(fallen for _, fallen, _ in each):
        return []
    texts = [f"{fallen} of the {runs} runs of {key}" for key, fallen, runs in each]
    return [f"Collapsed, and counted like any other: {_join(texts)}."]


def _differences(counts: Sequence[int], known: Mapping[int, Comparison]) -> str:
    """The size of one difference, of several the least and the greatest; intervals have a table."""
    sizes = sorted(abs(_value(known[n].difference)) for n in counts)
    if len(sizes) > 1:
        return f"by {number(sizes[0])} to {number(sizes[-1])}"
    (difference,) = (known[n].difference for n in counts)
    return f"by {number(sizes[0])}, 95 % interval of the difference {interval(difference, '+')}"


def _savings(saved: Sequence[LabelsSaved], reference: Arm) -> Iterator[str]:
    """What the reference needs for what an arm reaches; those that it does not reach together."""
    for it in saved:
        if it.needed.value != math.inf:
            yield (
                f"For what it reaches with {scans(it.labels)}, {reference.key} needs {needed(it)} "
                f"(95 % interval {needed_interval(it)})."
            )
    never = [it for it in saved if it.needed.value == math.inf]
    if never:
        yield (
            f"What it reaches with {_counts(it.labels for it in never)}, {reference.key} does not "
            f"reach with {never[0].searched[1]}."
        )


def _counts(counts: Iterable[int]) -> str:
    texts = [f"{n}" for n in counts]
    return f"{_join(texts)} labelled scan{'' if texts == ['1'] else 's'}"


def _join(texts: Iterable[str]) -> str:
    *most, last = texts
    return f"{', '.join(most)} and {last}" if most else last
