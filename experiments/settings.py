"""What the frozen settings of a study share."""

from typing import Any, Literal

Transfer = Literal["all", "encoder"]
"""Which weights a fine-tuning takes over from a pre-training; the head is always new."""


def require_at_least(settings: Any, minimum: float, *names: str) -> None:
    """Raise ValueError for the first of the fields that is set and smaller than `minimum`."""
    for name in names:
        value = getattr(settings, name)
        if value is not None and value < minimum:
            raise ValueError(f"{name} is {value}, expected at least {minimum}")
