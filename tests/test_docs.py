"""What README and docs/ promise exists: links lead somewhere, commands are commands."""

import re
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
import yaml

from fewscan.harness.cli import main

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def ids(path: Path) -> str:
    return path.name


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text()):
        if not re.match(r"[a-z]+:", target):
            assert (page.parent / target).exists(), target


def headings(page: Path) -> set[str]:
    """Anchors, as GitHub and mkdocs make them."""
    found = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", it.lower()).replace(" ", "-") for it in found}


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_anchors_are_there(page: Path) -> None:
    for target, anchor in re.findall(r"\]\(([^)#\s]*)#([^)]+)\)", page.read_text()):
        if not re.match(r"[a-z]+:", target):
            there = page if not target else page.parent / target
            assert anchor in headings(there), f"{target}#{anchor}"


def commands(page: Path) -> Iterator[str]:
    """Lines of code blocks that begin with `fewscan`, continued lines joined, without comments."""
    text = re.sub(r"\s*\\\n\s*", " ", page.read_text())
    for line in text.split("\n"):
        found = re.match(r"(?:    |\t|\$ )?\s*(?:\.venv/bin/)?(fewscan [a-z].*)", line)
        in_code = line.startswith(("    ", "\t")) or "`" not in line
        if found and in_code:
            yield re.split(r"\s{2,}|\s#", found[1])[0]


def every_command() -> list[tuple[str, str]]:
    return [(page.name, command) for page in PAGES for command in commands(page)]


def test_there_are_commands() -> None:
    assert len(every_command()) > 40


@pytest.mark.parametrize(("page", "command"), every_command())
def test_a_command_has_its_options(page: str, command: str) -> None:
    """Each is a command of ours, with options that it has; nothing is run."""
    name = command.split()[1]
    assert isinstance(main, click.Group)
    assert name in main.commands, f"{page}: no command {name}"
    known = {text for it in main.commands[name].params for text in it.opts} | {"--help"}
    for option in re.findall(r"(?<=\s)--[a-z-]+", command):
        assert option in known, f"{page}: {command}"


def test_the_site_has_every_page() -> None:
    nav = yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]
    listed = [
        page
        for section in nav
        for pages in section.values()
        for it in pages
        for page in it.values()
    ]
    assert sorted(listed) == sorted([*(it.name for it in (ROOT / "docs").glob("*.md"))])


@pytest.mark.parametrize("page", sorted((ROOT / "docs").glob("*.md")), ids=ids)
def test_links_of_the_site_stay_within_it(page: Path) -> None:
    """`mkdocs build --strict` refuses others."""
    for target in re.findall(r"\]\(([^)#\s]+)", page.read_text()):
        assert re.match(r"[a-z]+:", target) or not target.startswith(".."), target
