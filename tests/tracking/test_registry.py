"""The best models of a study in the registry: chosen on validation, once."""

from dataclasses import replace

import mlflow
import pytest
import torch
from fake_folders import database, finish_all, shown
from mlflow import MlflowClient

from fewscan.experiments.checkpoint import load_model
from fewscan.harness.plan import Plan
from fewscan.harness.tracking.registry import Registered
from fewscan.harness.tracking.tracker import sync
from fewscan.storage.errors import TrackingError


def test_the_best_model_is_registered_once_and_a_better_one_takes_its_place(
    plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    finish_all(plan, 1, 4, loss=0.5)
    for _ in range(2):
        (chosen,) = sync(plan, register="lesions").values()
        assert chosen.uri == "models:/lesions-binary@best"
        assert chosen.run == plan.runs[4].place.cell
    client = MlflowClient(database(plan))
    (version,) = client.search_model_versions("name = 'lesions-binary'")
    assert version.tags["fewscan.run_id"] == plan.runs[4].run_id
    finish_all(plan, 2, loss=0.4)
    sync(plan, register="lesions")
    best = client.get_model_version_by_alias("lesions-binary", "best")
    assert best.tags["fewscan.run_id"] == plan.runs[4].run_id, "the better one has no score yet"
    finish_all(plan, 5)
    sync(plan, register="lesions")
    best = client.get_model_version_by_alias("lesions-binary", "best")
    assert best.tags["fewscan.run_id"] == plan.runs[5].run_id
    assert len(client.search_model_versions("name = 'lesions-binary'")) == 2
    monkeypatch.setenv("MLFLOW_TRACKING_URI", database(plan))
    loaded = mlflow.pytorch.load_model("models:/lesions-binary@best")
    images = torch.rand(1, 4, 16, 16)
    assert torch.equal(loaded(images), load_model(plan.folder_of(plan.runs[2]).model)(images))


def test_a_score_of_several_models_has_none_to_register(plan: Plan) -> None:
    finish_all(plan, 1, 2)
    one = plan.runs[4]
    both = replace(one, spec=replace(one.spec, parents=plan.runs[4].parents + plan.runs[5].parents))
    plan = replace(plan, runs=(*plan.runs[:4], both, one))
    finish_all(plan, 4)
    with pytest.raises(TrackingError, match="no model to register"):
        sync(plan, register="lesions")
    finish_all(plan, 5)
    sync(plan, register="lesions")
    seen = shown(plan)
    assert seen[both.run_id]["status"] == "FINISHED"
    assert (len(seen[both.run_id]["models"]), len(seen[one.run_id]["models"])) == (0, 1)


def test_nothing_to_register(plan: Plan) -> None:
    finish_all(plan, 0, 1)
    with pytest.raises(TrackingError, match="no model to register"):
        sync(plan, register="lesions")


def test_what_speaks_against_the_choice_is_said() -> None:
    few = Registered("models:/it@best", "binary · scratch · 1 scan · seed 0", 0.25, 2, 1, 36)
    first, second, third = few.sentences
    assert first.startswith("binary · scratch · 1 scan · seed 0: the lowest validation loss, 0.25,")
    assert first.endswith("on 2 validation scans")
    assert "2 validation scans are few to choose by" in second
    assert third.startswith("it has learnt from 1 labelled scan; models of up to 36 are there")
    many = replace(few, scans=62, labels=36)
    assert many.sentences == [first.replace("2 validation", "62 validation")]
