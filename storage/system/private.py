"""Folders that nobody else can enter, on a disk that everybody can write to (/tmp, /dev/shm).

Another user may have made a folder of the expected name, or a link, before us: what lies in it is
then his to read and to replace. So a name that can be guessed is checked before it is used.
"""

import os
import stat
import tempfile
from pathlib import Path

from fewscan.storage.errors import NotWritableError


def make_private_folder(prefix: str, parent: Path) -> Path:
    """A new folder of mode 0700 with a name that cannot be guessed."""
    return Path(tempfile.mkdtemp(prefix=prefix, dir=parent))


def is_ours(folder: Path) -> bool:
    """Whether it is a folder (no link) and this user's: ours to remove, not yet to write in."""
    return _mode_of_ours(folder) is not None


def is_private(folder: Path) -> bool:
    """Whether it is a folder (no link), this user's, and closed to all others."""
    mode = _mode_of_ours(folder)
    return mode is not None and not mode & 0o077


def _mode_of_ours(folder: Path) -> int | None:
    try:
        found = folder.lstat()
    except OSError:
        return None
    ours = stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid()
    return stat.S_IMODE(found.st_mode) if ours else None


def require_private(folder: Path) -> None:
    """Raise `NotWritableError` unless nobody else can enter the folder."""
    if not is_private(folder):
        raise NotWritableError(
            "the folder is somebody else's, a link, or open to others",
            where=folder,
            expected="a folder of this user with mode 0700",
            remedy="look who made it (`ls -ld`); remove it if it is yours",
        )
