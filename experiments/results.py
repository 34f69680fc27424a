"""What a run folder says of its run, as types: its record, and its result. Each is read and written
here alone."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from fewscan.experiments.spec import RunSpec, from_json, run_id, to_json
from fewscan.storage.atomic import write_json
from fewscan.storage.errors import RunError
from fewscan.storage.runs import RunFolder
from fewscan.storage.slice_format import SliceFormat

Numbers = Mapping[str, float | None]
"""Metric → value; None is one that is not defined."""


@dataclass(frozen=True)
class RunRecord:
    """What `spec.json` says: what is run, and beside it names and places."""

    spec: RunSpec
    study: str
    name: str
    """For people."""
    slices: SliceFormat
    """What a new scan must be made into, so that the run can be used on it."""
    store: Path | None = None
    """The slice store; None for weights that were trained elsewhere."""

    @property
    def run_id(self) -> str:
        return run_id(self.spec)

    def write(self, folder: RunFolder) -> None:
        """Write it, unless it stands there already. The store's path is relative to the folder."""
        store = None if self.store is None else os.path.relpath(self.store, folder.path.absolute())
        folder.create(
            {
                "id": self.run_id,
                "spec": to_json(self.spec),
                "study": self.study,
                "name": self.name,
                "slices": self.slices.to_json(),
                "store": store,
            }
        )

    @classmethod
    def read(cls, folder: RunFolder) -> "RunRecord":
        """Raises `RunError` if it is missing, damaged, or of another protocol version."""
        value = folder.read_spec()
        try:
            spec, study, name = from_json(value["spec"]), value["study"], value["name"]
            slices = SliceFormat.from_json(value["slices"], where=str(folder.path))
            store, here = value["store"], folder.path.absolute()
            place = None if store is None else Path(os.path.normpath(here / store))
        except (KeyError, TypeError, ValueError) as error:
            raise _not_ours(folder.spec, error) from error
        return cls(spec, study, name, slices, place)


@dataclass(frozen=True)
class Result:
    """What `result.json` says: a run's numbers. Equal runs on equal machines have equal bytes."""

    kind: str
    best_step: int | None = None
    """Step of the model that was kept."""
    validation_loss: float | None = None
    """Of that model, on the slices that chose it or, where none did, on the validation split."""
    lr: float | None = None
    """The learning rate that its trials chose; None: it is in the spec."""
    gains: Mapping[str, float] = field(default_factory=dict)
    """Level of the kept model → mean gain of its norms: see `experiments.health`."""
    labelled: tuple[str, ...] = ()
    """The scans whose labels it has learnt from; of a score, those of its parents."""
    held_out: tuple[str, ...] = ()
    """Those of its labelled scans that chose its model, in place of being learnt from."""
    validation: Numbers = field(default_factory=dict)
    """On the validation split, and the threshold that was chosen there."""
    test: Numbers = field(default_factory=dict)
    """On the test split."""
    postprocess: Mapping[str, Any] = field(default_factory=dict)
    """Of a score that was asked for it: `experiments.postprocess.Fitted`, as plain values."""
    source: str = ""
    """The file that imported weights came from."""
    computed: Mapping[str, Any] = field(default_factory=dict)
    """Versions, device kind, precision, ranks and threads that computed it in fact."""

    @property
    def threshold(self) -> float | None:
        """Of the lesion mask, as validation chose it."""
        return self.validation.get("threshold")

    def write(self, folder: RunFolder) -> None:
        """Write it, which finishes the run."""
        given = {f.name: getattr(self, f.name) for f in fields(self)}
        write_json(folder.result, {k: v for k, v in given.items() if v not in (None, "", (), {})})

    @classmethod
    def read(cls, folder: RunFolder) -> "Result":
        """Raises `RunError` if it is missing or damaged."""
        value = folder.read_result()
        try:
            lists = {key: tuple(value.get(key, ())) for key in ("labelled", "held_out")}
            return cls(**(value | lists))
        except TypeError as error:
            raise _not_ours(folder.result, error) from error


def _not_ours(path: Path, error: Exception) -> RunError:
    return RunError(
        f"the file is not what fewscan writes ({type(error).__name__}: {error})",
        where=path,
        expected="a file of this version of fewscan",
        remedy=f"disk or hand has changed it: delete the folder {path.parent} and sweep again",
    )
