"""Retrieval metrics of a ranking with ties, as their exact expectation under random tie-breaking.

Items at one distance form a bucket. Within a bucket every order is equally likely, so the relevant items
of a bucket that is cut by the top k are hypergeometric, and those of a bucket inside it are exchangeable.
Both sums have closed forms; nothing is sampled. D is the number of buckets, nearest first.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import numpy.typing as npt
from scipy.special import gammaln

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

_TABLE_CELLS = 1 << 20


def count_buckets(
    distance_QN: npt.NDArray[np.integer], similar_QN: npt.NDArray[np.bool_], buckets: int
) -> tuple[IntArray, IntArray]:
    """Items and relevant items per query and distance: `count_QD`, `relevant_QD`."""
    queries = len(distance_QN)
    # One pass counts both: relevant items go to the second half of each query's cells.
    cell_QN = distance_QN + similar_QN * np.int32(buckets)
    cell_QN += np.arange(0, queries * 2 * buckets, 2 * buckets, dtype=np.int32)[:, None]
    cells = np.bincount(cell_QN.ravel(), minlength=queries * 2 * buckets).reshape(queries, 2, buckets)
    return cells.sum(axis=1), cells[:, 1]


class TiedRanking:
    """Rankings of Q queries, known by what lies in their buckets.

    Args:
        count_QD: items in each bucket; every row has the same sum N.
        relevant_QD: relevant items among them.
    """

    def __init__(self, count_QD: IntArray, relevant_QD: IntArray) -> None:
        self.count_QD, self.relevant_QD = count_QD, relevant_QD
        self.rows = int(count_QD[0].sum()) if len(count_QD) else 0
        self.relevant_Q = relevant_QD.sum(axis=1)
        self._end_QD = count_QD.cumsum(axis=1)
        self._before_QE = _shifted(count_QD)
        self._hits_QE = _shifted(relevant_QD)
        self._harmonic = np.concatenate(([0.0], np.cumsum(1 / np.arange(1, self.rows + 1))))
        self._log_factorial: FloatArray = gammaln(np.arange(self.rows + 1) + 1.0)
        inside_QD = self._precision_sum(count_QD, relevant_QD, self._before_QE[:, :-1], self._hits_QE[:, :-1])
        self._precisions_QE = _shifted(inside_QD)

    def hits(self, cut: int) -> FloatArray:
        """Expected number of relevant items among the first `cut` (at most N), per query."""
        edge = self._edge(cut)
        # Without slots left the bucket may be empty, and adds nothing.
        partial_Q: FloatArray = edge.relevant * edge.slots / np.maximum(edge.count, 1)
        return edge.hits + partial_Q

    def average_precision(self, cut: int) -> FloatArray:
        """Expected mean of the precisions at the hits among the first `cut`; 0 where there is no hit.

        The mean divides by the hits found, as the reference code of SSB-VAE does (Nanculef et al. 2021),
        not by min(relevant, cut).
        """
        edge = self._edge(cut)
        result_Q = edge.precisions / np.maximum(edge.hits, 1)
        rows = np.flatnonzero((edge.slots > 0) & (edge.relevant > 0))
        low_Q = np.maximum(0, edge.slots - (edge.count - edge.relevant))
        width = int((np.minimum(edge.relevant, edge.slots) - low_Q)[rows].max(initial=0)) + 1
        step = max(1, _TABLE_CELLS // width)
        for start in range(0, len(rows), step):
            part = rows[start : start + step]
            result_Q[part] = self._edge_average_precision(edge.take(part), low_Q[part], width)
        return result_Q

    def within(self, radius: int) -> tuple[IntArray, IntArray]:
        """Items and relevant items in the buckets 0..radius, per query."""
        last = min(radius + 1, self.count_QD.shape[1])
        return self._before_QE[:, last], self._hits_QE[:, last]

    def _edge(self, cut: int) -> _Edge:
        """What lies before the bucket that the cut goes through, and that bucket."""
        bucket_Q = (self._end_QD <= cut).sum(axis=1)
        query_Q = np.arange(len(bucket_Q))
        inner_Q = np.minimum(bucket_Q, self.count_QD.shape[1] - 1)
        before_Q = self._before_QE[query_Q, bucket_Q]
        return _Edge(
            before=before_Q,
            hits=self._hits_QE[query_Q, bucket_Q],
            precisions=self._precisions_QE[query_Q, bucket_Q],
            count=self.count_QD[query_Q, inner_Q],
            relevant=self.relevant_QD[query_Q, inner_Q],
            # Past the last bucket nothing is cut: the whole database lies inside.
            slots=np.minimum(cut, self.rows) - before_Q,
        )

    def _edge_average_precision(self, edge: _Edge, low_Q: IntArray, width: int) -> FloatArray:
        """Expectation over the number h of relevant items in the slots of the bucket that is cut."""
        slots, relevant, count = edge.slots[:, None], edge.relevant[:, None], edge.count[:, None]
        h_QH = low_Q[:, None] + np.arange(width)
        valid_QH = h_QH <= np.minimum(relevant, slots)
        h_QH = np.where(valid_QH, h_QH, low_Q[:, None])
        factorial = self._log_factorial
        log_weight_QH = -(
            factorial[h_QH]
            + factorial[relevant - h_QH]
            + factorial[slots - h_QH]
            + factorial[count - relevant - slots + h_QH]
        )
        log_weight_QH[~valid_QH] = -np.inf
        weight_QH = np.exp(log_weight_QH - log_weight_QH.max(axis=1, keepdims=True))
        weight_QH /= weight_QH.sum(axis=1, keepdims=True)
        sum_QH = edge.precisions[:, None] + self._precision_sum(slots, h_QH, edge.before[:, None], edge.hits[:, None])
        return (weight_QH * sum_QH / np.maximum(edge.hits[:, None] + h_QH, 1)).sum(axis=1)

    def _precision_sum(self, count: IntArray, relevant: IntArray, before: IntArray, hits: IntArray) -> FloatArray:
        """Expected sum of the precisions at the relevant items of a bucket in random order.

        Slot j of n is relevant with probability r/n, and then (j-1)(r-1)/(n-1) relevant items are expected
        before it in the bucket, so the sum is r/n * sum_j (H + 1 + (j-1) s) / (N + j) with
        s = (r-1)/(n-1), which harmonic numbers close.
        """
        slope = (relevant - 1) / np.maximum(count - 1, 1)
        spread = self._harmonic[before + count] - self._harmonic[before]
        total = (hits + 1 - (before + 1) * slope) * spread + slope * count
        return np.where(relevant > 0, relevant / np.maximum(count, 1) * total, 0.0)


@dataclasses.dataclass(frozen=True)
class _Edge:
    before: IntArray
    hits: IntArray
    precisions: FloatArray
    count: IntArray
    relevant: IntArray
    slots: IntArray

    def take(self, rows: IntArray) -> _Edge:
        return _Edge(**{field.name: getattr(self, field.name)[rows] for field in dataclasses.fields(self)})


def _shifted(value_QD: npt.NDArray[np.generic]) -> npt.NDArray:
    """Sums of what lies before each bucket, and of all buckets at the end: [Q, D+1]."""
    sum_QE = np.zeros((value_QD.shape[0], value_QD.shape[1] + 1), value_QD.dtype)
    np.cumsum(value_QD, axis=1, out=sum_QE[:, 1:])
    return sum_QE
