"""What the frozen settings of a study share."""

import math
from typing import Any, Literal

Transfer = Literal["all", "encoder", "inflate"]
"""Which weights a fine-tuning takes over from a pre-training; the head is always new. inflate: all,
of a 2D network, for a 3D one (`experiments.unet.inflated`)."""

Selection = Literal["validation", "within", "last"]
"""Which labels choose the model that is kept and the threshold of its mask: those of the validation
split (published), a part of the labelled scans, or none: the last model, at probability 0.5."""

Schedule = Literal["plain", "warmup", "sawtooth", "frozen", "probe"]
"""How a network is fine-tuned: which of its parts learn, when, and how fast.

plain: all of it, on one cosine (published). warmup: all of it; the rate rises before it falls.
sawtooth: decoder and head first, then all of it. frozen: decoder and head alone. probe: a new head
alone, on features that stay the same. What each does step by step says `experiments.schedules`.
"""

OWN_RATES: tuple[Schedule, ...] = ("warmup", "sawtooth")
"""Those whose rate follows a curve of their own; the others' follows the cosine of `Training`."""
FROM_SCRATCH: tuple[Schedule, ...] = ("plain", *OWN_RATES)
"""Those in which everything learns in the end, so that random weights can be trained so too."""


def require_at_least(settings: Any, minimum: float, *names: str) -> None:
    """Raise ValueError for the first field that is set and too small, or not finite."""
    for name in names:
        value = getattr(settings, name)
        if value is not None and not minimum <= value < math.inf:
            raise ValueError(f"{name} is {value}, expected at least {minimum}")
