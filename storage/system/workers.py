"""Worker processes: one function over many items, in processes that end with their parent."""

import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context, parent_process
from typing import TypeVar

from fewscan.storage.errors import FewscanError

Item = TypeVar("Item")
Result = TypeVar("Result")


def in_processes(
    function: Callable[[Item], Result], items: Sequence[Item], workers: int
) -> Iterator[Result]:
    """Yield `function(item)` of every item, the first one ready first.

    One worker, or one item, stays in this process. Raises what `function` raises, and
    `FewscanError` if a worker is killed; items that have not begun are then dropped.
    """
    workers = min(workers, len(items))
    if workers <= 1:
        yield from map(function, items)
        return
    # Spawned, not forked: the parent may hold threads and libraries that do not survive a fork.
    pool = ProcessPoolExecutor(workers, get_context("spawn"), initializer=_end_with_parent)
    try:
        for future in as_completed([pool.submit(function, item) for item in items]):
            yield future.result()
    except BrokenProcessPool as error:
        raise FewscanError(
            "a worker process was killed, perhaps for lack of memory",
            remedy="run the same command again with fewer workers; what is finished is kept",
        ) from error
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
