"""How much memory a process may still take: what the machine has free, what its cgroups allow."""

from collections.abc import Iterator
from pathlib import Path

_NO_LIMIT = 1 << 60
"""What cgroup v1 says if there is none is some number above this."""


def available_bytes(root: Path = Path("/")) -> int:
    """Bytes that this process can take before the machine or a cgroup (Slurm, a container) objects.

    Files in the page cache count as free, files in /dev/shm do not. `root` is there for tests.
    """
    return min([_machine(root), *_cgroups(root)])


def _machine(root: Path) -> int:
    for line in (root / "proc/meminfo").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == "MemAvailable":
            return int(value.split()[0]) << 10
    return _NO_LIMIT


def _cgroups(root: Path) -> Iterator[int]:
    """What is left in each group of this process that has a limit, from its own group upwards."""
    for line in _lines(root / "proc/self/cgroup"):
        _, controllers, path = line.split(":", 2)
        if controllers not in ("", "memory"):
            continue
        base = root / "sys/fs/cgroup" / controllers
        names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        limit, usage, cache = (
            names if controllers else ("memory.max", "memory.current", "inactive_file")
        )
        group = base / path.lstrip("/")
        for folder in [group, *group.parents]:
            if not folder.is_relative_to(base):
                break
            left = _left(folder / limit, folder / usage, folder / "memory.stat", cache)
            if left is not None:
                yield left


def _left(limit_file: Path, usage_file: Path, stat_file: Path, cache: str) -> int | None:
    limit = "".join(_lines(limit_file)) or "max"
    if limit == "max" or int(limit) > _NO_LIMIT:
        return None
    used = int("".join(_lines(usage_file)) or 0)
    cached = [int(line.split()[1]) for line in _lines(stat_file) if line.startswith(f"{cache} ")]
    return max(0, int(limit) - used + sum(cached))


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:
        return []
