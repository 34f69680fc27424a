"""What many tests share: tiny scans, a tiny store, a tiny study."""

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fake_slurm
import hypothesis
import pytest
from tiny import tiny_values, write_tiny_scan
from whole_sweep import WholeSweep, sweep_own_data

from fewscan.harness.study import Study
from fewscan.harness.study_file import parse_study
from fewscan.storage.prepare import prepare

hypothesis.settings.register_profile("fewscan", deadline=None)  # the clock decides no test
hypothesis.settings.load_profile("fewscan")

SUBJECTS = 24


@pytest.fixture(scope="session")
def scans(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with 24 tiny subjects: 18 to train, 1 to validate, 5 to test."""
    folder = tmp_path_factory.mktemp("scans")
    for index in range(SUBJECTS):
        write_tiny_scan(folder, index)
    return folder


@pytest.fixture(scope="session")
def store_path(scans: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny scans as a store of 16×16 slices."""
    path = tmp_path_factory.mktemp("stores") / "tiny.zarr"
    prepare(scans, path, size=16, workers=1, validation=1)
    return path


@pytest.fixture
def tiny_document(store_path: Path, tmp_path: Path) -> dict[str, Any]:
    """A study file as plain values: 1 pre-training, 1 unsupervised, 8 fine-tunings, in seconds."""
    return tiny_values(store_path, tmp_path / "study")


@pytest.fixture
def tiny_study(tiny_document: dict[str, Any]) -> Callable[..., Study]:
    """Makes the tiny study, with top-level keys replaced."""

    def make(**changes: Any) -> Study:
        return parse_study(tiny_document | changes, "tiny")

    return make


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A faked Slurm; its state folder."""
    folder = tmp_path / "fake"
    binaries = fake_slurm.install(folder)
    monkeypatch.setenv(fake_slurm.ENVIRONMENT, str(folder))
    monkeypatch.setenv("PATH", f"{binaries}:{os.environ['PATH']}")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    with fake_slurm.serving(folder):
        yield folder


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures are not drawn, which takes a second each."""
    monkeypatch.setattr(
        "fewscan.harness.report.write.as_data_uri", lambda figure: "data:image/svg+xml;base64,"
    )
    monkeypatch.setattr(
        "fewscan.harness.report.write.save_figure", lambda figure, path: path.touch()
    )


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A migrated MLflow database, to copy: making one takes seconds. An earlier try was killed."""
    from fewscan.harness.tracking import stores  # loads MLflow

    path = tmp_path_factory.mktemp("empty") / "mlflow.db"
    path.with_name(".mlflow.db.1.partial").write_bytes(b"half a database")
    stores.create_database(path)
    return path


@pytest.fixture
def made_database(tiny_document: dict[str, Any], empty_database: Path) -> None:
    """The tiny study has its database already."""
    folder = Path(tiny_document["folder"])
    folder.mkdir(parents=True)
    shutil.copy(empty_database, folder / "mlflow.db")


@pytest.fixture(scope="session")
def whole_sweep(tmp_path_factory: pytest.TempPathFactory) -> WholeSweep:
    """A finished sweep of ten runs, from the command line."""
    folder = tmp_path_factory.mktemp("whole")
    return sweep_own_data(tiny_values(folder / "mine.zarr", folder / "study"), folder)
