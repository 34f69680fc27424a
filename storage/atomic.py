"""Files that are either there, whole, or not there at all.

Temporary file in the same folder, fsync, rename, fsync of the folder: a reader never sees half a
file, and a power cut leaves the old one or the new one.
"""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from fewscan.storage.errors import disk_full_explained, not_writable_explained

TEMPORARY_SUFFIX = ".partial"


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; put it in place when the block ends without an error.

    Raises `NotWritableError` or, if there is no room, `DiskFullError`; then `path` is as it was and
    the temporary is gone.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}{TEMPORARY_SUFFIX}")
    with not_writable_explained(path.parent), disk_full_explained(path):
        try:
            yield temporary
            with temporary.open("rb+") as file:
                os.fsync(file.fileno())
            os.replace(temporary, path)
            sync_folder(path.parent)
        finally:
            with suppress(FileNotFoundError):
                temporary.unlink()


def write_bytes(path: Path, data: bytes | memoryview) -> None:
    """Put `data` into `path`, atomically."""
    with replacing(path) as temporary:
        temporary.write_bytes(data)


def write_json(path: Path, value: Any) -> None:
    """Put `value` into `path` as readable JSON with sorted keys, atomically. NaN is refused."""
    text = json.dumps(value, indent=1, sort_keys=True, allow_nan=False, ensure_ascii=False)
    write_bytes(path, text.encode() + b"\n")


def sync_folder(folder: Path) -> None:
    """Make a rename inside `folder` survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_leftovers(folder: Path) -> None:
    """Delete temporaries that a killed writer left in `folder`; only its owner may call this."""
    for leftover in folder.glob(f".*{TEMPORARY_SUFFIX}"):
        leftover.unlink(missing_ok=True)
