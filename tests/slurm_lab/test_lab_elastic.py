"""The cluster on a real Slurm: it grows, shrinks, loses nodes and heads, and loses no work."""

from collections.abc import Callable

import lab
import pytest
from toy_driver import CHECKPOINT_EVERY
from toy_study import Study

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(600)]
MakeStudy = Callable[..., Study]


def test_workers_join_one_after_the_other(study: MakeStudy) -> None:
    blockers = [lab.take(node, 300) for node in ("n2", "n3")]
    toy = study(units=8, steps=100)
    toy.launch()
    toy.until(lambda s: s.trace())  # work starts with the first
    for count, blocker in enumerate(blockers, start=2):
        assert len(toy.joined()) == count - 1
        lab.slurm("scancel", blocker)
        toy.until(lambda s, count=count: len(s.joined()) == count)
    toy.finish()
    assert len({line["node"] for line in toy.trace()}) == 3
    assert toy.lost_steps() == 0


def test_a_preempted_worker_comes_back(study: MakeStudy) -> None:
    toy = study(units=6, steps=150)
    toy.launch()
    toy.until(lambda s: len(s.joined()) == 3 and len(s.trace()) > 20)
    job, node = next((j, n) for j, n in toy.joined().items() if n != toy.status().head.node)
    lab.take(node, 10)
    toy.until(lambda s: job not in s.joined())
    toy.until(lambda s: job in s.joined())
    toy.finish()
    assert toy.lost_steps() == 0  # the tasks saw it coming, and checkpointed


def test_a_node_dies_and_returns(study: MakeStudy) -> None:
    toy = study(units=6, steps=150)
    toy.launch()
    toy.until(lambda s: len(s.joined()) == 3 and len(s.trace()) > 20)
    node = next(n for n in toy.joined().values() if n != toy.status().head.node)
    lab.kill_node(node)
    toy.until(lambda s: "DOWN" in lab.slurm("scontrol", "show", "node", node))
    lab.start_node(node)
    toy.finish()
    assert toy.lost_steps() <= 2 * CHECKPOINT_EVERY


@pytest.mark.parametrize("how", ["preempted", "killed", "requeued"])
def test_the_head_is_lost(study: MakeStudy, how: str) -> None:
    toy = study(units=6, steps=150)
    toy.launch()
    toy.until(lambda s: len(s.joined()) == 3 and len(s.trace()) > 20)
    head = toy.status().head
    if how == "preempted":
        lab.take(head.node, 5)
    elif how == "requeued":
        lab.slurm("scontrol", "requeue", head.id)
    else:
        lab.kill_supervisor(head.node, head.id)
    toy.until(lambda s: s.status().generation == 2)
    toy.finish()
    assert toy.lost_steps() <= 6 * CHECKPOINT_EVERY
