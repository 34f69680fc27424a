"""Which files belong to one subject and what they mean, whatever convention names them."""

from dataclasses import dataclass
from pathlib import Path

from fewscan.storage.errors import ScanError
from fewscan.storage.geometry import Axis
from fewscan.storage.intensity import Normalisation


@dataclass(frozen=True)
class ScanFiles:
    """The files of one subject."""

    id: str
    """the part that all its file names share"""
    naming: str
    """the convention that it follows: an edition of BraTS, or nnU-Net"""
    channel_files: tuple[Path, ...]
    """in the order of the channels"""
    label_file: Path | None
    """the segmentation; None for a scan without one"""
    label_values: tuple[int, ...]
    """the value in `label_file` of each class, in the order of the classes"""


@dataclass(frozen=True)
class Catalog:
    """What a folder holds."""

    channels: tuple[str, ...]
    """names, in the order in which networks see them"""
    classes: tuple[str, ...]
    """names of the lesion classes; label k is the k-th, 0 is none of them"""
    scans: tuple[ScanFiles, ...]
    """usable as far as names tell, sorted by id"""
    problems: dict[str, ScanError]
    """the others: id (or folder, or file) → reason"""
    axis: Axis | None
    """through the slices, if the convention says so; None: the spacing tells"""
    normalisation: Normalisation
    """what suits such images"""
