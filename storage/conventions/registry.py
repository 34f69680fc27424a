"""The conventions that there are: a line each, and what the program says about all of them."""

from fewscan.storage.conventions.bids import Bids
from fewscan.storage.conventions.brats import Brats
from fewscan.storage.conventions.convention import Convention
from fewscan.storage.conventions.decathlon import Decathlon
from fewscan.storage.conventions.nnunet import NnUNet
from fewscan.storage.conventions.table import ScanTable

CONVENTIONS: tuple[Convention, ...] = (
    ScanTable(),
    Decathlon(),
    NnUNet(),
    Bids(),
    Brats(),
)
"""the first one that a folder looks like reads it: those with a file of their own come first"""

NAMES = " or ".join(sorted(convention.name for convention in CONVENTIONS))
LAYOUTS = ", or ".join(convention.layout for convention in CONVENTIONS)
EXPECTED = "; or ".join(convention.expected for convention in CONVENTIONS)
LABELS = "; ".join(f"{convention.name}: {convention.labels}" for convention in CONVENTIONS)
AXES = ", ".join(f"{c.axis} in {c.name}" for c in CONVENTIONS if c.axis is not None)
"""the axis through the slices, of the conventions that have one"""
ENDINGS = tuple(sorted({ending for convention in CONVENTIONS for ending in convention.endings}))


def normalised_by(normalisation: str) -> str:
    """The names of the conventions whose images are normalised so by default."""
    return ", ".join(c.name for c in CONVENTIONS if c.normalisation == normalisation)


def patient_of(scan_id: str) -> str:
    """Whose scan this is, as far as its id tells: see `Convention.patient_of`."""
    answers = (convention.patient_of(scan_id) for convention in CONVENTIONS)
    return next((patient for patient in answers if patient != scan_id), scan_id)


def same_scan(scan_id: str) -> str:
    """The newest id of this very scan: see `Convention.same_scan`."""
    answers = (convention.same_scan(scan_id) for convention in CONVENTIONS)
    return next((newest for newest in answers if newest != scan_id), scan_id)
