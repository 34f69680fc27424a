"""The lab, once per session, real studies on it, and what they have shown.

Tests marked `slurm` run only with `-m slurm`, as `make test` does after the fast tests. Where the
lab cannot come up they are skipped and say why; with CI=true that is a failure.
"""

import os
import shutil
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import debian
import lab
import pytest
from lab_study import LabStudy, design, run_alone

MakeStudy = Callable[..., LabStudy]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if "slurm" not in config.option.markexpr:
        left = [item for item in items if item.get_closest_marker("slurm")]
        config.hook.pytest_deselected(items=left)
        items[:] = [item for item in items if item not in left]


@pytest.fixture(scope="session")
def slurm_lab() -> Iterator[None]:
    """A running Slurm whose commands are in PATH; gone at the end of the session."""
    reason = lab.why_impossible()
    if reason:
        debian.give_up("Slurm laboratory", reason)
    before = os.environ["PATH"]
    lab.up()
    os.environ["PATH"] = f"{lab.BIN}:{before}"
    yield
    os.environ["PATH"] = before
    lab.down()


@pytest.fixture(scope="session")
def shared_store(slurm_lab: None, store_path: Path) -> Path:
    """The tiny store on the lab's shared disk."""
    path = lab.SHARED / "tiny.zarr"
    shutil.rmtree(path, ignore_errors=True)
    shutil.copytree(store_path, path)
    return path


@pytest.fixture(scope="session")
def alone() -> dict[str, bytes]:
    """Filled by the first test that needs it: the results of the undisturbed study."""
    return {}


@pytest.fixture
def clean_nodes(slurm_lab: None) -> Iterator[None]:
    """The nodes as they were: afterwards no job, process, port or file is left on any of them."""
    yield
    lab.cancel_everything()
    for node in lab.NODES:
        lab.start_node(node)
    lab.await_idle()
    left = lab.leftovers()
    if left:
        print("left behind:", *left, sep="\n  ", file=sys.stderr)
    assert not left


@pytest.fixture
def small_disk(slurm_lab: None) -> Iterator[Path]:
    """A shared disk of a few megabytes, empty again afterwards."""
    yield lab.SMALL
    for entry in lab.SMALL.iterdir():
        shutil.rmtree(entry) if entry.is_dir() else entry.unlink()


@pytest.fixture
def make_study(
    clean_nodes: None,
    tiny_document: dict[str, Any],
    shared_store: Path,
    alone: dict[str, bytes],
    tmp_path: Path,
) -> MakeStudy:
    """Make copies of one study, each in a folder of its own, with these settings for Slurm."""
    document = design(tiny_document, shared_store)
    if not alone:
        # In a process of its own, for jobs inherit our environment, and torch writes into it.
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            alone |= pool.submit(run_alone, document, tmp_path / "alone").result()
    made: list[LabStudy] = []

    def make(disk: Path = lab.SHARED, **settings: Any) -> LabStudy:
        folder = disk / f"{tmp_path.name}{len(made)}"
        shutil.rmtree(folder, ignore_errors=True)
        made.append(LabStudy(document, folder, alone, settings))
        return made[-1]

    return make


FIGURES = pytest.StashKey[list[str]]()


@pytest.fixture
def figures(request: pytest.FixtureRequest) -> list[str]:
    """Lines for the end of the output: what the lab has measured."""
    return request.config.stash.setdefault(FIGURES, [])


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    for line in config.stash.get(FIGURES, []):
        terminalreporter.write_line(f"measured: {line}")
