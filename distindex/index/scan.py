"""Exact search by a scan in blocks: each block of codes meets all queries while it is in the cache.

Of a block only those strips of codes are looked at one by one that hold a code nearer than the query's k-th nearest
so far; whether they do is counted with vector instructions, 8 or 16 codes at a time. The codes of a block are laid
out word by word for that, which pays from a few queries on.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

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
# Bytes of a block, which stays in the first-level cache with the queries.
_BLOCK_BYTES = 16 << 10
# From this k on a sample tells more about the k-th distance than the codes beside the query.
_SAMPLED_K = 256

WordArray = npt.NDArray[np.unsignedinteger[Any]]

# `each_W` has as many items as a code has words. The length of a tuple is a part of its type, and so the loops over
# words are unrolled. (Numba does not keep what it compiles of functions that close over others.)


@dataclasses.dataclass(frozen=True)
class Scan:
    """The compiled scans over U codes of W words, for Q queries.

    Attributes:
        knn: `knn(code_UW, query_QW, k, guess, limit_Q, distance_Qk, position_Qk)` looks for the k codes of each
            query, `1 <= k <= U`, among those nearer than `limit_Q`. With `guess` it lowers the limits to what a
            sample says. Returns how many queries have fewer than k codes below their limit; `limit_Q` is -1 for
            these, and they have no answers.
        count: `count(code_UW, query_QW, radius, count_Q)` counts the codes within a radius.
        fill: `fill(code_UW, query_QW, radius, offset_Q1, key_M)` writes them in position order, as numbers of
            distance and position (see `compiled`).
    """

    knn: Callable[..., int]
    count: Callable[..., None]
    fill: Callable[..., None]


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
def _distance_in(each_W: Any, strip_WI: Any, i: int, query_W: Any) -> Any:
    total = query_W.dtype.type(0)
    for w in range(len(each_W)):
        total += popcount(strip_WI[w, i] ^ query_W[w])
    return np.int64(total)


@part
def _nearer(each_W: Any, strip_WI: Any, query_W: Any, limit: Any) -> np.int64:
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
def _load(each_W: Any, code_UW: Any, first: int, strip_BWI: Any) -> int:
    """Lay out the next block word by word; how many codes it has."""
    size = min(strip_BWI.shape[0] * _STRIP, code_UW.shape[0] - first)
    # One long list: its stride is then known when compiling, and words are moved with vector instructions.
    word_X = code_UW.reshape(code_UW.size)
    for b in range((size + _STRIP - 1) // _STRIP):
        start = first + b * _STRIP
        part_X = word_X[start * len(each_W) : (start + _STRIP) * len(each_W)]
        strip_WI = strip_BWI[b]
        for i in range(len(part_X) // len(each_W)):
            for w in range(len(each_W)):
                strip_WI[w, i] = part_X[i * len(each_W) + w]
    return size


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
def _first_limit(each_W: Any, code_UW: Any, query_W: Any, k: int, guess: bool, limit: int, count_D: Any) -> int:
    """A limit that at least k codes are below; guessed, it may turn out that there are fewer."""
    codes = code_UW.shape[0]
    if guess and k >= _SAMPLED_K and codes >= 8 * k:
        # Four deviations above what the sample must hold if k of all codes are below.
        step = min(64, k // 32)
        start, stop, wanted = step // 2, codes, k / step + 4 * np.sqrt(k / step)
    else:
        # Of the codes that share a prefix with the query k are certainly below.
        size = min(codes, 2 * k + 128)
        start = min(max(0, _place_of(each_W, code_UW, query_W) - size // 2), codes - size)
        stop, step, wanted = start + size, 1, float(k)
    count_D[:] = 0
    for u in range(start, stop, step):
        count_D[_distance(each_W, code_UW, u, query_W)] += 1
    total = 0
    for d in range(limit):
        total += count_D[d]
        if total >= wanted:
            limit = d + 1
            break
    count_D[:] = 0
    return limit


def _knn(
    each_W: Any, code_UW: Any, query_QW: Any, k: int, guess: bool, limit_Q: Any, distance_QM: Any, position_QM: Any
) -> int:
    codes, queries = code_UW.shape[0], query_QW.shape[0]
    strips = max(1, _BLOCK_BYTES // (_STRIP * len(each_W) * code_UW.itemsize))
    strip_BWI = np.empty((strips, len(each_W), _STRIP), code_UW.dtype)
    # Below its limit a query has fewer than k codes in its list; at the limit it may have more than it needs.
    # They are thrown out when the list is full.
    capacity = min(codes, 2 * k) + 2 * _STRIP
    key_QX = np.empty((queries, capacity), np.int64)
    size_Q = np.zeros(queries, np.int64)
    below_Q = np.zeros(queries, np.int64)
    count_QD = np.zeros((queries, 8 * len(each_W) * code_UW.itemsize + 2), np.int64)
    # Half the words rule out most strips where near codes are near, and none where codes are uniform.
    tried_Q, passed_Q = np.zeros(queries, np.int64), np.zeros(queries, np.int64)
    for q in range(queries):
        limit_Q[q] = _first_limit(each_W, code_UW, query_QW[q], k, guess, limit_Q[q], count_QD[q])
    for first in range(0, codes, strips * _STRIP):
        size = _load(each_W, code_UW, first, strip_BWI)
        for q in range(queries):
            query_W, count_D, key_X = query_QW[q], count_QD[q], key_QX[q]
            limit = limit_Q[q]
            by_half = len(each_W) > 1 and 4 * passed_Q[q] <= tried_Q[q] + 16
            for b in range((size + _STRIP - 1) // _STRIP):
                if by_half:
                    tried_Q[q] += 1
                    if not _may_hold_nearer(each_W, strip_BWI[b], query_W, query_W.dtype.type(limit)):
                        continue
                    passed_Q[q] += 1
                if _nearer(each_W, strip_BWI[b], query_W, query_W.dtype.type(limit)) == 0:
                    continue
                filled, below = size_Q[q], below_Q[q]
                for i in range(min(_STRIP, size - b * _STRIP)):
                    d = _distance_in(each_W, strip_BWI[b], i, query_W)
                    if d >= limit:
                        continue
                    key_X[filled] = (d << POSITION_BITS) | (first + b * _STRIP + i)
                    filled += 1
                    count_D[d] += 1
                    below += 1
                    while below >= k:
                        # The k-th nearest so far is the last one below the limit: what follows must be nearer.
                        limit -= 1
                        below -= count_D[limit]
                if filled + _STRIP > capacity:
                    kept, needed = 0, k - below
                    for x in range(filled):
                        d = key_X[x] >> POSITION_BITS
                        if d < limit or (d == limit and needed > 0):
                            needed -= d == limit
                            key_X[kept] = key_X[x]
                            kept += 1
                    filled = kept
                size_Q[q], below_Q[q] = filled, below
            limit_Q[q] = limit
    missed = 0
    for q in range(queries):
        # The list is in position order: placing by distance sorts it.
        limit, before = limit_Q[q], 0
        for d in range(limit + 1):
            here = count_QD[q, d]
            count_QD[q, d] = before
            before += here
        if before < k:
            limit_Q[q] = -1
            missed += 1
            continue
        for x in range(size_Q[q]):
            d = key_QX[q, x] >> POSITION_BITS
            if d <= limit and count_QD[q, d] < k:
                place = count_QD[q, d]
                count_QD[q, d] += 1
                distance_QM[q, place] = d
                position_QM[q, place] = key_QX[q, x] & POSITION_MASK
    return missed


def _count(each_W: Any, code_UW: Any, query_QW: Any, radius: int, count_Q: Any) -> None:
    strips = max(1, _BLOCK_BYTES // (_STRIP * len(each_W) * code_UW.itemsize))
    strip_BWI = np.empty((strips, len(each_W), _STRIP), code_UW.dtype)
    count_Q[:] = 0
    for first in range(0, code_UW.shape[0], strips * _STRIP):
        size = _load(each_W, code_UW, first, strip_BWI)
        whole = size // _STRIP
        for q in range(query_QW.shape[0]):
            found = 0
            for b in range(whole):
                found += _nearer(each_W, strip_BWI[b], query_QW[q], code_UW.dtype.type(radius + 1))
            count_Q[q] += found
            for i in range(size - whole * _STRIP):
                count_Q[q] += _distance_in(each_W, strip_BWI[whole], i, query_QW[q]) <= radius


def _fill(each_W: Any, code_UW: Any, query_QW: Any, radius: int, offset_Q1: Any, key_M: Any) -> None:
    queries = query_QW.shape[0]
    strips = max(1, _BLOCK_BYTES // (_STRIP * len(each_W) * code_UW.itemsize))
    strip_BWI = np.empty((strips, len(each_W), _STRIP), code_UW.dtype)
    next_Q = offset_Q1[:queries].copy()
    for first in range(0, code_UW.shape[0], strips * _STRIP):
        size = _load(each_W, code_UW, first, strip_BWI)
        for q in range(queries):
            if next_Q[q] == offset_Q1[q + 1]:
                continue
            for b in range((size + _STRIP - 1) // _STRIP):
                if _nearer(each_W, strip_BWI[b], query_QW[q], code_UW.dtype.type(radius + 1)) == 0:
                    continue
                for i in range(min(_STRIP, size - b * _STRIP)):
                    d = _distance_in(each_W, strip_BWI[b], i, query_QW[q])
                    if d <= radius:
                        key_M[next_Q[q]] = (d << POSITION_BITS) | (first + b * _STRIP + i)
                        next_Q[q] += 1


@functools.cache
def scan_of(words: int, word: type[np.unsignedinteger[Any]]) -> Scan:
    """Compile the scans for codes of `words` words, or read them from the cache."""
    each_W = (0,) * words
    each, codes, numbers = each_type(words), array_type(word, 2, readonly=True), array_type(np.int64, 1)
    answers = (array_type(np.int32, 2), array_type(np.int64, 2))
    knn = compiled(types.int64(each, codes, codes, types.int64, types.boolean, numbers, *answers))(_knn)
    count = compiled(void(each, codes, codes, types.int64, numbers))(_count)
    fill = compiled(void(each, codes, codes, types.int64, numbers, numbers))(_fill)
    return Scan(functools.partial(knn, each_W), functools.partial(count, each_W), functools.partial(fill, each_W))
