"""Which code computed a result: the same for the same sources, wherever they lie."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from fewscan.storage.code_digest import ROOMS, code_digest, package_version

ROOT = Path(__file__).parents[1]


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The package as if it were installed, without what Python leaves beside sources."""
    package = tmp_path / "fewscan"
    ignore = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "package", package, ignore=ignore)
    for room in ROOMS:
        shutil.copytree(ROOT / room, package / room, ignore=ignore)
    return package


def digest_in(package: Path) -> str:
    """By a process that imports from there; it writes no bytecode of its own."""
    code = "from fewscan.storage import code_digest as c; print(c.__file__); print(c.code_digest())"
    environment = {**os.environ, "PYTHONPATH": str(package.parent), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    place, digest = done.stdout.split()
    assert Path(place).is_relative_to(package)
    return digest


def test_a_copied_tree_is_the_same_code(copy: Path) -> None:
    assert digest_in(copy) == code_digest()
    assert len(code_digest()) == 12


@pytest.mark.parametrize(
    "name", ["experiments/schemes/denoise.py", "storage/atomic.py", "experiments/paper.yaml"]
)
def test_one_byte_makes_other_code(copy: Path, name: str) -> None:
    path = copy / name
    content = path.read_bytes()
    path.write_bytes(content[:-1] + b" ")
    assert digest_in(copy) != code_digest()
    path.write_bytes(content)
    assert digest_in(copy) == code_digest()


def test_another_name_makes_other_code(copy: Path) -> None:
    (copy / "experiments" / "demo.yaml").rename(copy / "experiments" / "show.yaml")
    assert digest_in(copy) != code_digest()


def test_what_python_and_editors_leave_is_no_code(copy: Path) -> None:
    cache = copy / "experiments" / "__pycache__"
    cache.mkdir()
    (cache / "train.cpython-311.pyc").write_bytes(b"anything")
    (cache / "odd.py").write_bytes(b"anything")
    (copy / "experiments" / "train.py~").write_bytes(b"anything")
    (copy / "storage" / ".atomic.py.swp").write_bytes(b"anything")
    assert digest_in(copy) == code_digest()


def test_the_version_is_that_of_the_distribution() -> None:
    assert package_version() == "0.1.0"
