"""What the frozen settings of a study share."""

import math
from typing import Any, Literal

Transfer = Literal["all", "encoder"]
"""Which weights a fine-tuning takes over from a pre-training; the head is always new."""

Selection = Literal["validation", "within", "last"]
"""Which labels choose the model that is kept and the threshold of its mask: those of the validation
split (published), a part of the labelled scans, or none: the last model, at probability 0.5."""

Schedule = Literal["plain", "probe"]
"""How a network is fine-tuned: all of it, or a new head alone, on features that stay the same."""


def require_at_least(settings: Any, minimum: float, *names: str) -> None:
    """Raise ValueError for the first field that is set and too small, or not finite."""
    for name in names:
        value = getattr(settings, name)
        if value is not None and not minimum <= value < math.inf:
            raise ValueError(f"{name} is {value}, expected at least {minimum}")
