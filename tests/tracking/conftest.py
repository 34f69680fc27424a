"""What the tests of the MLflow view share: an empty database, a study that has not started."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from fake_folders import make_plan
from tiny import run_in_process, tiny_values

from fewscan.harness.loading import load_plan
from fewscan.harness.plan import Plan
from fewscan.harness.tracking import stores


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    for name in stores.DEFAULTS:
        monkeypatch.setenv(name, stores.DEFAULTS[name])


@pytest.fixture
def plan(tmp_path: Path, empty_database: Path) -> Plan:
    """A pre-training, two fine-tunings of it, the scores of all three; nothing has started."""
    folder = tmp_path / "my study ü"
    folder.mkdir()
    shutil.copy(empty_database, folder / "mlflow.db")
    return make_plan(folder)


@pytest.fixture(scope="session")
def finished_study(store_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of a study of 26 runs that are all finished, with their report, made without Ray."""
    grid = {"label_counts": [1, 4, "all"], "seeds": [0, 1]}
    return finish_study(store_path, tmp_path_factory.mktemp("finished"), grid)


@pytest.fixture
def small_study(store_path: Path, tmp_path: Path) -> Path:
    """The same of ten runs."""
    return finish_study(store_path, tmp_path, {})


def finish_study(store_path: Path, folder: Path, grid: dict[str, Any]) -> Path:
    from fewscan.harness.report.studies import one_study  # seconds, which most tests do not need
    from fewscan.harness.report.write import write_report

    values = tiny_values(store_path, folder / "study")
    values["finetune"] |= {"targets": ["binary"], **grid}
    values["resources"]["system_metrics_every_s"] = 0.05
    file = folder / "study.yaml"
    file.write_text(yaml.safe_dump(values))
    plan = load_plan(file)
    run_in_process(plan, plan.runs)
    write_report(one_study(plan))
    return file
