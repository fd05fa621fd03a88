"""Asymmetric search over shards: a Hamming preselection of codes, then a ranking by the query's logits.

The definition, for a query with logits l and its code q = sign(l):

1. The candidates are the first `candidates` distinct codes of the whole index in the order (Hamming distance
   from q, code bytes), with all their rows.
2. The answers are the first k of these rows in the order (score, Hamming distance, code bytes, id), where the
   score is the asymmetric distance of `codes.asymmetric`.

Codes are counted and not rows: all rows of a code score alike, so the work is bounded by codes, and a code that
many rows share does not use up the candidates. The first `candidates` rows are always among those rows.

A shard knows only its own codes, and so not where the candidates of the whole index end. It gives its own first
`candidates` codes, to find that end, and every row that can be among the answers wherever it lies. The number of
shards then does not change an answer. Needs no faiss.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from distindex.codes import CodeArray
from distindex.index.matches import Matches, merge, sortable_words

LEAST_CANDIDATES = 1000


def default_candidates(k: int) -> int:
    """Candidates for k answers where the caller does not say: ten a row, and at least a thousand."""
    return max(LEAST_CANDIDATES, 10 * k)


@dataclasses.dataclass(frozen=True, eq=False)
class Nominees:
    """What one shard contributes to an asymmetric search of Q queries.

    Attributes:
        distance_QA: Hamming distances of its nearest distinct codes. A is the same for all queries, and 0 where
            the shard is the whole index, whose candidates end where the shard's own do.
        code_QAC: these codes, in (distance, code bytes) order.
        matches: with scores, the rows that can be among the answers; more than k of them where A is not 0.
    """

    distance_QA: npt.NDArray[np.int16]
    code_QAC: CodeArray
    matches: Matches


def can_be_answers(score_QA: npt.NDArray[np.float32], k: int) -> npt.NDArray[np.bool_]:
    """Which candidates of a shard, in (distance, code) order, can give one of k answers.

    The candidates of the whole index hold a prefix of the shard's own. Where a code is in that prefix, so is all
    that stands before it, and k codes before it with scores no larger leave no place for its rows. Thresholds
    of prefixes of k, 2k, 4k, ... codes find most of these; about k log2(A / k) candidates remain.
    """
    keep_QA = np.ones(score_QA.shape, bool)
    start = k
    while start < score_QA.shape[1]:
        threshold_Q1 = np.partition(score_QA[:, :start], k - 1, axis=1)[:, k - 1 : k]
        keep_QA[:, start : 2 * start] = score_QA[:, start : 2 * start] < threshold_Q1
        start *= 2
    return keep_QA


def merge_nominees(parts: Sequence[Nominees], k: int, candidates: int) -> Matches:
    """The answers of an asymmetric search from what disjoint shards contribute.

    Args:
        parts: contributions to the same queries from the same version, of shards with different rows.
        k: answers per query.
        candidates: as the shards were asked for, at least k.

    Raises:
        InputError: no parts, or parts that do not belong together.
    """
    matches = [part.matches for part in parts]
    if sum(part.distance_QA.shape[1] for part in parts) > candidates:
        distance_Q, code_QC = _last_candidate(parts, candidates)
        matches = [found.where(_not_after(found, distance_Q, code_QC)) for found in matches]
    return merge(matches, k)


def _last_candidate(parts: Sequence[Nominees], candidates: int) -> tuple[npt.NDArray[np.int32], CodeArray]:
    """Distance and code of the last candidate of each query, in (distance, code) order over all shards.

    A code that stands in several shards, as after an append, counts once.
    """
    distance_QA = np.concatenate([part.distance_QA for part in parts], axis=1)
    code_QAC = np.concatenate([part.code_QAC for part in parts], axis=1)
    queries, size = len(distance_QA), code_QAC.shape[2]
    distance_Q, code_QC = np.empty(queries, np.int32), np.empty((queries, size), np.uint8)
    # Were all codes different, the end would be here; it is not nearer than this.
    bound_Q1 = np.partition(distance_QA, candidates - 1, axis=1)[:, candidates - 1 : candidates].astype(np.int32)
    query_P = np.arange(queries)
    while len(query_P):
        near_PA = distance_QA[query_P] <= bound_Q1[query_P]
        place_T, at_T = np.nonzero(near_PA)
        distance_T, code_TC = distance_QA[query_P[place_T], at_T], code_QAC[query_P[place_T], at_T]
        order_T = np.lexsort([*sortable_words(code_TC)[::-1], distance_T, place_T])
        place_T, distance_T, code_TC = place_T[order_T], distance_T[order_T], code_TC[order_T]
        new_T = np.ones(len(place_T), bool)
        new_T[1:] = (place_T[1:] != place_T[:-1]) | (code_TC[1:] != code_TC[:-1]).any(axis=1)
        place_T, distance_T, code_TC = place_T[new_T], distance_T[new_T], code_TC[new_T]
        first_P = np.searchsorted(place_T, np.arange(len(query_P) + 1))
        found_P = np.diff(first_P)
        # All codes within the bound are seen, or all there are.
        everything_P = near_PA.all(axis=1)
        done_P = (found_P >= candidates) | everything_P
        last_D = first_P[:-1][done_P] + np.minimum(found_P[done_P], candidates) - 1
        distance_Q[query_P[done_P]], code_QC[query_P[done_P]] = distance_T[last_D], code_TC[last_D]
        query_P = query_P[~done_P]
        bound_Q1[query_P] += 1
    return distance_Q, code_QC


def _not_after(matches: Matches, distance_Q: npt.NDArray[np.int32], code_QC: CodeArray) -> npt.NDArray[np.bool_]:
    query_M = matches.query_M
    distance_M, code_MC = distance_Q[query_M], code_QC[query_M]
    # Codes compare by their first byte that differs; byte 0 stands for none.
    byte_M1 = (matches.code_MC != code_MC).argmax(axis=1)[:, None]
    mine_M1, last_M1 = (np.take_along_axis(codes, byte_M1, axis=1) for codes in (matches.code_MC, code_MC))
    nearer_M = matches.distance_M < distance_M
    return nearer_M | ((matches.distance_M == distance_M) & (mine_M1 <= last_M1)[:, 0])
