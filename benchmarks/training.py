"""The training step on a CPU: bf16 against the published fp32 loop, the loop's own cost, the stall.

On a GPU, see `benchmarks.gpu`.
"""

import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from benchmarks import published_training
from benchmarks.loops import (
    CHANNELS,
    CLASSES,
    MEANING,
    Work,
    in_memory,
    loop,
    made_up_slices,
    on_cpu,
)
from benchmarks.measure import side_by_side, typical
from benchmarks.results import Finding
from benchmarks.setting import Setting
from fewscan.experiments.devices import has_native_bf16, tiny_numbers_as_zero
from fewscan.experiments.finetune import SegmentTask
from fewscan.experiments.initial_weights import initial_network
from fewscan.experiments.spec import Finetune, Network, Precision, Training
from fewscan.experiments.train import Loop, train
from fewscan.storage.runs import RunFolder
from fewscan.storage.system.workers import usable_cpus

WORK = Work(batch_size=4, slices=16)
"""A small batch, so that a round takes seconds; what a step costs beside its slices weighs more."""
SEEDS, QUALITY_STEPS = 4, 200
TINY_SHARE = 0.004
"""Of a gradient, below what a float holds with all its digits."""


def measure(setting: Setting) -> list[Finding]:
    """All at width 64, but for the quality, which takes whole trainings and so a small network."""
    work = replace(WORK, size=setting.size, width=64 if setting.size >= 128 else 8)
    torch.set_num_threads(usable_cpus() if setting.size >= 128 else 1)
    with tempfile.TemporaryDirectory() as folder:
        return [
            _step(work, setting, Path(folder)),
            _own_share(work, setting, Path(folder)),
            _stall(work, setting, Path(folder)),
            _tiny_numbers(setting),
            _quality(setting, Path(folder)),
        ]


def _step(work: Work, setting: Setting, folder: Path) -> Finding:
    images, _ = made_up_slices(work.slices, work.size)
    batches = list(images.float().split(work.batch_size))
    ours = loop("pretrain", work, "auto", on_cpu(usable_cpus()), folder / "step")
    network = published_training.network(work.width)
    network.load_state_dict(ours.model.state_dict())
    with torch.no_grad():
        assert torch.allclose(network(batches[0]), ours.model(batches[0]), atol=1e-4)
    plain = published_training.training_step(network, batches, "cpu")
    numbers = iter(range(10**9))
    costs = side_by_side(
        lambda: plain(next(numbers)),
        ours.step,
        setting.rounds,
        plain_units=work.batch_size,
        fast_units=work.batch_size,
    )
    plain_s, fast_s = (typical(way, "wall_s") for way in (costs.plain, costs.fast))
    precision = "bf16" if has_native_bf16("cpu") else "fp32: no bf16 in this processor"
    return Finding(
        f"training step, width {work.width}, CPU, against fp32 eager",
        costs.ratios("wall_s"),
        "×",
        at_least=1.8,
        published=f"{plain_s:.3g} s a slice",
        here=f"{fast_s:.3g} s a slice ({precision})",
    )


def _own_share(work: Work, setting: Setting, folder: Path) -> Finding:
    """Batch, augmentation and bookkeeping against the whole step, in seconds of the step."""
    ours = loop("finetune", work, "auto", on_cpu(usable_cpus()), folder / "own")
    ours.step()
    shares = []
    for _ in range(setting.rounds):
        own_s, whole_s = _own_and_whole(ours)
        shares.append(100 * own_s / whole_s)
    return Finding(
        f"training loop's own share of a step, with augmentation, width {work.width}",
        tuple(shares),
        "%",
        at_most=5,
        here="batch, augmentation, clock",
    )


def _own_and_whole(ours: Loop) -> tuple[float, float]:
    """Seconds that a step spends beside forward, backward and optimiser, and in all."""
    own_s = 0.0
    task = ours.task
    assert isinstance(task, SegmentTask)
    batch = task.batch

    def timed(step: int) -> object:
        nonlocal own_s
        begun = time.perf_counter()
        made = batch(step)
        own_s += time.perf_counter() - begun
        return made

    task.batch = timed  # type: ignore[method-assign, assignment]
    try:
        whole_s = _seconds(ours.step)
    finally:
        task.batch = batch  # type: ignore[method-assign]
    clock_s = _seconds(ours.look_at_the_clock)
    return own_s + clock_s, whole_s + clock_s


def _stall(work: Work, setting: Setting, folder: Path) -> Finding:
    ours = loop("pretrain", work, "auto", on_cpu(usable_cpus()), folder / "stall")
    ours.step()
    stalls, writes = [], []
    for _ in range(setting.rounds + 1):  # the first finds no copy to write over
        stalls.append(1000 * _seconds(ours.checkpoint))
        writes.append(1000 * _seconds(ours.write_events))
    return Finding(
        f"checkpoint, width {work.width}: the step waits",
        tuple(stalls[1:]),
        "ms",
        at_most=50,
        here=f"written in {statistics.median(writes[1:]):.0f} ms, in the background",
        note=f"the first of an attempt, which makes room for the copies, took {stalls[0]:.0f} ms",
    )


def _tiny_numbers(setting: Setting) -> Finding:
    """Of the demo's gradients 0.3 to 0.4 % are below 1e-38 once a network grows confident."""
    torch.manual_seed(0)
    inputs = torch.randn(8, 32, 14, 14, requires_grad=True)
    weights = torch.randn(32, 32, 3, 3, requires_grad=True)
    outputs = torch.nn.functional.conv2d(inputs, weights)
    gradient = torch.randn_like(outputs)
    gradient[torch.rand_like(gradient) < TINY_SHARE] = 1e-40

    def backward() -> None:
        for _ in range(20):
            torch.autograd.grad(outputs, (inputs, weights), gradient, retain_graph=True)

    def as_zero() -> None:
        with tiny_numbers_as_zero():
            backward()

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    costs = side_by_side(backward, as_zero, setting.rounds)
    torch.set_num_threads(threads)
    return Finding(
        "backward convolution, fp32, with tiny numbers taken as zero",
        costs.ratios("wall_s"),
        "×",
        here=f"{100 * TINY_SHARE:g} % of the gradient below 1e-38, one thread",
    )


def _quality(setting: Setting, folder: Path) -> Finding:
    """Best validation loss of bf16 against fp32, seed by seed, in the spread of the seeds."""
    losses = {p: _losses(p, setting, folder) for p in ("fp32", "bf16")}
    spread = statistics.stdev(losses["fp32"])
    differences = [b - f for f, b in zip(losses["fp32"], losses["bf16"], strict=True)]
    means = {p: statistics.mean(values) for p, values in losses.items()}
    return Finding(
        "bf16 against fp32: difference of the mean validation loss, in σ of seeds",
        (abs(statistics.mean(differences)) / spread,),
        "σ",
        at_most=1,
        published=f"fp32 {means['fp32']:.4f} ± {spread:.4f}",
        here=f"bf16 {means['bf16']:.4f} ± {statistics.stdev(losses['bf16']):.4f}",
        note=f"fine-tunings of width 8 on made-up slices of 32², {len(differences)} seeds",
    )


def _losses(precision: Precision, setting: Setting, folder: Path) -> list[float]:
    steps = QUALITY_STEPS if setting.size >= 128 else 4
    return [_best_loss(precision, seed, steps, folder) for seed in range(SEEDS)]


def _best_loss(precision: Precision, seed: int, steps: int, folder: Path) -> float:
    training = Training(steps, max(1, steps // 4), 8, lr=3e-3, precision=precision)
    spec = Finetune("made up", Network(8), "multiclass", 1, training, seed)
    run = RunFolder(folder / f"{precision}{seed}")
    run.path.mkdir()
    devices = on_cpu(usable_cpus())
    labelled, validation = (
        in_memory(*made_up_slices(32, 32, seed=2 * seed + n), torch.float32, "cpu")
        for n in range(2)
    )
    task = SegmentTask(spec, MEANING, labelled, validation, devices)
    model, facts = initial_network(spec, CHANNELS, 1 + CLASSES, run, devices)
    return train(model, task, training, run, devices, facts).best_loss


def _seconds(work: Callable[[], object]) -> float:
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun
