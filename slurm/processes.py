"""Child processes of a supervisor: started apart from it, ended all of them and nothing else.

Slurm signals every process of a job at once. Ray's would obey before their node is drained, so they
inherit a mask that blocks the two signals; the supervisor takes these out of the queue itself.
"""

import ctypes
import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

STOP_SIGNALS = frozenset({signal.SIGTERM, signal.SIGUSR2})
PR_SET_CHILD_SUBREAPER = 36
PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None, use_errno=True)


def become_supervisor() -> None:
    """Block the stop signals, here and in children, and inherit orphaned grandchildren."""
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    _libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def stop_signal(wait_s: float) -> signal.Signals | None:
    """Sleep; the stop signal that arrived meanwhile, or before."""
    info = signal.sigtimedwait(STOP_SIGNALS, wait_s)
    return None if info is None else signal.Signals(info.si_signo)


def stop_waits() -> bool:
    """Whether a stop signal has arrived that `stop_signal` has not yet told."""
    return bool(signal.sigpending() & STOP_SIGNALS)


def start(
    command: Sequence[str],
    log: Path,
    environment: Mapping[str, str],
    cwd: str | None = None,
) -> subprocess.Popen[bytes]:
    """Start `command` in a session of its own, its output added to `log`.

    It dies with the supervisor, and sees neither SIGTERM nor USR2.
    """

    def in_child() -> None:
        _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)

    with log.open("ab") as output:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=in_child,  # the supervisor has one thread, so this is safe
            env=dict(environment),
            cwd=cwd,
        )


def end_descendants(wait_s: float = 10.0) -> None:
    """SIGKILL everything that this process has started, directly or not, until none is left."""
    deadline = time.monotonic() + wait_s
    while (left := descendants(os.getpid())) and time.monotonic() < deadline:
        for pid in left:
            _kill(pid)
        _reap()
        time.sleep(0.02)


def descendants(root: int) -> list[int]:
    """Process ids below `root`; the dead that wait for their parent are not counted."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            parent = _parent_of_living(entry)
            if parent is not None:
                children.setdefault(parent, []).append(int(entry.name))
    found: list[int] = []
    todo = [root]
    while todo:
        below = children.get(todo.pop(), [])
        found += below
        todo += below
    return found


def _parent_of_living(entry: Path) -> int | None:
    try:
        state, parent = (entry / "stat").read_text().rpartition(")")[2].split()[:2]
    except OSError:
        return None
    return None if state in "ZX" else int(parent)


def _kill(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def _reap() -> None:
    with suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
