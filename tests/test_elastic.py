"""The number of workers: it follows the demand, and work is never taken away."""

from hypothesis import given, settings
from hypothesis import strategies as st

from fewscan.slurm.elastic import next_actions, wanted_workers
from fewscan.slurm.scheduler import ClusterJob
from fewscan.slurm.settings import Settings


def worker(number: int, state: str = "RUNNING", held: bool = False) -> ClusterJob:
    return ClusterJob(str(number), "worker", state, "None", "n1", held=held)


def test_the_demand_is_kept_between_least_and_most() -> None:
    limits = Settings(min_workers=1, max_workers=4)
    assert [wanted_workers(limits, n) for n in (None, 0, 3, 9)] == [4, 1, 3, 4]


def test_a_head_that_works_is_one_of_the_workers() -> None:
    limits = Settings(max_workers=4, head="worker")
    assert [wanted_workers(limits, n) for n in (None, 0, 1, 9)] == [3, 0, 0, 3]


def test_requeued_jobs_need_not_wait_two_minutes() -> None:
    held = [worker(1, "PENDING", held=True), worker(2)]
    assert next_actions(2, held, {}, 60).start_now == ("1",)
    assert next_actions(1, held, {}, 60).start_now == ()  # it is released instead


@settings(deadline=None, max_examples=100)
@given(
    wanted=st.integers(0, 6),
    workers=st.lists(
        st.tuples(st.sampled_from(["PENDING", "RUNNING", "COMPLETING"]), st.floats(0, 100)),
        max_size=8,
    ),
)
def test_it_grows_at_once_and_shrinks_without_harm(
    wanted: int, workers: list[tuple[str, float]]
) -> None:
    present = [worker(number, state) for number, (state, _) in enumerate(workers)]
    idle_s = {
        str(n): idle for n, (state, idle) in enumerate(workers) if state != "PENDING" and idle
    }
    todo = next_actions(wanted, present, idle_s, 60)
    assert todo.submit == max(0, wanted - len(present))
    assert len(present) + todo.submit - len(todo.release) >= wanted
    for job in present:
        if job.id in todo.release:
            assert job.state == "PENDING" or idle_s[job.id] >= 60
    may_go = [j for j in present if j.state == "PENDING" or idle_s.get(j.id, 0) >= 60]
    assert len(todo.release) == min(len(may_go), max(0, len(present) - wanted))
