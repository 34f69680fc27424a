"""A real study on a real Slurm: disturbed, its results are those of an undisturbed run."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lab
import pytest
from toy_study import ENDED, until

from experiments.devices import Devices
from experiments.stages import run_stage
from harness.on_slurm import launch_sweep
from harness.plan import Plan, make_plan
from harness.status import read_status
from harness.study import parse_study
from slurm import cancel, status

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(600)]
SLURM = {
    "partition": "main",
    "cpus": 2,
    "max_workers": 3,
    "time_limit_min": 10,
    "signal_delay_s": 20,
    "grace_s": lab.GRACE_S,
    "poll_s": 3,
    "idle_s": 5,
    "wait_for_head_min": 3,
}


@pytest.fixture
def document(slurm_lab: None, tiny_document: dict[str, Any], tmp_path: Path) -> Iterator[Any]:
    """The tiny study on the lab's shared disk, long enough to be disturbed."""
    shared = lab.SHARED / tmp_path.name
    shutil.rmtree(shared, ignore_errors=True)
    shutil.copytree(tiny_document["store"], shared / "tiny.zarr")
    for part in (tiny_document["pretrain"]["denoise"], tiny_document["finetune"]):
        part["training"] |= {"iterations": 1500, "validate_every": 500}
    tiny_document["finetune"]["targets"] = ["multiclass"]
    tiny_document["resources"]["checkpoint_every_s"] = 5.0
    tiny_document |= {"store": str(shared / "tiny.zarr"), "folder": str(shared / "study")}
    yield tiny_document | {"slurm": SLURM}
    lab.cancel_everything()
    lab.await_idle()


def results_alone(document: dict[str, Any], folder: Path) -> dict[str, bytes]:
    plan = make_plan(parse_study(document | {"folder": str(folder)}, "alone"))
    for run in plan.runs:
        plan.folder_of(run).create(plan.record(run))
        run_stage(plan.folder_of(run), Devices())
    return results(plan)


def results(plan: Plan) -> dict[str, bytes]:
    return {run.name: plan.folder_of(run).result.read_bytes() for run in plan.runs}


def test_a_preempted_and_cancelled_study_ends_with_the_same_bits(
    document: dict[str, Any], tmp_path: Path
) -> None:
    plan = make_plan(parse_study(document, "lab"))
    cluster = plan.folder.cluster

    def joined() -> dict[str, str]:
        return {w.job: w.node for w in status(cluster).workers if w.phase == "joined" and w.node}

    launch_sweep(plan)
    until(lambda: read_status(plan).count()["running"] >= 2, 120)
    head = status(cluster).head
    assert head is not None
    lab.take(next(node for node in joined().values() if node != head.node), 10)
    until(lambda: read_status(plan).count()["finished"] >= 1, 180)
    cancel(cluster)
    until(lambda: not lab.slurm("squeue", "--noheader"), 60)
    launch_sweep(plan)
    until(lambda: status(cluster).state in ENDED, 300)
    assert status(cluster).state == "done", status(cluster)
    assert read_status(plan).is_finished
    assert results(plan) == results_alone(document, tmp_path / "alone")
