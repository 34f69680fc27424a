"""Loaded by every Python of a lab job: it may be slow, and its clock may be wrong.

After each step of an optimiser the process sleeps for the seconds that the file `LAB_PACE_FILE`
holds at that moment: tiny runs last as long as a test wants to disturb them. That is no work, so
two cores can serve three nodes, and it changes no bit.

`time.time` is ahead by the seconds in the file of the node's name in the folder `LAB_CLOCKS`. Ray's
programs in C++ keep the machine's clock, which they write into logs alone.
"""

import importlib.abc
import os
import sys
import time
from pathlib import Path

LOOK_EVERY_S = 0.5


class PaceTorch(importlib.abc.MetaPathFinder):
    """Hooks into torch's optimisers when the first stage is imported; finds no module itself."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        if name == "fewscan.experiments.stages":
            sys.meta_path.remove(self)
            from torch.optim.optimizer import register_optimizer_step_post_hook

            register_optimizer_step_post_hook(lambda *_: time.sleep(pace_s()))


def pace_s() -> float:
    return float(Path(os.environ["LAB_PACE_FILE"]).read_text())


class WrongClock:
    """Stands for `time.time`."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._true = time.time
        self._looked = -LOOK_EVERY_S
        self._ahead_s = 0.0

    def __call__(self) -> float:
        if time.monotonic() - self._looked >= LOOK_EVERY_S:
            self._looked = time.monotonic()
            try:
                self._ahead_s = float(self._file.read_text())
            except FileNotFoundError:
                self._ahead_s = 0.0
        return self._true() + self._ahead_s


if "LAB_PACE_FILE" in os.environ:
    sys.meta_path.insert(0, PaceTorch())
if "LAB_CLOCKS" in os.environ:
    time.time = WrongClock(Path(os.environ["LAB_CLOCKS"]) / os.environ["SLURMD_NODENAME"])
