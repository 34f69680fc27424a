"""The best models of a study in the registry: chosen on validation, once."""

import mlflow
import pytest
import torch
from fake_folders import database, finish, finish_cell, start
from mlflow import MlflowClient

from fewscan.experiments.checkpoint import load_model
from fewscan.harness.plan import Plan
from fewscan.harness.tracking.tracker import sync
from fewscan.storage.errors import TrackingError


def test_the_best_model_is_registered_once_and_a_better_one_takes_its_place(
    plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    finish_cell(plan, 0, loss=0.5)
    for _ in range(2):
        assert sync(plan, register="lesions") == {"binary": "models:/lesions-binary@best"}
    client = MlflowClient(database(plan))
    (version,) = client.search_model_versions("name = 'lesions-binary'")
    assert version.tags["fewscan.run_id"] == plan.runs[4].run_id
    finish_cell(plan, 1, loss=0.4)
    sync(plan, register="lesions")
    best = client.get_model_version_by_alias("lesions-binary", "best")
    assert best.tags["fewscan.run_id"] == plan.runs[5].run_id
    assert len(client.search_model_versions("name = 'lesions-binary'")) == 2
    monkeypatch.setenv("MLFLOW_TRACKING_URI", database(plan))
    loaded = mlflow.pytorch.load_model("models:/lesions-binary@best")
    images = torch.rand(1, 4, 16, 16)
    assert torch.equal(loaded(images), load_model(plan.folder_of(plan.runs[2]).model)(images))


def test_nothing_to_register(plan: Plan) -> None:
    finish(start(plan, 0))
    with pytest.raises(TrackingError, match="no model to register"):
        sync(plan, register="lesions")
