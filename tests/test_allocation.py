"""What a job was given, read from Slurm's variables."""

import os
import shutil

import pytest

from fewscan.slurm.allocation import Allocation, address_towards, free_ports


def given(**variables: str) -> Allocation:
    return Allocation.here(60, {"SLURM_JOB_ID": "7", "ELASTIC_JOB_STARTED": "1000", **variables})


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


def test_ports_differ_and_loopback_leads_to_loopback() -> None:
    assert len(set(free_ports(8))) == 8
    assert address_towards("127.0.0.1") == "127.0.0.1"
