"""The UI: its server, its addresses."""

import asyncio
import json
import shutil
import signal
import socket
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple
from urllib.parse import urlparse

import psutil
import pytest
from fake_folders import database, four_states, make_plan, mlflow_id, shown, ui_server
from mlflow import MlflowClient

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


def test_a_port_that_is_taken(plan: Plan) -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as taken,
        pytest.raises(TrackingError, match="choose another --port"),
    ):
        ui.serve(database(plan), plan.folder.path, {}, taken.getsockname()[1])


def test_the_port_is_the_same_for_the_same_store_if_it_is_free() -> None:
    def port(uri: str) -> int:
        with ui.listening_as_ever(uri) as listener:
            return int(listener.getsockname()[1])

    usual = port("sqlite:///a")
    assert port("sqlite:///a") == usual != port("b")
    with ui.listening(usual):
        assert port("sqlite:///a") != usual


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


class _Served(NamedTuple):
    plan: Plan
    address: str
    """With the secret."""
    server: subprocess.Popen[str]
    his: str
    """MLflow's id of another user's run."""


@pytest.fixture(scope="module")
def served(empty_database: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[_Served]:
    """`fewscan ui` on a study; in its database stands also an experiment of somebody else, whose
    artifacts are in his own folder."""
    folder = tmp_path_factory.mktemp("ui")
    shutil.copy(empty_database, folder / "mlflow.db")
    plan = make_plan(folder)
    four_states(plan)
    Tracker(plan).update()
    client = MlflowClient(database(plan))
    his = client.create_run(client.create_experiment("his", (folder / "his").as_uri())).info.run_id
    client.log_text(his, "his", "text.txt")
    with ui_server(database(plan), plan.folder.mlflow_artifacts) as (address, server):
        yield _Served(plan, address, server, his)


def ask(address: str, method: str = "GET", value: object = None) -> tuple[int, bytes]:
    """Status and body."""
    data = None if value is None else json.dumps(value).encode()
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(address, data, headers, method=method)
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def test_nobody_gets_in_without_the_secret_and_the_link_opens_it(served: _Served) -> None:
    host, _, secret = served.address.rpartition("/")
    assert len(secret) > 30
    api = "/ajax-api/2.0/mlflow/experiments/search?max_results=9"
    for path in ("/", "/health", api, f"/{secret[:-1]}/", f"/{secret}x/", f"/x/{secret}/"):
        status, body = ask(host + path)
        assert (status, b"lacks the secret" in body) == (401, True), path
    status, page = ask(f"{served.address}/")
    assert (status, b"<title>MLflow</title>" in page) == (200, True)
    assert ask(served.address) == (status, page)


def test_the_secret_alone_leads_to_the_study() -> None:
    """A page whose address has a fragment is asked for without it, so this is not seen above."""
    sent: list[dict[str, Any]] = []

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    async def nothing(*_: Any) -> None:
        raise AssertionError

    files: Any = None
    gate = ui.Gate(nothing, "secret", files, front="/#/experiments/1/runs?mode=CHART")
    scope = {"type": "http", "method": "GET", "path": "/secret", "query_string": b""}
    asyncio.run(gate(scope, nothing, send))  # type: ignore[arg-type]
    assert sent[0]["status"] == 307
    assert (b"location", b"/secret/#/experiments/1/runs?mode=CHART") in sent[0]["headers"]


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "ajax-api/2.0/mlflow/experiments/create"),
        ("POST", "api/2.0/mlflow/runs/create"),
        ("POST", "api/2.0/mlflow/runs/log-metric"),
        ("POST", "ajax-api/2.0/mlflow/experiments/set-experiment-tag"),
        ("DELETE", "ajax-api/2.0/mlflow/registered-models/delete"),
        ("PATCH", "ajax-api/2.0/mlflow/model-versions/update"),
        ("PUT", "api/2.0/mlflow-artifacts/artifacts/x"),
        ("GET", "ajax-api/2.0/mlflow/gateway-proxy"),
        ("POST", "ajax-api/3.0/mlflow/jobs/search"),
    ],
)
def test_it_changes_nothing(served: _Served, method: str, path: str) -> None:
    status, body = ask(f"{served.address}/{path}", method, {"name": "new"})
    assert (status, b"changes nothing" in body) == (403, True)


def test_what_is_asked_by_post_is_answered(served: _Served) -> None:
    client = MlflowClient(served.address)
    found = client.get_experiment_by_name(served.plan.study.name)
    assert found is not None
    assert client.search_runs([found.experiment_id])


def test_files_of_the_study_alone_are_given_out(served: _Served, tmp_path: Path) -> None:
    ours = mlflow_id(served.plan, 0)
    (tmp_path / "secret").write_text("ours")
    get = f"{served.address}/get-artifact?run_uuid={ours}&path="
    assert ask(f"{get}result.json")[0] == 200
    artifacts = served.plan.folder.mlflow_artifacts / ours / "artifacts"
    (artifacts / "linked").symlink_to(tmp_path / "secret")
    refused = (
        f"{get}linked",
        f"{get}../../../mlflow.db",
        f"{served.address}/get-artifact?run_uuid={served.his}&path=text.txt",
        f"{served.address}/ajax-api/2.0/mlflow/artifacts/list?run_id={served.his}",
        f"{served.address}/get-artifact?path=text.txt",
        f"{served.address}/model-versions/get-artifact?name=a&version=1&path=x",
        f"{served.address}/ajax-api/2.0/mlflow/logged-models/m-1/artifacts/files?artifact_file_path=x",
    )
    for address in refused:
        status, body = ask(address)
        assert (status, b"the study's own artifacts" in body) == (403, True), address


def test_it_ends_with_its_terminal(served: _Served) -> None:
    """One process, so there is none that could outlive it, whatever the signal."""
    process = psutil.Process(served.server.pid)
    assert not process.children()
    own = [it for it in psutil.net_connections("inet") if it.pid == served.server.pid]
    listening = [it for it in own if it.status == psutil.CONN_LISTEN]
    assert [it.laddr.ip for it in listening] == ["127.0.0.1"]
    served.server.send_signal(signal.SIGHUP)
    served.server.wait(30)
    with pytest.raises(OSError, match="refused"):
        socket.create_connection(("127.0.0.1", urlparse(served.address).port), timeout=5)
