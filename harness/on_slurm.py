"""A sweep as the driver of an elastic cluster: launch it, say how many workers it can use."""

import math
import os
import sys
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table

from fewscan.harness.plan import Plan
from fewscan.harness.status import StudyStatus
from fewscan.harness.study import Share, Study
from fewscan.harness.study_file import dump_study
from fewscan.slurm import Settings, Status, launch
from fewscan.slurm import status as cluster_status
from fewscan.storage.atomic import write_bytes
from fewscan.storage.errors import StudyError
from fewscan.storage.runs import OVER, StudyFolder

OF_ONE_MACHINE = (Path("/dev/shm"), Path("/run"))
"""What lies in here no other machine can see, however a cluster is made."""
START_UP_S = 30
"""From the start of a run's process to its first step: imports, slices, a compiled step."""


def launch_sweep(plan: Plan) -> str:
    """Submit the head's job, which sweeps the study; returns its id at once.

    Raises `StudyError` if the study says nothing about Slurm or something lies where no other
    machine can see it, `ClusterError` if Slurm refuses, `NotWritableError` or `DiskFullError` if
    the study's folder cannot be written.
    """
    settings = plan.study.slurm
    if settings is None:
        raise StudyError(
            "the study does not say which jobs to submit",
            where="slurm",
            expected="a section slurm with at least partition, cpus or gpus, and max_workers",
            remedy='for example: --set "slurm={partition: gpu, gpus: 1, max_workers: 8}"',
        )
    require_fit(plan.study, settings)
    require_seen_by_nodes(plan)
    settings = with_room_to_start(plan.study, settings)
    folder = plan.folder
    folder.prepare()
    write_bytes(folder.study, dump_study(plan.study).encode())
    driver = [sys.executable, "-P", "-m", "fewscan.harness.cli", "sweep", str(folder.study)]
    return launch(driver, folder.cluster, settings)


def require_seen_by_nodes(plan: Plan) -> None:
    """Refuse what lies in this machine's memory, or is gone. Raises `StudyError`.

    Whether nodes see the rest, `fewscan doctor` finds out by looking from one.
    """
    here = Path(os.environ.get("PWD", "/"))
    with suppress(FileNotFoundError):
        here = Path.cwd()
    places = {"the directory of the launch": here, "the study's folder": plan.folder.path}
    places |= {f"the store {store.path.name}": store.path for store in plan.all_stores}
    for what, path in places.items():
        if what.endswith("launch") and not path.is_dir():
            found = "is gone"
        elif any(path.resolve().is_relative_to(own) for own in OF_ONE_MACHINE):
            found = "is in this machine's memory"
        else:
            continue
        raise StudyError(
            f"{what} {found}",
            where=path,
            expected="a place on a disk that all nodes share",
            remedy="move it to the cluster's shared disk, and launch from there; "
            "`fewscan doctor STUDY` looks from a node",
        )


def workers_wanted(status: StudyStatus) -> int:
    """How many workers would have something to do now: those that the ready runs would fill."""
    settings = status.plan.study.slurm
    if settings is None:
        return 0
    done = {run_id for run_id, state in status.states.items() if state == "finished"}
    workers = 0.0
    for run in status.plan.runs:
        waits = any(parent in status.states and parent not in done for parent in run.parents)
        if status.states[run.run_id] not in OVER and not waits:
            share = status.plan.share_of(run)
            fit = devices_per_worker(status.plan.study, share, settings)
            workers += share.devices / max(1, fit)
    return math.ceil(workers)


def devices_per_worker(study: Study, share: Share, settings: Settings) -> int:
    """How many devices of such runs fit on one worker."""
    fit = settings.cpus // share.cpus
    if settings.gpus and study.resources.device != "cpu":
        fit = min(fit, int(settings.gpus / share.gpu_share))
    return fit


def require_fit(study: Study, settings: Settings) -> None:
    """Refuse runs that would wait for ever. Raises `StudyError`."""
    if study.resources.device == "cuda" and not settings.gpus:
        raise StudyError(
            "runs want CUDA, and workers get no GPU",
            where="slurm.gpus",
            expected="at least 1 with resources.device: cuda",
            remedy="set slurm.gpus, or resources.device to auto or cpu",
        )
    for stage in ["finetune", "score", *(["pretrain"] if study.pretrain else [])]:
        share = study.resources.share_of(stage)
        fit = devices_per_worker(study, share, settings)
        if fit * settings.max_workers < share.devices or not fit:
            raise StudyError(
                f"a run of {stage} takes {_words(share)}, and {settings.max_workers} workers of "
                f"{settings.cpus} CPUs and {settings.gpus} GPUs have no room for it: "
                "it would wait for ever",
                where=f"resources.{stage}",
                expected="a device's CPUs on one worker, and all devices on max_workers of them",
                remedy=f"raise slurm.cpus, slurm.gpus or slurm.max_workers, or lower "
                f"resources.{stage}",
            )


def _words(share: Share) -> str:
    return f"{share.devices} × ({share.cpus} CPUs, {share.gpu_share:g} of a GPU if there is one)"


def with_room_to_start(study: Study, settings: Settings) -> Settings:
    """The settings, with workers that close early enough for a start-up and a checkpoint.

    Raises `StudyError` if their time limit has no room for it.
    """
    every_s = study.resources.checkpoint_every_s
    closing_s = max(settings.closing_s, math.ceil(every_s + START_UP_S))
    try:
        return replace(settings, closing_s=closing_s)
    except ValueError as error:
        raise StudyError(
            str(error),
            where="slurm.time_limit_min",
            expected=f"time for a start-up ({START_UP_S} s) and a checkpoint every {every_s:g} s",
            remedy="raise slurm.time_limit_min, or lower resources.checkpoint_every_s",
        ) from error


def render_cluster(folder: StudyFolder) -> RenderableType:
    """The Slurm jobs of a study, and what went wrong with them."""
    status = cluster_status(folder.cluster)
    table = Table(title=f"Slurm: {status.state} ({status.detail})", title_justify="left")
    for column in ("job", "role", "state", "reason", "node", "phase", "ends in"):
        table.add_column(column)
    if head := status.head:
        table.add_row(head.id, "head", head.state, _reason(head.reason), head.node)
    for it in status.workers:
        left = "" if it.seconds_left is None else f"{it.seconds_left / 60:.0f} min"
        table.add_row(it.job, "worker", it.state, _reason(it.reason), it.node, it.phase, left)
    failures = [f"[red]{escape(f.text)}[/]\n    {f.log or ''}".rstrip() for f in status.failures]
    return Group(table, _about(status), *failures)


def _reason(reason: str) -> str:
    return "" if reason == "None" else reason


def _about(status: Status) -> str:
    """When that was so, how many workers there should be, what it costs Slurm."""
    if status.seen_unix is None:
        return "nobody has asked Slurm yet"
    parts = [f"as Slurm said {max(0, time.time() - status.seen_unix):.0f} s ago"]
    if status.wanted is not None:
        parts.append(f"{status.wanted} workers wanted")
    if status.commands_per_min is not None:
        parts.append(f"the head gives {status.commands_per_min:.1f} Slurm commands a minute")
    if status.generation > 1:
        parts.append(f"{status.generation} heads so far")
    return "; ".join(parts)
