"""All of a study's runs under one Ray Tune run: which of them starts when there is room.

A searcher offers the runs whose parents are finished, longest first, so there are no barriers. What
Ray remembers is never needed: which runs are finished, interrupted or failed is read from the run
folders, and starting again is the same as going on.
"""

import math
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.tune.search import Searcher

from fewscan.experiments.devices import require_cuda
from fewscan.experiments.stages import run_stage
from fewscan.harness.plan import Plan
from fewscan.harness.run_queue import RunQueue
from fewscan.harness.trial import Stage, config_of, needs_of, placement, run_trial
from fewscan.slurm.session import Session
from fewscan.storage.errors import DiskFullError, RunError, StudyError
from fewscan.storage.runs import RunFolder

INFRASTRUCTURE_RETRIES = 3
"""How often Tune starts a run again whose process died (memory, hardware); each goes on from its
checkpoint. An error that the run itself raised is never retried within a sweep."""

SILENT_AT_MOST = 5
"""How often a run is offered again that ended with neither a result nor a reason."""

RESOURCES_EVERY_S = 1.0
"""Between two questions to Ray about what the cluster has: each is a request to its head."""
FINISHED: str = Searcher.FINISHED
ROUNDING = 1e-6
"""Of a sum of shares of GPUs."""


class ReadyRuns(Searcher):  # type: ignore[misc] # Ray's classes have no types
    """Offers each unfinished run once its parents are finished, the longest chain first.

    No more than the cluster has room for, so that the choice is made when a place is free, and all
    free places are filled at once. `resources` says what the cluster has now; `on_offer` receives
    the id of each run that is offered.
    """

    def __init__(
        self,
        plan: Plan,
        use_gpu: bool,
        scratch: Path,
        resources: Callable[[], Mapping[str, float]],
        on_offer: Callable[[str], object] = lambda run_id: None,
    ) -> None:
        super().__init__(metric="finished", mode="max")
        self._plan = plan
        self._use_gpu = use_gpu
        self._scratch = scratch
        self._resources = resources
        self._on_offer = on_offer
        self._runs = {run.run_id: run for run in plan.runs}
        self._queue = RunQueue(plan, {r for r in self._runs if plan.folder.run(r).result.exists()})
        self._offered: dict[str, str] = {}
        self._silent: Counter[str] = Counter()
        self._said: str | None = None

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """The config of a run that can start; None while there is none; FINISHED at the end."""
        config = self._next(trial_id)
        words = self._waits_for()
        if words != self._said:
            self._said = words
            self._plan.folder.say_waiting(words)
        return config

    def _next(self, trial_id: str) -> dict[str, Any] | str | None:
        session = Session.here()
        if session.stop_requested() and not self._offered:
            return FINISHED  # for this head; the next one goes on
        if session.stop_requested() or session.is_closed():
            return None
        run_id = self._queue.first()
        if run_id is None:
            # A run that is under way may be preempted and come back, so it is not over yet.
            return None if self._queue or self._offered else FINISHED
        if not self._has_room_for(run_id):
            return None
        run = self._runs[run_id]
        folder = self._plan.folder_of(run)
        try:
            self._plan.record(run).write(folder)
        except DiskFullError:
            return None  # Tune asks again
        self._queue.take()
        self._offered[trial_id] = run_id
        folder.error.unlink(missing_ok=True)  # of an earlier sweep: from now on it has not failed
        self._on_offer(run_id)
        return config_of(self._plan, run, self._use_gpu, self._scratch)

    def _has_room_for(self, run_id: str) -> bool:
        """Whether run and those under way fit; one alone is offered whatever the cluster has.

        Ranks that are more than all workers of now can take hold nothing while they wait for more
        workers, so they keep nobody waiting.
        """
        if not self._offered:
            return True
        ranks_wait = self._plan.share_of(self._runs[run_id]).devices > 1 and not self._fit([run_id])
        return ranks_wait or self._fit([*self._under_way(), run_id])

    def _under_way(self) -> list[str]:
        """The runs that have been offered and hold something."""
        return [run_id for run_id in self._offered.values() if self._fit([run_id])]

    def _fit(self, run_ids: Collection[str]) -> bool:
        resources = self._resources()
        wanted: defaultdict[str, float] = defaultdict(float)
        for run_id in run_ids:
            for name, amount in self._wants(run_id).items():
                wanted[name] += amount
        return all(n <= resources.get(name, 0.0) + ROUNDING for name, n in wanted.items())

    def _wants(self, run_id: str) -> dict[str, float]:
        """What all ranks of a run take together."""
        share = self._plan.share_of(self._runs[run_id])
        needs = needs_of(share, self._use_gpu)
        return {name: share.devices * amount for name, amount in needs.items()}

    def _waits_for(self) -> str:
        """Which run is ready and finds too little, in one line; "" if there is none."""
        too_large = [run_id for run_id in self._offered.values() if not self._fit([run_id])]
        first = self._queue.first()
        waiting = too_large[0] if too_large else first
        if waiting is None or (not too_large and self._has_room_for(waiting)):
            return ""
        held = [self._wants(run_id) for run_id in self._under_way()]
        for name, wanted in self._wants(waiting).items():
            there = self._resources().get(name, 0.0)
            words = shortage(name, wanted, there, [of_one.get(name, 0.0) for of_one in held])
            if words:
                return f"{self._runs[waiting].name} {words}"
        return ""

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Offer a preempted run again; note one that has no result as failed, and why.

        Most failed runs have left the reason themselves. What the trial says of its end comes
        before the shared disk, which may show another node's files late.
        """
        run_id = self._offered.pop(trial_id)
        said = result or {}
        folder = self._plan.folder_of(self._runs[run_id])
        if said.get("finished") or folder.result.exists():
            self._queue.finish(run_id)
        elif said.get("preempted") or self._ended_without_a_word(run_id, folder, error):
            self._queue.put_back(run_id)
        else:
            self._queue.fail(run_id)
            if error and not folder.error.exists():
                folder.fail(_died(folder))

    def _ended_without_a_word(self, run_id: str, folder: RunFolder, error: bool) -> bool:
        """Whether to offer it again: its reason found no room on the disk. Not for ever."""
        if error or folder.error.exists() or self._silent[run_id] == SILENT_AT_MOST:
            return False
        self._silent[run_id] += 1
        return True

    def __getstate__(self) -> dict[str, Any]:
        """Tune writes down a copy to restore from, which nobody does."""
        return {}

    def save(self, checkpoint_path: str) -> None:
        """Nothing to save: the folders say it all."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing to restore: the folders say it all."""


def shortage(name: str, wanted: float, there: float, held: Sequence[float]) -> str:
    """What a run lacks of a resource of which others hold so much, each; "" for nothing.

    Nor for a queue as it should be, where all is in use and the first run that ends makes room.
    """
    free = max(0.0, there - sum(held))
    first_makes_room = free < ROUNDING and max(held, default=0.0) >= wanted - ROUNDING
    if wanted <= free + ROUNDING or first_makes_room:
        return ""
    found, where = (free, "free") if wanted <= there + ROUNDING else (there, "there")
    things, verb = name if wanted <= 1 else f"{name}s", "is" if found == 1 else "are"
    return f"wants {wanted:.3g} {things}, {found:.3g} {verb} {where}"


def _died(folder: RunFolder) -> RunError:
    return RunError(
        f"the run's process died {INFRASTRUCTURE_RETRIES + 1} times",
        where=folder.path,
        expected="a process that lives until the run's end",
        remedy="ask the node (`dmesg`): for lack of memory give runs more of a device (resources); "
        "a segfault is a library's, or ours. Then sweep again: it goes on from the last checkpoint",
    )


def cluster_resources() -> Callable[[], Mapping[str, float]]:
    """What the nodes of the cluster have in all, asked of Ray at most every `RESOURCES_EVERY_S`."""
    asked_at, answer = -math.inf, {}

    def resources() -> Mapping[str, float]:
        nonlocal asked_at, answer
        if time.monotonic() - asked_at > RESOURCES_EVERY_S:
            asked_at, answer = time.monotonic(), ray.cluster_resources()
        return answer

    return resources


def run_all(
    plan: Plan,
    scratch: Path,
    on_offer: Callable[[str], object] = lambda run_id: None,
    stage: Stage | None = None,
    tell: Callable[[str], object] = print,
) -> None:
    """Run what is not finished on the Ray cluster that this process is connected to.

    `scratch` is a folder for what Tune and Train write; nobody reads it. `on_offer` receives the id
    of each run before it starts. `stage` executes a run, `run_stage` if it is None; a
    benchmark gives one that computes nothing. `tell` receives a line for each process that died.
    Raises `StudyError` if a run asks for more than this machine has.
    """
    use_gpu = wants_gpu(plan)
    if not Session.here().is_on_cluster:  # there `on_slurm.require_fit` has seen to it
        require_room(plan, use_gpu, ray.cluster_resources())
    # An idle actor, kept for the next trial, would hold the cores that ranks of Ray Train wait for;
    # and it would go on to start runs on a node whose time is nearly over.
    alone = all(plan.share_of(run).devices == 1 for run in plan.runs)
    may_keep_actors = alone and not Session.here().is_on_cluster
    tuner = tune.Tuner(
        tune.with_resources(partial(run_trial, stage=stage or run_stage), placement),
        tune_config=tune.TuneConfig(
            search_alg=ReadyRuns(plan, use_gpu, scratch, cluster_resources(), on_offer),
            num_samples=-1,
            reuse_actors=may_keep_actors,
        ),
        run_config=tune.RunConfig(
            name="tune",
            storage_path=str(scratch),
            verbose=0,
            callbacks=[Deaths({run.run_id: run.name for run in plan.runs}, tell)],
            failure_config=tune.FailureConfig(max_failures=INFRASTRUCTURE_RETRIES),
        ),
    )
    try:
        tuner.fit()
    finally:
        plan.folder.say_waiting("")


class Deaths(tune.Callback):  # type: ignore[misc] # Ray's classes have no types
    """Says which run's process died, and what becomes of the run."""

    def __init__(self, names: Mapping[str, str], tell: Callable[[str], object]) -> None:
        self._names = names
        self._tell = tell

    def on_trial_recover(
        self, iteration: int, trials: list[tune.experiment.Trial], trial: Any, **info: Any
    ) -> None:
        """See `tune.Callback`: it is started again."""
        name = self._names[Path(trial.config["folder"]).name]
        low = "low on memory" in str(trial.get_error())
        why = "for lack of memory on the node" if low else "for lack of memory, or by a crash"
        tries = f"try {trial.run_metadata.num_failures + 1} of {INFRASTRUCTURE_RETRIES + 1}"
        self._tell(f"[yellow]↻[/] {name}: its process was killed, {why}; it goes on, {tries}")

    def __getstate__(self) -> dict[str, Any]:
        """Tune writes down a copy to restore from, which nobody does."""
        return {}


def require_room(plan: Plan, use_gpu: bool, there: Mapping[str, float]) -> None:
    """Raise `StudyError` if a run asks for more than there is: it would wait for ever."""
    for run in plan.runs:
        share = plan.share_of(run)
        for name, amount in needs_of(share, use_gpu).items():
            if share.devices * amount > there.get(name, 0.0) + ROUNDING:
                raise StudyError(
                    f"{run.name!r} asks for {share.devices * amount:g} {name}, and there are "
                    f"{there.get(name, 0.0):g}: it would wait for ever",
                    where=f"resources.{run.kind}",
                    expected="no more than this machine has",
                    remedy=f"lower cpus or devices in resources.{run.kind}",
                )


def wants_gpu(plan: Plan) -> bool:
    """Whether runs get GPUs. Raises `DeviceError` if CUDA was asked for and no node has one.

    On Slurm there may be no worker yet; there the settings say what workers will have.
    """
    wish = plan.study.resources.device
    on_cluster = Session.here().is_on_cluster
    coming = plan.study.slurm.gpus if plan.study.slurm and on_cluster else 0
    has_gpu = coming > 0 or ray.cluster_resources().get("GPU", 0) > 0
    if wish == "cuda" and not has_gpu:
        require_cuda()
    return has_gpu and wish != "cpu"
