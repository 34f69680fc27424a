"""How much arithmetic a run is: for the order of runs and the estimate of hours."""

from functools import lru_cache

from experiments.spec import Denoise, Imported, Network, RunSpec, Training
from storage.slices import SliceStore

BACKWARD = 2
"""A backward pass costs about two forward passes."""


def forward_flops(network: Network, in_channels: int, out_channels: int, size: int) -> float:
    """Floating-point operations of one slice of size² pixels (multiply and add count as two).

    The convolutions alone; 18.4 GFLOP for the published network at 128².
    """
    widths = [network.width * 2**level for level in range(network.depth)]
    pixels = [(size / 2**level) ** 2 for level in range(network.depth)]
    down = sum(
        9 * (previous + width) * width * area
        for previous, width, area in zip([in_channels, *widths], widths, pixels, strict=False)
    )
    up = sum(
        (width * 2 * width + 9 * (2 * width + width) * width) * area
        for width, area in zip(widths[:-1], pixels[:-1], strict=True)
    )
    return 2 * (down + up + out_channels * widths[0] * pixels[0])


def run_flops(spec: RunSpec, network: Network, store: SliceStore) -> float:
    """Floating-point operations of a whole run: steps, validations, and the scoring at the end."""
    if isinstance(spec, Imported):
        return 0.0
    split = store.split
    slice_flops = forward_flops(network, len(store.channels), len(store.channels), store.size)
    scored = 0 if isinstance(spec, Denoise) else _slices(store, split.validation + split.test)
    training: Training | None = getattr(spec, "training", None)
    if training is None:
        return scored * slice_flops
    validated = _slices(store, split.validation)
    if training.validation_slices is not None:
        validated = min(validated, training.validation_slices)
    validations = -(-training.iterations // training.validate_every)
    trained = training.iterations * training.batch_size * (1 + BACKWARD)
    return (trained + validations * validated + scored) * slice_flops


@lru_cache(maxsize=8)  # the same splits for each of the runs of a study
def _slices(store: SliceStore, ids: tuple[str, ...]) -> int:
    return sum(len(store.subjects[i].positions) for i in ids)
