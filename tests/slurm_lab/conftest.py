"""The lab, once per session, and a toy study on it.

Tests marked `slurm` run only with `-m slurm`, as `make test` does after the fast tests. Where the
lab cannot come up they are skipped and say why; with CI=true that is a failure.
"""

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import debian
import lab
import pytest
from toy_study import Study

from slurm import Settings

COMMON = {
    "partition": "main",
    "cpus": 3,  # with a head of 1 CPU, three workers need three nodes
    "max_workers": 3,
    "time_limit_min": 10,
    "signal_delay_s": 20,
    "grace_s": lab.GRACE_S,
    "poll_s": 3,
    "idle_s": 5,
    "wait_for_head_min": 3,
}


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


@pytest.fixture
def study(slurm_lab: None, tmp_path: Path) -> Iterator[Callable[..., Study]]:
    """Make toy studies on the lab's shared disk; all are cancelled, and nothing may be left."""
    made: list[Study] = []

    def make(units: int = 6, steps: int = 20, step_s: float = 0.2, **settings: object) -> Study:
        folder = lab.SHARED / f"{tmp_path.name}{len(made)}"
        made.append(Study(folder, units, steps, step_s, Settings(**{**COMMON, **settings})))
        return made[-1]

    yield make
    for each in made:
        each.end()
    lab.cancel_everything()
    for node in lab.NODES:
        lab.start_node(node)
    lab.await_idle()
    left = lab.leftovers()
    if left:
        print("left behind:", *left, sep="\n  ", file=sys.stderr)
    assert not left
