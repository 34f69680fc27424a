"""How fast a device trains a network, from a few steps on random images: for a first estimate.

Letters in names: N images, C channels, H and W rows and columns of a slice; of patches HW stands
for ZHW.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import nn

from fewscan.experiments.cost import BACKWARD, forward_flops
from fewscan.experiments.devices import Devices
from fewscan.experiments.spec import Network, Training, patch_units
from fewscan.experiments.train import make_optimiser
from fewscan.experiments.unet import UNet

WITHIN_S = 2.0
"""Seconds that the steps may take in all, as far as those before tell."""
TIMED = 3
"""Steps of a shape, of which the fastest counts: others had the machine to share."""


def flops_per_s(
    network: Network,
    training: Training,
    channels: int,
    size: int,
    devices: Devices,
    clock: Callable[[], float] | None = None,
) -> float:
    """Floating-point operations a second of training steps, as `cost` counts them.

    Of the network's own width and depth in the training's precision; its slices (of size² pixels)
    or patches and its batch are grown from small ones up to their own, as far as time allows: a CPU
    may need a minute for one step of the largest. Reading and augmentation are not in it. Leaves
    random numbers and the number of threads as they were. `clock` gives seconds; None: of a CPU
    those of its threads, whatever else the machine does meanwhile.
    """
    clock = clock or _clock_of(devices)
    begun, found = clock(), 0.0
    with _threads(devices.threads), torch.random.fork_rng(devices=[]):
        model = UNet(
            channels,
            channels,
            network.width,
            network.depth,
            dims=network.dims,
            flat_levels=network.flat_levels,
            patch=network.patch,
        ).to(devices.device, devices.dtype(training.precision))
        step = _Step(model, training, devices)
        for lengths, images in _growing(network, size, training.batch_size):
            forward = forward_flops(_seeing(network, lengths), channels, channels, lengths[-1])
            flops = images * (1 + BACKWARD) * forward
            if found and clock() - begun + (1 + TIMED) * flops / found > WITHIN_S:
                break
            images_NCHW = torch.rand((images, channels, *lengths)).to(step.like)
            step(images_NCHW)  # the first one of a shape also chooses how it is computed
            found = flops / min(_timed(step, images_NCHW, clock) for _ in range(TIMED))
    return found


def _clock_of(devices: Devices) -> Callable[[], float]:
    if devices.device != "cpu":
        return time.perf_counter
    return lambda: time.process_time() / devices.threads


def _timed(step: "_Step", images_NCHW: torch.Tensor, clock: Callable[[], float]) -> float:
    before = clock()
    step(images_NCHW)
    return clock() - before


class _Step:
    """A step of a training as `train` makes it, of a loss that costs nothing."""

    def __init__(self, model: nn.Module, training: Training, devices: Devices) -> None:
        self.model, self.training, self.devices = model, training, devices
        self.like = next(model.parameters())
        self.optimiser = make_optimiser(training, model)

    def __call__(self, images_NCHW: torch.Tensor) -> None:
        self.optimiser.zero_grad()
        with self.devices.autocast(self.training.precision):
            loss = self.model(images_NCHW).square().mean()
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), self.training.clip_norm)
        self.optimiser.step()
        if self.like.is_cuda:
            torch.cuda.synchronize(self.like.device)


def _seeing(network: Network, lengths: tuple[int, ...]) -> Network:
    """The same for patches of other lengths."""
    if network.patch is None:
        return network
    depth, rows, columns = lengths
    return replace(network, patch=(depth, rows, columns))


def _growing(network: Network, size: int, batch_size: int) -> Iterator[tuple[tuple[int, ...], int]]:
    """Rows and columns (of patches slices before them) and images of a batch, from few to all."""
    whole: tuple[int, ...] = network.patch or (size, size)
    _, least = patch_units(network.depth, network.flat_levels)
    lengths = tuple(min(small, n) for small, n in zip(least[-len(whole) :], whole, strict=True))
    while lengths != whole:
        yield lengths, 1
        lengths = tuple(min(2 * now, n) for now, n in zip(lengths, whole, strict=True))
    images = 1
    while images < batch_size:
        yield whole, images
        images *= 2
    yield whole, batch_size


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
