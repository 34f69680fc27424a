"""How much arithmetic a run is, and how much memory: for the order of runs, the estimate of hours,
and the refusal of what does not fit."""

from functools import lru_cache
from math import prod
from typing import NamedTuple

from fewscan.experiments.spec import Finetune, Network, Pretrain, RunSpec, Score
from fewscan.experiments.tiling import window_starts
from fewscan.storage.slices import SliceStore

BACKWARD = 2
"""A backward pass costs about two forward passes."""


class ForwardFlops(NamedTuple):
    """Floating-point operations of one slice in the parts of the network."""

    encoder: tuple[float, ...]
    """Level by level, the finest first."""
    decoder: float
    head: float


class Level(NamedTuple):
    """One level of the network."""

    width: int
    """Channels."""
    voxels: float
    """Of its maps; pixels in 2D."""
    padded: float
    """With the reflected borders of its convolutions."""
    taps: int
    """Of a filter, in one channel."""


def levels(network: Network, size: int) -> list[Level]:
    """The finest first, for slices of size² pixels or for patches."""
    lengths: list[float] = list(network.patch or (size, size))
    found = []
    for level in range(network.depth):
        is_flat = network.dims == 3 and level < network.flat_levels
        kernel = [1 if is_flat and axis == 0 else 3 for axis in range(network.dims)]
        padded = [n + k - 1 for n, k in zip(lengths, kernel, strict=True)]
        width = network.width * 2**level
        found.append(Level(width, prod(lengths), prod(padded), prod(kernel)))
        lengths = [n if k == 1 else n / 2 for n, k in zip(lengths, kernel, strict=True)]
    return found


def forward_flops(network: Network, in_channels: int, out_channels: int, size: int) -> float:
    """Floating-point operations of one slice of size² pixels (multiply and add count as two), or
    of one patch.

    The convolutions alone; 18.4 GFLOP for the published network at 128², 36 % in the encoder.
    """
    encoder, decoder, head = forward_flops_by_part(network, in_channels, out_channels, size)
    return sum(encoder) + decoder + head


def forward_flops_by_part(
    network: Network, in_channels: int, out_channels: int, size: int
) -> ForwardFlops:
    """The same part by part."""
    found = levels(network, size)
    seen = [in_channels, *(level.width for level in found)]
    down = tuple(
        2 * it.taps * (previous + it.width) * it.width * it.voxels
        for previous, it in zip(seen, found, strict=False)
    )
    up = sum(
        2 * (it.width * 2 * it.width + it.taps * 3 * it.width * it.width) * it.voxels
        for it in found[:-1]
    )
    return ForwardFlops(down, up, 2 * out_channels * found[0].width * found[0].voxels)


BYTES_OF_A_PARAMETER = 24
"""In single precision: itself, its gradient, three moments of Adam with amsgrad, its copy as best
so far."""


class Activations(NamedTuple):
    """Bytes that a forward pass of one slice or patch keeps for the backward pass."""

    encoder: float
    decoder: float


def activation_bytes(
    network: Network, in_channels: int, size: int, half: bool = False
) -> Activations:
    """What the blocks keep for the backward pass.

    Of each of a block's two convolutions its padded input, its output (which SiLU keeps) and SiLU's
    output (which the norm keeps); and what the block hands on. Others are small: weights, the loss.
    `half`: under bf16 autocast, in which convolutions and SiLU have two bytes a value, norms and
    what they hand on four. Else all have four.
    """
    found = levels(network, size)
    narrow = 2 if half else 4

    def of(inputs: int, it: Level) -> float:
        return (
            narrow * (inputs + it.width) * it.padded + (2 * narrow + 3 * 4) * it.width * it.voxels
        )

    seen = [in_channels, *(it.width for it in found)]
    return Activations(
        sum(of(inputs, it) for inputs, it in zip(seen, found, strict=False)),
        sum(of(2 * it.width, it) for it in found[:-1]),
    )


def parameter_count(network: Network, in_channels: int, out_channels: int) -> int:
    """Of the whole network; 7,703,748 of the published one."""
    found = levels(network, 2**network.depth)
    taps_up = [
        2 if network.dims == 3 and level >= network.flat_levels else 1
        for level in range(network.depth - 1)
    ]
    inputs = [in_channels, *(it.width for it in found)]
    total = sum(_block(into, it) for into, it in zip(inputs, found, strict=False))
    for through, it in zip(taps_up, found[:-1], strict=True):
        total += 4 * through * 2 * it.width * it.width + it.width + _block(2 * it.width, it)
    return total + (found[0].width + 1) * out_channels


def _block(inputs: int, level: Level) -> int:
    """Parameters of two convolutions, each with biases, gains and shifts."""
    return level.taps * (inputs + level.width) * level.width + 6 * level.width


def training_bytes(
    spec: Pretrain | Finetune, in_channels: int, size: int, devices: int = 1, on_cpu: bool = True
) -> float:
    """What a training keeps on each device, roughly: activations, and all that parameters take.

    What libraries take as workspace, and the slices, are not counted. Precision auto is taken as
    single on a CPU, as bf16 elsewhere.
    """
    a_device = spec.training.batch_size / devices
    wish = spec.training.precision
    half = wish == "bf16" or (wish == "auto" and not on_cpu)
    double = 2 if spec.training.precision == "fp64" else 1
    encoder, decoder = activation_bytes(spec.network, in_channels, size, half)
    if isinstance(spec, Finetune) and spec.schedule in (
        "frozen",
        "probe",
    ):  # no gradient gets there
        encoder, decoder = 0.0, decoder if spec.schedule == "frozen" else 0.0
    kept = a_device * (encoder + decoder)
    parameters = parameter_count(spec.network, in_channels, in_channels)
    return double * (kept + BYTES_OF_A_PARAMETER * parameters)


class RunFlops(NamedTuple):
    """Floating-point operations of the parts of a run."""

    training: float
    validation: float
    scoring: float


def run_flops(spec: RunSpec, network: Network, store: SliceStore) -> float:
    """Floating-point operations of a whole run: steps, validations, and the scoring at the end."""
    return sum(flops_by_part(spec, network, store))


def flops_by_part(spec: RunSpec, network: Network, store: SliceStore) -> RunFlops:
    """The same part by part. `network` is that of a score; a training has its own."""
    if isinstance(spec, Pretrain | Finetune):
        network = spec.network
    parts = forward_flops_by_part(network, len(store.channels), len(store.channels), store.size)
    whole = sum(parts.encoder) + parts.decoder + parts.head
    forward, backward = _passes(spec, parts)
    return RunFlops(
        _trained(spec) * (forward + backward),
        _validated(spec, store) * forward,
        _scored(spec, network, store) * whole,
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
    """Slices, or patches, of all steps."""
    if not isinstance(spec, Pretrain | Finetune):
        return 0
    return spec.training.iterations * spec.training.batch_size


def _validated(spec: RunSpec, store: SliceStore) -> int:
    if not isinstance(spec, Pretrain | Finetune):
        return 0
    depth = spec.network.slices_a_patch
    if isinstance(spec, Pretrain):
        _, validated = store.pretraining(spec.slices, depth)
    else:
        validated = store.split.validation
    training, each = spec.training, _slices(store, validated, depth)
    if training.validation_slices is not None:
        each = min(each, training.validation_slices)
    views = spec.scheme.views if isinstance(spec, Pretrain) else 1  # a step counts them already
    return -(-training.iterations // training.validate_every) * each * views


def _scored(spec: RunSpec, network: Network, store: SliceStore) -> int:
    if not isinstance(spec, Score):
        return 0
    validation, test = (
        _seen(network, store, ids) for ids in (store.split.validation, store.split.test)
    )
    test = test if spec.split == "test" else 0
    again = test if spec.evaluation.removes_specks else 0  # at the threshold known then
    views = 2**network.dims if spec.mirror else 1  # itself, mirrored along each axis, along several
    passes = 2 if spec.evaluation.postprocesses else 1  # for the threshold, and at it
    return views * len(spec.parents) * (passes * validation + test + again)


@lru_cache(maxsize=16)  # the same splits for each of the runs of a study
def _slices(store: SliceStore, ids: tuple[str, ...], depth: int = 1) -> int:
    """Kept slices, or patches that lie behind each other."""
    return sum(-(-len(store.subjects[i].positions) // depth) for i in ids)


@lru_cache(maxsize=16)
def _seen(network: Network, store: SliceStore, ids: tuple[str, ...]) -> int:
    """Slices, or windows, of a prediction."""
    if network.patch is None:
        return _slices(store, ids)
    depth, *plane = network.patch
    a_slice = prod(len(window_starts(store.size, length)) for length in plane)
    kept = [len(store.subjects[i].positions) for i in ids]
    return a_slice * sum(len(window_starts(slices, depth)) for slices in kept)
