"""Worker processes: one function over many items, in processes that end with their parent."""

import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context, parent_process
from typing import TypeVar

from fewscan.storage.errors import FewscanError

Item = TypeVar("Item")
Result = TypeVar("Result")


def in_processes(
    function: Callable[[Item], Result],
    items: Sequence[Item],
    workers: int,
    killed: Callable[[Item, FewscanError], Result] | None = None,
) -> Iterator[Result]:
    """Yield `function(item)` of every item, the first one ready first.

    One worker, or one item, stays in this process. Raises what `function` raises; items that have
    not begun are then dropped.

    If a worker dies (killed for lack of memory, a fault in a library), the items that were at work
    are tried again, each alone. For one whose process dies again, the result is what `killed` makes
    of it and of the error that says so; without `killed` that error is raised.
    """
    workers = min(workers, len(items))
    if workers <= 1:
        yield from map(function, items)
        return
    waiting = list(reversed(items))
    while waiting:
        interrupted: list[Item] = []
        yield from _until_one_dies(function, waiting, workers, interrupted)
        for item in interrupted:
            died: list[Item] = []
            yield from _until_one_dies(function, [item], 1, died)
            if died:
                error = FewscanError(
                    "its worker process was killed, twice, perhaps for lack of memory",
                    remedy="run the same command again with fewer workers; what is finished is "
                    "kept",
                )
                if killed is None:
                    raise error
                yield killed(item, error)


def _until_one_dies(
    function: Callable[[Item], Result],
    waiting: list[Item],
    workers: int,
    interrupted: list[Item],
) -> Iterator[Result]:
    """Take items from the end of `waiting`; `interrupted` gets those that a dead worker took along.

    No more are handed out than are at work, and one to go on with: any of them may be the cause.
    """
    # Spawned, not forked: the parent may hold threads and libraries that do not survive a fork.
    pool = ProcessPoolExecutor(workers, get_context("spawn"), initializer=_end_with_parent)
    given: dict[Future[Result], Item] = {}
    try:
        while waiting or given:
            while waiting and len(given) <= workers:
                item = waiting.pop()
                try:
                    given[pool.submit(function, item)] = item
                except BrokenProcessPool:  # one has died since
                    waiting.append(item)
                    break
            for future in wait(given, return_when=FIRST_COMPLETED).done:
                item = given.pop(future)
                if isinstance(future.exception(), BrokenProcessPool):
                    interrupted.append(item)
                else:
                    yield future.result()
            if interrupted or (waiting and not given):
                wait(given)
                for future, item in given.items():
                    if isinstance(future.exception(), BrokenProcessPool):
                        interrupted.append(item)
                    else:
                        yield future.result()
                return
    finally:
        pool.shutdown(cancel_futures=True)


def usable_cpus() -> int:
    """Cores that this process may use (Slurm and containers give fewer than there are)."""
    return len(os.sched_getaffinity(0))


def _end_with_parent() -> None:
    """In a worker: end when the parent is killed; leave Ctrl-C to the parent."""
    parent = parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=watch, daemon=True).start()
