"""The benchmark for a GPU runs to its end, here on a CPU; nothing here decides on time."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import gpu
from benchmarks.gpu_sharing import BatchedTraining
from benchmarks.loops import Work
from fewscan.experiments.anomaly import foreground
from fewscan.experiments.losses import reconstruction_loss

ROOT = Path(__file__).parents[1]


def test_every_part_runs_on_a_cpu(tmp_path: Path) -> None:
    gpu.main(["--device", "cpu", "--quick", "--out", str(tmp_path / "gpu.json")])
    value = json.loads((tmp_path / "gpu.json").read_text())
    figures = value["figures"]
    assert {"date", "device", "versions", "commit"} <= set(value["measured"])
    assert any("(the default)" in finding["what"] for finding in value["findings"])
    assert figures["left_out"] == []
    for part in gpu.PARTS:
        assert "failed" not in figures[part.__name__], part.__name__
    steps = figures["training_step"]
    ran = {name for name, figure in steps.items() if "failed" not in figure}
    graphs = {"bf16 CUDA graph", "bf16 channels-last CUDA graph"}
    assert set(steps) - ran == graphs  # which a CPU has not
    for name in ran - {"published fp32", "fp32 eager"}:
        assert steps[name]["loss_differs_by"] < 0.01, name
    assert figures["same_bits"] == {"pretrain": True, "finetune": True}
    assert all(rate > 0 for kind in figures["sharing"].values() for rate in kind.values())


def test_it_needs_neither_cluster_nor_view() -> None:
    """What a bare GPU machine must have."""
    code = "import sys, benchmarks.gpu; print(' '.join(sys.modules))"
    command = [sys.executable, "-c", code]
    loaded = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    absent = {"ray", "mlflow", "submitit", "nibabel", "sklearn", "pydantic", "yaml", "click"}
    assert not absent & set(loaded.stdout.split())


def test_a_batched_model_is_its_networks_side_by_side() -> None:
    work = Work(width=4, size=32, batch_size=2, slices=4)
    batched = BatchedTraining(work, "cpu", range(2))
    for n, loss in enumerate(batched.losses()):
        weights = {name: stacked[n] for name, stacked in batched.weights.items()}
        images = batched.images_MNCHW[n]
        with torch.autocast("cpu", torch.bfloat16):
            outputs = torch.func.functional_call(batched._skeleton, weights, (images,))
            expected = reconstruction_loss(outputs, images, foreground(images))
        assert loss.item() == pytest.approx(expected.item(), rel=0.01)
    before = batched.losses().detach()
    for _ in range(20):
        batched.step()
    assert (batched.losses() < before).all()
