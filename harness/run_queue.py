"""Which run comes next: of those whose parents are finished, the one with the longest chain.

The driver of a sweep is the only one that starts runs, so the run folders are asked once, at the
start; after that the queue hears of each end. Nothing here looks at all runs again.
"""

import heapq
from collections.abc import Collection

from fewscan.harness.plan import Plan


class RunQueue:
    """The unfinished runs of a plan.

    `finished` are the ids of the plan's runs that have a result already. A parent that is not in
    the plan is an imported checkpoint, which is finished.
    """

    def __init__(self, plan: Plan, finished: Collection[str]) -> None:
        chain = chain_flops(plan)
        self._rank = {r.run_id: (-chain[r.run_id], n) for n, r in enumerate(plan.runs)}
        self._children: dict[str, list[str]] = {}
        self._waits_for: dict[str, set[str]] = {}
        self._ready: list[tuple[tuple[float, int], str]] = []
        self._put_back = 0
        for run in plan.runs:
            if run.run_id not in finished:
                parents = {p for p in run.parents if p in self._rank and p not in finished}
                for parent in parents:
                    self._children.setdefault(parent, []).append(run.run_id)
                self._wait(run.run_id, parents)

    def __len__(self) -> int:
        """Runs that are in the queue: ready, or waiting for a parent."""
        return len(self._ready) + len(self._waits_for)

    def first(self) -> str | None:
        """The run that `take` would return."""
        return self._ready[0][1] if self._ready else None

    def take(self) -> str | None:
        """Take the next run out of the queue; None while all wait for their parents."""
        return heapq.heappop(self._ready)[1] if self._ready else None

    def put_back(self, run_id: str) -> None:
        """A run that was preempted comes before all others: its children wait longest."""
        self._put_back += 1
        heapq.heappush(self._ready, ((-float("inf"), -self._put_back), run_id))

    def finish(self, run_id: str) -> None:
        """A run has its result: its children wait no longer for it."""
        for child in self._children.pop(run_id, ()):
            parents = self._waits_for.pop(child, None)
            if parents is not None:  # else another parent has failed
                self._wait(child, parents - {run_id})

    def fail(self, run_id: str) -> None:
        """A run has failed: what starts from it, directly or not, leaves the queue."""
        for child in self._children.pop(run_id, ()):
            if self._waits_for.pop(child, None) is not None:
                self.fail(child)

    def _wait(self, run_id: str, parents: set[str]) -> None:
        if parents:
            self._waits_for[run_id] = parents
        else:
            heapq.heappush(self._ready, (self._rank[run_id], run_id))


def chain_flops(plan: Plan) -> dict[str, float]:
    """For each run, its own arithmetic and that of the longest chain of runs that waits for it."""
    chain: dict[str, float] = {}
    after: dict[str, float] = {}
    for run in reversed(plan.runs):
        chain[run.run_id] = run.flops + after.get(run.run_id, 0.0)
        for parent in run.parents:
            after[parent] = max(after.get(parent, 0.0), chain[run.run_id])
    return chain
