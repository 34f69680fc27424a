"""A trained model on many scans: one start, a file a scan, and on the same command it goes on."""

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from fewscan.harness.predict import ScanPredictor, write_prediction
from fewscan.storage.errors import ScanError
from fewscan.storage.find import find_new_scans
from fewscan.storage.scans import told_of_scan


@dataclass(frozen=True)
class PredictReport:
    """What became of the scans."""

    written: tuple[str, ...]
    """ids of the scans that were segmented now"""
    there: tuple[str, ...]
    """ids of those whose files were there already"""
    problems: dict[str, ScanError]
    """the scans that cannot be used: id → reason"""
    assumed: dict[str, tuple[str, ...]]
    """what had to be assumed or was turned, as sentences → ids of the scans"""


def predict_all(
    loaded: ScanPredictor,
    scans: Path,
    out: Path,
    maps_out: Path | None = None,
    *,
    overwrite: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> PredictReport:
    """Segment all scans in a folder or table into `out`/ID.nii.gz, and their maps into `maps_out`.

    Both are folders, and are made. Scans whose files are there are not done again unless
    `overwrite`; files are written atomically, so that what is there is whole. A scan that cannot be
    used does not stop the others. `progress` gets scans done and all scans.

    Raises `ScanError` if there are no scans for the model, or a folder lies among the scans.
    """
    made = loaded.trained.slices
    catalog = find_new_scans(scans, made.channels, made.classes)
    folders = [out] if maps_out is None else [out, maps_out]
    for folder in folders:
        _require_elsewhere(folder, scans)
        folder.mkdir(parents=True, exist_ok=True)
    problems, assumed = dict(catalog.problems), defaultdict(list)
    written, there = [], []
    for done, files in enumerate(catalog.scans, start=1):
        paths = [folder / f"{files.id}.nii.gz" for folder in folders]
        if not overwrite and all(path.exists() for path in paths):
            there.append(files.id)
        else:
            try:
                prediction = loaded.of(files)
                with told_of_scan(files):  # such as an id that is no file name
                    write_prediction(prediction, *paths)
                written.append(files.id)
                for sentence in prediction.assumed:
                    assumed[sentence].append(files.id)
            except ScanError as error:
                problems[files.id] = error
        if progress:
            progress(done, len(catalog.scans))
    said = {sentence: tuple(ids) for sentence, ids in assumed.items()}
    return PredictReport(tuple(written), tuple(there), problems, said)


def _require_elsewhere(folder: Path, scans: Path) -> None:
    """What is written must not be taken for a scan by the next command."""
    place = scans.resolve()
    if place.is_dir() and (folder.resolve() == place or place in folder.resolve().parents):
        raise ScanError(
            "a folder among the scans",
            where=folder,
            expected="a place outside of the folder of the scans",
            remedy="choose another folder",
        )
