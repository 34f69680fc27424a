"""docs/data.md says what the code does: layouts, editions, options, and its example of a table."""

import re
import shlex
from pathlib import Path

from fewscan.harness.cli import main
from fewscan.storage.conventions.brats import KEYS
from fewscan.storage.conventions.registry import CONVENTIONS
from fewscan.storage.conventions.table import TableHead, read_table

PAGE = (Path(__file__).parents[1] / "docs" / "data.md").read_text()


def test_every_layout_and_edition_is_on_the_page() -> None:
    for convention in CONVENTIONS:
        assert convention.name in PAGE
    assert set(re.findall(r"`(brats-[\w-]+)`", PAGE)) == set(KEYS)
    for name in TableHead.__dataclass_fields__:
        assert f"`{name}`" in PAGE


def test_the_options_are_those_of_the_commands() -> None:
    prepare, table = (
        {option for parameter in main.commands[name].params for option in parameter.opts}
        for name in ("prepare", "table")
    )
    wanted = PAGE.partition("## What is wanted of it")[2].partition("##")[0]
    assert set(re.findall(r"`(--\w+)", wanted)) <= prepare
    commands = re.findall(r"fewscan (prepare|table) (.*?)(?:`|\n(?!        ))", PAGE, re.DOTALL)
    assert len(commands) > 10
    for name, arguments in commands:
        if not arguments.startswith("SCANS"):
            words = shlex.split(arguments.replace("\\\n", " "))
            assert {w for w in words if w[:2] == "--"} <= (prepare if name == "prepare" else table)
            main.commands[name].make_context(name, words)


def test_the_example_of_a_table_is_one(tmp_path: Path) -> None:
    example = PAGE.partition("## A table\n\n")[2].partition("\n\n")[0]
    path = tmp_path / "scans.csv"
    path.write_text("\n".join(line[4:] for line in example.splitlines()))
    head, columns, rows = read_table(path)
    assert head.lesion == ("tumour", "cyst")
    assert head.classes == {"kidney": 1, "tumour": 2, "cyst": [3, 4]}
    assert columns == ("id", "patient", "t1", "flair", "label", "split")
    assert [row.cells["label"] for row in rows] == ["P01/a/mask.nii.gz", ""]
