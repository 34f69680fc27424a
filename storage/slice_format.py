"""What a scan must be made into, so that a network trained on the slices of a store can see it."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from fewscan.storage.errors import RunError
from fewscan.storage.geometry import Axis, orientation
from fewscan.storage.intensity import Normalisation, Window
from fewscan.storage.slices import SliceStore


@dataclass(frozen=True)
class SliceFormat:
    """How the slices of a store were made; a run keeps it beside its spec."""

    channels: tuple[str, ...]
    """names, in the order in which networks see them"""
    classes: tuple[str, ...]
    """names of the lesion classes: label k is the k-th"""
    slice_size: int
    """rows and columns of a slice, in pixels"""
    axis: Axis
    """through the slices"""
    normalisation: Normalisation
    """how voxel values became comparable"""
    orientations: tuple[str, ...]
    """of the scans in the store ("LPS": see `orientation`), the most frequent first"""
    windows: tuple[Window, ...] = ()
    """of each channel, if the normalisation has fixed ones"""

    @classmethod
    def of_store(cls, store: SliceStore) -> "SliceFormat":
        """The format of the slices in `store`."""
        parameters = store.manifest.parameters
        found = Counter(orientation(np.array(s.affine)) for s in store.subjects.values())
        return cls(
            channels=store.channels,
            classes=store.classes,
            slice_size=store.size,
            axis=parameters.axis,
            normalisation=parameters.normalisation,
            orientations=tuple(name for name, _ in found.most_common()),
            windows=parameters.windows,
        )

    def to_json(self) -> dict[str, Any]:
        """Plain values that JSON can hold."""
        value = asdict(self)
        value["windows"] = [list(window) for window in self.windows]
        if not self.windows:  # as runs said before there were any
            del value["windows"]
        return {key: list(v) if isinstance(v, tuple) else v for key, v in value.items()}

    @classmethod
    def from_json(cls, value: Mapping[str, Any], where: str) -> "SliceFormat":
        """Undo `to_json` and JSON; other keys are not looked at.

        `where` is the run or model that says it. Raises `RunError` for a key that is missing: the
        run was made before runs said so.
        """
        try:
            return cls(
                channels=tuple(value["channels"]),
                classes=tuple(value["classes"]),
                slice_size=value["slice_size"],
                axis=value["axis"],
                normalisation=value["normalisation"],
                orientations=tuple(value["orientations"]),
                windows=tuple((low, high) for low, high in value.get("windows", ())),
            )
        except KeyError as error:
            raise RunError(
                f"the model does not say its {error.args[0]}",
                where=where,
                expected="a model of this version of fewscan",
                remedy="sweep the study again into another folder",
            ) from error
