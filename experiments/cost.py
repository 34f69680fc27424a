"""How much arithmetic a run is: for the order of runs and the estimate of hours."""

from functools import lru_cache
from typing import NamedTuple

from fewscan.experiments.spec import Finetune, Network, Pretrain, RunSpec, Score
from fewscan.storage.slices import SliceStore

BACKWARD = 2
"""A backward pass costs about two forward passes."""
VIEWS_MIRRORED = 4
"""Of a slice: itself, and mirrored along either axis and both."""


class ForwardFlops(NamedTuple):
    """Floating-point operations of one slice in the parts of the network."""

    encoder: tuple[float, ...]
    """Level by level, the finest first."""
    decoder: float
    head: float


def forward_flops(network: Network, in_channels: int, out_channels: int, size: int) -> float:
    """Floating-point operations of one slice of size² pixels (multiply and add count as two).

    The convolutions alone; 18.4 GFLOP for the published network at 128², 36 % in the encoder.
    """
    encoder, decoder, head = forward_flops_by_part(network, in_channels, out_channels, size)
    return sum(encoder) + decoder + head


def forward_flops_by_part(
    network: Network, in_channels: int, out_channels: int, size: int
) -> ForwardFlops:
    """The same part by part."""
    widths: list[int] = [network.width * 2**level for level in range(network.depth)]
    pixels: list[float] = [(size / 2**level) ** 2 for level in range(network.depth)]
    down = tuple(
        2 * 9 * (previous + width) * width * area
        for previous, width, area in zip([in_channels, *widths], widths, pixels, strict=False)
    )
    up = sum(
        2 * (width * 2 * width + 9 * (2 * width + width) * width) * area
        for width, area in zip(widths[:-1], pixels[:-1], strict=True)
    )
    return ForwardFlops(down, up, 2 * out_channels * widths[0] * pixels[0])


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
    parts = forward_flops_by_part(network, len(store.channels), len(store.channels), store.size)
    whole = sum(parts.encoder) + parts.decoder + parts.head
    forward, backward = _passes(spec, parts)
    return RunFlops(
        _trained(spec) * (forward + backward),
        _validated(spec, store) * forward,
        _scored(spec, store) * whole,
    )


def _passes(spec: RunSpec, parts: ForwardFlops) -> tuple[float, float]:
    """Of one slice in a training: forward through what it needs, back through what learns."""
    encoder, head = sum(parts.encoder), parts.head
    forward = encoder + parts.decoder + head
    learns = forward
    match spec:
        case Pretrain(scheme=scheme) if scheme.trains == "encoder":
            forward = learns = encoder
        case Finetune(schedule="probe", probe_level=level):
            forward, learns = (sum(parts.encoder[:level]) if level else forward), 0.0
        case Finetune(schedule="frozen"):
            learns = parts.decoder + head
    return forward, BACKWARD * learns


def _trained(spec: RunSpec) -> int:
    """Slices of all steps."""
    if not isinstance(spec, Pretrain | Finetune):
        return 0
    return spec.training.iterations * spec.training.batch_size


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
    views = VIEWS_MIRRORED if spec.mirror else 1
    passes = 2 if spec.evaluation.postprocesses else 1  # for the threshold, and at it
    slices = passes * _slices(store, store.split.validation) + test + again
    return views * len(spec.parents) * slices


@lru_cache(maxsize=8)  # the same splits for each of the runs of a study
def _slices(store: SliceStore, ids: tuple[str, ...]) -> int:
    return sum(len(store.subjects[i].positions) for i in ids)
