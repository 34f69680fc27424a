"""Folders that the processes of one node share, and that nobody leaves behind.

Whoever uses one holds a shared lock in it until its process ends; the kernel drops the lock also if
the process is killed. So a folder without users is known, and the next process that joins one
removes it. Whoever started the users removes it at once when they are done (`remove`). A file that
is mapped lives on until it is unmapped, so removing a folder disturbs no reader. Nobody but this
user can enter one.
"""

import fcntl
import os
import shutil
from contextlib import suppress
from pathlib import Path
from typing import IO

from fewscan.storage.system.private import is_private, require_private

MEMORY = Path("/dev/shm")
"""Files in here are memory, on any Linux that has it."""
_USERS = ".users-of-this-folder"
_held: dict[Path, IO[str]] = {}


def candidates(on_disk: Path) -> tuple[Path, ...]:
    """Folders to share files in, best first: in memory by the name of `on_disk`, or inside that."""
    in_memory = (MEMORY / on_disk.name,) if MEMORY.is_dir() else ()
    return (*in_memory, on_disk / "shared")


def join(folder: Path) -> None:
    """Make `folder` if it is missing, and be a user of it until this process ends.

    Raises `NotWritableError` if another user has made it, or can enter it.
    """
    _remove_abandoned(folder.parent)
    while not (folder in _held and _is_same_file(_held[folder], folder / _USERS)):
        with suppress(FileNotFoundError):  # removed by another process just now
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            require_private(folder)
            file = (folder / _USERS).open("a")
            fcntl.flock(file, fcntl.LOCK_SH)
            _held[folder] = file


def leave(folder: Path) -> None:
    """Be no user of `folder` any more."""
    if folder in _held:
        _held.pop(folder).close()


def remove(folder: Path) -> None:
    """Remove a folder whose users are done; nothing if there is none."""
    leave(folder)
    shutil.rmtree(folder, ignore_errors=True)


def _remove_abandoned(parent: Path) -> None:
    """Remove the folders in `parent` that are ours and that no process uses."""
    for users in parent.glob(f"*/{_USERS}"):
        with suppress(OSError):  # held, somebody else's, or gone
            if is_private(users.parent):
                with users.open("a") as file:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(users.parent, ignore_errors=True)


def _is_same_file(file: IO[str], path: Path) -> bool:
    with suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    return False
