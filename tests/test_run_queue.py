"""The order of runs, against the plain way of choosing: look at all of them, each time."""

import random
from collections.abc import Callable
from typing import Any, cast

import pytest

from fewscan.experiments.spec import Evaluation, Pretrain, Score, Training
from fewscan.harness.arms import Arm, Place
from fewscan.harness.plan import Plan, PlannedRun
from fewscan.harness.run_queue import RunQueue, chain_flops
from fewscan.harness.study import Study

TRAINING = Training(iterations=1, validate_every=1)


class PlainQueue:
    """Every unfinished run in order of its chain; the first whose parents are all finished."""

    def __init__(self, plan: Plan, finished: set[str]) -> None:
        chain = chain_flops(plan)
        self.parents = {run.run_id: run.parents for run in plan.runs}
        self.finished = set(finished)
        self.failed: set[str] = set()
        waiting = [run.run_id for run in plan.runs if run.run_id not in finished]
        self.waiting = sorted(waiting, key=lambda run_id: -chain[run_id])

    def is_finished(self, run_id: str) -> bool:
        return run_id in self.finished or run_id not in self.parents

    def drop_blocked(self) -> None:
        before = -1
        while before != len(self.failed):
            before = len(self.failed)
            blocked = [r for r in self.waiting if self.failed.intersection(self.parents[r])]
            self.waiting = [r for r in self.waiting if r not in blocked]
            self.failed.update(blocked)

    def take(self) -> str | None:
        for run_id in self.waiting:
            if all(map(self.is_finished, self.parents[run_id])):
                self.waiting.remove(run_id)
                return run_id
        return None


def random_plan(numbers: random.Random, study: Study) -> Plan:
    """Forty runs, each from scratch, from one of those before it or from an imported one."""
    runs: list[PlannedRun] = []
    for seed in range(40):
        init = numbers.choice([None, "imported", *(run.run_id for run in runs[-6:])])
        if init is None or numbers.random() < 0.5:
            spec: Any = Pretrain("data", study.network, TRAINING, seed=seed, init=init)
        else:
            also = numbers.sample([run.run_id for run in runs], numbers.randint(0, min(2, seed)))
            spec = Score(f"data {seed}", Evaluation(), (init, *also))
        place = Place(Arm("pre-training"), None, None, seed)
        runs.append(PlannedRun(spec, place, f"run {seed}", float(numbers.randint(1, 5))))
    return Plan(study, cast(Any, None), tuple(runs))


@pytest.mark.parametrize("seed", range(30))
def test_the_order_is_that_of_looking_at_all_runs(
    seed: int, tiny_study: Callable[..., Study]
) -> None:
    numbers = random.Random(seed)
    plan = random_plan(numbers, tiny_study())
    roots = [run.run_id for run in plan.runs if not set(run.parents) - {"imported"}]
    finished = {run_id for run_id in roots if numbers.random() < 0.3}
    queue, plain = RunQueue(plan, finished), PlainQueue(plan, finished)
    under_way: list[str] = []
    for _ in range(400):
        if numbers.random() < 0.5:
            first, taken = queue.first(), queue.take()
            assert first == taken == plain.take()
            under_way += [taken] if taken else []
        elif under_way:
            run_id = under_way.pop(numbers.randrange(len(under_way)))
            what = numbers.choice(["finish", "finish", "finish", "fail", "put back"])
            if what == "finish":
                queue.finish(run_id)
                plain.finished.add(run_id)
            elif what == "fail":
                queue.fail(run_id)
                plain.failed.add(run_id)
                plain.drop_blocked()
            else:
                queue.put_back(run_id)
                plain.waiting.insert(0, run_id)
        assert len(queue) == len(plain.waiting)


def test_a_chain_counts_what_waits_for_it(tiny_study: Callable[..., Study]) -> None:
    plan = random_plan(random.Random(0), tiny_study())
    chain = chain_flops(plan)
    for run in plan.runs:
        after = [chain[child.run_id] for child in plan.runs if run.run_id in child.parents]
        assert chain[run.run_id] == run.flops + max(after, default=0.0)
