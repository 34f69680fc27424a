"""The one tree of errors that people see.

Each says what was found, where, what was expected and what to do. Only mistakes of a user and
faults of a machine belong here; for our own bugs there is `assert`.
"""

import errno
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


class FewscanError(Exception):
    """Something that the person at the terminal can fix.

    Parameters
    ----------
    found : what is the case ("label value 7", "the file ends after 512 of 8928000 bytes")
    where : the file, field or command it concerns
    expected : what would have been right
    remedy : what to do about it
    """

    def __init__(
        self,
        found: str,
        *,
        where: str | Path | None = None,
        expected: str | None = None,
        remedy: str | None = None,
    ) -> None:
        self.found = found
        self.where = None if where is None else str(where)
        self.expected = expected
        self.remedy = remedy
        details = [("where", self.where), ("expected", expected), ("remedy", remedy)]
        super().__init__("\n".join([found, *(f"  {k}: {v}" for k, v in details if v)]))

    def __reduce__(self) -> tuple[Any, ...]:
        # The default would call the class with the joined message, and workers send these home.
        return _rebuild, (type(self), self.found, self.where, self.expected, self.remedy)


def _rebuild(
    kind: type[FewscanError],
    found: str,
    where: str | None,
    expected: str | None,
    remedy: str | None,
) -> FewscanError:
    return kind(found, where=where, expected=expected, remedy=remedy)


class ScanError(FewscanError):
    """A scan cannot be used: unreadable, incomplete or inconsistent."""


class StoreError(FewscanError):
    """A slice store is incomplete, damaged or of another protocol version."""


class StudyError(FewscanError):
    """A study file asks for something that does not exist or does not fit together."""


class RunError(FewscanError):
    """A run folder cannot be used as it is, or a run cannot go on."""


class LossNotFiniteError(RunError):
    """A training has left the numbers that can be computed with."""


class DeviceError(FewscanError):
    """The device that was asked for is not here."""


class ClusterError(FewscanError):
    """Ray or Slurm refused, failed or vanished."""


class TrackingError(FewscanError):
    """MLflow cannot be reached or refuses; the run folders still hold everything."""


class DiskFullError(FewscanError):
    """There is no room, or no quota, left for what has to be written."""


class NotWritableError(FewscanError):
    """A folder belongs to somebody else, or its disk is read-only."""


NAMED_AT_MOST = 5


def named(names: Iterable[str]) -> str:
    """The first names, sorted, and how many more there are: a message stays short."""
    found = sorted(names)
    more = len(found) - NAMED_AT_MOST
    return ", ".join(found[:NAMED_AT_MOST]) + (f" and {more} more" if more > 0 else "")


@contextmanager
def not_writable_explained(folder: Path) -> Iterator[None]:
    """Turn a missing permission to write into a `NotWritableError`; other errors pass."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise
        raise NotWritableError(
            f"cannot write here ({error.strerror})",
            where=error.filename or folder,
            expected="a place that you may write to",
            remedy="choose another folder, or ask its owner for write permission",
        ) from error


@contextmanager
def disk_full_explained(path: Path) -> Iterator[None]:
    """Turn "no space left" while writing `path` into a `DiskFullError`; other errors pass."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise DiskFullError(
            f"no space left on the disk ({error.strerror})",
            where=error.filename or path,
            expected="room to write; what was there before is untouched",
            remedy="free space or choose another folder, then run the same command again",
        ) from error
