import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from fewscan.storage.errors import FewscanError
from fewscan.storage.system.workers import in_processes

PARENT = """
import time
from fewscan.storage.system.workers import in_processes
if __name__ == "__main__":
    list(in_processes(time.sleep, [0, 0, 600, 600], 2))
"""


@pytest.mark.parametrize("workers", [1, 2])
def test_every_item_is_done_once(workers: int) -> None:
    assert sorted(in_processes(math.factorial, [4, 3, 2], workers)) == [2, 6, 24]


@pytest.mark.parametrize("workers", [1, 2])
def test_errors_of_the_function_come_home(workers: int) -> None:
    with pytest.raises(ValueError, match="negative"):
        list(in_processes(math.factorial, [3, -1], workers))


def test_a_killed_worker_is_explained() -> None:
    with pytest.raises(FewscanError, match="fewer workers"):
        list(in_processes(os._exit, [1, 1], 2))


def unless_three(item: int) -> str:
    if item == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return f"done {item}"


def test_what_kills_its_worker_is_told_apart_and_the_others_are_done() -> None:
    killed = []

    def remember(item: int, error: FewscanError) -> str:
        killed.append(item)
        return error.found

    results = list(in_processes(unless_three, range(8), 2, remember))
    assert killed == [3]
    assert sorted(results)[:7] == [f"done {n}" for n in range(8) if n != 3]
    assert "killed" in sorted(results)[7]


def once(marker: Path) -> str:
    """Die at the first attempt, as of a lack of memory that is over at the second."""
    if marker.suffix == ".once" and not marker.exists():
        marker.touch()
        os._exit(9)
    return marker.name


def test_what_a_dead_worker_took_along_is_tried_again(tmp_path: Path) -> None:
    items = [tmp_path / name for name in ("a", "b.once", "c", "d")]
    assert sorted(in_processes(once, items, 2)) == ["a", "b.once", "c", "d"]


def test_workers_end_with_their_killed_parent(tmp_path: Path) -> None:
    script = tmp_path / "parent.py"
    script.write_text(PARENT)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    parent = psutil.Process(subprocess.Popen([sys.executable, script], env=environment).pid)
    children: list[psutil.Process] = []
    while len(children) < 3:  # two workers and multiprocessing's resource tracker
        time.sleep(0.05)
        children = parent.children()
    time.sleep(1)
    parent.kill()
    parent.wait()
    _, alive = psutil.wait_procs(children, timeout=60)
    assert not [child for child in alive if child.status() != psutil.STATUS_ZOMBIE]
