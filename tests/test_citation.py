"""CITATION.cff is about this version, and has what its format demands of a work."""

import tomllib
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[1]


def test_the_citation_is_of_this_version() -> None:
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert cited["version"] == project["version"]
    assert cited["license"] == project["license"]
    assert cited["title"].startswith(project["name"])
    assert cited["title"].lower().endswith(project["description"].lower())
    assert cited["cff-version"] == "1.2.0"
    assert cited["message"]
    assert len(cited["references"]) == 2
    for work in (cited, *cited["references"]):
        assert work["type"]
        assert work["title"]
        assert all("name" in author or "family-names" in author for author in work["authors"])
