"""The driver beside a Ray head: started again after what passes, given up after what does not."""

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from fewscan.slurm import Settings
from fewscan.slurm import head as head_module
from fewscan.slurm.allocation import Allocation
from fewscan.slurm.folder import ClusterOutcome, Folder, Launch
from fewscan.slurm.head import Driver, HopelessError
from fewscan.slurm.ray_node import RayNode
from fewscan.slurm.session import TEMPORARY, Session

COUNTING = """
import os, pathlib, sys
times = pathlib.Path("times")
n = len(times.read_text()) if times.exists() else 0
times.write_text("x" * (n + 1))
print("start", n, flush=True)
"""


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[RayNode]:
    """Something that lives in place of a Ray head."""
    monkeypatch.setattr(head_module, "PAUSE_S", 0.05)
    monkeypatch.setattr(head_module, "INTERRUPT_S", 0.2)
    monkeypatch.setenv(TEMPORARY, str(tmp_path))
    with subprocess.Popen(["sleep", "100"]) as process:
        yield RayNode(process, "127.0.0.1:1", tmp_path)
        process.kill()


def driver_of(node: RayNode, program: str, cwd: Path | None = None) -> Driver:
    folder = Folder(node.temporary / "cluster")
    folder.prepare()
    command = (sys.executable, "-c", COUNTING + program)
    launch = Launch("1", command, str(cwd or node.temporary), Settings())
    return Driver(folder, launch, Allocation("1", "n1", None, 1, 0, 0, 0, 0.0, 30, 30), node)


def watched(driver: Driver) -> ClusterOutcome:
    for _ in range(600):
        outcome = driver.look()
        if outcome is not None:
            return outcome
        time.sleep(0.02)
    raise AssertionError("it goes on")


def test_what_was_killed_or_stopped_by_a_full_disk_is_started_again(node: RayNode) -> None:
    program = "if n < 2: os.kill(os.getpid(), 9)\nsys.exit(11 if n < 6 else 0)"
    assert watched(driver_of(node, program)).state == "done"
    assert (node.temporary / "times").read_text() == 7 * "x"


def test_one_that_is_killed_at_once_again_and_again_is_given_up(node: RayNode) -> None:
    outcome = watched(driver_of(node, "os.kill(os.getpid(), 9)"))
    assert outcome.state == "failed"
    assert "signal SIGKILL:\nstart 0\nstart 1\nstart 2" in outcome.detail


def test_one_that_ends_without_a_reason_is_begun_again_but_not_for_ever(
    node: RayNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As Ray ends a driver that touches what has gone, or Python one with a fault; however long it
    lived, for a fault may come late each time."""
    monkeypatch.setattr(head_module, "STABLE_S", 0.0)
    assert watched(driver_of(node, "os._exit(0 if n else 1)")).state == "done"
    assert (node.temporary / "times").read_text() == "xx"
    (node.temporary / "times").unlink()
    outcome = watched(driver_of(node, "sys.exit(1)"))
    assert outcome.state == "failed"
    assert "exit code 1:" in outcome.detail
    assert (node.temporary / "times").read_text() == "xxx"


@pytest.mark.parametrize(
    ("code", "state"),
    [(0, "done"), (Session.REFUSED, "failed"), (Session.INCOMPLETE, "incomplete")],
)
def test_its_own_end_is_the_end(node: RayNode, code: int, state: str) -> None:
    outcome = watched(driver_of(node, f"sys.exit({code})"))
    assert (outcome.state, outcome.log) == (state, str(node.temporary / "cluster/logs/driver.log"))
    assert (node.temporary / "times").read_text() == "x"


def test_one_that_lost_its_ray_is_for_the_next_generation(node: RayNode) -> None:
    driver = driver_of(node, "sys.exit(1)")
    node.process.kill()
    for _ in range(50):
        assert driver.look() is None
        time.sleep(0.02)


def test_a_directory_that_the_node_does_not_have_is_a_failed_set_up(node: RayNode) -> None:
    driver = driver_of(node, "", cwd=node.temporary / "nowhere")
    with pytest.raises(HopelessError, match="the directory of the launch is not on the head's"):
        driver.look()
