"""The first estimate of what a study costs: what is timed, on which device, and what is made of it.

The clock is not the machine's, so that no test decides on time.
"""

from collections.abc import Callable, Iterator
from itertools import count
from typing import Any

import pytest
import torch

from fewscan.experiments.cost import forward_flops
from fewscan.experiments.devices import Devices
from fewscan.experiments.pace import WITHIN_S, flops_per_s
from fewscan.experiments.spec import Network, Training
from fewscan.harness.first_pace import FirstPace, first_pace
from fewscan.harness.listing import render_estimate
from fewscan.harness.plan import Plan, PlannedRun
from fewscan.harness.planner import make_plan
from fewscan.harness.status import read_status
from fewscan.harness.study import Study

TRAINING = Training(iterations=10, validate_every=5, batch_size=4, precision="fp32")
HERE = Devices()


def ticking(seconds: float) -> Callable[[], float]:
    """A clock that goes on by so much whenever it is looked at."""
    ticks: Iterator[float] = count(0.0, seconds)
    return lambda: next(ticks)


@pytest.mark.parametrize(
    "network", [Network(4, 2), Network(4, 3, 3, (4, 16, 24), 1)], ids=["slices", "patches"]
)
def test_a_fast_device_is_timed_at_the_study_s_own_batch(network: Network) -> None:
    """The last step's arithmetic, three times a forward pass, by the tick that it took."""
    tick = WITHIN_S / 1e6
    found = flops_per_s(network, TRAINING, 3, 24, HERE, ticking(tick))
    assert found == pytest.approx(4 * 3 * forward_flops(network, 3, 3, 24) / tick)


def test_a_slow_device_is_timed_on_small_slices_alone() -> None:
    network = Network(4, 2)
    found = flops_per_s(network, TRAINING, 3, 64, HERE, ticking(WITHIN_S))
    assert found == pytest.approx(3 * forward_flops(network, 3, 3, 4) / WITHIN_S)


def test_nothing_is_left_behind() -> None:
    before, threads = torch.get_rng_state(), torch.get_num_threads()
    flops_per_s(Network(4, 2), TRAINING, 1, 8, Devices(threads=threads + 1))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.get_num_threads() == threads


def test_the_study_is_timed_where_it_would_run(
    tiny_study: Callable[..., Study], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for device in ("cpu", "auto"):
        pace = first_pace(make_plan(tiny_study(resources={"device": device})))
        assert pace is not None
        assert pace.flops_per_s > 0
        assert pace.device == "cpu, 1 thread"
    assert first_pace(make_plan(tiny_study(resources={"device": "cuda"}))) is None
    on_cluster = make_plan(tiny_study(slurm={"partition": "gpu"}))
    assert first_pace(on_cluster) is None
    assert "unknown until a run trains" in render_estimate(read_status(on_cluster), first_pace)


def finish(plan: Plan, run: PlannedRun, seconds: float) -> None:
    folder = plan.folder_of(run)
    plan.record(run).write(folder)
    folder.append_event("finished", step=4, seconds=seconds)
    folder.result.write_text("{}")


def test_scores_tell_nothing_of_trainings(tiny_study: Callable[..., Study], tmp_path: Any) -> None:
    """Once a score of the images alone, which has no arithmetic, ended the command, and one of a
    network made trainings seem thousands of times as long as they are."""
    plan = make_plan(tiny_study(baselines=["unsupervised", "supervised", "smoothed"]))
    (image,) = [run for run in plan.runs if run.kind == "score" and not run.parents]
    finish(plan, image, seconds=36.0)
    asked: list[Plan] = []

    def measure(plan: Plan) -> FirstPace:
        asked.append(plan)
        return FirstPace(1e6, "a device")

    assert "unknown until a run trains" in render_estimate(read_status(plan))
    first = render_estimate(read_status(plan), measure)
    scores = sum(run.kind == "score" for run in plan.runs) - 1
    trainings = [run for run in plan.runs if run.kind != "score"]
    hours = (scores * 36 + sum(run.flops for run in trainings) / 1e6) / 3600
    assert f"about {float(f'{hours:.2g}'):,g} device-hours by a few steps timed here" in first
    assert asked == [plan]
    finish(plan, trainings[0], seconds=72.0)
    left = sum(run.flops for run in trainings[1:])
    hours = (scores * 36 + 72 * left / trainings[0].flops) / 3600
    seen = render_estimate(read_status(plan), measure)
    assert f"{hours:.3g} device-hours, as fast as the finished runs were" in seen
    assert asked == [plan], "the finished runs tell it"
