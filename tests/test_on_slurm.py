from collections.abc import Callable
from typing import Any

import pytest

from harness.on_slurm import launch_sweep, workers_wanted
from harness.plan import Plan, make_plan
from harness.status import read_status
from harness.study import Study
from storage.errors import StudyError


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
        ({"cpus": 4, "gpus": 1, "max_workers": 50}, {"finetune": {"gpu_share": 0.5}}, 3),
        ({"cpus": 4, "gpus": 1, "max_workers": 50}, {"pretrain": {"devices": 2}}, 6),
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
    scratch = [i for i, run in enumerate(plan.runs) if run.init == "scratch" and i > 0]
    finish(plan, *scratch)
    assert workers_wanted(read_status(plan)) == 1
    pretraining = plan.folder_of(plan.runs[0])
    pretraining.create(plan.record(plan.runs[0]))
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
