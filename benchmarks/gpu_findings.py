"""From the figures of `benchmarks.gpu` to lines of the table."""

from collections.abc import Iterator
from typing import Any

from benchmarks.results import Finding

DEFAULT = "bf16 eager"
"""What a study does on a GPU."""


def findings(figures: dict[str, Any]) -> list[Finding]:
    """A line for each figure that was measured; a part that failed has none."""
    return [*_steps(figures), *_idle(figures), *_sharing(figures), *_evaluation(figures)]


def _steps(figures: dict[str, Any]) -> Iterator[Finding]:
    steps = {n: f for n, f in figures.get("training_step", {}).items() if "slices_per_s" in f}
    published = steps.pop("published fp32", None)
    for name, figure in steps.items():
        yield Finding(
            f"training step, {name}{' (the default)' if name == DEFAULT else ''}",
            tuple(figure["times_published"]),
            "×",
            at_least=5,
            published=f"{published['slices_per_s']:,.0f} slices/s" if published else "",
            here=f"{figure['slices_per_s']:,.0f} slices/s, "
            f"{100 * figure['share_of_bf16_matmul']:.1f} % of the bf16 matrix rate",
            note=f"after three steps the loss differs by {figure['loss_differs_by']:.1e} from "
            f"that of {DEFAULT}",
        )


def _idle(figures: dict[str, Any]) -> Iterator[Finding]:
    for kind, figure in figures.get("device_idle", {}).items():
        if isinstance(figure, dict):
            share = 100 * figure["idle_share"]
            waits = f"a step waits for the device: {figure['step_waits']}"
            yield Finding(f"device idle, {kind}", (share,), "%", at_most=3, here=waits)


def _sharing(figures: dict[str, Any]) -> Iterator[Finding]:
    sharing = figures.get("sharing", {})
    alone = sharing.get("processes", {}).get("1")
    for kind in ("processes", "batched model"):
        for count, rate in sharing.get(kind, {}).items():
            if alone and isinstance(rate, float) and count != "1":
                yield Finding(
                    f"{count} trainings on one device, {kind}",
                    (rate / alone,),
                    "×",
                    published=f"alone {alone:,.0f} slices/s",
                    here=f"together {rate:,.0f} slices/s",
                )


def _evaluation(figures: dict[str, Any]) -> Iterator[Finding]:
    for batch_size, rate in figures.get("evaluation", {}).items():
        if isinstance(rate, float):
            yield Finding(f"anomaly scores, fp32, batch {batch_size}", (rate,), "slices/s")
