"""One run as a trial of Ray Tune: what it receives, what it takes, and what becomes of its end.

A run on one device trains in Tune's actor itself; one on several devices asks Ray Train for ranks.
"""

import contextlib
import math
import os
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import ray.train.torch
from ray import train, tune

from fewscan.experiments.devices import Devices, Preempted
from fewscan.experiments.stages import run_stage
from fewscan.harness.plan import Plan, PlannedRun
from fewscan.harness.ray_cluster import require_same_code
from fewscan.harness.study import Share
from fewscan.slurm.session import Session
from fewscan.storage.atomic import write_bytes
from fewscan.storage.code_digest import code_digest
from fewscan.storage.errors import DiskFullError
from fewscan.storage.runs import RunFolder
from fewscan.storage.system import node_folder

Stage = Callable[[RunFolder, Devices], None]
"""Runs what a folder's spec says; see `run_stage`."""

ROOM_BYTES = 1 << 20
ROOM_EVERY_S = 2.0
ROOM_WAIT_S = 60.0
HEAD = {"node:__internal_head__": 0.001}
"""A sliver of what Ray gives to the head node alone."""


def config_of(plan: Plan, run: PlannedRun, use_gpu: bool, scratch: Path) -> dict[str, Any]:
    """What a trial receives of its run."""
    return {
        "folder": str(plan.folder_of(run).path),
        "share": asdict(plan.share_of(run)),
        "use_gpu": use_gpu,
        "residency": plan.study.resources.residency,
        "checkpoint_every_s": plan.study.resources.checkpoint_every_s,
        "sample_every_s": plan.study.resources.system_metrics_every_s,
        "niceness": plan.study.resources.niceness,
        "scratch": str(scratch),
        "code": code_digest(),
    }


def placement(config: dict[str, Any]) -> tune.PlacementGroupFactory:
    """The resources of a run."""
    share = Share(**config["share"])
    if share.devices > 1:
        # The ranks get their own places from Ray Train. What waits for them takes no core, and
        # stays on the head, which is not taken away as workers are.
        return tune.PlacementGroupFactory([HEAD])
    return tune.PlacementGroupFactory([needs_of(share, config["use_gpu"])])


def needs_of(share: Share, use_gpu: bool) -> dict[str, float]:
    """What each device of a run takes of a node."""
    return {"CPU": share.cpus, **({"GPU": share.gpu_share} if use_gpu else {})}


def run_trial(config: dict[str, Any], stage: Stage = run_stage) -> dict[str, float]:
    """One run in a Tune actor.

    What the run itself raises stays in its folder, and to Tune the trial has ended. If a rank was
    lost instead, Tune learns of it, and starts the trial again. A preempted run has ended too,
    for now: the searcher offers it again.
    """
    folder = RunFolder(Path(config["folder"]))
    folder.error.unlink(missing_ok=True)
    share = Share(**config["share"])
    be_nice(config["niceness"])
    try:
        require_same_code(config["code"])
        if share.devices > 1:
            _run_on_several_devices(config, share)
        else:
            device = "cuda:0" if config["use_gpu"] else "cpu"
            stage(folder, replace(_place(config), device=device))
    except Preempted:
        return {"finished": 0.0, "preempted": 1.0}
    except DiskFullError as error:
        if not await_room(folder.path, should_stop=Session.here().stop_requested):
            folder.fail(error)
            return {"finished": 0.0}
        folder.error.unlink(missing_ok=True)
        return {"finished": 0.0, "preempted": 1.0}
    except train.TrainingFailedError:
        raise
    except Exception as error:
        if not folder.error.exists():
            folder.fail(error)
    return {"finished": float(folder.result.exists())}


def be_nice(niceness: int) -> None:
    """Raise this process to a niceness; it is never lowered, which only root could do.

    To Linux it is a thread's, and a new thread has that of its maker: so all threads of now.
    """
    for thread in map(int, os.listdir("/proc/self/task")):
        with contextlib.suppress(ProcessLookupError):  # it has just ended
            if niceness > os.getpriority(os.PRIO_PROCESS, thread):
                os.setpriority(os.PRIO_PROCESS, thread, niceness)


def await_room(folder: Path, should_stop: Callable[[], bool]) -> bool:
    """Wait until something can be written into a folder on a full disk; whether to go on.

    On a cluster as long as it takes, for nobody is there to begin again; elsewhere a minute.
    """
    wait_s = math.inf if Session.here().is_on_cluster else ROOM_WAIT_S
    deadline = time.monotonic() + wait_s
    while not should_stop():
        try:
            write_bytes(folder / ".room", bytes(ROOM_BYTES))
        except DiskFullError:
            if time.monotonic() > deadline:
                return False
            time.sleep(ROOM_EVERY_S)
        else:
            (folder / ".room").unlink(missing_ok=True)
            return True
    return True


def _place(config: dict[str, Any]) -> Devices:
    """What the places of all ranks of a run have in common, on this node."""
    share = Share(**config["share"])
    session = Session.here()
    return Devices(
        threads=share.cpus,
        gpu_share=share.gpu_share,
        residency=config["residency"],
        node_folders=node_folder.candidates(session.temporary_folder or Path(config["scratch"])),
        checkpoint_every_s=config["checkpoint_every_s"],
        sample_every_s=config["sample_every_s"],
        should_stop=session.stop_requested,
    )


def _run_on_several_devices(config: dict[str, Any], share: Share) -> None:
    """Train on ranks that Ray Train starts, on as many nodes as it takes.

    Raises `Preempted` if the ranks stopped together, what a rank itself raised, or
    `TrainingFailedError` if ranks were lost: then the run goes on from its checkpoint.
    """
    # Train would resume from its own state if it found one under this name; ours is better.
    name = f"{Path(config['folder']).name}-{uuid.uuid4().hex}"
    trainer = ray.train.torch.TorchTrainer(
        _rank_main,
        train_loop_config=config,
        scaling_config=train.ScalingConfig(
            num_workers=share.devices,
            use_gpu=config["use_gpu"],
            resources_per_worker=needs_of(share, config["use_gpu"]),
        ),
        torch_config=ray.train.torch.TorchConfig(backend="nccl" if config["use_gpu"] else "gloo"),
        run_config=train.RunConfig(
            name=name,
            storage_path=config["scratch"],
            # Of an unannounced loss Tune keeps count. An announced one is no failure: the ranks
            # stop together, and if they are too slow Train starts them again, as often as needed.
            failure_config=train.FailureConfig(max_failures=0, max_preemption_failures=-1),
        ),
    )
    try:
        trainer.fit()
    except train.WorkerGroupError as error:
        for own in errors_of_ranks(error):
            raise own from error
        raise
    if not RunFolder(Path(config["folder"])).result.exists():
        raise Preempted


def errors_of_ranks(error: train.WorkerGroupError) -> Iterator[Exception]:
    """What ranks raised themselves; neither that they were lost nor that they lost another.

    Train wraps what a rank raised, and nothing else.
    """
    for failure in error.worker_failures.values():
        raised = getattr(failure, "_base_exc", None)
        if isinstance(raised, Exception):  # `PeerLost` is none
            yield raised


def _rank_main(config: dict[str, Any]) -> None:
    be_nice(config["niceness"])
    require_same_code(config["code"])
    context = train.get_context()
    devices = replace(
        _place(config),
        device=str(ray.train.torch.get_device()),
        rank=context.get_world_rank(),
        world_size=context.get_world_size(),
    )
    with contextlib.suppress(Preempted):  # every rank leaves at the same step
        run_stage(RunFolder(Path(config["folder"])), devices)
