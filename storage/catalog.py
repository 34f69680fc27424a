"""Which files make one scan, whose it is and what they mean, whatever convention names them."""

import re
from dataclasses import dataclass, field
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
    """the segmentation; None for an unlabelled scan"""
    label_values: tuple[int, ...]
    """the value in `label_file` of each class, in the order of the classes; −1: it has none"""
    patient: str = ""
    """whose scan it is; by default what `patient_in_name` says"""
    volumes: tuple[int, ...] = ()
    """for each of `channel_files` the index along its fourth axis; by default they have three"""
    ignore_value: int | None = None
    """the value in `label_file` of voxels that are neither trained on nor scored"""
    part: str = ""
    """train, validation or test, if the data set says so"""
    aliases: tuple[tuple[int, int], ...] = ()
    """further values in `label_file`: (value, the one of `label_values` that it stands for)"""

    def __post_init__(self) -> None:
        object.__setattr__(self, "patient", self.patient or patient_in_name(self.id))


def patient_in_name(scan_id: str) -> str:
    """The BIDS entity sub-XX at the start of an id (sub-01_ses-1: sub-01), else the id itself."""
    match = re.match(r"(sub-[A-Za-z0-9]+)(?:_|$)", scan_id)
    return match[1] if match else scan_id


@dataclass(frozen=True)
class Selection:
    """What a person wants of a data set; by default all its labelled scans."""

    unlabelled: bool = False
    """scans without a segmentation as well; a table says it itself, by an empty cell"""
    channels: tuple[str, ...] = ()
    """some of the channels, in this order; empty: all"""
    labels: str = ""
    """which edition's label values the files have, or VALUE=CLASS,…, where names do not tell"""
    lesion: tuple[str, ...] = ()
    """the classes that are lesions; empty: what the data set says, else all"""
    regions: tuple[tuple[str, tuple[str, ...]], ...] = ()
    """name → classes that are scored together as well; empty: what the data set says, else none"""


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
    lesion: tuple[str, ...] = ()
    """those of the classes that are lesions, not organs; empty: all"""
    regions: tuple[tuple[str, tuple[str, ...]], ...] = ()
    """name → classes that together are one: scored beside the classes, as BraTS reports them"""
    left_out: dict[str, str] = field(default_factory=dict)
    """what was seen and not asked for, or is no scan: id (or folder, or file) → why; no mistake"""
