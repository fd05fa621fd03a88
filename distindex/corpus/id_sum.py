"""A sum over ids that does not depend on their order: equal sums, equal ids, however they were moved about."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from distindex.corpus.ids import IdColumn

Words: TypeAlias = npt.NDArray[np.uint64]
Positions: TypeAlias = npt.NDArray[np.int64]

# Two hashes of 64 bits, from different starts; the digits are those of pi.
_STARTS = (0x243F6A8885A308D3, 0x13198A2E03707344)
_MASK = (1 << 64) - 1
# Rows whose hashes stay in a core's cache.
_PIECE_ROWS = 1 << 14


@dataclasses.dataclass(frozen=True)
class IdSum:
    """The sum of the hashes of some ids, modulo 2^64 for each of two hashes; sums add up.

    Attributes:
        rows: how many ids.
        first: sum of their first hashes.
        second: sum of their second hashes.
    """

    rows: int = 0
    first: int = 0
    second: int = 0

    @classmethod
    def of(cls, ids: IdColumn) -> IdSum:
        """Of a column of int64 or string ids; nulls do not count."""
        total = cls()
        for chunk in ids.chunks if isinstance(ids, pa.ChunkedArray) else [ids]:
            chunk = chunk.drop_null() if chunk.null_count else chunk
            for start in range(0, len(chunk), _PIECE_ROWS):
                piece = chunk.slice(start, _PIECE_ROWS)
                first, second = (int(hash_N.sum()) for hash_N in _hashes(piece))
                total += cls(len(piece), first, second)
        return total

    def __add__(self, other: IdSum) -> IdSum:
        first, second = self.first + other.first, self.second + other.second
        return IdSum(self.rows + other.rows, first & _MASK, second & _MASK)

    def __sub__(self, other: IdSum) -> IdSum:
        first, second = self.first - other.first, self.second - other.second
        return IdSum(self.rows - other.rows, first & _MASK, second & _MASK)

    @property
    def digits(self) -> str:
        """Both sums as 32 hexadecimal digits."""
        return f"{self.first:016x}{self.second:016x}"


def _hashes(ids: pa.Array) -> tuple[Words, Words]:
    """Both hashes `hash_N` of ids without nulls.

    h = start; h = splitmix64(h XOR w) for each word w of 8 bytes, the last one padded with zeros, and then for the
    number of bytes. An integer is one word.
    """
    hash_2N = np.repeat(np.array(_STARTS, np.uint64)[:, None], len(ids), axis=1)
    if pa.types.is_integer(ids.type):
        hash_2N ^= ids.to_numpy().view(np.uint64)
        _mix(hash_2N)
        hash_2N ^= np.uint64(8)
    else:
        offset_N1 = np.frombuffer(ids.buffers()[1], np.int32)[ids.offset : ids.offset + len(ids) + 1].astype(np.int64)
        for row_A, word_A in _words(ids.buffers()[2], offset_N1):
            if len(row_A) == len(ids):
                hash_2N ^= word_A
                _mix(hash_2N)
            else:
                hash_2A = hash_2N[:, row_A] ^ word_A
                _mix(hash_2A)
                hash_2N[:, row_A] = hash_2A
        hash_2N ^= np.diff(offset_N1).view(np.uint64)
    _mix(hash_2N)
    return hash_2N[0], hash_2N[1]


def _words(texts: pa.Buffer | None, offset_N1: Positions) -> Iterator[tuple[Positions, Words]]:
    """The rows `row_A` that have a first, second, ... word of 8 bytes, and these words."""
    begin, end = int(offset_N1[0]), int(offset_N1[-1])
    data = np.zeros(end - begin + 8, np.uint8)
    if texts is not None:
        data[:-8] = np.frombuffer(texts, np.uint8)[begin:end]
    # A word may begin at any byte.
    word_M = np.ndarray((len(data) - 7,), "<u8", data, strides=(1,))
    start_N, length_N = offset_N1[:-1] - begin, np.diff(offset_N1)
    row_A, done = np.arange(len(length_N)), 0
    while len(row_A := row_A[length_N[row_A] > done]):
        word_A, left_A = word_M[start_N[row_A] + done], length_N[row_A] - done
        short = left_A < 8
        word_A[short] &= (np.uint64(1) << (8 * left_A[short]).astype(np.uint64)) - np.uint64(1)
        yield row_A, word_A
        done += 8


def _mix(word: Words) -> None:
    """splitmix64 in place (Steele, Lea and Flood 2014)."""
    word += np.uint64(0x9E3779B97F4A7C15)
    word ^= word >> np.uint64(30)
    word *= np.uint64(0xBF58476D1CE4E5B9)
    word ^= word >> np.uint64(27)
    word *= np.uint64(0x94D049BB133111EB)
    word ^= word >> np.uint64(31)
