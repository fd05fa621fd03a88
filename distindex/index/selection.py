"""The rows of a shard that take part in a search: those that are not deleted and pass the filter.

A search over a selection gives what a shard of these rows alone would give, if its structure is exact. There are two
ways to the nearest codes: ask for more codes than are needed and pass over those without a row, which is fast where
most codes have one; or scan the codes with a row alone, which is fast where few have.
"""

from __future__ import annotations

import dataclasses
from functools import cached_property

import numpy as np
import numpy.typing as npt

from distindex.codes import CodeArray
from distindex.index.flat import Flat
from distindex.index.matches import starts_of
from distindex.index.postings import Postings
from distindex.index.structure import Neighbors, SearchStructure

# Below this share of codes with a row, these are copied and scanned: the copy costs about as much as one query.
_SCAN_SHARE = 0.25
# What is asked for beyond the expected number of codes, so that one round is mostly enough.
_SPARE = 1.25


@dataclasses.dataclass(frozen=True, eq=False)
class Selection:
    """L of the rows of a shard with U distinct codes.

    Attributes:
        flat: the distinct codes of the shard.
        row_L: the rows, ascending.
        offset_U1: the rows of distinct code u are `row_L[offset_U1[u]:offset_U1[u + 1]]`, maybe none.
    """

    flat: Flat
    row_L: npt.NDArray[np.int64]
    offset_U1: npt.NDArray[np.int64]

    @classmethod
    def of_mask(cls, flat: Flat, postings: Postings, keep_N: npt.NDArray[np.bool_]) -> Selection:
        """The rows that a mask over the rows of the shard marks."""
        kept_N1 = starts_of(keep_N)
        return cls(flat, np.flatnonzero(keep_N), kept_N1[postings.every_offset()])

    @cached_property
    def position_A(self) -> npt.NDArray[np.int64]:
        """The distinct codes that have a row."""
        return np.flatnonzero(self.offset_U1[1:] > self.offset_U1[:-1])

    @cached_property
    def alone(self) -> Flat:
        """These codes alone."""
        return Flat.build(self.flat.code_UC[self.position_A])

    def searched_by(self, structure: SearchStructure) -> SelectionSearch:
        """Searches with a structure over all codes of the shard."""
        return SelectionSearch(self, structure)


@dataclasses.dataclass(frozen=True, eq=False)
class SelectionSearch:
    """Searches over the A codes of a selection that have a row.

    Attributes:
        selection: the rows.
        structure: what is asked while most codes have a row.
    """

    selection: Selection
    structure: SearchStructure

    def knn(self, code_QC: CodeArray, k: int) -> Neighbors:
        """The `min(k, A)` nearest of the codes; fewer where an approximate structure finds no more."""
        codes, having = len(self.structure), len(self.selection.position_A)
        want = int(k * codes / max(1, having) * _SPARE) + 1
        if self._few(want):
            return self._from_alone(self.selection.alone.knn(code_QC, k))
        parts = []
        query_P = np.arange(len(code_QC))
        while len(query_P):
            if self._few(want):
                parts.append((query_P, self._from_alone(self.selection.alone.knn(code_QC[query_P], k))))
                break
            found = self.structure.knn(code_QC[query_P], want)
            got_P = np.diff(found.offset_Q1)
            found = self._with_rows(found, k)
            # A search that gave less than it was asked for has no more to give.
            done_P = (np.diff(found.offset_Q1) == min(k, having)) | (got_P < want)
            parts.append((query_P[done_P], _of_queries(found, done_P)))
            query_P, want = query_P[~done_P], 4 * want
        return _in_order(parts, len(code_QC))

    def within(self, code_QC: CodeArray, radius: int) -> Neighbors:
        """The codes at most `radius` bits away.

        Raises:
            InputError: the structure cannot be searched by radius.
        """
        # Whether a kind can be searched by radius must not depend on how much is deleted.
        if self.structure is self.selection.flat and self._few(1):
            return self._from_alone(self.selection.alone.within(code_QC, radius))
        return self._with_rows(self.structure.within(code_QC, radius), None)

    def _few(self, want: int) -> bool:
        codes = len(self.structure)
        return len(self.selection.position_A) < _SCAN_SHARE * codes or want > _SCAN_SHARE * codes

    def _from_alone(self, found: Neighbors) -> Neighbors:
        return found._replace(position_M=self.selection.position_A[found.position_M])

    def _with_rows(self, found: Neighbors, k: int | None) -> Neighbors:
        """Without the codes that have no row, at most k a query."""
        offset_U1 = self.selection.offset_U1
        keep_M = offset_U1[found.position_M + 1] > offset_U1[found.position_M]
        kept_M1 = starts_of(keep_M)
        if k is not None:
            before_M = kept_M1[:-1] - np.repeat(kept_M1[found.offset_Q1[:-1]], np.diff(found.offset_Q1))
            keep_M &= before_M < k
            kept_M1 = starts_of(keep_M)
        return Neighbors(kept_M1[found.offset_Q1], found.distance_M[keep_M], found.position_M[keep_M])


def _of_queries(found: Neighbors, keep_Q: npt.NDArray[np.bool_]) -> Neighbors:
    size_Q = np.diff(found.offset_Q1)
    keep_M = np.repeat(keep_Q, size_Q)
    offset_Q1 = starts_of(size_Q[keep_Q])
    return Neighbors(offset_Q1, found.distance_M[keep_M], found.position_M[keep_M])


def _in_order(parts: list[tuple[npt.NDArray[np.int64], Neighbors]], queries: int) -> Neighbors:
    """The codes of queries that were answered in several rounds, by query."""
    if len(parts) == 1:
        return parts[0][1]
    empty = Neighbors(np.zeros(1, np.int64), np.empty(0, np.int32), np.empty(0, np.int64))
    every = [found for _, found in parts] or [empty]
    query_M = np.concatenate([np.repeat(query_P, np.diff(found.offset_Q1)) for query_P, found in parts] or [[]])
    order_M = np.argsort(query_M, kind="stable")
    offset_Q1 = np.searchsorted(query_M[order_M], np.arange(queries + 1))
    distance_M = np.concatenate([found.distance_M for found in every])[order_M]
    return Neighbors(offset_Q1, distance_M, np.concatenate([found.position_M for found in every])[order_M])
