"""Which files make one scan, whose it is and what they mean, whatever convention names them."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fewscan.storage.errors import ScanError

if TYPE_CHECKING:  # numpy, which they load, would slow every `--help`
    from fewscan.storage.geometry import Axis
    from fewscan.storage.intensity import Normalisation


@dataclass(frozen=True)
class ScanFiles:
    """The files of one scan."""

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
    patient: str = ""
    """whose scan it is; by default what `patient_in_name` says"""

    def __post_init__(self) -> None:
        object.__setattr__(self, "patient", self.patient or patient_in_name(self.id))


def patient_in_name(scan_id: str) -> str:
    """The BIDS entity sub-XX at the start of an id (sub-01_ses-1: sub-01), else the id itself."""
    match = re.match(r"(sub-[A-Za-z0-9]+)(?:_|$)", scan_id)
    return match[1] if match else scan_id


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
    axis: "Axis | None"
    """through the slices, if the convention says so; None: the spacing tells"""
    normalisation: "Normalisation"
    """what suits such images"""
