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


def is_private(folder: Path) -> bool:
    """Whether it is a folder (no link), this user's, and closed to all others."""
    try:
        found = folder.lstat()
    except OSError:
        return False
    open_to_others = stat.S_IMODE(found.st_mode) & 0o077
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not open_to_others


def require_private(folder: Path) -> None:
    """Raise `NotWritableError` unless nobody else can enter the folder."""
    if not is_private(folder):
        raise NotWritableError(
            "the folder is somebody else's, a link, or open to others",
            where=folder,
            expected="a folder of this user with mode 0700",
            remedy="look who made it (`ls -ld`); remove it if it is yours",
        )
