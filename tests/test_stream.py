"""Random slices straight from the shards are those of whole reads; damage is seen."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from fake_scans import write_subjects
from hypothesis import given, settings
from hypothesis import strategies as st

from fewscan.storage import stream
from fewscan.storage.errors import StoreError
from fewscan.storage.labels import PretrainSlices
from fewscan.storage.prepare import prepare
from fewscan.storage.slices import SliceStore
from fewscan.storage.stream import SliceStream

SUBJECTS = 6


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("store")
    write_subjects(folder / "scans", SUBJECTS)
    prepare(folder / "scans", folder / "s", 8, workers=1)
    return folder / "s"


@settings(deadline=None, max_examples=30)
@given(data=st.data(), which=st.sampled_from(["all", "healthy"]))
def test_equals_indexing_a_whole_read(
    path: Path, data: st.DataObject, which: PretrainSlices
) -> None:
    store = SliceStore.open(path)
    ids = data.draw(st.permutations(list(store.subjects)))[:4]
    whole = store.read(ids, which)
    slices = SliceStream(store, ids, which)
    assert len(slices) == len(whole.images_NCHW)
    indices = data.draw(st.lists(st.integers(-len(slices), len(slices) - 1), max_size=40))
    gathered = slices.gather(indices)
    assert gathered.ids == whole.ids
    for name in ("images_NCHW", "labels_NHW", "subjects_N", "positions_N"):
        expected = getattr(whole, name)[np.array(indices, int)]
        assert np.array_equal(getattr(gathered, name), expected), name
        assert getattr(gathered, name).dtype == expected.dtype


def test_few_files_stay_open(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "_OPEN_SHARDS", 2)
    store = SliceStore.open(path)
    before = len(os.listdir("/proc/self/fd"))
    slices = SliceStream(store, list(store.subjects))
    slices.gather(np.random.default_rng(0).integers(0, len(slices), 100))
    assert len(os.listdir("/proc/self/fd")) <= before + 4
    del slices
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("at", [0.0, 1.0])
@pytest.mark.parametrize("shard", ["images/c.2.0.0.0.0", "labels/c.2.0.0.0"])
def test_damage_is_seen_and_named(path: Path, tmp_path: Path, shard: str, at: float) -> None:
    copy = Path(shutil.copytree(path, tmp_path / "s"))
    damaged = bytearray((copy / shard).read_bytes())
    damaged[int(at * (len(damaged) - 1))] ^= 4
    (copy / shard).write_bytes(damaged)
    store = SliceStore.open(copy)
    slices = SliceStream(store, list(store.subjects))
    for _ in range(2):  # a shard that could not be opened is tried again
        with pytest.raises(StoreError, match="BraTS2021_00002") as caught:
            slices.gather(range(len(slices)))
        assert caught.value.where == str(copy / shard)
    slices.gather(np.flatnonzero(slices.subjects_N != 2))


def test_a_shard_cut_while_it_is_open_is_seen(path: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(path, tmp_path / "s"))
    store = SliceStore.open(copy)
    slices = SliceStream(store, ["BraTS2021_00001"])
    slices.gather([0])
    os.truncate(store.folder.images_shard(store.subject("BraTS2021_00001").row), 0)
    with pytest.raises(StoreError, match="BraTS2021_00001"):
        slices.gather([0])


def test_no_such_subject_or_slice(path: Path) -> None:
    store = SliceStore.open(path)
    with pytest.raises(StoreError, match="no subject 'nobody'"):
        SliceStream(store, ["nobody"])
    slices = SliceStream(store, list(store.subjects))
    with pytest.raises(IndexError):
        slices.gather([len(slices)])
