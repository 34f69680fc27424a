"""The numbers of a run as MLflow shows them: their names, steps and times.

The first part of a name is the section in which MLflow's pages put it:

    test/…        scores on the test split               step: number of labelled scans
    validation/…  scores of the kept model on validation step: number of labelled scans
    learning/…    losses and learning rate               step: of the optimiser
    run/…         label count, best step, seconds        step: number of labelled scans
    system/…      what the process took of its machine   step: seconds since it began

So final numbers and curves are never mixed up, and a line chart of a final number, grouped by arm,
is the label-efficiency curve itself, with the range over seeds. A run that uses no label (the
unsupervised score) has its number at every label count of the study: a horizontal line.

Every number keeps the time at which its event was written, so sending it again changes nothing: in
MLflow a point is its key, step, time and value together.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from fewscan.experiments.results import Result
from fewscan.storage.runs import Event

LABEL_COUNT = "run/label_count"
"""A metric as well as a parameter: MLflow sorts parameters as text, 1, 30, 4."""

SECONDS = "run/seconds"


class Point(NamedTuple):
    """One value of one metric."""

    key: str
    value: float
    time_ms: int
    step: int


def milliseconds(seconds: float) -> int:
    """Since 1970, as MLflow counts."""
    return round(seconds * 1000)


def learning_curves(events: Sequence[Event]) -> Iterator[Point]:
    """The metrics by optimiser step, oldest first."""
    for event in events:
        if event.kind == "metrics":
            named = {f"learning/{k.replace('/', '_')}": v for k, v in event.values.items()}
            yield from _points(named, milliseconds(event.time), event.step)


def final_numbers(
    result: Result,
    more: Mapping[str, Any],
    label_counts: Sequence[int],
    time_ms: int,
) -> Iterator[Point]:
    """What no further attempt can change, and `more`, at each label count that it stands for."""
    named = {
        **more,
        "run/best_step": result.best_step,
        "run/lr": result.lr,
        "gain": result.gains,
        "validation/loss": result.validation_loss,
        "validation": result.validation,
        "test": result.test,
    }
    for count in label_counts:
        yield from _points(named, time_ms, count)


def usage_curves(samples: Sequence[Mapping[str, Any]]) -> Iterator[Point]:
    """The samples of `experiments.usage`, oldest first."""
    for sample in samples:
        values = {f"system/{k}": v for k, v in sample.items() if k != "time"}
        step = round(sample["time"] - samples[0]["time"])
        yield from _points(values, milliseconds(sample["time"]), step)


def flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Nested keys joined by slashes."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{key}/")
        else:
            yield f"{prefix}{key}", value


def _points(values: Mapping[str, Any], time_ms: int, step: int) -> Iterator[Point]:
    """The numbers among the values; a null is a number that is not defined."""
    for key, value in flat(values):
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            yield Point(_metric_key(key), float(value), time_ms, step)


def _metric_key(key: str) -> str:
    """MLflow refuses other characters, which a data set's class names may have."""
    return re.sub(r"[^\w\-. :/]", "_", key)
