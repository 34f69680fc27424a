"""DDP over two nodes of a real Slurm: it loses a node twice, and ends with undisturbed bits."""

import shutil
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import lab
import pytest

from fewscan.experiments.devices import Devices, launch
from fewscan.experiments.stages import run_stage
from fewscan.harness.on_slurm import launch_sweep
from fewscan.harness.plan import Plan
from fewscan.harness.planner import make_plan
from fewscan.harness.study_file import parse_study
from fewscan.slurm import cancel, status
from fewscan.storage.runs import RunFolder

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(1200)]
WAIT_S = 300
"""For what takes seconds on an idle machine."""
RANK = {"devices": 2, "cpus": 2}
PACE = Path(__file__).parent / "pace"
SLURM = {
    "partition": "main",
    "cpus": 3,  # of a node's 4: a worker a node, and room for one rank
    "max_workers": 3,
    "time_limit_min": 20,
    "signal_delay_s": 20,
    "poll_s": 3,
    "job_name": "ddp",
}


@pytest.fixture
def plan(slurm_lab: None, tiny_document: dict[str, Any], tmp_path: Path) -> Iterator[Plan]:
    """A pre-training on two ranks and one fine-tuning, on the lab's shared disk."""
    shared = lab.SHARED / tmp_path.name
    shutil.rmtree(shared, ignore_errors=True)
    shutil.copytree(tiny_document["store"], shared / "tiny.zarr")
    training = {"iterations": 80, "validate_every": 20}
    tiny_document["pretrain"]["denoise"]["training"] |= training
    tiny_document["finetune"] |= {"label_counts": [1], "inits": ["denoise"], "targets": ["binary"]}
    tiny_document |= {"store": str(shared / "tiny.zarr"), "folder": str(shared / "study")}
    resources = {"device": "cpu", "checkpoint_every_s": 5.0, "pretrain": RANK}
    setup = [f"export LAB_PACE_FILE={shared}/pace", f"export PYTHONPATH={PACE}:$PYTHONPATH"]
    settings = SLURM | {"setup": setup}
    document = tiny_document | {"baselines": [], "resources": resources, "slurm": settings}
    (shared / "pace").write_text("1.0")  # a step while the ranks are disturbed, in seconds
    yield make_plan(parse_study(document, "lab"))
    lab.cancel_everything()
    for node in lab.NODES:
        lab.start_node(node)
    lab.await_idle()


def undisturbed(plan: Plan, folder: Path) -> bytes:
    """The pre-training's result with two ranks of this machine."""
    run = plan.runs[0]
    alone = RunFolder(folder / run.run_id)
    plan.record(run).write(alone)
    launch(partial(run_stage, alone), Devices(threads=RANK["cpus"], world_size=RANK["devices"]))
    return alone.result.read_bytes()


def until(what: Callable[[], Any], plan: Plan) -> Any:
    deadline = time.monotonic() + WAIT_S
    while not (value := what()):
        log = plan.folder.cluster / "logs" / "driver.log"
        said = log.read_text()[-3000:] if log.exists() else ""
        assert time.monotonic() < deadline, (status(plan.folder.cluster), said)
        time.sleep(0.3)
    return value


def steps(folder: RunFolder, kind: str) -> list[int]:
    """At which steps something of this kind happened."""
    return [event.step for event in folder.committed_events() if event.kind == kind]


def await_attempt(plan: Plan, number: int) -> str:
    """Wait for the `number`th attempt's first checkpoint; a node of its ranks without the head."""
    folder = plan.folder_of(plan.runs[0])

    def has_come_on() -> bool:
        begun, written = steps(folder, "started"), steps(folder, "checkpoint")
        return len(begun) == number and written[-1:] > begun[-1:]

    until(has_come_on, plan)
    ranks = {host for host in lab.NODES if "RayTrainWorker" in str(lab.processes_of(host))}
    assert len(ranks) == 2, ranks
    head = status(plan.folder.cluster).head
    assert head is not None
    return next(node for node in sorted(ranks) if node != head.node)


def test_ranks_on_two_nodes_lose_one_and_end_with_the_same_bits(plan: Plan, tmp_path: Path) -> None:
    folder = plan.folder_of(plan.runs[0])
    launch_sweep(plan)
    node = await_attempt(plan, 1)
    seen_step = folder.read_progress()["step"]
    lab.take(node, 5)  # Slurm's warning: the ranks stop together, and nothing is lost
    node = await_attempt(plan, 2)
    assert steps(folder, "started")[1] >= seen_step
    lab.kill_node(node)  # no warning: back to the last checkpoint
    lab.start_node(node)
    await_attempt(plan, 3)
    (folder.path.parents[2] / "pace").write_text("0")
    until(lambda: status(plan.folder.cluster).state in ("done", "failed", "incomplete"), plan)
    assert status(plan.folder.cluster).state == "done", status(plan.folder.cluster)
    begun = [event for event in folder.committed_events() if event.kind == "started"]
    assert [event.attempt["ranks"] for event in begun] == [2, 2, 2]
    assert folder.result.read_bytes() == undisturbed(plan, tmp_path / "alone")
    cancel(plan.folder.cluster)
