"""The format of a store's slices survives JSON, and what is missing in it is named."""

import json
from pathlib import Path

import pytest

from fewscan.storage.errors import RunError
from fewscan.storage.slice_format import SliceFormat
from fewscan.storage.slices import SliceStore


@pytest.fixture(scope="module")
def found(store_path: Path) -> SliceFormat:
    return SliceFormat.of_store(SliceStore.open(store_path))


def test_it_says_what_the_store_was_made_with(found: SliceFormat) -> None:
    assert found == SliceFormat(
        channels=("flair", "t1", "t1ce", "t2"),
        classes=("necrotic_core", "oedema", "enhancing"),
        slice_size=16,
        axis=2,
        normalisation="quantile",
        orientations=("LPS",),
    )


def test_it_survives_json(found: SliceFormat) -> None:
    value = json.loads(json.dumps(found.to_json()))
    assert value == found.to_json()
    assert SliceFormat.from_json(value | {"target": "binary"}, "here") == found


@pytest.mark.parametrize("key", ["channels", "classes", "slice_size", "axis", "orientations"])
def test_a_missing_key_is_named(found: SliceFormat, key: str) -> None:
    value = {k: v for k, v in found.to_json().items() if k != key}
    with pytest.raises(RunError, match=f"does not say its {key}") as caught:
        SliceFormat.from_json(value, "models:/m-1")
    assert caught.value.where == "models:/m-1"
    assert caught.value.remedy == "sweep the study again into another folder"
