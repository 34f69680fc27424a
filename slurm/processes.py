"""Child processes of a supervisor: started apart from it, ended all of them and nothing else.

A scheduler signals every process of a job at once. Ray's would obey before their node is drained,
so they inherit a mask that blocks the two signals; the supervisor takes these out of the queue
itself.
"""

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import psutil

TAKEN_BACK = signal.SIGTERM
"""The scheduler wants the node: SIGKILL follows after its grace time."""
TIME_NEARLY_OVER = signal.SIGUSR2
"""The job comes to its time limit: `signal_delay_s` are left."""
STOP_SIGNALS = frozenset({TAKEN_BACK, TIME_NEARLY_OVER})
PR_SET_CHILD_SUBREAPER = 36
PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None, use_errno=True)


def become_supervisor() -> None:
    """Block the stop signals, here and in children, and inherit orphaned grandchildren.

    A program that takes the place of this one (`os.exec…`) is a supervisor as well.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    _libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def stop_signal(wait_s: float) -> signal.Signals | None:
    """Sleep; the stop signal that arrived meanwhile, or before."""
    info = signal.sigtimedwait(STOP_SIGNALS, wait_s)
    return None if info is None else signal.Signals(info.si_signo)


def stop_waits() -> bool:
    """Whether a stop signal has arrived that `stop_signal` has not yet returned."""
    return bool(signal.sigpending() & STOP_SIGNALS)


def module_command(name: str, *arguments: str) -> list[str]:
    """The command that runs a module of this folder; it imports nothing from where it runs."""
    return [sys.executable, "-P", "-m", f"{__package__}.{name}", *arguments]


def start(
    command: Sequence[str],
    log: Path,
    environment: Mapping[str, str],
    cwd: str | None = None,
) -> subprocess.Popen[bytes]:
    """Start `command` in a session of its own, its output added to `log`.

    It dies with the supervisor, and sees neither of the stop signals.
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


def await_end(process: subprocess.Popen[bytes], wait_s: float) -> None:
    """Wait until the process has ended, at most `wait_s`."""
    with suppress(subprocess.TimeoutExpired):
        process.wait(wait_s)


def end_descendants(wait_s: float = 10.0) -> None:
    """SIGKILL everything that this process has started, directly or not, until none is left."""
    deadline = time.monotonic() + wait_s
    while (left := descendants(os.getpid())) and time.monotonic() < deadline:
        for process in left:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        _reap()
        time.sleep(0.02)


def end_users_of(folder: Path, wait_s: float = 1.0) -> None:
    """SIGKILL this user's processes that were given `folder` by an option (`--…=FOLDER…`)."""
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            options = [word for word in process.cmdline() if word.startswith("--")]
            if process.uids().real == os.getuid() and any(str(folder) in it for it in options):
                process.kill()
                process.wait(wait_s)


def descendants(root: int) -> list[psutil.Process]:
    """The processes below `root`; the dead that wait for their parent are not counted."""
    return [each for each in psutil.Process(root).children(recursive=True) if is_alive(each)]


def is_alive(process: psutil.Process) -> bool:
    """Whether it is there, and not only waiting for its parent to hear of its end."""
    try:
        return bool(process.status() not in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD))
    except psutil.NoSuchProcess:
        return False


def _reap() -> None:
    with suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
