"""One owner at a time for a folder, also when the last owner was killed."""

import errno
import fcntl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fewscan.storage.errors import FewscanError, disk_full_explained

POLL_S = 0.1


@contextmanager
def exclusive(lock_file: Path, busy: FewscanError, wait_s: float = 0.0) -> Iterator[None]:
    """Hold `lock_file` (created if missing) for the block; the kernel drops it if we die.

    Raises `busy` if somebody else still holds it after `wait_s` seconds. A file system without
    locks (some Lustre mounts) lets everybody in: there the scheduler alone keeps runs apart.
    Raises `DiskFullError` if the file cannot be made.
    """
    deadline = time.monotonic() + wait_s
    with disk_full_explained(lock_file):
        opened = lock_file.open("a")
    with opened as file:
        while not _try_lock(file.fileno()):
            if time.monotonic() >= deadline:
                raise busy
            time.sleep(POLL_S)
        yield


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):
            raise
    return True
