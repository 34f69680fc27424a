"""docs/study.md is what the program says of its keys: `fewscan keys > docs/study.md`."""

from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from fewscan.experiments.schemes import SCHEMES, Scheme
from fewscan.harness.cli import main
from fewscan.harness.study_file import load_study, parse_study, read_values
from fewscan.harness.study_keys import Block, blocks, reference
from fewscan.storage.errors import StudyError

ROOT = Path(__file__).parents[1]
TRAINING = {"iterations": 1, "validate_every": 1}
LEAST: dict[str, Any] = {
    "name": "least",
    "store": "store.zarr",
    "folder": "study",
    "finetune": {"label_counts": [1], "training": TRAINING},
}


def fewscan(*arguments: str) -> Result:
    return CliRunner().invoke(main, list(arguments))


def test_the_page_is_what_the_program_says() -> None:
    assert (ROOT / "docs" / "study.md").read_text() == reference() == fewscan("keys").output


def values(value: Any) -> list[Any]:
    """A frozen value and all that it holds."""
    inner: list[Any] = []
    if is_dataclass(value):
        inner = [getattr(value, it.name) for it in fields(value)]
    elif isinstance(value, dict):
        inner = [*value.values()]
    elif isinstance(value, tuple):
        inner = [*value]
    return [value, *(found for it in inner for found in values(it))]


def test_every_class_that_a_study_holds_has_a_block() -> None:
    """Of the study that has most of them; a class is found in values here, by its type there."""
    there = {block.cls for block in blocks()}
    study = load_study(ROOT / "experiments" / "paper.yaml")
    held = {type(it) for it in values(study) if is_dataclass(it)}
    assert held <= there
    assert set(SCHEMES.values()) <= there


@pytest.mark.parametrize("block", blocks(), ids=lambda block: block.title)
def test_every_key_says_what_it_means(block: Block) -> None:
    for key in block.keys:
        head, _, meaning = " ".join(block.line(key).split()).partition("): ")
        assert head.startswith(f"- `{key}` (")
        assert "; default" in head or "; required" in head
        assert len(meaning) > 10, key
        assert "None" not in meaning


def merged(base: Any, more: Any) -> Any:
    if not isinstance(base, dict) or not isinstance(more, dict):
        return more
    return base | {key: merged(base.get(key), value) for key, value in more.items()}


@pytest.mark.parametrize("block", blocks(), ids=lambda block: block.title)
def test_every_block_has_an_example_that_is_right(block: Block) -> None:
    if block.paths[0].endswith("scheme.noise"):
        assert not block.example, "its scheme has it"
        return
    document = merged(LEAST, read_values(block.example))
    for wish in document.get("pretrain", {}).values():
        wish.setdefault("training", TRAINING)
    held = values(parse_study(document, "docs/study.md"))
    wanted = [it for it in held if isinstance(it, block.cls)]
    assert wanted
    if issubclass(block.cls, Scheme):
        assert wanted == [block.cls()], "its defaults are its example"


@pytest.mark.parametrize(
    ("key", "shown"),
    [
        ("finetune.seeds", "- `seeds` (list: whole number; default `[0, 1, 2, 3, 4]`):"),
        ("long", "- `long` (number (more than 0); default `2.0`):"),
        ("training", "## `finetune.training`, `finetune.probes.training`"),
        ("mae", "scheme: {kind: mae, ratio: 0.6,"),
        ("patch_mm", "3 × number (more than 0) or null"),
        ("sbatch", "mapping of text to text or whole number or true or false"),
    ],
)
def test_one_key_or_block_can_be_asked_for(key: str, shown: str) -> None:
    done = fewscan("keys", key)
    assert done.exit_code == 0
    assert shown in done.output
    assert len(done.output) < len(reference()) / 5


def test_a_key_that_is_none_names_the_nearest() -> None:
    done = fewscan("keys", "finetune.seed")
    assert done.exit_code == 1
    assert "finetune.seeds" in done.output


def test_mistakes_lead_to_the_page() -> None:
    with pytest.raises(StudyError, match="`fewscan keys` explains"):
        parse_study(LEAST | {"finetunes": {}}, "my.yaml")
