"""Which code this is: a digest of the package's own sources."""

from functools import cache
from hashlib import sha256
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

ROOMS = ("experiments", "harness", "slurm", "storage")
SUFFIXES = (".py", ".html", ".yaml")


@cache
def code_digest() -> str:
    """12 hexadecimal digits of the SHA-256 over names and contents of all sources that are here.

    The same for an installed copy and for the clone that it was made of.
    """
    digest = sha256()
    for room in ROOMS:
        spec = find_spec(f"fewscan.{room}")
        if spec is None or spec.origin is None:  # a bare machine may have some of them alone
            continue
        folder = Path(spec.origin).parent
        for path in sorted(filter(_is_source, folder.rglob("*"))):
            name = f"{room}/{path.relative_to(folder).as_posix()}"
            digest.update(f"{name}\0{path.stat().st_size}\0".encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def _is_source(path: Path) -> bool:
    return path.suffix in SUFFIXES and path.parent.name != "__pycache__"


def package_version() -> str:
    """Of the installed distribution; "unknown" if only its sources are on the path."""
    try:
        return version("fewscan")
    except PackageNotFoundError:
        return "unknown"
