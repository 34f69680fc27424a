"""What can be wrong with an MLflow, and the fix of each."""

import re
import sqlite3
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.client import HTTPException
from importlib.metadata import version

from mlflow.exceptions import MlflowException
from sqlalchemy.exc import SQLAlchemyError

from fewscan.storage.errors import FewscanError, TrackingError

ASK_VERSION_S = 3.0
FIXES = {
    r"Invalid Host header|DNS rebinding": "the server refuses this name of itself: start it with "
    "`mlflow server --allowed-hosts NAME,NAME:*`, or use an address that it knows",
    r"\b401\b|UNAUTHENTICATED|not authenticated": "set MLFLOW_TRACKING_USERNAME and "
    "MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN, as the server's owner says",
    r"\b403\b|PERMISSION_DENIED": "ask the server's owner for the right to write",
    r"refused|timed out|unreachable|resolve|No route": "see that MLflow runs there and that this "
    "machine may reach it (address, firewall, proxy)",
    r"No module named": "install the database's driver (psycopg2-binary, pymysql) beside fewscan",
    r"database is locked": "another program holds the database: end it (`fewscan ui` may stay)",
    r"out-of-date|alembic|revision": "the database is of another MLflow version: use that one, or "
    "`mlflow db upgrade`, or delete it",
}


@contextmanager
def explained(uri: str) -> Iterator[None]:
    """Turn what MLflow raises when it cannot be reached, or will not, into `TrackingError`."""
    try:
        yield
    except TrackingError:
        raise
    except FewscanError as error:  # a sweep survives this one
        raise TrackingError(
            error.found, where=error.where, expected=error.expected, remedy=error.remedy
        ) from error
    except (
        MlflowException,
        SQLAlchemyError,
        sqlite3.Error,
        OSError,
        ValueError,
        ImportError,
    ) as error:
        text = without_password(str(error))
        raise TrackingError(
            f"MLflow cannot be reached or refuses: {text}",
            where=without_password(uri),
            expected=f"an MLflow that answers, of a version that goes with {version('mlflow')}"
            + its_version(uri),
            remedy=f"nothing is lost, the run folders hold everything: {fix_of(text)}; the next "
            "update, or `fewscan sync STUDY`, makes up for it",
        ) from error


def fix_of(text: str) -> str:
    """What to do about an MLflow that says `text`."""
    for pattern, remedy in FIXES.items():
        if re.search(pattern, text, re.IGNORECASE):
            return remedy
    return "see that MLflow is there and takes what it is sent (address, password, version, disk)"


def its_version(uri: str) -> str:
    """Servers say their version to everybody, if they say anything."""
    if not uri.startswith("http"):
        return ""
    address = re.sub(r"//[^/@]*@", "//", uri)
    with (
        suppress(OSError, ValueError, HTTPException),
        urllib.request.urlopen(f"{address}/version", timeout=ASK_VERSION_S) as answer,
    ):
        text = answer.read(50).decode()
        if re.fullmatch(r"\d+\.\d+[\w.]*", text):
            return f"; this server is {text}"
    return ""


def without_password(text: str) -> str:
    """The text with the passwords of its URLs starred out."""
    return re.sub(r"(//[^/@:\s]*):[^/@\s]*@", r"\1:***@", text)
