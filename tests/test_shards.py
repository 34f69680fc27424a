"""Shards are Zarr's: zarr reads what we write, we read what zarr writes; damage is seen."""

from pathlib import Path

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from fewscan.storage.manifest import STORE_PROTOCOL, Parameters, StoreFolder
from fewscan.storage.shards import DamagedShard, decode_shard, encode_shard
from fewscan.storage.slices import describe_arrays

DEPTH, SIZE = 9, 6
PARAMETERS = Parameters(STORE_PROTOCOL, SIZE, DEPTH, ("a", "b"), ("lesion",))


@pytest.fixture
def folder(tmp_path: Path) -> StoreFolder:
    folder = StoreFolder.at(tmp_path)
    for shard in (folder.images_shard(0), folder.labels_shard(0)):
        shard.parent.mkdir()
    describe_arrays(folder, PARAMETERS, rows=3)
    return folder


def some_images(count: int) -> np.ndarray:
    images = np.random.default_rng(0).normal(0, 1, (count, 2, SIZE, SIZE)).astype(np.float16)
    images[1] = 0
    return images


def test_zarr_reads_our_shards(folder: StoreFolder) -> None:
    images = some_images(5)
    labels = (images[:, 0] > 0.5).astype(np.uint8)
    for path, slices in [(folder.images_shard(1), images), (folder.labels_shard(1), labels)]:
        shard = encode_shard(slices, 2, DEPTH)
        assert shard is not None
        path.write_bytes(shard)
    group = zarr.open_group(folder.path, mode="r")
    for name, slices in [("images", images), ("labels", labels)]:
        assert np.array_equal(group[name][1, 2:7], slices)
        assert not group[name][1, :2].any()
        assert not group[name][1, 7:].any()
        assert not group[name][0].any()
    assert group["images"].metadata.dimension_names[1:3] == ("slice", "channel")


def test_we_read_zarrs_shards_and_write_the_same_bytes(folder: StoreFolder) -> None:
    images = some_images(DEPTH)
    zarr.open_group(folder.path, mode="r+")["images"][2] = images
    shard = folder.images_shard(2).read_bytes()
    read = np.full((3, 2, SIZE, SIZE), np.nan, np.float16)
    decode_shard(shard, DEPTH, [8, 1, 3], read)
    assert np.array_equal(read, images[[8, 1, 3]])
    again = np.empty_like(images)
    decode_shard(encode_shard(images, 0, DEPTH) or b"", DEPTH, range(DEPTH), again)
    assert np.array_equal(again, images)
    assert len(shard) == len(encode_shard(images, 0, DEPTH) or b"")


def test_arrays_grow_and_keep_their_shards(folder: StoreFolder) -> None:
    zarr.open_group(folder.path, mode="r+")["images"][2] = some_images(DEPTH)
    describe_arrays(folder, PARAMETERS, rows=5)
    group = zarr.open_group(folder.path, mode="r")
    assert group["images"].shape == (5, DEPTH, 2, SIZE, SIZE)
    assert group["labels"].shape == (5, DEPTH, SIZE, SIZE)
    assert np.array_equal(group["images"][2], some_images(DEPTH))


@settings(deadline=None, max_examples=30)
@given(st.data())
def test_slices_come_back(data: st.DataObject) -> None:
    depth = data.draw(st.integers(1, 12))
    first = data.draw(st.integers(0, depth - 1))
    values = st.lists(st.integers(0, 3), min_size=1, max_size=depth - first)
    slices = np.array(data.draw(values), np.uint8)[:, None, None] * np.ones((1, 3, 4), np.uint8)
    shard = encode_shard(slices, first, depth)
    assert (shard is None) == (not slices.any())
    if shard is not None:
        out = np.full((depth, 3, 4), 9, np.uint8)
        decode_shard(shard, depth, range(depth), out)
        assert np.array_equal(out[first : first + len(slices)], slices)
        assert out.sum() == slices.sum()


def test_minus_zero_is_not_left_out() -> None:
    """A slice of -0.0 equals zeros, but its bytes, which the content's hash sees, do not."""
    shard = encode_shard(np.full((1, 4), -0.0, np.float16), 0, 1)
    out = np.zeros((1, 4), np.float16)
    decode_shard(shard or b"", 1, [0], out)
    assert np.signbit(out).all()


def test_each_flipped_byte_and_each_cut_is_seen() -> None:
    slices = np.arange(24, dtype=np.uint8).reshape(2, 12)
    shard = encode_shard(slices, 0, 2)
    assert shard is not None
    out = np.empty_like(slices)
    for k in range(len(shard)):
        flipped = shard[:k] + bytes([shard[k] ^ 1]) + shard[k + 1 :]
        for damaged in (flipped, shard[:k]):
            with pytest.raises(DamagedShard):
                decode_shard(damaged, 2, [0, 1], out)
