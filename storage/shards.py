"""The bytes of one shard: the slices of a subject, each compressed, each with its own checksum.

This is Zarr v3's `sharding_indexed` codec over bytes → zstd → crc32c with the index at the end, so
any Zarr library reads the store. zarr-python does the same; a shard at a time, this is several
times faster, needs no event loop, and survives being used before a fork.

Letters: N slices; what follows (channels, rows, columns) is not looked at.
"""

from collections.abc import Sequence

import numpy as np
from google_crc32c import value as crc32c
from numcodecs import zstd

ZSTD_LEVEL = 1
_MISSING = 2**64 - 1
_INDEX_ENTRY = 16
_CHECKSUM = 4


class DamagedShard(ValueError):
    """A checksum or a length in a shard is not what was written."""


def encode_shard(slices_N: np.ndarray, first: int, length: int) -> bytes | None:
    """Encode slices that stand at `first`, `first` + 1, ... of a shard with room for `length`.

    Slices of zeros are left out, as Zarr does; without any other slice there is no shard: None.
    """
    index = np.full((length, 2), _MISSING, "<u8")
    chunks: list[bytes] = []
    end = 0
    for position, slice_ in enumerate(np.ascontiguousarray(slices_N), start=first):
        if slice_.view(np.uint8).any():
            chunks.append(_with_checksum(zstd.compress(slice_, ZSTD_LEVEL)))
            index[position] = end, len(chunks[-1])
            end += len(chunks[-1])
    return b"".join([*chunks, _with_checksum(index.tobytes())]) if chunks else None


def decode_shard(
    shard: bytes, length: int, positions: Sequence[int], out_N: np.ndarray, mark: str = ""
) -> None:
    """Decode the slices at `positions` into `out_N`; those left out are zeros.

    Raises `DamagedShard`, also if `mark` is given and is not the shard's.
    """
    index = decode_index(shard[-index_bytes(length) :], length, mark)
    for position, out in zip(positions, out_N, strict=True):
        entry = index[position]
        if entry is None:
            out[...] = 0
        else:
            decode_slice(shard[entry.start : entry.stop], position, out)


def index_bytes(length: int) -> int:
    """Size of the index at the end of a shard with room for `length` slices."""
    return length * _INDEX_ENTRY + _CHECKSUM


def mark_of(shard: bytes) -> str:
    """What tells a shard from others at no cost: the checksum of where its slices lie."""
    return shard[-_CHECKSUM:].hex()


def decode_index(end: bytes, length: int, mark: str = "") -> list[slice | None]:
    """Where in the shard the bytes of each slice lie, by the shard's end; None if it was left out.

    Raises `DamagedShard`, also if `mark` is given and is not the shard's.
    """
    if mark and mark_of(end) != mark:
        raise DamagedShard(f"it is another shard: its mark is {mark_of(end)}, not {mark}")
    if len(end) < index_bytes(length):
        raise DamagedShard(f"{len(end)} bytes are too few for an index of {length} slices")
    entries = np.frombuffer(_checked(end, "the index"), "<u8").reshape(length, 2).tolist()
    return [None if size == _MISSING else slice(at, at + size) for at, size in entries]


def decode_slice(chunk: bytes, position: int, out: np.ndarray) -> None:
    """Decode the bytes of the slice at `position` into `out`. Raises `DamagedShard`."""
    zstd.decompress(_checked(chunk, f"slice {position}"), out)


def _with_checksum(data: bytes) -> bytes:
    checksum: int = crc32c(data)
    return data + checksum.to_bytes(_CHECKSUM, "little")


def _checked(data: bytes, what: str) -> bytes:
    content, checksum = data[:-_CHECKSUM], data[-_CHECKSUM:]
    if crc32c(content).to_bytes(_CHECKSUM, "little") != checksum:
        raise DamagedShard(f"the checksum of {what} does not fit its bytes")
    return content
