"""Slices from disk into memory, whole splits and random batches, against a DataLoader of files.

The files are in the system's cache for both ways: what is measured is decoding, not the disk.
"""

import shutil
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from benchmarks import published
from benchmarks.measure import SideBySide, cost_of, side_by_side, typical
from benchmarks.results import Finding
from benchmarks.setting import Setting
from fewscan.storage.stream import SliceStream

BATCH = 16
WORKERS = 2
"""of the DataLoader: one a core; what it gets by itself (0) is shown too"""


def measure(setting: Setting) -> list[Finding]:
    """Read the slices of all scans in order, then in random order, both ways."""
    store, files = setting.store(), published.SliceFiles(_files(setting))
    ids = list(store.subjects)
    stream = SliceStream(store, ids)
    order = np.random.default_rng(0).permutation(len(stream)).tolist()
    _require_equal(files, stream, order[:BATCH])
    one = stream.gather([0])
    bytes_a_slice = one.images_NCHW.nbytes + one.labels_NHW.nbytes
    whole = partial(_compared, setting, files, None, lambda: store.read(ids))
    random = partial(_compared, setting, files, order, lambda: _gather(stream, order))
    whole_costs, random_costs = whole(WORKERS), random(WORKERS)
    again = tuple(cost_of(lambda: store.read(ids), len(stream)) for _ in range(setting.rounds + 1))
    return [
        _ratio("slices into memory, whole split", whole_costs, WORKERS, at_least=20),
        _ratio("slices into memory, whole split", whole(0), 0),
        Finding(
            "slices into memory, whole split, decoded",
            tuple(bytes_a_slice / cost.wall_s / 1e9 for cost in whole_costs.fast),
            "GB/s",
            at_least=2,
            here=f"{bytes_a_slice / typical(whole_costs.fast, 'core_s') / 1e9:.3g} GB/s a core",
            note="in turn with the DataLoader, whose processes take the memory in between; where "
            "the system then hands out each page anew, that takes longer than the decoding",
        ),
        Finding(
            "slices into memory, whole split, decoded, one reading after the other",
            tuple(bytes_a_slice / cost.wall_s / 1e9 for cost in again[1:]),
            "GB/s",
            here=f"{bytes_a_slice / typical(again[1:], 'core_s') / 1e9:.3g} GB/s a core",
            note="the same, into memory that the process has just had",
        ),
        _ratio("random batches straight from the store", random_costs, WORKERS, at_least=13),
        _ratio("random batches straight from the store", random(0), 0),
        Finding(
            "random batches straight from the store, on all cores",
            tuple(1 / cost.wall_s for cost in random_costs.fast),
            "slices/s",
            at_least=10_000,
            here=f"{1 / typical(random_costs.fast, 'core_s'):,.0f} slices/s a core",
            note="batches of 16, each made when it is asked for; every checksum is verified",
        ),
    ]


def _files(setting: Setting) -> Path:
    """The scans as the published way keeps them, made if they are not there."""
    folder = setting.folder / f"files{setting.size}"
    if not folder.exists():
        partial_folder = folder.with_suffix(".partial")
        shutil.rmtree(partial_folder, ignore_errors=True)
        partial_folder.mkdir()
        published.prepare_all(setting.scans, partial_folder, setting.size)
        partial_folder.rename(folder)
    return folder


def _require_equal(
    files: published.SliceFiles, stream: SliceStream, indices: Sequence[int]
) -> None:
    """The same slices under the same numbers, but for half precision."""
    assert len(files) == len(stream)
    slices = stream.gather(indices)
    for image_CHW, label_HW, n in zip(slices.images_NCHW, slices.labels_NHW, indices, strict=True):
        image, mask = files[n]
        np.testing.assert_allclose(image_CHW, image.numpy(), rtol=2**-10, atol=1e-7)
        assert np.array_equal(label_HW > 0, mask.numpy())


def _compared(
    setting: Setting,
    files: published.SliceFiles,
    order: Sequence[int] | None,
    fast: Callable[[], object],
    workers: int,
) -> SideBySide:
    def plainly() -> None:
        for _ in published.batches(files, BATCH, workers, order):
            pass

    rounds = setting.rounds if workers else min(setting.rounds, 2)
    return side_by_side(plainly, fast, rounds, plain_units=len(files), fast_units=len(files))


def _gather(stream: SliceStream, order: Sequence[int]) -> None:
    for start in range(0, len(order), BATCH):
        stream.gather(order[start : start + BATCH])


def _ratio(what: str, costs: SideBySide, workers: int, at_least: float | None = None) -> Finding:
    plain, fast = (1 / typical(way, "wall_s") for way in (costs.plain, costs.fast))
    return Finding(
        f"{what}, against a DataLoader with {workers} workers",
        costs.ratios("wall_s"),
        "×",
        at_least=at_least,
        published=f"{plain:,.0f} slices/s",
        here=f"{fast:,.0f} slices/s",
        core_ratios=costs.ratios("core_s"),
    )
