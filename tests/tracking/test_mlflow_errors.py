"""An MLflow that is late, hangs, refuses, is damaged, or is none."""

import shutil
import socket
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from fake_folders import database, four_states, free_port, mlflow_server, shown
from mlflow import MlflowClient

from fewscan.harness.plan import Plan
from fewscan.harness.tracking import tracker as tracking
from fewscan.harness.tracking.tracker import Tracker
from fewscan.storage.errors import TrackingError


def test_a_server_that_comes_late_catches_up(
    plan: Plan, empty_database: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = free_port()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{port}")
    four_states(plan)
    tracker = Tracker(plan)
    begun = time.monotonic()
    with pytest.raises(TrackingError, match="the run folders hold everything"):
        tracker.update()
    assert time.monotonic() - begun < 30
    with mlflow_server(database(plan), port):
        tracker.update()
        tracker.close(finished=False)
        over_http = shown(plan, f"http://127.0.0.1:{port}")
    shutil.copy(empty_database, tmp_path / "rebuilt.db")
    rebuilt = f"sqlite:///{tmp_path / 'rebuilt.db'}"
    Tracker(plan, rebuilt).close(finished=False)
    assert over_http == shown(plan, rebuilt)
    assert len(over_http[plan.runs[0].run_id]["models"]) == 1


class _Answers(BaseHTTPRequestHandler):
    """Answers everything alike."""

    status, text = 200, "<html>Welcome to nginx</html>"

    def do_GET(self) -> None:
        self.send_response(self.status)
        self.end_headers()
        self.wfile.write(self.text.encode())

    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def answering(status: int, text: str) -> Iterator[str]:
    handler = type("Handler", (_Answers,), {"status": status, "text": text})
    server = HTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    yield f"http://me:secret@127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.mark.parametrize(
    ("status", "text", "remedy"),
    [
        (200, "<html>Welcome to nginx</html>", "see that MLflow is there"),
        (403, "Invalid Host header - possible DNS rebinding attack detected", "--allowed-hosts"),
        (401, "You are not authenticated", "MLFLOW_TRACKING_USERNAME"),
        (403, "Permission denied", "ask the server's owner"),
    ],
)
def test_a_server_that_refuses(plan: Plan, status: int, text: str, remedy: str) -> None:
    with (
        answering(status, text) as address,
        pytest.raises(TrackingError, match="cannot be reached or refuses") as error,
    ):
        Tracker(plan, address).update()
    assert remedy in error.value.remedy
    assert "secret" not in str(error.value)


def test_a_server_of_another_version_says_so(plan: Plan) -> None:
    with answering(200, "1.30.0") as address, pytest.raises(TrackingError) as error:
        Tracker(plan, address).update()
    assert error.value.expected.endswith("; this server is 1.30.0")


def test_a_slow_server_gets_the_rest_with_the_next_pass(
    plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = replace(plan, runs=plan.runs[:4])
    four_states(plan)
    monkeypatch.setattr(tracking, "UPDATE_WITHIN_S", 0.0)
    tracker = Tracker(plan)
    for runs in (1, 2, 3):
        with pytest.raises(TrackingError, match="is slow"):
            tracker.update()
        assert len(shown(plan)) == 1 + runs
    tracker.update()
    assert len(shown(plan)) == 5


def test_a_server_that_hangs_holds_nobody_up(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        uri = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(TrackingError, match="timed out"):
            Tracker(plan, uri).update()


def test_a_store_that_mlflow_no_longer_writes(plan: Plan, tmp_path: Path) -> None:
    with pytest.raises(TrackingError):
        Tracker(plan, (tmp_path / "mlruns").as_uri()).update()


def test_a_database_of_another_version(plan: Plan) -> None:
    with sqlite3.connect(plan.folder.mlflow_database) as connection:
        connection.execute("UPDATE alembic_version SET version_num = 'from_the_future'")
    with pytest.raises(TrackingError, match="version"):
        Tracker(plan).update()


def test_a_file_that_is_no_database(plan: Plan) -> None:
    plan.folder.mlflow_database.write_text("rot, and more of it than fits in a header " * 100)
    with pytest.raises(TrackingError, match="not a database"):
        Tracker(plan).update()


def test_an_experiment_in_the_bin_is_not_revived_silently(plan: Plan) -> None:
    Tracker(plan).update()
    client = MlflowClient(database(plan))
    client.delete_experiment(client.get_experiment_by_name(plan.study.name).experiment_id)
    with pytest.raises(TrackingError, match="mlflow experiments restore"):
        Tracker(plan).update()
