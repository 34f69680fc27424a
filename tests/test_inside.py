"""What driver and tasks see of the cluster, on it and elsewhere."""

import json
import time
from pathlib import Path

import pytest

from slurm import inside


def test_elsewhere_everything_says_not_on_slurm(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (inside.FOLDER, inside.DEMAND_FILE, inside.STOP_FILE, inside.ENDS_UNIX):
        monkeypatch.delenv(name, raising=False)
    inside.ask_for_workers(3)
    assert not inside.stop_requested()
    assert inside.seconds_left() is None
    assert inside.seconds_left_by_job() == {}


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


def test_ends_are_told_of_joined_workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(inside.FOLDER, str(tmp_path))
    (tmp_path / "workers").mkdir()
    for job, phase in ((7, "joined"), (8, "leaving")):
        report = {"job": str(job), "phase": phase, "ends_unix": time.time() + 100}
        (tmp_path / "workers" / f"{job}.json").write_text(json.dumps(report))
    left = inside.seconds_left_by_job()
    assert list(left) == ["7"]
    assert 90 < left["7"] <= 100


def test_a_task_sees_that_it_has_to_stop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(inside.STOP_FILE, str(tmp_path / "stop"))
    monkeypatch.setenv(inside.ENDS_UNIX, f"{time.time() + 60:.0f}")
    assert not inside.stop_requested()
    (tmp_path / "stop").touch()
    assert inside.stop_requested()
    assert 55 < (inside.seconds_left() or 0) < 61
