"""A study file to begin with: one that fits a store, or a copy of one that fewscan ships."""

import json
import os
import re
from importlib.resources import files
from pathlib import Path
from typing import Literal, NamedTuple

from jinja2 import StrictUndefined, Template

from fewscan.harness.loading import load_plan
from fewscan.harness.networks import median_spacing_mm, most_levels
from fewscan.harness.study_file import read_values
from fewscan.storage.errors import FewscanError, StudyError
from fewscan.storage.slices import SliceStore

Device = Literal["cpu", "cuda"]
SEEDS = [0, 1, 2]
"""The fewest that tell luck from effect; more can be added to a study that has run."""
ENOUGH_TO_CHOOSE = 5
"""Validation scans; what fewer of them choose is luck."""
FLAIR = ("flair", "FLAIR", "t2f")
"""Names of the channel in which most brain lesions are bright."""


class Budget(NamedTuple):
    """What a first study may cost on a device: our choice, a fraction of the published budget."""

    pretraining: int
    """Iterations."""
    finetuning: int
    """Iterations, at least."""
    at_most: int
    """Iterations of a fine-tuning on many scans."""
    batch_size: int
    lr: str
    validation_slices: int


BUDGETS: dict[Device, Budget] = {
    "cpu": Budget(2000, 600, 2000, 8, "3.0e-3", 128),
    "cuda": Budget(20000, 4000, 40000, 16, "1.0e-4", 2048),
}
SMALL = 64
"""Pixels of slices on which a CPU can train a network of width 16, of larger ones of 8."""


def shipped() -> list[str]:
    """The names of the study files that come with fewscan."""
    found = (Path(it.name) for it in files("fewscan.experiments").iterdir())
    return sorted(it.stem for it in found if it.suffix == ".yaml")


def write_first_study(store_path: Path, out: Path, device: Device) -> None:
    """Write a commented study file that fits a store; runs and reports go to `studies/` beside it.

    Raises `StoreError` if there is no store, and `StudyError` if there is a file already or no
    study can run on the store; then nothing is written.
    """
    store = SliceStore.open(store_path)
    _write_new(out, first_study(store, out, device))
    try:
        load_plan(out)
    except FewscanError:
        out.unlink()
        raise


def write_copy(name: str, store_path: Path, out: Path) -> FewscanError | None:
    """Write a study file that comes with fewscan, with this store and a folder of its own.

    Returns why it cannot run on the store as it stands, if so. Raises `StudyError` if there is no
    such study, or a file already, and `StoreError` if there is no store.
    """
    if name not in shipped():
        raise StudyError(
            f"no study file called {name!r} comes with fewscan",
            where="--from",
            expected=f"one of: {', '.join(shipped())}",
            remedy="name one of them, or leave --from out for a study that fits the store",
        )
    SliceStore.open(store_path)
    text = (files("fewscan.experiments") / f"{name}.yaml").read_text()
    for key, value in _places(store_path, out).items():
        line = f"{key}: {value}".replace("\\", r"\\")
        text = re.sub(rf"^{key}:.*$", line, text, flags=re.MULTILINE)
    _write_new(out, text)
    try:
        load_plan(out)
    except FewscanError as error:
        return error
    return None


def _write_new(out: Path, text: str) -> None:
    try:
        with out.open("x") as file:
            file.write(text)
    except FileExistsError:
        raise StudyError(
            "the file is there already, and is not overwritten",
            where=out,
            expected="the name of a new study file",
            remedy="give another name, or remove it: fewscan init STORE OUT",
        ) from None


def _places(store_path: Path, out: Path) -> dict[str, str]:
    """Name, store and folder as they stand in a study file."""
    store = os.path.relpath(store_path.absolute(), out.absolute().parent)
    return {
        "name": _plain(out.stem),
        "store": _plain(store),
        "folder": _plain(f"studies/{out.stem}"),
    }


def _plain(text: str) -> str:
    """As YAML, in quotes if it would be read as anything but this text."""
    is_plain = re.fullmatch(r"[\w./-]([\w ./-]*[\w./-])?", text) and read_values(text) == text
    return text if is_plain else json.dumps(text)


def label_counts(train: int) -> list[str]:
    """Doubling, as in the paper, up to all training scans; none that are nearly all."""
    doubling = (2**power for power in range(train.bit_length()))
    return [*(str(count) for count in doubling if 3 * count <= 2 * train), "all"]


def first_study(store: SliceStore, out: Path, device: Device) -> str:
    """The text of a study file at `out`. Raises `StudyError` if the store has no split."""
    flair = [name for name in store.channels if name in FLAIR]
    text = (files("fewscan.harness") / "first_study.yaml.j2").read_text()
    template = Template(
        text, undefined=StrictUndefined, trim_blocks=True, keep_trailing_newline=True
    )
    written: str = template.render(
        store=store,
        split=store.split,
        out=out.name,
        place=_places(store.path, out),
        device=device,
        budget=BUDGETS[device],
        width=64 if device == "cuda" else 16 if store.size <= SMALL else 8,
        depth=max(min(most_levels(store.size), 4), 2),
        nodes=min(16, store.size // 3),
        healthy=all(store.pretraining("healthy")) and not store.unlabelled,
        label_counts=label_counts(len(store.split.train)),
        seeds=SEEDS,
        enough=len(store.split.validation) >= ENOUGH_TO_CHOOSE,
        channel=_plain(f"channel {(flair or store.channels)[0]}"),
        pixel_mm=max(median_spacing_mm(store)[1:]),
    )
    return written
