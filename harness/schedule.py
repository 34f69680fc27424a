"""All of a study's runs under one Ray Tune run: the only module that knows Ray.

A searcher offers the runs whose parents are finished, longest first, so there are no barriers. What
Ray remembers is never needed: which runs are finished, interrupted or failed is read from the run
folders, and starting again is the same as going on.
"""

import contextlib
import hashlib
import logging
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import ray
import ray.train.torch
from ray import train, tune
from ray.tune.search import Searcher

from experiments.devices import Devices, Preempted, require_cuda
from experiments.stages import run_stage
from harness.plan import Plan
from harness.study import Share
from slurm import inside
from storage import node_folder
from storage.errors import RunError
from storage.runs import RunFolder, StudyFolder

INFRASTRUCTURE_RETRIES = 3
"""How often Tune starts a run again whose process died (memory, hardware); each goes on from its
checkpoint. An error that the run itself raised is never retried within a sweep."""


HEAD = {"node:__internal_head__": 0.001}
"""A sliver of what Ray gives to the head node alone."""


class ReadyRuns(Searcher):
    """Offers each unfinished run once its parents are finished, the longest first.

    "Longest" is the arithmetic of the run and of the longest chain of runs that waits for it.
    """

    def __init__(self, plan: Plan, use_gpu: bool, scratch: Path) -> None:
        super().__init__(metric="finished", mode="max")
        self._configs = {
            run.run_id: {
                "folder": str(plan.folder_of(run).path),
                "share": asdict(plan.share_of(run)),
                "use_gpu": use_gpu,
                "residency": plan.study.resources.residency,
                "checkpoint_every_s": plan.study.resources.checkpoint_every_s,
                "scratch": str(scratch),
            }
            for run in plan.runs
        }
        self._folders = {run.run_id: plan.folder_of(run) for run in plan.runs}
        self._parents = {run.run_id: run.parents for run in plan.runs}
        waiting = [r.run_id for r in plan.runs if not self._is_finished(r.run_id)]
        chain = chain_flops(plan)
        self._waiting = sorted(waiting, key=lambda run_id: -chain[run_id])
        self._offered: dict[str, str] = {}
        self._failed: set[str] = set()

    def _is_finished(self, run_id: str) -> bool:
        return self._folders[run_id].result.exists() if run_id in self._folders else True

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """The config of a run that can start; None while all wait; FINISHED at the end."""
        self._drop_blocked()
        for run_id in self._waiting:
            if all(map(self._is_finished, self._parents[run_id])):
                self._waiting.remove(run_id)
                self._offered[trial_id] = run_id
                return self._configs[run_id]
        # A run that is under way may be preempted and come back, so it is not over yet.
        return None if self._waiting or self._offered else Searcher.FINISHED

    def _drop_blocked(self) -> None:
        """A run waits for ever if a parent has failed; so do, in turn, its children."""
        for run_id in list(self._waiting):
            if self._failed.intersection(self._parents[run_id]):
                self._waiting.remove(run_id)
                self._failed.add(run_id)

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Offer a preempted run again; note one that has no result as failed, and why.

        Most failed runs have left the reason themselves.
        """
        run_id = self._offered.pop(trial_id)
        if self._is_finished(run_id):
            return
        if result and result.get("preempted"):
            self._waiting.insert(0, run_id)
            return
        self._failed.add(run_id)
        folder = self._folders[run_id]
        if error and not folder.error.exists():
            folder.fail(
                RunError(
                    f"the run's process died {INFRASTRUCTURE_RETRIES + 1} times",
                    where=folder.path,
                    expected="a process that lives until the run's end",
                    remedy="look for lack of memory on the node; give runs more of a device "
                    "(resources), then sweep again: it goes on from the last checkpoint",
                )
            )

    def save(self, checkpoint_path: str) -> None:
        """Nothing to save: the folders say it all."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing to restore: the folders say it all."""


def chain_flops(plan: Plan) -> dict[str, float]:
    """For each run, its own arithmetic and that of the longest chain of runs that waits for it."""
    chain: dict[str, float] = {}
    after: dict[str, float] = {}
    for run in reversed(plan.runs):
        chain[run.run_id] = run.flops + after.get(run.run_id, 0.0)
        for parent in run.parents:
            after[parent] = max(after.get(parent, 0.0), chain[run.run_id])
    return chain


def run_all(plan: Plan, scratch: Path) -> None:
    """Run what is not finished on the Ray cluster that this process is connected to.

    `scratch` is a folder for what Tune and Train write; nobody reads it.
    """
    for run in plan.runs:
        if not plan.folder_of(run).result.exists():
            plan.folder_of(run).create(plan.record(run))
    # An idle actor, kept for the next trial, would hold the cores that ranks of Ray Train wait for.
    may_keep_actors = all(plan.share_of(run).devices == 1 for run in plan.runs)
    tune.Tuner(
        tune.with_resources(run_trial, placement),
        tune_config=tune.TuneConfig(
            search_alg=ReadyRuns(plan, wants_gpu(plan), scratch),
            num_samples=-1,
            reuse_actors=may_keep_actors,
        ),
        run_config=tune.RunConfig(
            name="tune",
            storage_path=str(scratch),
            verbose=0,
            failure_config=tune.FailureConfig(max_failures=INFRASTRUCTURE_RETRIES),
        ),
    ).fit()


def wants_gpu(plan: Plan) -> bool:
    """Whether runs get GPUs. Raises `DeviceError` if CUDA was asked for and no node has one.

    On Slurm there may be no worker yet; there the settings say what workers will have.
    """
    wish = plan.study.resources.device
    coming = plan.study.slurm.gpus if plan.study.slurm and inside.is_on_slurm() else 0
    has_gpu = coming > 0 or ray.cluster_resources().get("GPU", 0) > 0
    if wish == "cuda" and not has_gpu:
        require_cuda()
    return has_gpu and wish != "cpu"


def placement(config: dict[str, Any]) -> tune.PlacementGroupFactory:
    """The resources of a run."""
    share = Share(**config["share"])
    if share.devices > 1:
        # The ranks get their own places from Ray Train. What waits for them takes no core, and
        # stays on the head, which is not taken away as workers are.
        return tune.PlacementGroupFactory([HEAD])
    gpu = {"GPU": share.gpu_share} if config["use_gpu"] else {}
    return tune.PlacementGroupFactory([{"CPU": share.cpus, **gpu}])


def run_trial(config: dict[str, Any]) -> dict[str, float]:
    """One run in a Tune actor.

    What the run itself raises stays in its folder, and to Tune the trial has ended. If a rank's
    process died instead, Tune is told, and starts the trial again. A preempted run has ended too,
    for now: the searcher offers it again.
    """
    folder = RunFolder(Path(config["folder"]))
    folder.error.unlink(missing_ok=True)
    share = Share(**config["share"])
    try:
        if share.devices > 1:
            _run_on_several_devices(config, share)
        else:
            device = "cuda:0" if config["use_gpu"] else "cpu"
            run_stage(folder, replace(_place(config), device=device))
    except Preempted:
        return {"finished": 0.0, "preempted": 1.0}
    except Exception as error:
        if folder.error.exists():
            return {"finished": 0.0}
        if share.devices > 1:
            raise
        folder.fail(error)
    return {"finished": float(folder.result.exists())}


def _place(config: dict[str, Any]) -> Devices:
    """What the places of all ranks of a run have in common, on this node."""
    share = Share(**config["share"])
    return Devices(
        threads=share.cpus,
        gpu_share=share.gpu_share,
        residency=config["residency"],
        node_folders=node_folder.beside(inside.temporary() or Path(config["scratch"])),
        checkpoint_every_s=config["checkpoint_every_s"],
        should_stop=inside.stop_requested,
    )


def _run_on_several_devices(config: dict[str, Any], share: Share) -> None:
    gpu = {"GPU": 1} if config["use_gpu"] else {}
    # Train would resume from its own state if it found one under this name; ours is better.
    name = f"{Path(config['folder']).name}-{uuid.uuid4().hex}"
    ray.train.torch.TorchTrainer(
        _rank_main,
        train_loop_config=config,
        scaling_config=train.ScalingConfig(
            num_workers=share.devices,
            use_gpu=config["use_gpu"],
            resources_per_worker={"CPU": share.cpus, **gpu},
        ),
        torch_config=ray.train.torch.TorchConfig(backend="nccl" if gpu else "gloo"),
        run_config=train.RunConfig(name=name, storage_path=config["scratch"]),
    ).fit()


def _rank_main(config: dict[str, Any]) -> None:
    context = train.get_context()
    devices = replace(
        _place(config),
        device=str(ray.train.torch.get_device()),
        rank=context.get_world_rank(),
        world_size=context.get_world_size(),
    )
    run_stage(RunFolder(Path(config["folder"])), devices)


@contextlib.contextmanager
def local_ray(folder: StudyFolder) -> Iterator[Path]:
    """A Ray of our own on this machine, for the block; yields its scratch folder.

    Its address is its own (a bare `ray.init()` would join any cluster it finds), its folder is
    short (sockets allow 107 bytes), and only holders of the study's token may use it
    (`harness.ray_environment`). The caller holds the study's lock, so folders that a killed sweep
    of this study has left are nobody's, and are removed.
    """
    digest = hashlib.sha256(str(folder.path).encode()).hexdigest()[:8]
    prefix = f"fewscan-{os.getuid()}-{digest}-"
    for leftover in Path("/tmp").glob(f"{prefix}*"):
        _remove(leftover)
    scratch = Path(tempfile.mkdtemp(prefix=prefix, dir="/tmp"))
    try:
        ray.init(
            address="local",
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
            _temp_dir=str(scratch),
        )
        yield scratch
    finally:
        ray.shutdown()
        _remove(scratch)


def _remove(scratch: Path) -> None:
    for folder in node_folder.beside(scratch):
        node_folder.remove(folder)
    shutil.rmtree(scratch, ignore_errors=True)


@contextlib.contextmanager
def cluster_ray() -> Iterator[Path]:
    """The Ray cluster that Slurm's jobs make, as its driver; yields a scratch folder."""
    with tempfile.TemporaryDirectory(prefix="fewscan-") as scratch:
        ray.init(
            address=os.environ["RAY_ADDRESS"], log_to_driver=False, logging_level=logging.ERROR
        )
        try:
            yield Path(scratch)
        finally:
            ray.shutdown()
