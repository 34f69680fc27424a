"""What the benchmarks of sweeps run on: a store with a split, folders that nobody has used."""

from pathlib import Path

from benchmarks.setting import Setting
from fewscan.storage.phantom.write import write_phantoms
from fewscan.storage.prepare import prepare
from fewscan.storage.splits import FEWEST_SUBJECTS

ROOT = Path(__file__).parents[1]


def study_store(setting: Setting, size: int) -> Path:
    """A store with a split, of slices of `size`; made if it is not there."""
    scans = setting.scans
    if len(list(scans.iterdir())) < FEWEST_SUBJECTS:
        scans = setting.folder / "study_scans"
        write_phantoms(scans, FEWEST_SUBJECTS)
    store = setting.folder / f"study{size}.zarr"
    prepare(scans, store, size=size, validation=1)
    return store


def unused(folder: Path, name: str) -> str:
    """A folder in `folder` that no earlier measurement has written into."""
    folder.mkdir(parents=True, exist_ok=True)
    taken = {path.name for path in folder.iterdir()}
    return str(folder / next(n for n in (f"{name}{k}" for k in range(10**6)) if n not in taken))
