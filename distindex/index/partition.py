"""Which shard a row goes to, and finding ids that stand twice.

The shard of a code is part of the index format: with the code as little-endian 64-bit words, the last one
zero-padded, `h = splitmix64(h ^ word)` for each word from h = 0, and the shard is h modulo the number of
shards. splitmix64(x) is the first output of that generator (Steele, Lea and Flood 2014, "Fast splittable
pseudorandom number generators") from state x.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from distindex.codes import CodeArray
from distindex.errors import InputError
from distindex.index.matches import id_ranks, one_chunk

_STRINGS_AT_ONCE = 1 << 16


def shard_of_codes(code_NC: CodeArray, shards: int) -> npt.NDArray[np.int64]:
    """The shard, from 0, of each code; equal codes share one."""
    if shards == 1:
        return np.zeros(len(code_NC), np.int64)
    rows, size = code_NC.shape
    padded = np.zeros((rows, -(-size // 8) * 8), np.uint8)
    padded[:, :size] = code_NC
    hash_N = np.zeros(rows, np.uint64)
    for word_N in padded.view("<u8").T:
        hash_N = _splitmix64(hash_N ^ word_N)
    return (hash_N % np.uint64(shards)).astype(np.int64)


def group_of_ids(id_N: pa.Array, groups: int) -> npt.NDArray[np.int64]:
    """One of `groups` for each id, the same for equal ids, about as many ids in each."""
    if groups == 1:
        return np.zeros(len(id_N), np.int64)
    if pa.types.is_integer(id_N.type):
        hash_N = _splitmix64(id_N.to_numpy(zero_copy_only=False).astype(np.int64).view(np.uint64))
    else:
        parts = [_string_hash(id_N.slice(start, _STRINGS_AT_ONCE)) for start in range(0, len(id_N), _STRINGS_AT_ONCE)]
        hash_N = np.concatenate(parts) if parts else np.empty(0, np.uint64)
    return (hash_N % np.uint64(groups)).astype(np.int64)


def _splitmix64(word_N: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    word_N = word_N + np.uint64(0x9E3779B97F4A7C15)
    word_N = (word_N ^ (word_N >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    word_N = (word_N ^ (word_N >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return word_N ^ (word_N >> np.uint64(31))


def _string_hash(text_N: pa.Array) -> npt.NDArray[np.uint64]:
    _, offset_buffer, data = text_N.buffers()
    offset_N1 = np.frombuffer(offset_buffer, np.int32)[text_N.offset : text_N.offset + len(text_N) + 1]
    first, last = int(offset_N1[0]), int(offset_N1[-1])
    byte_T = np.frombuffer(data or b"", np.uint8)[first:last].astype(np.uint64)
    offset_N1 = offset_N1.astype(np.int64) - first
    length_N = np.diff(offset_N1)
    place_T = np.arange(len(byte_T)) - np.repeat(offset_N1[:-1], length_N)
    # A sum of mixed (place, byte) pairs per string, as the difference of running sums modulo 2^64.
    running = np.concatenate(
        [[np.uint64(0)], np.cumsum(_splitmix64(place_T.astype(np.uint64) << np.uint64(8) | byte_T))]
    )
    return _splitmix64(running[offset_N1[1:]] - running[offset_N1[:-1]])


def duplicate_rows(id_N: pa.Array) -> tuple[int, int] | None:
    """Two rows with the same id, or None where all ids differ."""
    rank_N = id_ranks(id_N)
    order_N = np.argsort(rank_N, kind="stable")
    sorted_N = rank_N[order_N]
    again = np.flatnonzero(sorted_N[1:] == sorted_N[:-1])
    return (int(order_N[again[0]]), int(order_N[again[0] + 1])) if len(again) else None


def as_ids(values: Any, where: str) -> pa.Array:
    """Ids as one int64 or string array.

    Raises:
        InputError: another type, a null, or an integer that int64 cannot hold.
    """
    try:
        ids = one_chunk(values) if isinstance(values, pa.Array | pa.ChunkedArray) else pa.array(values)
    except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError) as error:
        raise InputError(f"{where}: ids are neither integers nor texts ({error})") from error
    if ids.null_count:
        raise InputError(f"{where}: the id of row {ids.is_null().index(True).as_py()} is null")
    if pa.types.is_integer(ids.type) or (pa.types.is_null(ids.type) and not len(ids)):
        target = pa.int64()
    elif pa.types.is_string(ids.type) or pa.types.is_large_string(ids.type):
        target = pa.string()
    else:
        raise InputError(f"{where}: ids are of type {ids.type}; expected integers or texts")
    try:
        return ids.cast(target)
    except pa.ArrowInvalid as error:
        raise InputError(f"{where}: {error}") from error
