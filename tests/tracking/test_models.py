"""The logged model."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
from fake_folders import DATA, ROOT, SIZE, database, finish_all, mlflow_id

from fewscan.experiments.checkpoint import load_model
from fewscan.experiments.spec import PROTOCOL
from fewscan.harness.plan import Plan
from fewscan.harness.tracking.mlflow_run import view_of
from fewscan.harness.tracking.models import model_name
from fewscan.harness.tracking.tracker import Tracker


def test_the_model_is_the_network_also_where_this_repository_is_not(
    plan: Plan, tmp_path: Path
) -> None:
    """Logged on the score, which knows the threshold; the weights are those of its parent."""
    finish_all(plan, 1, 4)
    Tracker(plan).update()
    images = np.random.default_rng(0).random((3, 4, SIZE, SIZE), dtype=np.float32)
    np.save(tmp_path / "images.npy", images)
    facts = {
        "run_id": plan.runs[4].run_id,
        "stage": "score",
        "target": "binary",
        "protocol": PROTOCOL,
        "data": DATA,
        "store_protocol": 1,
        "channels": ["flair", "t1", "t1ce", "t2"],
        "classes": ["core", "oedema"],
        "slice_size": SIZE,
        "axis": 2,
        "normalisation": "quantile",
        "orientations": ["LPS"],
        "best_step": 20,
        "threshold": 0.1,
    }
    seen = view_of(plan, plan.runs[4], "finished", "FINISHED")
    uri = f"runs:/{mlflow_id(plan, 4)}/{model_name(seen.name)}"
    script = f"""
import sys
sys.path = [p for p in sys.path if p not in ("", {str(ROOT)!r})]
sys.meta_path = [f for f in sys.meta_path if "editable" not in repr(f)]
import importlib.util
assert importlib.util.find_spec("experiments") is None
import mlflow, numpy, torch
mlflow.set_tracking_uri({database(plan)!r})
model = mlflow.pytorch.load_model("{uri}")
images = torch.from_numpy(numpy.load("images.npy"))
numpy.save("outputs.npy", model(images).detach().numpy())
info = mlflow.models.get_model_info("{uri}")
assert info.signature.inputs.inputs[0].shape == (-1, 4, {SIZE}, {SIZE})
assert info.signature.outputs.inputs[0].shape == (-1, 2, {SIZE}, {SIZE})
assert info.metadata == {facts!r}, info.metadata
"""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    subprocess.run([sys.executable, "-c", script], cwd=tmp_path, env=environment, check=True)
    network = load_model(plan.folder_of(plan.runs[1]).model)
    expected = network(torch.from_numpy(images)).detach().numpy()
    # Another process may compute with another number of threads, which changes the last bits.
    np.testing.assert_allclose(np.load(tmp_path / "outputs.npy"), expected, rtol=1e-5, atol=1e-6)
