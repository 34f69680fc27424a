"""The tables of `make mutants` fit the sources; the mutants themselves are run by that command."""

import tomllib
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
TABLES = ROOT / "tests" / "mutants"


def table(name: str) -> dict[str, Any]:
    return tomllib.loads((TABLES / name).read_text())


def test_modules_and_their_tests_are_there() -> None:
    modules = table("modules.toml")
    assert not [file for file in modules if not (ROOT / file).exists()]
    named = {test for tests in modules.values() for test in tests}
    assert not {test for test in named if not (ROOT / "tests" / test.partition("::")[0]).exists()}


def test_what_breaks_a_claim_can_be_changed() -> None:
    """Its text stands once in the source, and the tests that must notice are there."""
    for claim in table("claims.toml")["claim"]:
        assert (ROOT / claim["file"]).read_text().count(claim["old"]) == 1, claim["says"]
        assert claim["new"] != claim["old"]
        files = [ROOT / "tests" / test.partition("::")[0] for test in claim["tests"]]
        assert all(file.exists() for file in files), claim["says"]


def test_an_explained_survivor_is_still_in_the_source() -> None:
    for survivor in table("explained.toml").get("survivor", []):
        lines = [line.strip() for line in (ROOT / survivor["file"]).read_text().split("\n")]
        assert survivor["old"] in " ".join(lines)
        assert survivor["why"]
