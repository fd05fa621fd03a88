"""Exact search by looking up codes near the query: direct addressing for short codes, multi-index hashing for others.

Both look at what is certainly near first, and go on until nothing nearer can be left. Where that would cost more
than a scan they give up on a query; what they have found by then tells the scan where to stop.

Multi-index hashing cuts codes into T substrings with a table each. A code at distance T r + t or less from the query
agrees up to r bits with one of the substrings 0..t, or up to r - 1 bits with one of the others (Norouzi, Punjani and
Fleet, Fast Exact Search in Hamming Space with Multi-Index Hashing, PAMI 2014).
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
from numba import types

from distindex.index.compiled import POSITION_BITS, array_type, byte_swap, compiled, each_type, part, popcount
from distindex.index.matches import starts_of
from distindex.index.scan import WordArray

DIRECT_BITS = 24
# Substrings of this length at most: their tables stay in the second-level cache.
_SUBSTRING_BITS = 16
# Bits of a substring that may differ; beyond, a scan is as fast.
_FLIPS = 4
# Looking at a code costs as much as scanning so many words of codes; a probe half of it.
_VERIFY_WORDS = 40
_LEAST_BUDGET = 2_000


@dataclasses.dataclass(frozen=True)
class Probed:
    """What was found for Q queries.

    Attributes:
        offset_Q1: the keys of query q are `offset_Q1[q]:offset_Q1[q + 1]`, in the order of answers.
        key_M: distance and position of each answer as one number (see `compiled`).
        limit_Q: -1 where the answer is complete; otherwise the distance that at least k codes are below.
    """

    offset_Q1: npt.NDArray[np.int64]
    key_M: npt.NDArray[np.int64]
    limit_Q: npt.NDArray[np.int64]


def flips(bits: int, most: int) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.int64]]:
    """All masks of up to `most` of `bits` bits, by their number of ones, and where each number begins."""
    levels = [np.zeros(1, np.uint32)]
    for _ in range(min(most, bits)):
        # Each mask of the next level once: a bit above the highest one is added.
        last = levels[-1]
        added = [last[last < (1 << bit)] | np.uint32(1 << bit) for bit in range(bits)]
        levels.append(np.concatenate(added).astype(np.uint32))
    return np.concatenate(levels), np.cumsum([0, *map(len, levels)])


class Direct:
    """Codes of up to 24 bits by their value: a bit for each value, and how many codes stand before each 64 of them.

    Args:
        code_UW: distinct codes in byte order, in one word each.
        bits: their length.
    """

    def __init__(self, code_UW: WordArray, bits: int) -> None:
        self._bits = bits
        values = 1 << bits
        present = np.zeros(max(values, 64), bool)
        present[self._value(code_UW)] = True
        self._present = np.packbits(present, bitorder="little").view(np.uint64)
        ones = np.bitwise_count(self._present).astype(np.uint32)
        self._before = np.cumsum(ones, dtype=np.uint32) - ones
        self._budget = len(code_UW) // 8 + 512
        most = 0
        while most < bits and len(flips(bits, most + 1)[0]) <= self._budget:
            most += 1
        self._flip_X, self._level_R1 = flips(bits, most)
        self._probe = _direct()

    @property
    def bytes(self) -> int:
        """Memory beside the codes."""
        return self._present.nbytes + self._before.nbytes + self._flip_X.nbytes

    def search(self, query_QW: WordArray, k: int, radius: int) -> Probed:
        """The k nearest codes, or with `radius` of at least 0 all within it."""
        limit_Q = np.empty(len(query_QW), np.int64)
        offset_Q1 = np.zeros(len(query_QW) + 1, np.int64)
        key_M = self._probe(
            self._present, self._before, self._value(query_QW), k, radius, self._flip_X, self._level_R1, self._bits,
            offset_Q1, limit_Q,
        )  # fmt: skip
        return Probed(offset_Q1, key_M, limit_Q)

    def _value(self, words: WordArray) -> npt.NDArray[np.uint32]:
        return words[:, 0].byteswap() >> np.uint32(32 - self._bits)


class MultiIndex:
    """Codes by their substrings.

    Args:
        code_UW: distinct codes in byte order.
        bits: their length.
    """

    def __init__(self, code_UW: WordArray, bits: int) -> None:
        self._code_UW = code_UW
        word_bits = code_UW.dtype.itemsize * 8
        cuts = []
        for word in range(code_UW.shape[1]):
            here = min(word_bits, bits - word * word_bits)
            parts = -(-here // _SUBSTRING_BITS)
            edges = np.linspace(0, here, parts + 1).astype(int)
            cuts += [(word, word_bits - stop, stop - start) for start, stop in itertools.pairwise(edges)]
        self._cut_T3 = np.array(cuts, np.int64)
        self._position_TU = np.empty((len(cuts), len(code_UW)), np.uint32)
        starts, bases, all_flips, levels = [], [0], [], []
        for table, (word, shift, width) in enumerate(cuts):
            value_U = (code_UW[:, word].byteswap() >> code_UW.dtype.type(shift)).astype(np.uint32)
            value_U &= np.uint32((1 << width) - 1)
            self._position_TU[table] = np.argsort(value_U.astype(np.uint16), kind="stable")
            starts.append(starts_of(np.bincount(value_U, minlength=1 << width)))
            bases.append(bases[-1] + len(starts[-1]))
            mask_X, level_R1 = flips(width, _FLIPS)
            levels.append(np.pad(level_R1, (0, _FLIPS + 2 - len(level_R1)), "edge") + sum(map(len, all_flips)))
            all_flips.append(mask_X)
        self._start_X = np.concatenate(starts).astype(np.uint32)
        self._base_T1 = np.array(bases, np.int64)
        self._flip_X = np.concatenate(all_flips)
        self._level_TR = np.array(levels, np.int64)
        # Bits of each substring in a word as it lies in memory.
        word_type = code_UW.dtype.type
        masks = [word_type(((1 << width) - 1) << shift).byteswap() for _, shift, width in cuts]
        self._mask_T = np.array(masks, code_UW.dtype)
        self.budget = max(_LEAST_BUDGET, len(code_UW) * code_UW.shape[1] // _VERIFY_WORDS)
        self._probe = _multi(code_UW.shape[1], code_UW.dtype.type)

    @property
    def bytes(self) -> int:
        """Memory beside the codes."""
        return self._position_TU.nbytes + self._start_X.nbytes

    def search(self, query_QW: WordArray, k: int, radius: int) -> Probed:
        """The k nearest codes, or with `radius` of at least 0 all within it."""
        limit_Q = np.empty(len(query_QW), np.int64)
        offset_Q1 = np.zeros(len(query_QW) + 1, np.int64)
        key_M = self._probe(
            self._code_UW, query_QW, self._cut_T3, self._mask_T, self._start_X, self._base_T1, self._position_TU,
            self._flip_X, self._level_TR, k, radius, self.budget, offset_Q1, limit_Q,
        )  # fmt: skip
        return Probed(offset_Q1, key_M, limit_Q)


@part
def _grown(key_M: Any, size: int, more: int) -> Any:
    """The same list with room for more."""
    if size + more <= len(key_M):
        return key_M
    larger = np.empty(max(2 * len(key_M), size + more), np.int64)
    larger[:size] = key_M[:size]
    return larger


def _look_up(
    present: Any,
    before: Any,
    value_Q: Any,
    k: int,
    radius: int,
    flip_X: Any,
    level_R1: Any,
    bits: int,
    offset_Q1: Any,
    limit_Q: Any,
) -> Any:
    key_M = np.empty(1024, np.int64)
    size = 0
    levels = len(level_R1) - 1
    for q in range(len(value_Q)):
        begin, value = size, value_Q[q]
        # The distance up to which everything has been looked up.
        settled = -1
        for r in range(levels):
            key_M = _grown(key_M, size, level_R1[r + 1] - level_R1[r])
            first = size
            for x in range(level_R1[r], level_R1[r + 1]):
                wanted = value ^ flip_X[x]
                word = present[wanted >> np.uint32(6)]
                bit = np.uint64(1) << np.uint64(wanted & np.uint32(63))
                if word & bit:
                    position = before[wanted >> np.uint32(6)] + popcount(word & (bit - np.uint64(1)))
                    key_M[size] = (np.int64(r) << POSITION_BITS) | np.int64(position)
                    size += 1
            key_M[first:size].sort()
            settled = r
            if size - begin >= k or r == radius:
                break
        enough = size - begin >= k
        if settled in (bits, radius) or (enough and radius < 0):
            limit_Q[q] = -1
            size = min(size, begin + k)
        else:
            limit_Q[q] = bits + 1
            size = begin
        offset_Q1[q + 1] = size
    return key_M[:size].copy()


@part
def _found_before(code_UW: Any, u: int, query_W: Any, cut_T3: Any, mask_T: Any, r: int, table: int) -> bool:
    """Whether an earlier probe met the code: with fewer flips, or as many in an earlier table."""
    for t in range(len(mask_T)):
        w = cut_T3[t, 0]
        apart = np.int64(popcount((code_UW[u, w] ^ query_W[w]) & mask_T[t]))
        if apart < r or (apart == r and t < table):
            return True
    return False


def _probe(
    each_W: Any,
    code_UW: Any,
    query_QW: Any,
    cut_T3: Any,
    mask_T: Any,
    start_X: Any,
    base_T1: Any,
    position_TU: Any,
    flip_X: Any,
    level_TR: Any,
    k: int,
    radius: int,
    budget: int,
    offset_Q1: Any,
    limit_Q: Any,
) -> Any:
    tables = len(mask_T)
    longest = 8 * len(each_W) * code_UW.itemsize
    key_M = np.empty(1024, np.int64)
    size = 0
    count_D = np.empty(longest + 1, np.int64)
    for q in range(query_QW.shape[0]):
        begin, query_W = size, query_QW[q]
        count_D[:] = 0
        # Codes up to this distance are kept, and there are `near` of them.
        limit, near = radius if radius >= 0 else longest, 0
        visited, probes, settled, given_up = 0, 0, False, False
        for r in range(_FLIPS + 1):
            # What the levels up to the one that settles it will cost, at the codes a probe has met so far.
            per_probe = 0.5 + (visited / probes if probes else code_UW.shape[0] / 65536)
            planned = 0.0
            last = limit // tables if radius >= 0 or near >= k else r
            if last > _FLIPS:
                given_up = True
                break
            for ahead in range(r, last + 1):
                for t in range(tables):
                    planned += (level_TR[t, ahead + 1] - level_TR[t, ahead]) * per_probe
            if visited + 0.5 * probes + planned > budget:
                given_up = True
                break
            for t in range(tables):
                w, shift, width = cut_T3[t, 0], cut_T3[t, 1], cut_T3[t, 2]
                own = (byte_swap(query_W[w]) >> code_UW.dtype.type(shift)) & code_UW.dtype.type((1 << width) - 1)
                for x in range(level_TR[t, r], level_TR[t, r + 1]):
                    bucket = base_T1[t] + np.int64(own ^ code_UW.dtype.type(flip_X[x]))
                    first, last_one = np.int64(start_X[bucket]), np.int64(start_X[bucket + 1])
                    probes += 1
                    visited += last_one - first
                    if visited > 2 * budget:
                        given_up = True
                        break
                    key_M = _grown(key_M, size, last_one - first)
                    for p in range(first, last_one):
                        u = np.int64(position_TU[t, p])
                        total = query_W.dtype.type(0)
                        for v in range(len(each_W)):
                            total += popcount(code_UW[u, v] ^ query_W[v])
                        d = np.int64(total)
                        if d > limit or _found_before(code_UW, u, query_W, cut_T3, mask_T, r, t):
                            continue
                        key_M[size] = (d << POSITION_BITS) | u
                        size += 1
                        count_D[d] += 1
                        near += 1
                        if radius < 0:
                            while near - count_D[limit] >= k:
                                near -= count_D[limit]
                                limit -= 1
                if given_up:
                    break
                if tables * r + t >= limit and (radius >= 0 or near >= k):
                    settled = True
                    break
            if settled or given_up:
                break
        if settled:
            end = begin
            for x in range(begin, size):
                if key_M[x] >> POSITION_BITS <= limit:
                    key_M[end] = key_M[x]
                    end += 1
            key_M[begin:end].sort()
            size = min(end, begin + k)
            limit_Q[q] = -1
        else:
            size = begin
            limit_Q[q] = limit + 1 if near >= k else longest + 1
        offset_Q1[q + 1] = size
    return key_M[:size].copy()


@functools.cache
def _direct() -> Callable[..., Any]:
    """Compile the search of `Direct`, or read it from the cache."""
    words, numbers = array_type(np.uint32, 1), array_type(np.int64, 1)
    return compiled(
        numbers(
            array_type(np.uint64, 1), words, words, types.int64, types.int64, words, numbers, types.int64, numbers,
            numbers,
        )
    )(_look_up)  # fmt: skip


@functools.cache
def _multi(words: int, word: type[np.unsignedinteger[Any]]) -> Callable[..., Any]:
    """Compile the search of `MultiIndex` for codes of `words` words, or read it from the cache."""
    codes, numbers, table = array_type(word, 2, readonly=True), array_type(np.int64, 1), array_type(np.int64, 2)
    probe = compiled(
        numbers(
            each_type(words), codes, codes, table, array_type(word, 1), array_type(np.uint32, 1), numbers,
            array_type(np.uint32, 2), array_type(np.uint32, 1), table, types.int64, types.int64, types.int64, numbers,
            numbers,
        )
    )(_probe)  # fmt: skip
    return functools.partial(probe, (0,) * words)
