"""A sweep as the driver of an elastic cluster: launch it, say how many workers it can use."""

import math
import sys

from rich.console import Group, RenderableType
from rich.table import Table

from harness.plan import Plan, PlannedRun
from harness.status import StudyStatus
from harness.study import dump_study
from slurm import Settings, launch
from slurm import status as cluster_status
from storage.atomic import write_bytes
from storage.errors import StudyError
from storage.runs import StudyFolder


def launch_sweep(plan: Plan) -> str:
    """Submit the head's job, which sweeps the study; returns its id at once.

    Raises `StudyError` if the study says nothing about Slurm, `ClusterError` if Slurm refuses.
    """
    settings = plan.study.slurm
    if settings is None:
        raise StudyError(
            "the study does not say which jobs to submit",
            where="slurm",
            expected="a section slurm with at least partition, cpus or gpus, and max_workers",
            remedy='for example: --set "slurm={partition: gpu, gpus: 1, max_workers: 8}"',
        )
    folder = plan.folder
    folder.runs.mkdir(parents=True, exist_ok=True)
    write_bytes(folder.study, dump_study(plan.study).encode())
    driver = [sys.executable, "-m", "harness.cli", "sweep", str(folder.study)]
    return launch(driver, folder.cluster, settings)


def workers_wanted(status: StudyStatus) -> int:
    """How many workers would have something to do now: those that the ready runs would fill."""
    settings = status.plan.study.slurm
    if settings is None:
        return 0
    done = {run_id for run_id, state in status.states.items() if state == "finished"}
    ready = [
        run
        for run in status.plan.runs
        if run.run_id not in done
        and status.states[run.run_id] != "failed"
        and all(parent in done or parent not in status.states for parent in run.parents)
    ]
    return math.ceil(sum(_part_of_worker(status.plan, run, settings) for run in ready))


def _part_of_worker(plan: Plan, run: PlannedRun, settings: Settings) -> float:
    share = plan.share_of(run)
    of_gpus = share.gpu_share / settings.gpus if settings.gpus else 0.0
    return share.devices * max(share.cpus / settings.cpus, of_gpus)


def render_cluster(folder: StudyFolder) -> RenderableType:
    """The Slurm jobs of a study, and what went wrong with them."""
    status = cluster_status(folder.cluster)
    table = Table(title=f"Slurm: {status.state} ({status.detail})", title_justify="left")
    for column in ("job", "state", "reason", "node", "phase"):
        table.add_column(column)
    if status.head:
        table.add_row(status.head.id, status.head.state, status.head.reason, "", "head")
    for worker in status.workers:
        table.add_row(worker.job, worker.state, worker.reason, worker.node, worker.phase)
    failures = [f"[red]{f.text}[/]\n    {f.log or ''}" for f in status.failures]
    return Group(table, *failures)
