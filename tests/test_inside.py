"""What driver and tasks see of the cluster, on it and elsewhere."""

import json
import time
from pathlib import Path

import pytest

from fewscan.slurm import inside


def test_elsewhere_everything_says_not_on_slurm(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (inside.FOLDER, inside.DEMAND_FILE, inside.STOP_FILE, inside.CLOSES_UNIX):
        monkeypatch.delenv(name, raising=False)
    inside.ask_for_workers(3)
    assert not inside.stop_requested()
    assert not inside.is_closed()


def test_the_demand_is_written_when_it_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    demand = tmp_path / "demand.json"
    monkeypatch.setenv(inside.DEMAND_FILE, str(demand))
    inside.ask_for_workers(3)
    first = demand.stat().st_ino
    inside.ask_for_workers(3)
    assert demand.stat().st_ino == first
    inside.ask_for_workers(1)
    assert json.loads(demand.read_text()) == {"workers": 1}


def test_a_task_sees_that_it_has_to_stop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(inside.STOP_FILE, str(tmp_path / "stop"))
    assert not inside.stop_requested()
    (tmp_path / "stop").touch()
    assert inside.stop_requested()


def test_it_gets_too_late_to_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(inside.CLOSES_UNIX, f"{time.time() + 60:.0f}")
    assert not inside.is_closed()
    monkeypatch.setenv(inside.CLOSES_UNIX, f"{time.time() - 1:.0f}")
    assert inside.is_closed()
