"""The start of a Ray node inside a job, with something else in place of Ray."""

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fewscan.slurm import processes, ray_node
from fewscan.slurm.allocation import Allocation
from fewscan.slurm.folder import Folder, Rendezvous
from fewscan.slurm.session import TEMPORARY
from fewscan.storage.errors import ClusterError

SHARE = Allocation("7", "n1", "127.0.0.1", 1, 0, 1 << 30, 80 << 20, 0.0, 30, 30)
HEAD = Rendezvous(1, "127.0.0.1:6379", "6", open=True)
STARTED = "echo '-- Ray runtime started.'; exec sleep 100"


@pytest.fixture
def started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """The processes that were started in place of Ray: shells that run the script of `play`."""
    begun: list[Any] = []
    monkeypatch.setenv(TEMPORARY, str(tmp_path))
    monkeypatch.setattr(processes, "end_descendants", lambda: None)
    yield begun
    for process in begun:
        process.kill()
        process.wait()


def play(script: str, begun: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    def start(
        command: object, log: Path, environment: object, cwd: object = None
    ) -> subprocess.Popen[bytes]:
        with log.open("ab") as output:
            begun.append(subprocess.Popen(["sh", "-c", script], stdout=output))
        return begun[-1]

    monkeypatch.setattr(processes, "start", start)


def test_a_node_that_is_wanted_back_as_it_starts_is_left_as_any_other(
    started: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may have tasks before Ray says that it runs; they were killed without a checkpoint."""
    play(f"sleep 0.5; {STARTED}", started, monkeypatch)
    monkeypatch.setattr(processes, "stop_waits", lambda: True)
    node = ray_node.start_worker(Folder(tmp_path / "study"), SHARE, HEAD)
    assert node.alive()
    assert node.address == HEAD.address


def test_a_node_that_does_not_start_is_not_waited_for_when_it_is_wanted_back(
    started: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    play("exec sleep 100", started, monkeypatch)
    monkeypatch.setattr(processes, "stop_waits", lambda: True)
    monkeypatch.setattr(ray_node, "SETTLE_S", 0.3)
    with pytest.raises(ClusterError, match="Ray did not start"):
        ray_node.start_worker(Folder(tmp_path / "study"), SHARE, HEAD)
    assert len(started) == 1


def test_a_port_that_was_taken_meanwhile_costs_a_try(
    started: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    once = tmp_path / "once"
    play(f"[ -e {once} ] || {{ touch {once}; exit 1; }}; {STARTED}", started, monkeypatch)
    assert ray_node.start_worker(Folder(tmp_path / "study"), SHARE, HEAD).alive()
    assert len(started) == 2
