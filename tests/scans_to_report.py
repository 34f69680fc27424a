"""What an installation that is not this clone's is asked to do: a first study, small."""

from collections.abc import Iterator

SMALL = {
    "pretrain.denoise.training.iterations": 4,
    "pretrain.denoise.training.validate_every": 2,
    "finetune.training.iterations": 4,
    "finetune.training.validate_every": 2,
    "finetune.iterations": "null",
    "finetune.label_counts": "[1, all]",
    "finetune.seeds": "[0, 1]",
    "pretrain.denoise.seeds": "[0, 1]",
    "evaluation.nsd_tolerance_mm": "null",
    "network.width": 4,
    "resources.device": "cpu",
}
SUBJECTS, SIZE = 25, 32
PAGE = "studies/mine/report/report.html"
"""Is there in the end."""


def commands() -> Iterator[list[str]]:
    """Words after `fewscan`, to be run one after the other in an empty folder."""
    yield ["phantom", "scans", "--subjects", str(SUBJECTS)]
    yield ["prepare", "scans", "scans.zarr", "--size", str(SIZE)]
    yield ["check", "scans.zarr"]
    yield ["init", "scans.zarr", "mine.yaml"]
    small = [word for key, value in SMALL.items() for word in ("--set", f"{key}={value}")]
    yield ["sweep", "mine.yaml", *small]
    yield ["report", "mine.yaml", *small]
