import io
import json
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from fewscan.harness.listing import render_estimate
from fewscan.harness.on_slurm import launch_sweep, render_cluster, workers_wanted
from fewscan.harness.plan import Plan
from fewscan.harness.planner import make_plan
from fewscan.harness.status import read_paces, read_status
from fewscan.harness.study import Study
from fewscan.slurm import Settings
from fewscan.slurm.folder import Folder, HeadRecord, Launch
from fewscan.storage.atomic import write_json
from fewscan.storage.errors import StudyError
from fewscan.storage.runs import StudyFolder


def finish(plan: Plan, *indices: int) -> None:
    for index in indices:
        folder = plan.folder_of(plan.runs[index])
        folder.path.mkdir(parents=True, exist_ok=True)
        folder.result.write_text("{}")


@pytest.mark.parametrize(
    ("slurm", "resources", "expected"),
    [
        ({"cpus": 1, "max_workers": 50}, {}, 5),
        ({"cpus": 4, "max_workers": 50}, {}, 2),
        ({"cpus": 3, "max_workers": 50}, {"finetune": {"cpus": 2}, "pretrain": {"cpus": 2}}, 5),
        ({"cpus": 4, "gpus": 1, "max_workers": 50}, {"finetune": {"gpu_share": 0.5}}, 3),
        ({"cpus": 4, "gpus": 1, "max_workers": 50}, {"pretrain": {"devices": 2}}, 6),
        ({"cpus": 4, "gpus": 1, "max_workers": 50}, {"finetune": {"gpu_share": 0.4}}, 3),
    ],
)
def test_as_many_workers_as_ready_runs_would_fill(
    tiny_study: Callable[..., Study],
    slurm: dict[str, Any],
    resources: dict[str, Any],
    expected: int,
) -> None:
    """At first the pre-training and four scratch runs are ready."""
    plan = make_plan(tiny_study(slurm=slurm, resources=resources))
    assert workers_wanted(read_status(plan)) == expected


def test_no_worker_is_wanted_for_runs_that_wait_or_have_failed(
    tiny_study: Callable[..., Study],
) -> None:
    plan = make_plan(tiny_study(slurm={"cpus": 1}))
    scratch = [i for i, run in enumerate(plan.runs) if run.place.arm.is_scratch]
    finish(plan, *scratch)
    assert workers_wanted(read_status(plan)) == 1
    pretraining = plan.folder_of(plan.runs[0])
    plan.record(plan.runs[0]).write(pretraining)
    pretraining.fail(ValueError("no"))
    assert workers_wanted(read_status(plan)) == 0
    pretraining.error.unlink()
    finish(plan, 0)
    assert workers_wanted(read_status(plan)) == 5
    finish(plan, *range(len(plan.runs)))
    assert workers_wanted(read_status(plan)) == 0


def test_a_study_without_slurm_says_what_to_add(tiny_study: Callable[..., Study]) -> None:
    with pytest.raises(StudyError, match=r"(?s)does not say which jobs.*slurm=\{partition"):
        launch_sweep(make_plan(tiny_study()))


@pytest.mark.parametrize(
    ("slurm", "resources", "message"),
    [
        ({"cpus": 2}, {"finetune": {"cpus": 3}}, r"finetune takes 1 × \(3 CPUs"),
        ({"cpus": 2, "max_workers": 3}, {"pretrain": {"devices": 8}}, "pretrain takes 8"),
        (
            {"cpus": 8, "gpus": 2, "max_workers": 3},
            {"pretrain": {"devices": 7}},
            "3 workers of 8 CPUs and 2 GPUs",
        ),
        ({"cpus": 8}, {"device": "cuda"}, "workers get no GPU"),
        ({"time_limit_min": 5}, {"checkpoint_every_s": 300}, "no time to start anything"),
    ],
)
def test_runs_that_would_wait_for_ever_are_refused_before_anything_is_submitted(
    tiny_study: Callable[..., Study],
    monkeypatch: pytest.MonkeyPatch,
    slurm: dict[str, Any],
    resources: dict[str, Any],
    message: str,
) -> None:
    monkeypatch.setattr("fewscan.harness.on_slurm.launch", pytest.fail)
    plan = make_plan(tiny_study(slurm=slurm, resources=resources))
    with pytest.raises(StudyError, match=message):
        launch_sweep(plan)


def test_a_worker_closes_early_enough_for_a_checkpoint(
    tiny_study: Callable[..., Study], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    monkeypatch.setattr(
        "fewscan.harness.on_slurm.launch", lambda *call: asked.append(call[2]) or "1"
    )
    for every_s in (10, 600):
        launch_sweep(make_plan(tiny_study(slurm={}, resources={"checkpoint_every_s": every_s})))
    assert [settings.closing_s for settings in asked] == [60, 630]


def text_of(folder: StudyFolder) -> str:
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(render_cluster(folder))
    return console.export_text()


def test_jobs_are_told_from_the_disk_where_slurm_has_no_commands(
    tiny_study: Callable[..., Study], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    plan = make_plan(tiny_study(slurm={}))
    folder = Folder(plan.folder.cluster)
    folder.prepare()
    folder.write_launch(Launch("1", ("true",), "/", Settings()))
    folder.write_head_job(HeadRecord("7", time.time() - 600, 0))
    assert "head job 7 was submitted 10 min ago" in text_of(plan.folder)
    seen = {
        "jobs": [
            {"id": "7", "role": "head", "state": "RUNNING", "reason": "None", "node": "n1"},
            {"id": "8", "role": "worker", "state": "PENDING", "reason": "QOSMax", "node": ""},
        ],
        "seen_unix": time.time() - 90,
        "since_unix": time.time() - 690,
        "slurm_commands": 30,
        "wanted": 1,
    }
    write_json(folder.elastic_file, seen)
    text = text_of(plan.folder)
    assert re.search("7 +│ head +│ RUNNING +│ +│ n1", text)
    assert re.search("8 +│ worker +│ PENDING +│ QOSMax", text)
    assert "as Slurm said 90 s ago" in text
    assert "3.0 Slurm commands a minute" in text
    assert "there is no squeue here" in text


def test_the_pace_is_that_of_the_runs_under_way(tiny_study: Callable[..., Study]) -> None:
    plan = make_plan(tiny_study())
    assert "unknown until a run trains" in render_estimate(read_status(plan))
    run = plan.runs[0]
    folder = plan.folder_of(run)
    plan.record(run).write(folder)
    folder.append_event("started", step=1)
    beat = {"step": 3, "steps": 4, "host": "n1", "time": time.time() + 4}
    folder.progress.write_text(json.dumps(beat))
    (pace,) = read_paces(read_status(plan))
    assert pace.steps_per_s == pytest.approx(0.5, rel=0.1)
    assert pace.slices_per_s == pytest.approx(4 * pace.steps_per_s)
    left = sum(r.flops for r in plan.runs) - run.flops * 3 / 4
    minutes = left / pace.flops_per_s / 60
    assert f"all is done in {round(minutes)} min" in render_estimate(read_status(plan))
    folder.append_event("finished", step=4, seconds=3600.0)
    folder.result.write_text("{}")
    hours = sum(other.flops for other in plan.runs[1:]) / run.flops
    assert f": {hours:.3g} device-hours, as fast as" in render_estimate(read_status(plan))


@pytest.mark.parametrize(("failed", "over"), [((0,), False), (range(18), True)])
def test_a_study_is_over_when_nothing_can_be_done(
    tiny_study: Callable[..., Study], failed: Iterable[int], over: bool
) -> None:
    plan = make_plan(tiny_study())
    for index in failed:
        folder = plan.folder_of(plan.runs[index])
        plan.record(plan.runs[index]).write(folder)
        folder.fail(ValueError("no"))
    assert read_status(plan).is_over is over


def test_what_no_node_can_see_is_refused(
    tiny_study: Callable[..., Study], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slurm = {"cpus": 4, "max_workers": 1}
    in_memory = Path(tempfile.mkdtemp(dir="/dev/shm"))
    try:
        study = tiny_study(slurm=slurm, folder=str(in_memory / "study"))
        with pytest.raises(StudyError, match=r"the study's folder is in this machine's memory"):
            launch_sweep(make_plan(study))
    finally:
        shutil.rmtree(in_memory)
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    monkeypatch.setenv("PWD", str(here))
    here.rmdir()
    with pytest.raises(StudyError, match="the directory of the launch is gone"):
        launch_sweep(make_plan(tiny_study(slurm=slurm)))
