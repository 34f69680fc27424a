"""MLflow's own pages on a study's store, served by this process, for this user alone.

A port of 127.0.0.1 is open to every user of the machine, and MLflow asks nobody who he is. So its
application runs behind a gate: every address begins with a secret that the printed links hold; it
shows and changes nothing (no run, no experiment, no place of artifacts); and it gives out files of
the study's own artifacts alone. There is no other process: with this one, the server ends.
"""

import hashlib
import logging
import os
import re
import secrets
import socket
import warnings
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlparse

import uvicorn
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from fewscan.storage.errors import TrackingError

HOST = "127.0.0.1"
PORTS = range(20_000, 30_000)
"""Below those that the system hands out by itself."""
SECRET_BYTES = 24
SERVER_SETTINGS = {
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # of no use for looking at runs
    "MLFLOW_DISABLE_TELEMETRY": "true",
}
STORE_VARIABLES = ("_MLFLOW_SERVER_FILE_STORE", "_MLFLOW_SERVER_REGISTRY_STORE")
"""From which MLflow's application learns its store; `mlflow server` sets them."""
READ_BY_POST = re.compile(
    r"/graphql|/(ajax-)?api/[23]\.0/mlflow/[a-z/-]+/(search|search-datasets|metrics|batchGetInfos)"
)
"""Questions that MLflow takes as POST, because their filters are long."""
NOT_FOR_LOOKING = re.compile(
    r"/(assistant|gateway|mcp|jobs|scorers?|webhooks|mlflow-artifacts|get-trace-artifact)\b"
)
"""Parts of MLflow for language models: they call other servers, or hold files and passwords."""
FILES = re.compile(r"/(get-artifact|artifacts/(list|files|directories))$")
LOGGED_MODEL = re.compile(r"/logged-models/([\w-]+)/")

App = Callable[[dict[str, Any], Any, Any], Awaitable[None]]
"""An ASGI application."""


def serve(uri: str, artifacts: Path, pages: Mapping[str, str], port: int | None) -> None:
    """Serve the store at `uri` and print the address of each page, until Ctrl-C or SIGTERM.

    `pages` go from a name to what follows the server's address. `artifacts` is the folder whose
    files may be seen. Raises `TrackingError` if the port is taken.
    """
    secret = secrets.token_urlsafe(SECRET_BYTES)
    with listening(port) if port else listening_as_ever(uri) as listener:
        files = StudyFiles(MlflowClient(uri), artifacts)
        gate = Gate(application(uri), secret, files, front=next(iter(pages.values()), "/"))
        for name, page in pages.items():
            print(f"{name}\n    http://{HOST}:{listener.getsockname()[1]}/{secret}{page}")
        print("Whoever has a link gets in. Ctrl-C ends it", flush=True)
        with suppress(KeyboardInterrupt):  # uvicorn ends well, and raises it then
            uvicorn.Server(uvicorn.Config(gate, log_level="error")).run([listener])


def application(uri: str) -> App:
    """MLflow's, on the store at `uri`."""
    os.environ.update(SERVER_SETTINGS | dict.fromkeys(STORE_VARIABLES, uri))
    with warnings.catch_warnings():  # of how MLflow is built, which is not for who looks at runs
        warnings.simplefilter("ignore")
        from mlflow.server.fastapi_app import app

    logging.getLogger("mlflow").setLevel(logging.ERROR)
    wrapped: App = app
    return wrapped


def listening_as_ever(uri: str) -> socket.socket:
    """On the same port for the same store if it is free: a browser keeps settings by address."""
    usual = PORTS.start + int(hashlib.sha256(uri.encode()).hexdigest(), 16) % len(PORTS)
    try:
        return listening(usual)
    except TrackingError:
        return listening()


def listening(port: int = 0) -> socket.socket:
    """On this port, or any. Raises `TrackingError` if somebody else has it."""
    try:
        return socket.create_server((HOST, port))
    except OSError as error:
        raise TrackingError(
            f"cannot listen there: {error}",
            where=f"{HOST}, port {port or 'any'}",
            expected="a free port",
            remedy="choose another --port, or none: a free one is found",
        ) from error


class StudyFiles:
    """Which files may be given out: those below the study's artifacts, whatever the store says."""

    def __init__(self, client: MlflowClient, artifacts: Path) -> None:
        self._client = client
        self._artifacts = artifacts.resolve()

    def may_be_seen(self, path: str, query: Mapping[str, str]) -> bool:
        """Whether what the request asks for lies there, links followed."""
        try:
            place = urlparse(self._place(path, query))
        except MlflowException:
            return False
        if place.scheme != "file":
            return False
        wanted = Path(unquote(place.path)) / query.get("path", query.get("artifact_file_path", ""))
        return wanted.resolve().is_relative_to(self._artifacts)

    def _place(self, path: str, query: Mapping[str, str]) -> str:
        """The artifacts' URI of the run, model or version that a request is about."""
        if model := LOGGED_MODEL.search(path):
            return str(self._client.get_logged_model(model[1]).artifact_location)
        if "name" in query and "version" in query:
            version = self._client.get_model_version(query["name"], query["version"])
            return str(version.source)
        run_id = query.get("run_uuid") or query.get("run_id") or ""
        return str(self._client.get_run(run_id).info.artifact_uri)


class Gate:
    """In front of an application: who may ask, what may be asked, which files are given out.

    The secret alone, as an address, leads to the page `front`.
    """

    def __init__(self, app: App, secret: str, files: StudyFiles, front: str = "/") -> None:
        self._app = app
        self._secret = secret
        self._files = files
        self._front = front

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        """One request, as ASGI has it."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1000})
            return
        given, slash, rest = scope["path"].removeprefix("/").partition("/")
        if not secrets.compare_digest(given.encode(), self._secret.encode()):
            await _refuse(send, 401, "the address lacks the secret of the link that was printed")
            return
        path = slash + rest
        if not path:  # or the page would ask for its parts beside the secret
            await _redirect(send, f"/{self._secret}{self._front}")
            return
        why_not = self._objection(scope["method"], path, scope["query_string"].decode())
        if why_not:
            await _refuse(send, 403, why_not)
            return
        scope = {**scope, "path": path, "raw_path": path.encode()}
        await self._app(scope, receive, _without_referrer(send))

    def _objection(self, method: str, path: str, query: str) -> str | None:
        reads = method in ("GET", "HEAD") or (method == "POST" and READ_BY_POST.fullmatch(path))
        if not reads or NOT_FOR_LOOKING.search(path):
            return "this server shows a study and changes nothing; the run folders are the truth"
        asked = {name: values[-1] for name, values in parse_qs(query).items()}
        if FILES.search(path) and not self._files.may_be_seen(path, asked):
            return "only the study's own artifacts can be seen here"
        return None


async def _refuse(send: Any, status: int, why: str) -> None:
    body = f"{why}\n".encode()
    headers = [(b"content-type", b"text/plain"), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def _redirect(send: Any, place: str) -> None:
    headers = [(b"location", place.encode()), (b"content-length", b"0")]
    await send({"type": "http.response.start", "status": 307, "headers": headers})
    await send({"type": "http.response.body", "body": b""})


def _without_referrer(send: Any) -> Any:
    """The page tells no other site the address from which a link was followed."""

    async def sent(message: dict[str, Any]) -> None:
        if message["type"] == "http.response.start":
            headers = [*message.get("headers", []), (b"referrer-policy", b"no-referrer")]
            message = {**message, "headers": headers}
        await send(message)

    return sent
