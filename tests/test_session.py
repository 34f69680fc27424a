"""What driver and tasks see of the cluster, on it and elsewhere."""

import json
import os
import time
from pathlib import Path

import pytest

from fewscan.slurm import session
from fewscan.slurm.session import Session


def test_elsewhere_everything_says_not_on_a_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith(session.PREFIX)]:
        monkeypatch.delenv(name)
    here = Session.here()
    assert here == Session()
    assert not here.is_on_cluster
    here.ask_for_workers(3)
    assert not here.stop_requested()
    assert not here.is_closed()
    assert here.temporary_folder is None


def test_a_process_finds_the_session_that_it_was_started_with(tmp_path: Path) -> None:
    driver = Session(folder=tmp_path, demand_file=tmp_path / "demand", closes_unix=7)
    task = Session(folder=tmp_path, job="3", stop_file=tmp_path / "stop", temporary_folder=tmp_path)
    for each in (driver, task):
        assert Session.here(each.variables()) == each
        assert each.is_on_cluster


def test_the_demand_is_written_when_it_changes(tmp_path: Path) -> None:
    demand = tmp_path / "demand.json"
    here = Session(demand_file=demand)
    here.ask_for_workers(3)
    first = demand.stat().st_ino
    here.ask_for_workers(3)
    assert demand.stat().st_ino == first
    here.ask_for_workers(1)
    assert json.loads(demand.read_text()) == {"workers": 1}


def test_a_task_sees_that_it_has_to_stop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(session.STOP_FILE, str(tmp_path / "stop"))
    here = Session.here()
    assert not here.stop_requested()
    (tmp_path / "stop").touch()
    assert here.stop_requested()


def test_it_gets_too_late_to_start() -> None:
    assert not Session(closes_unix=time.time() + 60).is_closed()
    assert Session(closes_unix=time.time() - 1).is_closed()
