"""`make lowest` tries the lowest version that pyproject.toml allows of each package."""

import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NOT_TRIED = {"torch"}
BOUND = re.compile(r"([\w-]+)(?:\[[\w,]+\])?>=([\d.]+)")


def bounds() -> dict[str, str]:
    """Package → its lower bound, of the package's own needs and of the tests'."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    named = [*project["dependencies"], *project["optional-dependencies"]["dev"]]
    return {found[1]: found[2] for it in named if (found := BOUND.fullmatch(it))}


def pins() -> dict[str, str]:
    lines = (ROOT / "constraints-lowest.txt").read_text().splitlines()
    return dict(line.split("==") for line in lines if line and not line.startswith("#"))


def test_what_is_tried_is_what_is_named() -> None:
    assert len(bounds()) > 25
    assert pins().keys() == bounds().keys()


@pytest.mark.parametrize("name", sorted(bounds().keys() - NOT_TRIED))
def test_it_is_the_lowest(name: str) -> None:
    """A bound of 2.0 allows 2.0.0 before all others."""
    assert f"{pins()[name]}.".startswith(f"{bounds()[name]}.")
