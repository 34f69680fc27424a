"""MLflow's own server on a study's store, as a child of this process."""

import hashlib
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from tempfile import TemporaryFile
from typing import IO

from fewscan.storage.errors import TrackingError

START_WITHIN_S = 120.0
END_WITHIN_S = 10.0
PORTS = range(20_000, 30_000)
"""Below those that the system hands out by itself."""
LOOPBACK = ("127.0.0.1", "localhost", "::1")


def serve(uri: str, pages: Mapping[str, str], host: str, port: int | None) -> None:
    """Serve the store at `uri` and print the address of each page, until Ctrl-C or SIGTERM.

    `pages` go from a name to what follows the server's address. Raises `TrackingError` if the
    server does not start, or ends by itself.
    """
    port = free_port(host, port) if port else usual_port(host, uri)
    with (
        TemporaryFile("w+") as log,
        _sigterm_is_ctrl_c(),
        suppress(KeyboardInterrupt),
        _server(uri, host, port, log) as child,
    ):
        _wait_until_up(child, host, port, log)
        for name, page in pages.items():
            print(f"{name}\n    http://{_reachable(host)}:{port}{page}")
        print("Ctrl-C ends it", flush=True)
        child.wait()
        raise _ended(child, log)


def usual_port(host: str, uri: str) -> int:
    """The same port for the same store if it is free: a browser keeps its settings by address."""
    usual = PORTS.start + int(hashlib.sha256(uri.encode()).hexdigest(), 16) % len(PORTS)
    try:
        return free_port(host, usual)
    except TrackingError:
        return free_port(host)


def free_port(host: str, wanted: int | None = None) -> int:
    """The wanted port, or any, that nobody listens on. Raises `TrackingError` if it is taken."""
    try:
        with socket.create_server((host, wanted or 0)) as probe:
            return int(probe.getsockname()[1])
    except OSError as error:
        raise TrackingError(
            f"cannot listen there: {error}",
            where=f"{host}, port {wanted or 'any'}",
            expected="an address of this machine and a free port",
            remedy="choose another --port, or none: a free one is found",
        ) from error


@contextmanager
def _server(uri: str, host: str, port: int, log: IO[str]) -> Iterator[subprocess.Popen[bytes]]:
    """The server in a session of its own, so that it can be ended with all its processes."""
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", uri]
    command += ["--host", host, "--port", str(port), "--workers", "1", *_allowed_hosts(host)]
    # Neither its job runners nor its telemetry are of use for looking at runs.
    environment = os.environ | {
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }
    child = subprocess.Popen(
        command, stdout=log, stderr=log, env=environment, start_new_session=True
    )
    try:
        yield child
    finally:
        _end(child)


def _end(child: subprocess.Popen[bytes]) -> None:
    for signal_number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(child.pid, signal_number)
            child.wait(END_WITHIN_S)
        except ProcessLookupError:
            return
        except subprocess.TimeoutExpired:
            continue


def _allowed_hosts(host: str) -> list[str]:
    """The server refuses names it does not know, and by itself knows this machine's only as
    localhost and as private addresses."""
    if host in LOOPBACK:
        return []
    names = {host, socket.gethostname(), socket.getfqdn(), "localhost", "127.0.0.1"}
    return ["--allowed-hosts", ",".join(sorted(f"{n}{p}" for n in names for p in ("", ":*")))]


def _reachable(host: str) -> str:
    return socket.getfqdn() if host == "0.0.0.0" else host


def _wait_until_up(child: subprocess.Popen[bytes], host: str, port: int, log: IO[str]) -> None:
    own = "127.0.0.1" if host == "0.0.0.0" else host
    deadline = time.monotonic() + START_WITHIN_S
    while time.monotonic() < deadline and child.poll() is None:
        try:
            urllib.request.urlopen(f"http://{own}:{port}/health", timeout=1).close()
        except (OSError, urllib.error.URLError):
            time.sleep(0.1)
        else:
            return
    raise _ended(child, log)


def _ended(child: subprocess.Popen[bytes], log: IO[str]) -> TrackingError:
    log.seek(0)
    tail = "\n".join(f"    {line}" for line in log.read().splitlines()[-15:])
    return TrackingError(
        f"the MLflow server ended (exit code {child.poll()}) or did not start:\n{tail}",
        where=" ".join(map(str, child.args)) if isinstance(child.args, list) else None,
        expected=f"a server that answers within {START_WITHIN_S:.0f} s",
        remedy="see above; if the database is of another MLflow version, delete it and run "
        "`fewscan sync STUDY`",
    )


@contextmanager
def _sigterm_is_ctrl_c() -> Iterator[None]:
    """So that whoever ends this process ends the server as well."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
