"""A device under measurement: how long a step takes on it, several ways taking turns."""

import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from benchmarks.loops import Work
from fewscan.experiments.devices import Devices


class Bench:
    """A device, what a step works on, and how long a rate is measured."""

    def __init__(self, device: str, work: Work, seconds: float, rounds: int) -> None:
        self.device = device
        self.work = work
        self.seconds = seconds
        self.rounds = rounds
        self.at_once = 5 if seconds else 1
        """Calls between two looks at the clock, for which the device must be waited for."""
        self.devices = replace(Devices(), device=device, checkpoint_every_s=1e9)
        self._place = tempfile.TemporaryDirectory(prefix="fewscan-gpu-")
        """It goes with this object."""
        self.folder = Path(self._place.name)

    @property
    def on_gpu(self) -> bool:
        """Whether there is a GPU to wait for."""
        return self.device.startswith("cuda")

    def wait(self) -> None:
        """Until the device has done all that it was asked to do."""
        if self.on_gpu:
            torch.cuda.synchronize(self.device)

    def seconds_each(self, work: Callable[[], object]) -> float:
        """Seconds a call, over as many as fill the time, after some that do not count."""
        for _ in range(self.at_once):
            work()
        self.wait()
        begun, calls = time.perf_counter(), 0
        while not calls or time.perf_counter() - begun < self.seconds:
            for _ in range(self.at_once):
                work()
            calls += self.at_once
            self.wait()
        return (time.perf_counter() - begun) / calls

    def in_turn(self, ways: dict[str, Callable[[], object]]) -> dict[str, list[float]]:
        """Seconds a call of each way, round by round, the ways taking turns."""
        rounds = [
            {n: self.seconds_each(way) for n, way in ways.items()} for _ in range(self.rounds)
        ]
        return {name: [one[name] for one in rounds] for name in ways}
