"""What every convention answers, and what they share when they look for one scan."""

from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from fewscan.storage.catalog import Catalog, ScanFiles, Selection, patient_in_name
from fewscan.storage.errors import ScanError

if TYPE_CHECKING:  # numpy, which they load, would slow every `--help`
    from fewscan.storage.geometry import Axis
    from fewscan.storage.intensity import Normalisation


class Convention(Protocol):
    """How a data set lies on disk.

    A convention knows names and small text files; it opens no image. What it finds has one order of
    channels and of classes for all scans, and ids that are the same wherever the folder lies. A
    scan whose files do not fit together is a problem with its reason; it never stops the others.
    `tests/convention_suite.py` holds every convention to this.
    """

    name: str
    """for people: "BraTS" """
    layout: str
    """what a data set of it is, as `--help` says it"""
    expected: str
    """the names that it looks for, as an error says it"""
    labels: str
    """where the segmentation of a scan is, as an error says it"""
    endings: tuple[str, ...]
    """of its images' file names"""
    axis: "Axis | None"
    """through the slices, unless the folder says otherwise; None: the spacing tells"""
    normalisation: "Normalisation"
    """what suits its images, unless the folder says otherwise"""

    @abstractmethod
    def looks_like(self, folder: Path) -> bool:
        """Whether `folder` is a data set of this convention; quick, and raises nothing."""

    @abstractmethod
    def find(self, folder: Path, selection: Selection) -> Catalog:
        """The scans in `folder`, which looks like it, that are wanted.

        Raises `ScanError` if the whole data set is of a kind that is not supported, or does not
        have what is wanted.
        """

    @abstractmethod
    def find_one(
        self, paths: Sequence[Path], channels: Sequence[str], classes: Sequence[str]
    ) -> ScanFiles | None:
        """The one new scan in `paths`, for a model of these channels and classes.

        `paths` is one folder, or files. None if nothing in there is of this convention. Label
        values are those of the data set, or 1, 2, … where it does not say any; the segmentation is
        not looked at. Raises `ScanError` if files are missing, belong to several scans, or are of
        other channels.
        """

    def patient_of(self, scan_id: str) -> str:
        """Whose scan this is, as far as its id tells; by default as BIDS has it."""
        return patient_in_name(scan_id)

    def same_scan(self, scan_id: str) -> str:
        """The id under which this very scan is known in the newest edition of its data set."""
        return scan_id


def files_in(paths: Sequence[Path], endings: tuple[str, ...]) -> list[Path]:
    """The files given, or those in the one folder given whose names end so; hidden ones are not."""
    if not paths[0].is_dir():
        return list(paths)
    inside = sorted(p for p in paths[0].iterdir() if p.name[0] != "." and p.is_file())
    return [path for path in inside if path.name.endswith(endings)]


def require_one(ids: Sequence[str], where: Path) -> None:
    """Raise `ScanError` if files of several scans were given for one."""
    if len(ids) > 1:
        raise ScanError(
            f"{len(ids)} scans: {', '.join(ids[:5])}{', ...' if len(ids) > 5 else ''}",
            where=where,
            expected="one scan",
            remedy="give the files of one of them, such as FOLDER/CASE_*.nii.gz",
        )


def require_channels(
    found: Sequence[str], wanted: Sequence[str], what: str, where: Path, by_name: bool = True
) -> None:
    """Raise `ScanError` unless a scan has a model's channels; if not `by_name`, as many."""
    if len(found) != len(wanted) or (by_name and tuple(found) != tuple(wanted)):
        raise ScanError(
            f"a scan with {len(found)} channels: {', '.join(found)} ({what})",
            where=where,
            expected=f"the model's {len(wanted)} channels: {', '.join(wanted)}",
            remedy="choose a run that was trained on such scans",
        )
