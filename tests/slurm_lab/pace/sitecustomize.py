"""Loaded by every Python of a lab job: tiny runs last as long as a test wants to disturb them.

After each step of an optimiser the process sleeps for the seconds that the file `LAB_PACE_FILE`
holds at that moment. That is no work, so two cores can serve three nodes, and it changes no bit.
"""

import importlib.abc
import os
import sys
import time
from pathlib import Path


class PaceTorch(importlib.abc.MetaPathFinder):
    """Hooks into torch's optimisers when the first stage is imported; finds no module itself."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        if name == "fewscan.experiments.stages":
            sys.meta_path.remove(self)
            from torch.optim.optimizer import register_optimizer_step_post_hook

            register_optimizer_step_post_hook(lambda *_: time.sleep(pace_s()))


def pace_s() -> float:
    return float(Path(os.environ["LAB_PACE_FILE"]).read_text())


if "LAB_PACE_FILE" in os.environ:
    sys.meta_path.insert(0, PaceTorch())
