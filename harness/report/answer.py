"""The title's question in one sentence: how few labelled scans do what how many do without?"""

import math
from collections.abc import Sequence
from operator import itemgetter

from fewscan.harness.arms import Arm
from fewscan.harness.report.comparison import Area
from fewscan.harness.report.evidence import REACH, Evidence
from fewscan.harness.report.findings import SIGNIFICANT
from fewscan.harness.report.labels_needed import LabelsNeeded
from fewscan.harness.report.tables import ABREAST, interval, number, signed

TINY = 1e-9
"""12 and a rounding error are 12 scans, not 13."""


def answers(evidence: Sequence[Evidence]) -> list[str]:
    """A sentence for each target that has an answer."""
    return [sentence for it in evidence if (sentence := answer(it))]


def answer(evidence: Evidence) -> str:
    """Of one target, all its arms; empty where no arm has been run with its reference."""
    needed = evidence.needed
    pairs = [it for it in evidence.references.items() if {*it} <= needed.keys()]
    if not pairs:
        return ""
    score = next(iter(needed.values())).score
    what = f"a {evidence.quantity.title} of {number(score)}"
    if not evidence.is_named:
        what += f", {REACH:g} times what {evidence.reference} reaches with its most labels"
    if len(pairs) > ABREAST:
        return f"{evidence.quantity.target.capitalize()}: {_of_many(pairs, evidence, what)}."
    parts = [_pair(arm, reference, evidence) for arm, reference in pairs]
    reasons = [f"{arm.key}: {it.reason}" for arm, it in needed.items() if it.reason]
    why = f" ({'; '.join(reasons)})" if reasons else ""
    return f"{evidence.quantity.target.capitalize()}: {'; '.join(parts)}: {what}{why}."


def _of_many(pairs: Sequence[tuple[Arm, Arm]], evidence: Evidence, what: str) -> str:
    """Which of many arms are better than their references, by what the report tests first."""
    known: list[tuple[float, Arm, Area]] = []
    for arm, _ in pairs:
        area = evidence.areas.get(arm)
        if area is not None and area.difference is not None and area.difference.value is not None:
            known.append((area.difference.value, arm, area))
    told = [
        (gain > 0, arm.key)
        for gain, arm, area in known
        if area.p_corrected is not None and area.p_corrected < SIGNIFICANT
    ]
    said = [
        f"{' and '.join(names)} {'is' if len(names) == 1 else 'are'} {how}"
        for how, wanted in (("better", True), ("worse", False))
        if (names := [name for is_better, name in told if is_better == wanted])
    ]
    rest = len(pairs) - len(told)
    if rest:
        said.append(f"of {rest} it cannot be said" if told else "none can be told apart")
    text = (
        f"of {len(pairs)} arms {', '.join(said)}, against "
        f"{' and '.join(dict.fromkeys(reference.key for _, reference in pairs))}, by the area "
        f"under the curve (corrected for {evidence.tested} comparisons)"
    )
    if known:
        gain, arm, area = max(known, key=itemgetter(0))
        text += f"; {arm.key} gains most, {signed(gain)}"
        if area.difference is not None and area.difference.interval is not None:
            text += f" (95 % interval {interval(area.difference, '+')})"
    needed = {reference: evidence.needed[reference] for _, reference in pairs}
    for reference, it in needed.items():
        scans = "scan" if _is_one(how_many(it)) else "scans"
        text += f"; {reference.key} needs {how_many(it)} labelled {scans} for {what}"
    return text


def _pair(arm: Arm, reference: Arm, evidence: Evidence) -> str:
    first, second = how_many(evidence.needed[arm]), how_many(evidence.needed[reference])
    if reference.is_scratch and not arm.is_scratch:
        arm_words, without = f"pre-training ({arm.key})", "without"
    else:
        arm_words, without = arm.key, f"with {reference.key}"
    if _says_nothing(evidence.needed[arm]) or _says_nothing(evidence.needed[reference]):
        ends = [_ends(evidence.needed[it]) for it in (arm, reference)]
        return (
            f"how many labelled scans do with {arm_words} what how many do {without} cannot be "
            f"said (95 % intervals {ends[0]}, and {ends[1]})"
        )
    do = "labelled scan does" if _is_one(first) else "labelled scans do"
    return f"with {arm_words} {first} {do} what {second} do{'es' * _is_one(second)} {without}"


def _says_nothing(needed: LabelsNeeded) -> bool:
    """Whether its interval is all that could be: from the fewest to more than the most."""
    interval = needed.needed.interval
    return interval is not None and interval[0] <= needed.searched[0] and math.isinf(interval[1])


def _ends(needed: LabelsNeeded) -> str:
    """ "≤ 1 to > 938"; without an interval the number itself."""
    if needed.needed.interval is None:
        return how_many(needed)
    return " to ".join(whole(end, needed.searched) for end in needed.needed.interval)


def _is_one(how_many: str) -> bool:
    """Whether "at most 1 (95 % interval …)" and the like ask for a singular."""
    return how_many.partition(" (")[0].endswith(" 1") or how_many.partition(" (")[0] == "1"


def how_many(needed: LabelsNeeded) -> str:
    """ "12 (95 % interval 7 to 21)", "at most 1", "more than 938", in whole scans."""
    value = needed.needed.value
    assert value is not None
    fewest, most = needed.searched
    if math.isinf(value):
        text = f"more than {most}"
    else:
        text = f"at most {fewest}" if value <= fewest else f"{math.ceil(value - TINY)}"
    if needed.needed.interval is None:
        return f"{text} (no interval: it takes two seeds and two patients)"
    low, high = (whole(end, needed.searched) for end in needed.needed.interval)
    return text if low == high else f"{text} (95 % interval {low} to {high})"


def whole(count: float, searched: tuple[int, int]) -> str:
    """ "12", "≤ 1", "> 938": rounded up to whole scans."""
    if math.isinf(count):
        return f"> {searched[1]}"
    return f"≤ {searched[0]}" if count <= searched[0] else f"{math.ceil(count - TINY)}"
