"""Slurm as the scheduler: the contract, on faked commands; and the variables it sets in a job."""

import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import fake_slurm
import pytest
from scheduler_contract import MakeScheduler, SchedulerContract

from fewscan.slurm import slurm_scheduler
from fewscan.slurm.allocation import Allocation
from fewscan.slurm.folder import Folder
from fewscan.slurm.schedulers import SCHEDULERS, scheduler_for
from fewscan.slurm.settings import Settings
from fewscan.slurm.slurm_scheduler import read_allocation
from fewscan.storage.errors import ClusterError


class TestSlurm(SchedulerContract):
    name = "slurm"

    @pytest.fixture
    def make(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[MakeScheduler]:
        folder = tmp_path / "fake"
        binaries = fake_slurm.install(folder)
        monkeypatch.setenv(fake_slurm.ENVIRONMENT, str(folder))
        monkeypatch.setenv("PATH", f"{binaries}:{os.environ['PATH']}")
        with fake_slurm.serving(folder):
            yield SCHEDULERS[self.name]


def test_a_scheduler_that_does_not_exist_is_named(tmp_path: Path) -> None:
    with pytest.raises(ClusterError, match="no scheduler 'smurf'") as caught:
        scheduler_for(Folder(tmp_path), Settings(scheduler="smurf"))
    assert "slurm" in str(caught.value)


def test_without_commands_every_question_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    scheduler = scheduler_for(Folder(tmp_path), Settings())
    with pytest.raises(ClusterError, match="there is no squeue here"):
        scheduler.look()
    checks = {check.name: check for check in scheduler.checks()}
    assert not checks["sbatch"].ok
    assert not checks["controller"].ok


def given(**variables: str) -> Allocation:
    env = {"SLURM_JOB_ID": "7", "ELASTIC_JOB_STARTED": "1000", **variables}
    return read_allocation(env, 60, grace_s=120.0, kill_wait_s=30.0)


SAID = {
    "config": "Configuration data\nKeepAliveTime = 7 sec\nKillWait                = {} sec",
    "partition": "PartitionName=main\n   DisableRootJobs=NO GraceTime={} Hidden=NO",
}


@pytest.mark.parametrize(
    ("kill_wait", "grace", "found"), [(10, 0, (10.0, 10.0)), (30, 600, (600.0, 30.0))]
)
def test_the_time_to_sigkill_is_slurms_word(
    monkeypatch: pytest.MonkeyPatch, kill_wait: int, grace: int, found: tuple[float, float]
) -> None:
    said = {
        "config": SAID["config"].format(kill_wait),
        "partition": SAID["partition"].format(grace),
    }
    monkeypatch.setattr(slurm_scheduler, "run", lambda command: said[command[2]])
    assert slurm_scheduler.read_grace("main") == found


def test_without_slurms_word_it_is_slurms_default(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(command: object) -> str:
        raise ClusterError("no controller")

    monkeypatch.setattr(slurm_scheduler, "run", refuse)
    assert slurm_scheduler.read_grace("main") == (30.0, 30.0)


def test_each_way_of_being_stopped_has_its_time() -> None:
    share, settings = given(), Settings(signal_delay_s=90)
    assert share.seconds_to_stop(settings, signal.SIGTERM, cancelled=False) == 115
    assert share.seconds_to_stop(settings, signal.SIGUSR2, cancelled=False) == 70
    assert share.seconds_to_stop(settings, signal.SIGTERM, cancelled=True) == 25
    assert share.seconds_to_stop(settings, None, cancelled=True) == 25


def test_cpus_are_those_of_the_job_within_those_of_the_process() -> None:
    usable = len(os.sched_getaffinity(0))
    assert given().cpus == usable
    assert given(SLURM_CPUS_ON_NODE="1").cpus == 1
    assert given(SLURM_CPUS_ON_NODE="1", SLURM_CPUS_PER_TASK="999").cpus == usable


@pytest.mark.parametrize(
    ("variables", "gpus"),
    [({}, 0), ({"SLURM_GPUS_ON_NODE": "4"}, 4), ({"SLURM_JOB_GPUS": "2,5"}, 2)],
)
def test_gpus_are_counted(variables: dict[str, str], gpus: int) -> None:
    assert given(**variables).gpus == gpus


def test_memory_is_shared_between_tasks_and_objects() -> None:
    share = given(SLURM_MEM_PER_NODE="8000")
    assert share.memory + share.object_store == 8000 << 20
    assert share.object_store <= shutil.disk_usage("/dev/shm").total
    by_cpu = given(SLURM_MEM_PER_CPU="4000", SLURM_CPUS_ON_NODE="2")
    assert (by_cpu.memory, by_cpu.object_store) == (share.memory, share.object_store)


def test_the_end_is_slurms_word_or_start_plus_limit() -> None:
    assert given().ends_unix == 1000 + 3600
    assert given(SLURM_JOB_END_TIME="1234").ends_unix == 1234
