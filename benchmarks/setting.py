"""What the benchmarks work on: a few phantom scans of BraTS size, made once and kept."""

from dataclasses import dataclass
from pathlib import Path

from fewscan.storage.prepare import prepare
from fewscan.storage.slices import SliceStore

SUBJECTS = 10


@dataclass(frozen=True)
class Setting:
    """Inputs and effort of a benchmark; the tests give tiny ones."""

    scans: Path
    """a folder of labelled scans"""
    folder: Path
    """for what is made of them; kept between runs"""
    size: int = 128
    """rows and columns of a slice"""
    rounds: int = 5
    """of a measurement that takes seconds; longer ones take fewer"""
    noop_runs: int = 60
    """of the sweep that computes nothing"""
    planned_runs: int = 10_000
    """of the study that is planned and looked at"""
    demo_overrides: tuple[str, ...] = (
        "pretrain.denoise.training.iterations=400",
        "finetune.training.iterations=120",
    )
    """of experiments/demo.yaml, for a sweep of a few minutes"""

    def store(self) -> SliceStore:
        """The scans as a store, made if it is not there."""
        path = self.folder / f"slices{self.size}.zarr"
        if not path.exists():
            prepare(self.scans, path, self.size, workers=1)
        return SliceStore.open(path)
