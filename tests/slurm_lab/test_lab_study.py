"""A real study on a real Slurm, preempted and out of time: its results are those of one left alone.

What comes without warning, and what happens to the head, is drawn in `test_lab_monkey.py`.
"""

import time

import lab
import pytest
from conftest import MakeStudy
from lab_study import LabStudy, events, until

from fewscan.slurm.folder import Folder, read_json
from fewscan.storage.runs import RunFolder

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(1800)]


def node_without_head(study: LabStudy, nodes: dict[str, str]) -> tuple[str, str]:
    """A worker's job and node that the head is not on."""
    head = study.status().head
    assert head is not None
    return next((job, node) for job, node in nodes.items() if node != head.node)


def run_on(node: str, runs: dict[RunFolder, str]) -> RunFolder:
    """The run that trains on `node`."""
    return next(run for run, place in runs.items() if place == node)


def start_s(study: LabStudy) -> float:
    """From sbatch to the first step of the first run."""
    submitted = read_json(study.cluster / "head_job.json")["submitted_unix"]
    started = [e.time for run in study.runs() for e in events(run, "started")]
    return float(min(started)) - float(submitted)


def commands(study: LabStudy) -> int:
    """How many Slurm commands this generation's head has given."""
    return int(read_json(study.cluster / "elastic.json")["slurm_commands"])


def test_workers_join_are_preempted_and_the_study_is_cancelled_and_launched_again(
    make_study: MakeStudy, figures: list[str]
) -> None:
    blockers = [lab.take(node, 3600) for node in ("n2", "n3")]
    until(lambda: lab.states() == dict.fromkeys(blockers, "RUNNING"))
    study = make_study()
    head = study.launch()
    assert study.launch() == head  # the same on a running study changes nothing
    assert list(study.until_training(1).values()) == ["n1"]  # work starts with the first
    figures.append(f"from sbatch to the first training step: {start_s(study):.1f} s")
    for count, blocker in enumerate(blockers, start=2):
        assert len(study.joined()) == count - 1
        lab.slurm("scancel", blocker)
        study.until_training(count)
    runs = study.until_training(3)

    job, node = node_without_head(study, study.joined())
    run, before = run_on(node, runs), (time.time(), commands(study))
    seen_step = run.read_progress()["step"]
    lab.take(node, 5)
    study.until(lambda s: job not in s.joined())
    study.until(lambda s: job in s.joined())
    back_s = time.time() - before[0]
    again = study.until(lambda s: len(e := events(run, "started")) > 1 and e[-1])
    assert again.step >= seen_step  # it saw the end coming, and checkpointed
    per_min = 60 * (commands(study) - before[1]) / (time.time() - before[0])
    figures.append(
        f"a preemption: {max(0, seen_step - again.step)} steps lost, the run trains again after "
        f"{again.time - before[0]:.1f} s, the worker is back after {back_s:.1f} s"
    )
    figures.append(f"Slurm commands of the head: {per_min:.0f} a minute at a poll_s of 3 s")

    study.until_training(3)
    study.command("cancel")
    study.until_ended("cancelled")
    left_at = {run: events(run, "checkpoint")[-1].step for run in runs}
    assert study.command("sweep", "--on", "slurm")
    study.finish()
    for run, step in left_at.items():
        assert events(run, "started")[-1].step >= step  # it went on, it did not begin again
    head = Folder(study.cluster).head_job()
    assert head is not None
    shown = lab.slurm("scontrol", "show", "job", head.job)
    assert "Requeue=0" in shown, "a node that is missed later would bring it back"


def test_every_job_runs_into_its_time_limit_more_than_once(make_study: MakeStudy) -> None:
    study = make_study(time_limit_min=2, max_workers=2, signal_delay_s=20, closing_s=35)
    study.launch()
    study.until_training(2)
    jobs = study.jobs()
    study.until(lambda s: min(lab.restarts(job) for job in jobs) >= 2, wait_s=900)
    study.finish()
