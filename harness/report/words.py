"""Numbers in words, the same on the page, in its sentences and in LaTeX."""

from fewscan.harness.report.labels_saved import LabelsSaved
from fewscan.harness.report.statistics import Estimate
from fewscan.harness.study import SCRATCH

MISSING = "missing"
NOT_REACHED = "not reached"


def is_scratch(arm: str) -> bool:
    """Whether it is the scratch arm, of this study or of one of a pair ("STUDY/scratch")."""
    return arm.rpartition("/")[2] == SCRATCH


def arm_name(arm: str) -> str:
    """For people: "from scratch", "pre-trained: denoise"; a baseline has its own name."""
    if ":" in arm:
        return arm
    study, _, name = arm.rpartition("/")
    words = "from scratch" if name == SCRATCH else f"pre-trained: {name}"
    return f"{study}, {words}" if study else words


def scans(count: float) -> str:
    """ "1 labelled scan", "4 labelled scans"."""
    return f"{count:g} labelled scan{'' if count == 1 else 's'}"


def number(value: float | None, sign: str = "") -> str:
    """Three decimals and a real minus sign; `sign="+"` shows a plus too."""
    return MISSING if value is None else f"{value:{sign}.3f}".replace("-", "−")


def interval(estimate: Estimate, sign: str = "") -> str:
    """ "0.010 to 0.090", or a dash where there is none."""
    if estimate.interval is None:
        return "–"
    return " to ".join(number(end, sign) for end in estimate.interval)


def millimetres(value: float | None) -> str:
    """One decimal; "∞" is infinite."""
    if value is None:
        return MISSING
    return "∞" if value == float("inf") else f"{value:.1f}"


def p_text(p: float | None) -> str:
    """Three decimals, "< 0.001" below, a dash where there is none."""
    if p is None:
        return "–"
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def labels(value: float | None, searched: tuple[int, int]) -> str:
    """A number of labelled scans on the other arm's curve: "9.3", "≤ 1", "> 938"."""
    if value is None:
        return f"> {searched[1]}"
    return f"≤ {searched[0]}" if value <= searched[0] else f"{value:.3g}"


def needed(saved: LabelsSaved) -> str:
    """What the other arm needs: a number, or "not reached (> 938)"."""
    text = labels(saved.needed.value, saved.searched)
    return text if saved.needed.value is not None else f"{NOT_REACHED} ({text})"


def needed_interval(saved: LabelsSaved) -> str:
    """ "6.1 to > 938", or a dash where there is none."""
    if saved.needed.interval is None:
        return "–"
    return " to ".join(labels(end, saved.searched) for end in saved.needed.interval)
