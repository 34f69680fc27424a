"""How much arithmetic a run is: for the order of runs and the estimate of hours."""

from functools import lru_cache
from typing import NamedTuple

from fewscan.experiments.spec import Finetune, Network, Pretrain, RunSpec, Score
from fewscan.storage.slices import SliceStore

BACKWARD = 2
"""A backward pass costs about two forward passes."""


def forward_flops(
    network: Network, in_channels: int, out_channels: int, size: int, encoder_only: bool = False
) -> float:
    """Floating-point operations of one slice of size² pixels (multiply and add count as two).

    The convolutions alone; 18.4 GFLOP for the published network at 128², 36.5 % of them in the
    encoder.
    """
    widths: list[int] = [network.width * 2**level for level in range(network.depth)]
    pixels: list[float] = [(size / 2**level) ** 2 for level in range(network.depth)]
    down = sum(
        9 * (previous + width) * width * area
        for previous, width, area in zip([in_channels, *widths], widths, pixels, strict=False)
    )
    if encoder_only:
        return 2 * down
    up = sum(
        (width * 2 * width + 9 * (2 * width + width) * width) * area
        for width, area in zip(widths[:-1], pixels[:-1], strict=True)
    )
    return 2 * (down + up + out_channels * widths[0] * pixels[0])


class RunFlops(NamedTuple):
    """Floating-point operations of the parts of a run."""

    training: float
    validation: float
    scoring: float


def run_flops(spec: RunSpec, network: Network, store: SliceStore) -> float:
    """Floating-point operations of a whole run: steps, validations, and the scoring at the end."""
    return sum(flops_by_part(spec, network, store))


def flops_by_part(spec: RunSpec, network: Network, store: SliceStore) -> RunFlops:
    """The same part by part."""
    channels, encoder_only = len(store.channels), False
    if isinstance(spec, Pretrain):
        encoder_only = spec.scheme.encoder_only
    slice_flops = forward_flops(network, channels, channels, store.size, encoder_only)
    slices = _trained(spec), _validated(spec, store), _scored(spec, store)
    return RunFlops(*(count * slice_flops for count in slices))


def _trained(spec: RunSpec) -> int:
    """Forward passes over a slice that the steps are worth."""
    if not isinstance(spec, Pretrain | Finetune):
        return 0
    probe = isinstance(spec, Finetune) and spec.schedule == "probe"  # the head alone goes back
    passes = 1 if probe else 1 + BACKWARD
    return spec.training.iterations * spec.training.batch_size * passes


def _validated(spec: RunSpec, store: SliceStore) -> int:
    if not isinstance(spec, Pretrain | Finetune):
        return 0
    if isinstance(spec, Pretrain):
        _, validated = store.pretraining(spec.slices)
    else:
        validated = store.split.validation
    training, each = spec.training, _slices(store, validated)
    if training.validation_slices is not None:
        each = min(each, training.validation_slices)
    views = spec.scheme.views if isinstance(spec, Pretrain) else 1  # a step counts them already
    return -(-training.iterations // training.validate_every) * each * views


def _scored(spec: RunSpec, store: SliceStore) -> int:
    if not isinstance(spec, Score):
        return 0
    test = _slices(store, store.split.test) if spec.split == "test" else 0
    again = test if spec.evaluation.removes_specks else 0  # at the threshold known then
    return len(spec.parents) * (_slices(store, store.split.validation) + test + again)


@lru_cache(maxsize=8)  # the same splits for each of the runs of a study
def _slices(store: SliceStore, ids: tuple[str, ...]) -> int:
    return sum(len(store.subjects[i].positions) for i in ids)
