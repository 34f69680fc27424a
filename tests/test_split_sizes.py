"""How many patients validate in a store: the default, another number, and stores of before."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from fake_nnunet import write_nnunet

from fewscan.harness.cli import main
from fewscan.storage.check import check
from fewscan.storage.errors import StudyError
from fewscan.storage.manifest import Manifest, StoreFolder
from fewscan.storage.prepare import prepare
from fewscan.storage.slices import SliceStore
from fewscan.storage.splits import FEWEST_VALIDATED, published_split


def sizes(store: Path) -> list[int]:
    return list(map(len, SliceStore.open(store).split.to_json().values()))


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("raw")
    write_nnunet(folder, 26)
    return folder


def fewscan(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(it) for it in arguments])


def test_five_validate_by_default_and_another_number_can_be_asked_for(
    raw: Path, tmp_path: Path
) -> None:
    """A store remembers it; runs of two numbers never share a result."""
    store = tmp_path / "s"
    first = prepare(raw, store, 16, 1).fingerprint
    assert sizes(store) == [26 - 2 * FEWEST_VALIDATED, 5, 5]
    assert "at least 5 in validation and in the test" in check(store).render()
    done = fewscan("prepare", raw, store, "--size", 16, "--workers", 1, "--validation", 3)
    assert done.exit_code == 0, done.output
    assert sizes(store) == [19, 3, 4]
    second = prepare(raw, store, 16, 1).fingerprint
    assert sizes(store) == [19, 3, 4]
    prepare(raw, store, 16, 1, validation=1)
    published = SliceStore.open(store).fingerprint
    assert SliceStore.open(store).split == published_split(SliceStore.open(store).subjects)
    assert len({first, second, published}) == 3


def test_a_store_of_before_keeps_its_split_and_its_fingerprint(raw: Path, tmp_path: Path) -> None:
    """Until somebody asks for another number. Its fingerprint is that of the published rule."""
    store = tmp_path / "s"
    prepare(raw, store, 16, 1, validation=1)
    fingerprint = SliceStore.open(store).fingerprint
    path = StoreFolder.at(store).manifest
    manifest = Manifest.read(path)
    parameters = replace(manifest.parameters, fewest_validated=0)
    replace(manifest, parameters=parameters).write(path)
    assert "fewest_validated" not in path.read_text()
    for _ in range(2):
        assert SliceStore.open(store).fingerprint == fingerprint
        assert sizes(store) == [19, 1, 6]
        prepare(raw, store, 16, 1)
    prepare(raw, store, 16, 1, validation=5)
    assert sizes(store) == [16, 5, 5]


def test_a_number_replaces_lists_and_lists_replace_a_number(raw: Path, tmp_path: Path) -> None:
    store, file = tmp_path / "s", tmp_path / "split.json"
    ids = [f"case_{number:03d}" for number in range(26)]
    lists = {"train": ids[:3], "validation": ids[3:5], "test": ids[5:]}
    file.write_text(json.dumps(lists))
    prepare(raw, store, 16, 1, split=file)
    assert SliceStore.open(store).split.to_json() == lists
    prepare(raw, store, 16, 1, validation=2)
    assert sizes(store) == [19, 2, 5]
    prepare(raw, store, 16, 1, split=file)
    assert SliceStore.open(store).split.to_json() == lists
    with pytest.raises(StudyError, match="both lists of the parts and a number"):
        prepare(raw, store, 16, 1, split=file, validation=2)


def test_a_small_data_set_is_told_how_to_choose(tmp_path: Path) -> None:
    """When a study is planned on it; `check` says it, too."""
    write_nnunet(tmp_path / "raw", 11)
    prepare(tmp_path / "raw", tmp_path / "s", 16, 1)
    with pytest.raises(StudyError, match="11 patients are too few for 5") as caught:
        _ = SliceStore.open(tmp_path / "s").split
    assert "fewscan prepare SCANS STORE --validation 2" in str(caught.value)
    assert "--validation N" in check(tmp_path / "s").render()
    prepare(tmp_path / "raw", tmp_path / "s", 16, 1, validation=2)
    assert sizes(tmp_path / "s") == [7, 2, 2]
