"""The exact search that takes the fastest way: direct addressing, multi-index hashing, or a scan."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from distindex.codes import CodeArray
from distindex.index.compiled import POSITION_BITS, POSITION_MASK
from distindex.index.matches import starts_of
from distindex.index.probe import DIRECT_BITS, Direct, MultiIndex
from distindex.index.scan import Strips, WordArray, scan_of, words_of
from distindex.index.structure import Neighbors, over_queries

# Queries that go through the codes together, as far as their lists of candidates fit.
_GROUP = 64
_LIST_BYTES = 32 << 20
# Multi-index hashing is for codes up to this length, where near codes can be near enough, and for enough codes that
# its tables are not larger than them.
_MULTI_INDEX_BITS = 64
_MULTI_INDEX_CODES = 1 << 16
# Codes in the index for each one that is asked for, from which on looking codes up is faster than the scan.
_CODES_A_NEIGHBOR = {Direct: 256, MultiIndex: 4096}
# One query of longer codes than this is left to faiss: memory is what it waits for, and faiss reads that in order.
_ALONE_BITS = 128
# Codes of the index that try out whether multi-index hashing pays, each with its ten nearest.
_SAMPLE = 64
_SAMPLE_K = 11


class Exact:
    """Exact search over distinct codes in byte order.

    Args:
        padded_UP: the codes, zero-padded to whole words.
        bits: their length before.
        alone_knn, alone_within: the same searches for one query of long codes.

    Attributes:
        way: what looks first where near codes are: `direct`, `multi-index`, or `scan` for nothing.
    """

    def __init__(
        self,
        padded_UP: CodeArray,
        bits: int,
        alone_knn: Callable[[CodeArray, int], Neighbors],
        alone_within: Callable[[CodeArray, int], Neighbors],
    ) -> None:
        self._alone_knn, self._alone_within = alone_knn, alone_within
        self._code_UW = words_of(padded_UP)
        self._longest = padded_UP.shape[1] * 8
        self._strips = Strips.of(self._code_UW)
        self._scan = scan_of(self._code_UW.shape[1], self._code_UW.dtype.type)
        self._probe = self._choose(bits)

    @property
    def way(self) -> str:
        return {Direct: "direct", MultiIndex: "multi-index", type(None): "scan"}[type(self._probe)]

    @property
    def table_bytes(self) -> int:
        """Memory beside the codes."""
        laid_out = self._strips.strip_SWI
        strips = 0 if np.shares_memory(laid_out, self._code_UW) else laid_out.nbytes
        return strips + self._strips.sample_SWI.nbytes + (self._probe.bytes if self._probe else 0)

    def _choose(self, bits: int) -> Direct | MultiIndex | None:
        if bits <= DIRECT_BITS:
            return Direct(self._code_UW, bits)
        codes = len(self._code_UW)
        if bits > _MULTI_INDEX_BITS or not _MULTI_INDEX_CODES <= codes < 1 << 32:
            return None
        # Whether near codes are near is best asked of the search itself: its own codes are like queries.
        tried = MultiIndex(self._code_UW, bits)
        sample_QW = np.ascontiguousarray(self._code_UW[:: -(-codes // _SAMPLE)])
        sample_QW.flags.writeable = False
        settled = (tried.search(sample_QW, min(_SAMPLE_K, codes), -1).limit_Q < 0).mean()
        return tried if settled >= 0.5 else None

    def knn(self, padded_QP: CodeArray, k: int) -> Neighbors:
        """The k nearest codes, `1 <= k <= U`."""
        if len(padded_QP) == 1 and self._longest > _ALONE_BITS:
            return self._alone_knn(padded_QP, k)
        query_QW = words_of(padded_QP)
        distance_Qk = np.empty((len(query_QW), k), np.int32)
        position_Qk = np.empty((len(query_QW), k), np.int64)

        def search(part: slice) -> None:
            self._knn_part(query_QW[part], k, distance_Qk[part], position_Qk[part])

        over_queries(search, len(query_QW))
        return Neighbors(np.arange(len(query_QW) + 1) * k, distance_Qk.ravel(), position_Qk.ravel())

    def _knn_part(
        self, query_QW: WordArray, k: int, distance_Qk: npt.NDArray[np.int32], position_Qk: npt.NDArray[np.int64]
    ) -> None:
        limit_Q = np.full(len(query_QW), self._longest + 1)
        left = np.arange(len(query_QW))
        if self._probe is not None and _CODES_A_NEIGHBOR[type(self._probe)] * k <= len(self._code_UW):
            found = self._probe.search(query_QW, k, -1)
            done = np.flatnonzero(found.limit_Q < 0)
            distance_Qk[done] = (found.key_M >> POSITION_BITS).reshape(len(done), k)
            position_Qk[done] = (found.key_M & POSITION_MASK).reshape(len(done), k)
            left = np.flatnonzero(found.limit_Q >= 0)
            limit_Q = np.minimum(limit_Q, found.limit_Q)
        group = max(1, min(_GROUP, _LIST_BYTES // (16 * k)))
        guess = True
        while len(left):
            missed = []
            for start in range(0, len(left), group):
                rows = left[start : start + group]
                limit_G = limit_Q[rows]
                distance_Gk = np.empty((len(rows), k), np.int32)
                position_Gk = np.empty((len(rows), k), np.int64)
                group_GW = query_QW[rows]
                group_GW.flags.writeable = False
                self._scan.knn(*self._strips, self._code_UW, group_GW, k, guess, limit_G, distance_Gk, position_Gk)
                distance_Qk[rows], position_Qk[rows] = distance_Gk, position_Gk
                missed.append(rows[limit_G < 0])
            # Where the guess was too low the scan is done again without one.
            left, guess = np.concatenate(missed), False

    def within(self, padded_QP: CodeArray, radius: int) -> Neighbors:
        """All codes at most `radius` bits away."""
        if len(padded_QP) == 1 and self._longest > _ALONE_BITS:
            return self._alone_within(padded_QP, radius)
        query_QW = words_of(padded_QP)
        radius = min(radius, self._longest)
        parts = over_queries(lambda part: self._within_part(query_QW[part], radius), len(query_QW))
        sizes = np.concatenate([np.diff(offset) for offset, _ in parts])
        key_M = np.concatenate([key for _, key in parts])
        offset_Q1 = starts_of(sizes)
        return Neighbors(offset_Q1, (key_M >> POSITION_BITS).astype(np.int32), key_M & POSITION_MASK)

    def _within_part(self, query_QW: WordArray, radius: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Offsets and keys of the answers, in order."""
        count_Q = np.zeros(len(query_QW), np.int64)
        found, left = None, np.arange(len(query_QW))
        if self._probe is not None:
            found = self._probe.search(query_QW, len(self._code_UW), radius)
            count_Q = np.diff(found.offset_Q1)
            left = np.flatnonzero(found.limit_Q >= 0)
        scanned = []
        for start in range(0, len(left), _GROUP):
            rows = left[start : start + _GROUP]
            group_GW = query_QW[rows]
            group_GW.flags.writeable = False
            count_G = np.empty(len(rows), np.int64)
            self._scan.count(*self._strips, group_GW, radius, count_G)
            offset_G1 = starts_of(count_G)
            key_M = np.empty(offset_G1[-1], np.int64)
            self._scan.fill(*self._strips, group_GW, radius, offset_G1, key_M)
            for first, stop in itertools.pairwise(offset_G1):
                key_M[first:stop].sort()
            count_Q[rows] = count_G
            scanned.append(key_M)
        offset_Q1 = starts_of(count_Q)
        if found is None:
            return offset_Q1, np.concatenate([*scanned, np.empty(0, np.int64)])
        by_scan_M = np.repeat(found.limit_Q >= 0, count_Q)
        key_M = np.empty(offset_Q1[-1], np.int64)
        key_M[~by_scan_M] = found.key_M
        key_M[by_scan_M] = np.concatenate([*scanned, np.empty(0, np.int64)])
        return offset_Q1, key_M
