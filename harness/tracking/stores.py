"""Where MLflow keeps things: the address, the client, the database in a study's folder."""

import logging
import os
import sqlite3
from contextlib import closing
from pathlib import Path

from mlflow import MlflowClient
from mlflow.entities import Experiment
from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore
from mlflow.tracking._tracking_service.utils import _tracking_store_registry

from fewscan.harness.plan import Plan
from fewscan.harness.tracking.mlflow_errors import without_password
from fewscan.storage.atomic import TEMPORARY_SUFFIX, replacing
from fewscan.storage.errors import TrackingError

EXPERIMENT_TAGS = {
    "mlflow.experimentKind": "custom_model_development",  # else the UI asks, or guesses
    "mlflow.note.content": "Written by fewscan from the run folders; `fewscan sync` rebuilds it. "
    "Open a comparison under *Views*. The step of `test/…` and `validation/…` is the number of "
    "labelled scans, that of `learning/…` the optimiser's.",
}
DEFAULTS = {
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_ARTIFACT_UPLOAD_DOWNLOAD_TIMEOUT": "60",
}
"""Unless set otherwise: a server that hangs holds up an update for 20 s, not for 20 minutes."""
SQLITE = "sqlite:///"
DATABASES = ("sqlite:", "postgresql", "mysql", "mssql")


def tracking_uri(plan: Plan, uri: str | None = None) -> str:
    """The argument, else MLFLOW_TRACKING_URI, else a SQLite file in the study's folder."""
    default = f"{SQLITE}{plan.folder.mlflow_database.absolute()}"
    return (uri or os.environ.get("MLFLOW_TRACKING_URI") or default).rstrip("/")


def make_client(uri: str) -> MlflowClient:
    """A client that gives up soon; makes the database if it is a SQLite file that is not there."""
    for name, value in DEFAULTS.items():
        os.environ.setdefault(name, value)
    logging.getLogger("mlflow").setLevel(logging.ERROR)
    if uri.startswith(SQLITE):
        create_database(_sqlite_file(uri))
    return MlflowClient(uri)


def forget_connections(uri: str) -> None:
    """After an error: MLflow keeps what it opened, and a broken connection never works again."""
    _tracking_store_registry._get_store_with_resolved_uri.cache_clear()
    engine = SqlAlchemyStore._engine_map.pop(uri, None)
    if engine is not None:
        engine.dispose()


ARTIFACT_COLUMNS = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
)
"""Where MLflow's database has absolute addresses of files."""


def follow_artifacts(plan: Plan, uri: str) -> None:
    """Have a database that was moved, or copied, with its artifacts point to where they are now.

    Of the study's experiment alone, and only if the folder has come along: what others keep in the
    same database stays as it is.
    """
    database, here = _sqlite_file(uri), _artifact_location(plan, uri) or ""
    if not database.with_name(plan.folder.mlflow_artifacts.name).is_dir():
        return
    with closing(sqlite3.connect(database)) as connection, connection:
        found = connection.execute(
            "SELECT artifact_location FROM experiments WHERE name = ?", (plan.study.name,)
        ).fetchone()
        old, name = found[0] if found else here, plan.folder.mlflow_artifacts.name
        if old == here or not (old.startswith("file:") and old.endswith(f"/{name}")):
            return
        for table, column in ARTIFACT_COLUMNS:
            connection.execute(
                f"UPDATE {table} SET {column} = ? || substr({column}, ?) "
                f"WHERE {column} = ? OR substr({column}, 1, ?) = ?",
                (here, len(old) + 1, old, len(old) + 1, f"{old}/"),
            )


def study_experiment(client: MlflowClient, plan: Plan, uri: str) -> Experiment:
    """The study's experiment, made if there is none. Raises `TrackingError` if it is in the bin."""
    if uri.startswith(SQLITE):
        follow_artifacts(plan, uri)
    found = find_experiment(client, plan)
    if found is None:
        location = _artifact_location(plan, uri)
        made = client.create_experiment(plan.study.name, location, EXPERIMENT_TAGS)
        found = client.get_experiment(made)
    return found


def tracked_experiment(plan: Plan, uri: str) -> Experiment:
    """The study's experiment. Raises `TrackingError` if there is none."""
    missing = uri.startswith(SQLITE) and not _sqlite_file(uri).exists()
    if uri.startswith(SQLITE) and not missing:
        follow_artifacts(plan, uri)
    found = None if missing else find_experiment(make_client(uri), plan)
    if found is None:
        raise TrackingError(
            f"nothing of the study {plan.study.name!r} is in MLflow",
            where=without_password(uri),
            expected="the experiment that a sweep makes",
            remedy="sweep the study, or run `fewscan sync STUDY` if that is done",
        )
    return found


def find_experiment(client: MlflowClient, plan: Plan) -> Experiment | None:
    """Raises `TrackingError` if the experiment is in MLflow's bin."""
    experiment = client.get_experiment_by_name(plan.study.name)
    if experiment is not None and experiment.lifecycle_stage == "deleted":
        raise TrackingError(
            "the experiment of this study has been deleted in MLflow",
            where=f"experiment {plan.study.name!r} (id {experiment.experiment_id})",
            expected="an experiment in use, or none",
            remedy=f"`mlflow experiments restore -x {experiment.experiment_id}`, or give the study "
            "another name",
        )
    return experiment


def _artifact_location(plan: Plan, uri: str) -> str | None:
    """A server knows where its artifacts go; beside a database they need an absolute place."""
    if not uri.startswith(DATABASES):
        return None
    artifacts = plan.folder.mlflow_artifacts
    if uri.startswith(SQLITE):
        artifacts = _sqlite_file(uri).with_name(artifacts.name)
    return artifacts.as_uri()


def _sqlite_file(uri: str) -> Path:
    return Path(uri.removeprefix(SQLITE)).absolute()


def create_database(path: Path) -> None:
    """Make and migrate a SQLite file in one go: killed halfway, migrations could never go on."""
    if path.exists():
        with closing(sqlite3.connect(path)) as connection:
            connection.execute("PRAGMA schema_version")  # MLflow would try for 100 s to open it
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    for leftover in path.parent.glob(f".{path.name}.*{TEMPORARY_SUFFIX}*"):
        leftover.unlink()
    with replacing(path) as temporary:
        temporary.touch()  # MLflow would try for 100 s to make a file where it may not
        store = SqlAlchemyStore(f"{SQLITE}{temporary}", path.parent.as_uri())
        store.engine.dispose()
