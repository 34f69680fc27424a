"""Several trainings on one device: as processes that share it, and as one batched model.

The processes are what a study's `gpu_share` of 1/2, 1/4 and 1/8 gives. The batched model trains
several seeds of one cell at once, with `torch.func`: weights stacked, one loss each.
"""

import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.loops import Work, loop, made_up_slices
from fewscan.experiments.anomaly import foreground
from fewscan.experiments.devices import Devices
from fewscan.experiments.losses import reconstruction_loss
from fewscan.experiments.unet import ReflectionPad, UNet


def measure(work: Work, device: str, counts: Sequence[int], seconds: float) -> dict[str, Any]:
    """Slices per second of all trainings together, for each number of them."""
    found: dict[str, Any] = {"processes": {}, "batched model": {}}
    for count in counts:
        found["processes"][str(count)] = by_processes(work, device, count, seconds)
        rate = partial(batched_rate, work, device, count, seconds)
        found["batched model"][str(count)] = _or_why(rate)
    return found


def _or_why(rate: Callable[[], float]) -> float | str:
    try:
        return rate()
    except Exception as error:  # memory, or an operation that cannot be batched here
        return f"failed: {type(error).__name__}: {str(error)[:300]}"


def by_processes(work: Work, device: str, count: int, seconds: float) -> float:
    """Slices per second of `count` processes that train at the same time."""
    context = torch.multiprocessing.get_context("spawn")
    ready, rates = context.Barrier(count), context.Queue()
    with TemporaryDirectory(prefix="fewscan-gpu-") as folder:
        arguments = [
            (work, device, seconds, Path(folder) / str(n), ready, rates) for n in range(count)
        ]
        processes = [context.Process(target=_train, args=a, daemon=True) for a in arguments]
        for process in processes:
            process.start()
        found: list[float] = [rates.get(timeout=180) for _ in processes]
        for process in processes:
            process.join()
    return sum(found)


def _train(work: Work, device: str, seconds: float, folder: Path, ready: Any, rates: Any) -> None:
    devices = Devices(device, checkpoint_every_s=1e9)
    devices.set_up()
    made = loop("pretrain", work, "auto", devices, folder)
    rates.put(work.batch_size * _rate(made.step, device, seconds, ready.wait))


def _rate(
    step: Callable[[], object], device: str, seconds: float, begin: Callable[[], object]
) -> float:
    """Steps per second, after a few that do not count and `begin`."""

    def wait() -> None:
        if device.startswith("cuda"):
            torch.cuda.synchronize(device)

    for _ in range(3):
        step()
    wait()
    begin()
    begun, steps = time.perf_counter(), 0
    while steps == 0 or time.perf_counter() - begun < seconds:
        step()
        steps += 1
        if steps % 5 == 0:
            wait()
    wait()
    return steps / (time.perf_counter() - begun)


def batched_rate(work: Work, device: str, count: int, seconds: float) -> float:
    """Slices per second of `count` networks trained as one."""
    step = BatchedTraining(work, device, range(count)).step
    return count * work.batch_size * _rate(step, device, seconds, lambda: None)


class BatchedTraining:
    """Networks of several seeds, stacked: one forward and backward pass trains them all."""

    def __init__(self, work: Work, device: str, seeds: Sequence[int]) -> None:
        self.device = device
        self._skeleton = _network(work.width, 0).to("meta")
        self.weights, _ = torch.func.stack_module_state(
            [_network(work.width, seed).to(device) for seed in seeds]
        )
        values = list(self.weights.values())
        self.optimiser = torch.optim.Adam(values, 1e-4, weight_decay=1e-5, amsgrad=True, fused=True)
        images, _ = made_up_slices(len(seeds) * work.batch_size, work.size)
        shape = (len(seeds), work.batch_size, *images.shape[1:])
        self.images_MNCHW = images.view(shape).to(device).float()

    def losses(self) -> Tensor:
        """(M,) the loss of each network on its own batch."""

        def loss(weights: dict[str, Tensor], images_NCHW: Tensor) -> Tensor:
            outputs = torch.func.functional_call(self._skeleton, weights, (images_NCHW,))
            return reconstruction_loss(outputs, images_NCHW, foreground(images_NCHW))

        kind = torch.device(self.device).type
        with torch.autocast(kind, torch.bfloat16):
            found: Tensor = torch.func.vmap(loss)(self.weights, self.images_MNCHW)
        return found

    def step(self) -> None:
        """One step of all networks, each with its own clipping."""
        self.optimiser.zero_grad()
        self.losses().sum().backward()
        self._clip(0.5)
        self.optimiser.step()

    def _clip(self, norm: float) -> None:
        gradients = [w.grad for w in self.weights.values() if w.grad is not None]
        squares_M = torch.stack([g.flatten(1).square().sum(dim=1) for g in gradients]).sum(dim=0)
        factors_M = (norm / (squares_M.sqrt() + 1e-6)).clamp(max=1)
        for gradient in gradients:
            gradient *= factors_M.view(-1, *[1] * (gradient.ndim - 1))


def _network(width: int, seed: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = UNet(width=width)
    for sequence in [m for m in model.modules() if isinstance(m, nn.Sequential)]:
        for n, module in enumerate(sequence):
            if isinstance(module, ReflectionPad):  # torch.func cannot see into ours
                sequence[n] = nn.ReflectionPad2d(1)
    return model
