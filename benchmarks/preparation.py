"""From NIfTI to slices on disk: `fewscan prepare` against a float64 `.npz` a slice; their size."""

import shutil
import tempfile
from pathlib import Path

import numpy as np

from benchmarks import published
from benchmarks.measure import side_by_side, typical
from benchmarks.results import Finding
from benchmarks.setting import Setting
from fewscan.storage.prepare import prepare
from fewscan.storage.slices import SliceStore

SUBJECTS = 2
"""prepared in each round, in one process"""


def measure(setting: Setting) -> list[Finding]:
    """Prepare the same scans both ways; the slices are the same, but for their precision."""
    with tempfile.TemporaryDirectory(dir=setting.folder) as place:
        folder = Path(place)
        _link_some(setting.scans, folder / "scans")
        files, store = folder / "files", folder / "store.zarr"

        def plainly() -> None:
            shutil.rmtree(files, ignore_errors=True)
            files.mkdir()
            published.prepare_all(folder / "scans", files, setting.size)

        def fast() -> None:
            shutil.rmtree(store, ignore_errors=True)
            prepare(folder / "scans", store, setting.size, workers=1)

        rounds = min(setting.rounds, 3)
        costs = side_by_side(plainly, fast, rounds, plain_units=SUBJECTS, fast_units=SUBJECTS)
        _require_equal(published.SliceFiles(files), SliceStore.open(store))
        sizes_kB = [_bytes_in(path) / 1000 for path in (files, store)]
        slices = len(published.SliceFiles(files))
    plain_s, fast_s = (typical(way, "core_s") for way in (costs.plain, costs.fast))
    plain_kB, fast_kB = (size / slices for size in sizes_kB)
    return [
        Finding(
            "prepare, subjects per core-second",
            costs.ratios("core_s"),
            "×",
            at_least=12,
            published=f"{plain_s:.3g} core-s a subject",
            here=f"{fast_s:.3g} core-s a subject",
            note="one process each; the same slices, ours rounded to half precision; ours also "
            "hashes what it writes and waits for the disk to have it",
        ),
        Finding(
            "store size",
            (fast_kB / plain_kB,),
            "×",
            at_most=0.4,
            published=f"{plain_kB:.3g} kB a slice",
            here=f"{fast_kB:.3g} kB a slice",
            note="all files of the store, manifest and checksums included, against compressed "
            "float64 `.npz`, one a slice",
        ),
    ]


def _link_some(scans: Path, folder: Path) -> None:
    folder.mkdir()
    for subject in sorted(path for path in scans.iterdir() if path.is_dir())[:SUBJECTS]:
        (folder / subject.name).symlink_to(subject.resolve())


def _require_equal(files: published.SliceFiles, store: SliceStore) -> None:
    slices = store.read(list(store.subjects))
    assert len(files) == len(slices.images_NCHW)
    for n, path in enumerate(files.paths):
        with np.load(path) as arrays:
            _require_nearest(slices.images_NCHW[n], arrays["image"])
            assert np.array_equal(arrays["mask"], slices.labels_NHW[n] > 0)


def _require_nearest(half: np.ndarray, exact: np.ndarray) -> None:
    """Each number must be the nearest half-precision one, or in float64 tied with the nearest."""
    nearest = exact.astype(np.float16)
    error, least = (np.abs(exact - rounded.astype(np.float64)) for rounded in (half, nearest))
    assert (error <= least + 4 * np.finfo(np.float64).eps * np.abs(exact)).all()


def _bytes_in(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
