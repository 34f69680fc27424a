"""The UI: its server, its addresses."""

import socket
from types import SimpleNamespace

import pytest
from fake_folders import database, four_states, shown

from fewscan.harness.plan import Plan
from fewscan.harness.tracking import tracker as tracking
from fewscan.harness.tracking import ui
from fewscan.harness.tracking.tracker import Tracker, serve_ui
from fewscan.storage.errors import TrackingError
from fewscan.storage.locks import exclusive


def test_the_ui_has_nothing_to_show_before_a_sweep(plan: Plan) -> None:
    with pytest.raises(TrackingError, match="nothing of the study"):
        serve_ui(plan)
    plan.folder.mlflow_database.unlink()
    with pytest.raises(TrackingError, match="nothing of the study"):
        serve_ui(plan)


def test_the_ui_of_a_server_is_the_server_s(
    plan: Plan, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    experiment = SimpleNamespace(experiment_id="7")
    monkeypatch.setattr(tracking, "tracked_experiment", lambda plan, uri: experiment)
    monkeypatch.setattr(tracking, "reported_run", lambda *_: "abc")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:secret@lab:5000/")
    serve_ui(plan)
    name, address, *_, report = capsys.readouterr().out.splitlines()
    assert "/#/experiments/7/runs/abc/artifacts/report/report.html" in report
    assert name == "a study: binary, by number of labelled scans"
    assert address.startswith("    http://me:***@lab:5000/#/experiments/7/runs?")


def test_a_server_for_other_machines_knows_its_own_names() -> None:
    assert ui._allowed_hosts("127.0.0.1") == []
    option, hosts = ui._allowed_hosts("0.0.0.0")
    assert option == "--allowed-hosts"
    assert {f"{socket.gethostname()}:*", "localhost:*"} <= set(hosts.split(","))
    assert "*" not in hosts.split(",")


def test_a_port_that_is_taken(plan: Plan) -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as taken,
        pytest.raises(TrackingError, match="choose another --port"),
    ):
        ui.serve(database(plan), {}, "127.0.0.1", taken.getsockname()[1])


def test_the_usual_port_is_the_same_for_the_same_store() -> None:
    port = ui.usual_port("127.0.0.1", "sqlite:///a")
    assert port == ui.usual_port("127.0.0.1", "sqlite:///a") != ui.usual_port("127.0.0.1", "b")
    with socket.create_server(("127.0.0.1", port)):
        assert ui.usual_port("127.0.0.1", "sqlite:///a") != port


def test_the_ui_shows_what_a_killed_sweep_left(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    four_states(plan)
    Tracker(plan).update()
    monkeypatch.setattr(tracking, "serve", lambda *_: None)
    with exclusive(plan.folder.lock, TrackingError("busy")):
        serve_ui(plan)
    running = plan.runs[3].run_id
    assert shown(plan)[running]["status"] == "SCHEDULED"  # the sweep that holds the lock sees to it
    serve_ui(plan)
    assert shown(plan)[running]["status"] == "KILLED"
