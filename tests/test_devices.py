"""What a run's threads do with numbers that are too small."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from fewscan.experiments import stages
from fewscan.experiments.devices import Devices, tiny_numbers_as_zero
from fewscan.experiments.results import Result
from fewscan.harness.planner import make_plan
from fewscan.harness.study import Study
from fewscan.storage.runs import RunFolder

MANY = 1 << 20  # enough for torch to share the work among its threads


def tiny_numbers() -> int:
    """How many numbers of about 1e-40 are not taken as zero."""
    return int((torch.full((MANY,), 1e-30) * 1e-10).count_nonzero())


def test_every_thread_takes_them_as_zero_for_the_block_alone() -> None:
    def rank() -> tuple[int, bool]:
        torch.set_num_threads(2)
        with tiny_numbers_as_zero():
            within = tiny_numbers()
        return within, bool((torch.full((1,), 1e-30) * 1e-10).any())

    threads = torch.get_num_threads()
    with ThreadPoolExecutor(1) as pool:
        found = pool.submit(rank).result()
    torch.set_num_threads(threads)
    assert found == (0, True)


@pytest.mark.parametrize(("kind", "left"), [("pretrain", 0), ("finetune", 0), ("score", MANY)])
def test_a_training_takes_them_as_zero_and_a_score_does_not(
    kind: str, left: int, tiny_study: Callable[..., Study], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A CPU is a hundred times as slow with each; but scipy's `cKDTree` overflows its stack without
    them, which killed one score of fifty (MONAI compares surfaces by it)."""
    plan = make_plan(tiny_study())
    run = next(it for it in plan.runs if it.kind == kind)
    folder = plan.folder_of(run)
    plan.record(run).write(folder)
    found = []

    def stage(spec: object, folder: RunFolder, devices: Devices) -> Result:
        found.append(tiny_numbers())
        return Result(run.kind)

    monkeypatch.setitem(stages.STAGES, run.kind, stage)
    stages.run_stage(folder, Devices())
    assert found == [left]
    assert (torch.full((1,), 1e-30) * 1e-10).any(), "not for what follows in this process"
