"""A supervisor's children: deaf to Slurm's signals, and gone when it is done with them."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

SUPERVISOR = """
import os, signal, sys, time
from pathlib import Path
from fewscan.slurm import processes
processes.become_supervisor()
folder = Path(sys.argv[1])
orphan = "import subprocess, sys; subprocess.Popen(['sleep', '1000'], start_new_session=True)"
processes.start([sys.executable, "-c", orphan], folder / "log", os.environ).wait()
child = processes.start(["sleep", "1000"], folder / "log", os.environ)
(folder / "pids").write_text(" ".join(str(each.pid) for each in processes.descendants(os.getpid())))
for _ in range(2):
    print(processes.stop_signal(20).name, child.poll(), flush=True)
processes.end_descendants()
print(processes.descendants(os.getpid()))
"""


def start_supervisor(folder: Path) -> tuple[subprocess.Popen[str], list[int]]:
    """A supervisor with a child and an orphaned grandchild, and their process ids."""
    command = [sys.executable, "-c", SUPERVISOR, str(folder)]
    supervisor = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 20
    while not (folder / "pids").exists() or not (folder / "pids").read_text():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return supervisor, [int(pid) for pid in (folder / "pids").read_text().split()]


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state not in "ZX"


def test_signals_reach_the_supervisor_alone_and_its_end_is_everyones(tmp_path: Path) -> None:
    supervisor, pids = start_supervisor(tmp_path)
    assert len(pids) == 2
    for number in (signal.SIGTERM, signal.SIGUSR2):
        for pid in (*pids, supervisor.pid):  # as Slurm does it
            os.kill(pid, number)
        time.sleep(0.1)
    said, _ = supervisor.communicate(timeout=20)
    assert said.splitlines() == ["SIGTERM None", "SIGUSR2 None", "[]"]
    assert not any(alive(pid) for pid in pids)


def test_a_child_does_not_outlive_a_killed_supervisor(tmp_path: Path) -> None:
    supervisor, pids = start_supervisor(tmp_path)
    supervisor.kill()
    supervisor.communicate(timeout=20)
    deadline = time.monotonic() + 10
    while sum(map(alive, pids)) > 1:  # the orphan is left to Slurm
        assert time.monotonic() < deadline
        time.sleep(0.05)
    for pid in pids:
        if alive(pid):
            os.kill(pid, signal.SIGKILL)
