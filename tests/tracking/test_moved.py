"""A study's folder that was moved, or copied, with its MLflow in it."""

import shutil
from dataclasses import replace
from pathlib import Path

import mlflow.pytorch
from fake_folders import database, four_states
from mlflow import MlflowClient
from mlflow.tracking._tracking_service.utils import _artifact_repos_cache

from fewscan.harness.plan import Plan
from fewscan.harness.tracking.models import logged_models
from fewscan.harness.tracking.tracker import Tracker


def at(plan: Plan, folder: Path) -> Plan:
    return replace(plan, study=replace(plan.study, folder=folder))


def addresses(plan: Plan) -> list[str]:
    """Wherever MLflow says that a file is."""
    client = MlflowClient(database(plan))
    experiment = client.get_experiment_by_name(plan.study.name)
    runs = client.search_runs([experiment.experiment_id])
    models = [m for r in runs for m in logged_models(client, r.info.experiment_id, r.info.run_id)]
    found = [experiment.artifact_location, *(r.info.artifact_uri for r in runs)]
    return [*found, *(model.artifact_location for model in models)]


def test_its_files_are_found_where_it_is_now_and_the_old_place_stays_away(
    plan: Plan, tmp_path: Path
) -> None:
    four_states(plan)
    Tracker(plan).update()
    copy = at(plan, tmp_path / "a copy")
    shutil.copytree(plan.folder.path, copy.folder.path)
    moved = at(plan, tmp_path / "moved")
    plan.folder.path.rename(moved.folder.path)
    for there in (moved, copy):
        _artifact_repos_cache.clear()  # another process would not know either
        Tracker(there).update()
        place = there.folder.path.as_uri() + "/"
        assert [it for it in addresses(there) if not it.startswith(place)] == []
        client = MlflowClient(database(there))
        experiment = client.get_experiment_by_name(there.study.name)
        run = client.search_runs([experiment.experiment_id], "attributes.status = 'FINISHED'")[0]
        assert "result.json" in [file.path for file in client.list_artifacts(run.info.run_id)]
        (model,) = logged_models(client, experiment.experiment_id, run.info.run_id)
        assert mlflow.pytorch.load_model(model.artifact_location) is not None
    assert not plan.folder.path.exists(), "nothing was written to the old place"


def test_what_others_keep_in_the_database_stays_as_it_is(plan: Plan, tmp_path: Path) -> None:
    four_states(plan)
    Tracker(plan).update()
    client = MlflowClient(database(plan))
    theirs = (tmp_path / "theirs" / "mlartifacts").as_uri()
    other = client.create_experiment("another", theirs)
    run = client.create_run(other)
    moved = at(plan, tmp_path / "moved")
    plan.folder.path.rename(moved.folder.path)
    Tracker(moved).update()
    client = MlflowClient(database(moved))
    assert client.get_experiment(other).artifact_location == theirs
    assert client.get_run(run.info.run_id).info.artifact_uri.startswith(theirs)
