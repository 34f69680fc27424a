"""Synthetic scans as files, in the shape of BraTS 2021 or of another data set.

A folder keeps a record of its seed and form, so that a killed run goes on and no two are mixed.
"""

import json
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal, Protocol

from fewscan.storage.atomic import write_json
from fewscan.storage.errors import ScanError, disk_full_explained
from fewscan.storage.phantom import as_brats, as_nnunet
from fewscan.storage.phantom.draw import Phantom, make_phantom
from fewscan.storage.system.workers import in_processes, usable_cpus

GENERATOR = 2
"""raise it when the same seed no longer gives the same scans"""
_RECORD = ".phantom.json"
"""hidden, so that nobody takes it for something that a data set has lost"""
_EARLIER_RECORD = "phantom.json"
FormName = Literal["brats", "nnunet"]


class Form(Protocol):
    """How a phantom lies on disk: a module of its own."""

    RECORD: dict[str, str]
    """what a folder's record says of its form"""

    def case_files(self, out: Path, index: int) -> list[Path]:
        """The files of one subject: the channels, then the labels."""

    def write_case(self, out: Path, index: int, phantom: Phantom) -> None:
        """Write the files of one subject; what a killed call left is written over."""

    def describe(self, out: Path) -> None:
        """Write what the folder says of all its subjects."""


FORMS: dict[FormName, Form] = {"brats": as_brats, "nnunet": as_nnunet}


def write_phantoms(
    out: Path,
    subjects: int,
    seed: int = 0,
    workers: int | None = None,
    progress: Callable[[int], None] | None = None,
    form: FormName = "brats",
) -> None:
    """Write subjects 0 to `subjects` − 1 into `out`, as the module of `form` names them.

    Complete subjects are left alone, so a killed run goes on. `workers` are processes, by default
    one a core; `progress` receives how many subjects are there, at first and after each.

    Raises `ScanError` if `out` holds anything but phantoms of this seed and form, `DiskFullError`
    if there is no room.
    """
    if subjects < 1 or seed < 0:
        found = f"{subjects} subjects of seed {seed}"
        raise ScanError(found, expected="at least one subject and a seed of 0 or more")
    _claim(out, {"generator": GENERATOR, "seed": seed} | FORMS[form].RECORD)
    files = partial(FORMS[form].case_files, out)
    missing = [k for k in range(subjects) if not all(path.is_file() for path in files(k))]
    report = progress or (lambda complete: None)
    report(subjects - len(missing))
    write = partial(_write_subject, out, seed, form)
    written = in_processes(write, missing, workers or usable_cpus())
    for complete, _ in enumerate(written, start=subjects - len(missing) + 1):
        report(complete)
    FORMS[form].describe(out)


def _claim(out: Path, record: dict[str, Any]) -> None:
    """Make `out` the folder of this seed and form, or refuse it."""
    path = out / _RECORD
    empty = out.is_dir() and not path.exists() and not any(out.glob("[!.]*"))
    if not out.exists() or empty:
        with disk_full_explained(out):
            out.mkdir(parents=True, exist_ok=True)
        write_json(path, record)
        return
    found = _record_in(out)
    if found != record:
        raise ScanError(
            f"the folder holds {'other things' if found is None else found}",
            where=out,
            expected=f"nothing, or phantoms of {record}",
            remedy="choose another folder, or delete this one",
        )
    if not path.exists():
        os.replace(out / _EARLIER_RECORD, path)


def _record_in(out: Path) -> Any:
    name = _RECORD if (out / _RECORD).exists() else _EARLIER_RECORD
    try:
        return json.loads((out / name).read_bytes())
    except (OSError, ValueError):
        return None


def _write_subject(out: Path, seed: int, form: FormName, index: int) -> None:
    phantom = make_phantom(index, seed)
    with disk_full_explained(out):
        FORMS[form].write_case(out, index, phantom)
