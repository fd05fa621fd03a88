"""Exact search by a scan in blocks: each block of codes meets all queries while it is in the cache.

Of a block only those strips of codes are looked at one by one that hold a code nearer than the query's k-th nearest
so far; whether they do is counted with vector instructions, 8 or 16 codes at a time. For that the codes are laid out
strip by strip and in a strip word by word, once, which takes as much memory again for codes of several words. (Laid
out anew by each search, codes of 256 bits took as long as seven queries.)
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from numba import types, void

from distindex.index.compiled import (
    POSITION_BITS,
    POSITION_MASK,
    array_type,
    byte_swap,
    compiled,
    each_type,
    part,
    popcount,
)

# Codes that are counted at once, and of which one that is near makes all be looked at.
_STRIP = 64
# Bytes of a block, which stays in the second-level cache while all queries meet it.
_BLOCK_BYTES = 256 << 10
_LINE_BYTES = 64
# From this k on a sample tells more about the k-th distance than the codes beside the query.
_SAMPLED_K = 256
# Of how many codes one is in the sample.
_SAMPLED = 32

# What a query's state holds: the limit that codes must be nearer than, how long its list is, how many codes on it
# are below the limit; how many strips were tried by half of their words, and how many of them that did not rule out.
_LIMIT, _FILLED, _BELOW, _TRIED, _PASSED = range(5)
_STATE = 5

WordArray = npt.NDArray[np.unsignedinteger[Any]]

# `each_W` has as many items as a code has words. The length of a tuple is a part of its type, and so the loops over
# words are unrolled. (Numba does not keep what it compiles of functions that close over others.)


@dataclasses.dataclass(frozen=True)
class Scan:
    """The compiled scans over U codes of W words, for Q queries.

    Attributes:
        knn: `knn(*strips, code_UW, query_QW, k, guess, limit_Q, distance_Qk, position_Qk)` looks for the k codes of
            each query, `1 <= k <= U`, among those nearer than `limit_Q`. With `guess` it lowers the limits to what a
            sample says. Returns how many queries have fewer than k codes below their limit; `limit_Q` is -1 for
            these, and they have no answers.
        count: `count(*strips, query_QW, radius, count_Q)` counts the codes within a radius.
        fill: `fill(*strips, query_QW, radius, offset_Q1, key_M)` writes them in position order, as numbers of
            distance and position (see `compiled`).
    """

    knn: Callable[..., int]
    count: Callable[..., None]
    fill: Callable[..., None]


class Strips(NamedTuple):
    """U codes of W words in strips of I = 64, and in a strip word by word.

    Attributes:
        strip_SWI: all whole strips.
        tail_1WI: one strip of the codes that are left, and zeros.
        sample_SWI: codes from all over, one in 32; so are those of its first strips, however many.
        codes: U.
    """

    strip_SWI: WordArray
    tail_1WI: WordArray
    sample_SWI: WordArray
    codes: int

    @classmethod
    def of(cls, code_UW: WordArray) -> Strips:
        """Lay out codes; those of one word are laid out already, and not copied."""
        codes, words = code_UW.shape
        whole = codes - codes % _STRIP
        strip_SWI = code_UW[:whole].reshape(-1, _STRIP, words).transpose(0, 2, 1)
        if words > 1:
            strip_SWI = _aligned(strip_SWI)
        tail_1WI = np.zeros((1, words, _STRIP), code_UW.dtype)
        tail_1WI[0, :, : codes - whole] = code_UW[whole:].T
        # Multiples of the golden ratio: whenever one stops, they have come by everywhere equally often.
        sampled = np.arange(codes // _SAMPLED // _STRIP * _STRIP) * ((np.sqrt(5) - 1) / 2) % 1
        sample_NW = code_UW[(sampled * codes).astype(np.int64)]
        sample_SWI = np.ascontiguousarray(sample_NW.reshape(-1, _STRIP, words).transpose(0, 2, 1))
        strip_SWI.flags.writeable = tail_1WI.flags.writeable = sample_SWI.flags.writeable = False
        return cls(strip_SWI, tail_1WI, sample_SWI, codes)


def _aligned(array: WordArray) -> WordArray:
    """A copy that begins with a cache line: else each vector that is read lies in two."""
    room = np.empty(array.nbytes + _LINE_BYTES, np.uint8)
    copy = room[-room.ctypes.data % _LINE_BYTES :][: array.nbytes].view(array.dtype).reshape(array.shape)
    copy[:] = array
    return copy


def words_of(padded_NP: npt.NDArray[np.uint8]) -> WordArray:
    """Codes as rows of words, read-only and without a copy: 32-bit words where 64-bit ones do not fit."""
    words = padded_NP.view(np.uint32 if padded_NP.shape[1] % 8 else np.uint64)
    words.flags.writeable = False
    return words


@part
def _distance(each_W: Any, code_UW: Any, u: int, query_W: Any) -> Any:
    total = query_W.dtype.type(0)
    for w in range(len(each_W)):
        total += popcount(code_UW[u, w] ^ query_W[w])
    return np.int64(total)


@part
def _distances(each_W: Any, strip_WI: Any, query_W: Any, distance_I: Any) -> None:
    for i in range(_STRIP):
        total = query_W.dtype.type(0)
        for w in range(len(each_W)):
            total += popcount(strip_WI[w, i] ^ query_W[w])
        distance_I[i] = total


@part
def _nearer(each_W: Any, strip_WI: Any, query_W: Any, limit: Any) -> Any:
    """How many codes of a strip are nearer than the limit: this is where the time goes."""
    count = query_W.dtype.type(0)
    for i in range(_STRIP):
        total = query_W.dtype.type(0)
        for w in range(len(each_W)):
            total += popcount(strip_WI[w, i] ^ query_W[w])
        count += query_W.dtype.type(total < limit)
    return np.int64(count)


@part
def _may_hold_nearer(each_W: Any, strip_WI: Any, query_W: Any, limit: Any) -> bool:
    """Whether a code of a strip is nearer than the limit by its first words alone."""
    count = query_W.dtype.type(0)
    for i in range(_STRIP):
        total = query_W.dtype.type(0)
        for w in range(len(each_W) // 2):
            total += popcount(strip_WI[w, i] ^ query_W[w])
        count += query_W.dtype.type(total < limit)
    return count > 0


@part
def _strips_of_a_block(each_W: Any, strip_SWI: Any) -> int:
    return max(1, _BLOCK_BYTES // (_STRIP * len(each_W) * strip_SWI.itemsize))


@part
def _fetch(each_W: Any, block_SWI: Any) -> Any:
    """Read a block once from end to end, into the cache: word by word in turns, memory answers a third as fast."""
    word_X = block_SWI.reshape(block_SWI.size)
    total = word_X.dtype.type(0)
    if len(each_W) > 2:
        for x in range(word_X.size):
            total += word_X[x]
    return total


@part
def _place_of(each_W: Any, code_UW: Any, query_W: Any) -> int:
    """How many codes stand before the query in byte order."""
    low, high = 0, code_UW.shape[0]
    while low < high:
        middle = (low + high) // 2
        before = False
        for w in range(len(each_W)):
            code, wanted = byte_swap(code_UW[middle, w]), byte_swap(query_W[w])
            if code != wanted:
                before = code < wanted
                break
        if before:
            low = middle + 1
        else:
            high = middle
    return low


@part
def _limit_by_sample(
    each_W: Any, sample_SWI: Any, codes: int, query_W: Any, k: int, limit: int, count_D: Any, distance_I: Any
) -> int:
    """A limit that k codes are almost certainly below."""
    for s in range(sample_SWI.shape[0]):
        _distances(each_W, sample_SWI[s], query_W, distance_I)
        for i in range(_STRIP):
            count_D[np.int64(distance_I[i])] += 1
    # Four deviations above what the sample must hold if k of all codes are below.
    expected = k * sample_SWI.shape[0] * _STRIP / codes
    return _reached(count_D, expected + 4 * np.sqrt(expected), limit)


@part
def _limit_beside(each_W: Any, code_UW: Any, query_W: Any, k: int, limit: int, count_D: Any) -> int:
    """A limit that k codes are certainly below: as many share a prefix with the query."""
    codes = code_UW.shape[0]
    size = min(codes, 2 * k + 128)
    start = min(max(0, _place_of(each_W, code_UW, query_W) - size // 2), codes - size)
    for u in range(start, start + size):
        count_D[_distance(each_W, code_UW, u, query_W)] += 1
    return _reached(count_D, float(k), limit)


@part
def _reached(count_D: Any, wanted: float, limit: int) -> int:
    """The lowest limit that so many of the counted codes are below, or the one there was; empties the counts."""
    total = 0
    for d in range(limit):
        total += count_D[d]
        if total >= wanted:
            limit = d + 1
            break
    count_D[:] = 0
    return limit


@part
def _take_nearer(
    each_W: Any,
    strip_SWI: Any,
    at: int,
    size: int,
    query_W: Any,
    k: int,
    state: Any,
    count_D: Any,
    key_X: Any,
    distance_I: Any,
) -> None:
    """Put those of `size` codes, which begin at position `at`, on a query's list that are nearer than its limit.

    What a query's `state` holds says `_LIMIT` and so on; `count_D` counts its list by distance. Below the limit there
    are fewer than k codes on the list; at the limit there may be more than are needed, which are thrown out when the
    list is full.
    """
    limit, filled, below = state[_LIMIT], state[_FILLED], state[_BELOW]
    # Half the words rule out most strips where near codes are near, and none where codes are uniform.
    by_half = len(each_W) > 1 and 4 * state[_PASSED] <= state[_TRIED] + 16
    for s in range((size + _STRIP - 1) // _STRIP):
        if by_half:
            state[_TRIED] += 1
            if not _may_hold_nearer(each_W, strip_SWI[s], query_W, query_W.dtype.type(limit)):
                continue
            state[_PASSED] += 1
        if _nearer(each_W, strip_SWI[s], query_W, query_W.dtype.type(limit)) == 0:
            continue
        _distances(each_W, strip_SWI[s], query_W, distance_I)
        for i in range(min(_STRIP, size - s * _STRIP)):
            d = np.int64(distance_I[i])
            if d >= limit:
                continue
            key_X[filled] = (d << POSITION_BITS) | (at + s * _STRIP + i)
            filled += 1
            count_D[d] += 1
            below += 1
            while below >= k:
                # The k-th nearest so far is the last one below the limit: what follows must be nearer.
                limit -= 1
                below -= count_D[limit]
        if filled + _STRIP > len(key_X):
            kept, needed = 0, k - below
            for x in range(filled):
                d = key_X[x] >> POSITION_BITS
                if d < limit or (d == limit and needed > 0):
                    needed -= d == limit
                    key_X[kept] = key_X[x]
                    kept += 1
            filled = kept
    state[_LIMIT], state[_FILLED], state[_BELOW] = limit, filled, below


def _knn(
    each_W: Any,
    strip_SWI: Any,
    tail_1WI: Any,
    sample_SWI: Any,
    codes: int,
    code_UW: Any,
    query_QW: Any,
    k: int,
    guess: bool,
    limit_Q: Any,
    distance_QM: Any,
    position_QM: Any,
) -> int:
    queries, whole, block = query_QW.shape[0], strip_SWI.shape[0], _strips_of_a_block(each_W, strip_SWI)
    key_QX = np.empty((queries, min(codes, 2 * k) + 2 * _STRIP), np.int64)
    state_QZ = np.zeros((queries, _STATE), np.int64)
    count_QD = np.zeros((queries, 8 * len(each_W) * strip_SWI.itemsize + 2), np.int64)
    distance_I = np.empty(_STRIP, strip_SWI.dtype)
    # Kept, or else the compiler would leave the reading out.
    fetched_1 = np.zeros(1, strip_SWI.dtype)
    by_sample = guess and k >= _SAMPLED_K and codes >= 8 * k and len(sample_SWI) > 0
    # So many codes that 32 of them are expected to be among the k nearest.
    enough_SWI = sample_SWI[: max(1, 32 * codes // (k * _STRIP))]
    for q in range(queries):
        if by_sample:
            state_QZ[q, _LIMIT] = _limit_by_sample(
                each_W, enough_SWI, codes, query_QW[q], k, limit_Q[q], count_QD[q], distance_I
            )
        else:
            state_QZ[q, _LIMIT] = _limit_beside(each_W, code_UW, query_QW[q], k, limit_Q[q], count_QD[q])
    for first in range(0, whole, block):
        block_SWI = strip_SWI[first : first + block]
        fetched_1[0] ^= _fetch(each_W, block_SWI)
        at, size = first * _STRIP, block_SWI.shape[0] * _STRIP
        for q in range(queries):
            _take_nearer(each_W, block_SWI, at, size, query_QW[q], k, state_QZ[q], count_QD[q], key_QX[q], distance_I)
    at = whole * _STRIP
    for q in range(queries):
        _take_nearer(
            each_W, tail_1WI, at, codes - at, query_QW[q], k, state_QZ[q], count_QD[q], key_QX[q], distance_I
        )
    missed = 0
    for q in range(queries):
        # The list is in position order: placing by distance sorts it.
        limit, before = state_QZ[q, _LIMIT], 0
        for d in range(limit + 1):
            here = count_QD[q, d]
            count_QD[q, d] = before
            before += here
        if before < k:
            limit_Q[q] = -1
            missed += 1
            continue
        limit_Q[q] = limit
        for x in range(state_QZ[q, _FILLED]):
            d = key_QX[q, x] >> POSITION_BITS
            if d <= limit and count_QD[q, d] < k:
                place = count_QD[q, d]
                count_QD[q, d] += 1
                distance_QM[q, place] = d
                position_QM[q, place] = key_QX[q, x] & POSITION_MASK
    return missed


def _count(
    each_W: Any, strip_SWI: Any, tail_1WI: Any, sample_SWI: Any, codes: int, query_QW: Any, radius: int, count_Q: Any
) -> None:
    whole, block = strip_SWI.shape[0], _strips_of_a_block(each_W, strip_SWI)
    distance_I = np.empty(_STRIP, strip_SWI.dtype)
    # Kept, or else the compiler would leave the reading out.
    fetched_1 = np.zeros(1, strip_SWI.dtype)
    count_Q[:] = 0
    for first in range(0, whole, block):
        fetched_1[0] ^= _fetch(each_W, strip_SWI[first : first + block])
        for q in range(query_QW.shape[0]):
            found = 0
            for s in range(first, min(first + block, whole)):
                found += _nearer(each_W, strip_SWI[s], query_QW[q], query_QW.dtype.type(radius + 1))
            count_Q[q] += found
    for q in range(query_QW.shape[0]):
        _distances(each_W, tail_1WI[0], query_QW[q], distance_I)
        for i in range(codes - whole * _STRIP):
            count_Q[q] += np.int64(distance_I[i]) <= radius


@part
def _take_within(
    each_W: Any, strip_SWI: Any, at: int, size: int, query_W: Any, radius: int, key_M: Any, distance_I: Any
) -> int:
    """Write the keys of those of `size` codes that are within the radius; how many there are."""
    taken = 0
    for s in range((size + _STRIP - 1) // _STRIP):
        if _nearer(each_W, strip_SWI[s], query_W, query_W.dtype.type(radius + 1)) == 0:
            continue
        _distances(each_W, strip_SWI[s], query_W, distance_I)
        for i in range(min(_STRIP, size - s * _STRIP)):
            d = np.int64(distance_I[i])
            if d <= radius:
                key_M[taken] = (d << POSITION_BITS) | (at + s * _STRIP + i)
                taken += 1
    return taken


def _fill(
    each_W: Any,
    strip_SWI: Any,
    tail_1WI: Any,
    sample_SWI: Any,
    codes: int,
    query_QW: Any,
    radius: int,
    offset_Q1: Any,
    key_M: Any,
) -> None:
    queries, whole, block = query_QW.shape[0], strip_SWI.shape[0], _strips_of_a_block(each_W, strip_SWI)
    distance_I = np.empty(_STRIP, strip_SWI.dtype)
    # Kept, or else the compiler would leave the reading out.
    fetched_1 = np.zeros(1, strip_SWI.dtype)
    next_Q = offset_Q1[:queries].copy()
    for first in range(0, whole, block):
        block_SWI = strip_SWI[first : first + block]
        fetched_1[0] ^= _fetch(each_W, block_SWI)
        at, size = first * _STRIP, block_SWI.shape[0] * _STRIP
        for q in range(queries):
            if next_Q[q] < offset_Q1[q + 1]:
                next_Q[q] += _take_within(
                    each_W, block_SWI, at, size, query_QW[q], radius, key_M[next_Q[q] :], distance_I
                )
    at = whole * _STRIP
    for q in range(queries):
        if next_Q[q] < offset_Q1[q + 1]:
            _take_within(each_W, tail_1WI, at, codes - at, query_QW[q], radius, key_M[next_Q[q] :], distance_I)


@functools.cache
def scan_of(words: int, word: type[np.unsignedinteger[Any]]) -> Scan:
    """Compile the scans for codes of `words` words, or read them from the cache."""
    each_W = (0,) * words
    each, codes, numbers = each_type(words), array_type(word, 2, readonly=True), array_type(np.int64, 1)
    laid_out = array_type(word, 3, readonly=True)
    strips = (laid_out, laid_out, laid_out, types.int64)
    answers = (array_type(np.int32, 2), array_type(np.int64, 2))
    knn = compiled(types.int64(each, *strips, codes, codes, types.int64, types.boolean, numbers, *answers))(_knn)
    count = compiled(void(each, *strips, codes, types.int64, numbers))(_count)
    fill = compiled(void(each, *strips, codes, types.int64, numbers, numbers))(_fill)
    return Scan(functools.partial(knn, each_W), functools.partial(count, each_W), functools.partial(fill, each_W))
