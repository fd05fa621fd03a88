"""Retrieval quality of codes and of real-valued scores."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from distindex.codes import CodeArray, asymmetric, byte_weights, check_logits, hamming, pack
from distindex.errors import InputError
from distindex.evaluation.expectation import FloatArray, IntArray, TiedRanking, count_buckets

Similar = Callable[[int, int], npt.NDArray[np.bool_]]
"""`similar(start, stop)`: which database rows are relevant to the queries start..stop, as `similar_QN`."""

Score = Callable[[int, int], npt.NDArray[np.floating]]
"""`score(start, stop)`: scores of all database rows for the queries start..stop, larger is nearer."""

DEFAULT_KS = (10, 100, 1000)
_PAIRS = 1 << 22
_QUERIES = 1024
_SCORE_BINS = 400
# An asymmetric ranking has up to one bucket per row, and a dozen tables of them.
_TABLES = 8


@dataclasses.dataclass(frozen=True)
class Cutoffs:
    """Means over the queries at each cut-off k.

    A database of N < k rows is judged at k = N. A query without any relevant row counts 0.

    Attributes:
        precision: share of relevant rows among the first k.
        recall: share of all relevant rows that is among the first k.
        mean_average_precision: mean of the precisions at the hits among the first k, divided by the hits
            found (as in the reference code of SSB-VAE), 0 where there is none.
    """

    precision: dict[int, float]
    recall: dict[int, float]
    mean_average_precision: dict[int, float]

    def to_json(self) -> dict[str, Any]:
        return {
            name: {str(k): value for k, value in getattr(self, name).items()}
            for name in ("precision", "recall", "mean_average_precision")
        }


@dataclasses.dataclass(frozen=True)
class Curve:
    """Precision and recall of everything up to a threshold, pooled over all pairs of query and row.

    Attributes:
        threshold: a Hamming radius in bits (inclusive), or the lowest score that counts.
        recall: relevant pairs found / relevant pairs.
        precision: relevant pairs found / pairs found. Thresholds that find no pair are left out.
    """

    threshold: list[float]
    recall: list[float]
    precision: list[float]


@dataclasses.dataclass(frozen=True)
class RetrievalMetrics(Cutoffs):
    """Retrieval quality; for codes each figure is its expectation under random tie-breaking.

    Attributes:
        queries: number of queries.
        rows: number of database rows.
        queries_without_relevant: queries to which no database row is relevant.
        radius: radius in bits of `precision_at_radius`; None for scores and logits.
        precision_at_radius: share of relevant rows among those within the radius, mean over the queries;
            a query with no row within the radius counts 0.
        reference: the same cut-offs in one concrete order, `numpy.argsort` of the distances with its
            default (unstable) kind, as the reference code of SSB-VAE ranks; None for scores and logits.
        curve: precision over recall.
    """

    queries: int
    rows: int
    queries_without_relevant: int
    radius: int | None
    precision_at_radius: float | None
    reference: Cutoffs | None
    curve: Curve

    def to_json(self) -> dict[str, Any]:
        return super().to_json() | {
            "queries": self.queries,
            "rows": self.rows,
            "queries_without_relevant": self.queries_without_relevant,
            "radius": self.radius,
            "precision_at_radius": self.precision_at_radius,
            "reference": self.reference.to_json() if self.reference else None,
            "curve": dataclasses.asdict(self.curve),
        }


def evaluate_codes(
    query_QC: CodeArray,
    database_NC: CodeArray,
    similar: Similar,
    ks: Sequence[int] = DEFAULT_KS,
    radius: int = 2,
    reference: bool = True,
) -> RetrievalMetrics:
    """Judge the exact Hamming ranking of a database for each query.

    Memory is that of 4M pairs of query and row at a time (of one query, if the database is larger).

    Args:
        query_QC: codes of the queries; they should not be rows of the database themselves.
        database_NC: codes of the database.
        similar: tells which rows are relevant to which queries, asked for one block of queries at a time.
        ks: cut-offs.
        radius: radius in bits, inclusive.
        reference: also rank as the reference code does; takes most of the time.

    Raises:
        InputError: no queries, no rows, codes of two lengths, no positive k, a negative radius, or `similar`
            answers with another shape.
    """
    for what, codes in (("queries", query_QC), ("database", database_NC)):
        if codes.ndim != 2 or codes.dtype != np.uint8:
            raise InputError(f"{what}: expected uint8 codes, got {codes.dtype} of shape {codes.shape}")
    if query_QC.shape[1] != database_NC.shape[1]:
        raise InputError(
            f"queries of {query_QC.shape[1] * 8} bits, but a database of {database_NC.shape[1] * 8} bits"
        )
    if radius < 0:
        raise InputError(f"radius: {radius} must not be negative")
    _check_sizes(len(query_QC), len(database_NC), ks)
    bits = database_NC.shape[1] * 8
    # The reference ranks int8 distances; a length that int8 cannot hold needs the next type.
    narrow = np.int8 if bits <= 127 else np.int16
    expected, ordered = _Sums(ks), _Sums(ks)
    precision_within, empty = 0.0, 0
    count_D, relevant_D = np.zeros(bits + 1, np.int64), np.zeros(bits + 1, np.int64)
    for start, stop in _blocks(len(query_QC), len(database_NC)):
        similar_QN = _similar_block(similar, start, stop, len(database_NC))
        distance_QN = hamming(query_QC[start:stop], database_NC)
        ranking = TiedRanking(*count_buckets(distance_QN, similar_QN, bits + 1))
        expected.add_ranking(ranking)
        found_Q, hits_Q = ranking.within(radius)
        precision_within += float((hits_Q / np.maximum(found_Q, 1)).sum())
        empty += int((ranking.relevant_Q == 0).sum())
        count_D += ranking.count_QD.sum(axis=0)
        relevant_D += ranking.relevant_QD.sum(axis=0)
        if reference:
            top = min(max(ks), len(database_NC))
            order_QM = np.argsort(distance_QN.astype(narrow), axis=1)[:, :top]
            ordered.add_order(np.take_along_axis(similar_QN, order_QM, axis=1), ranking.relevant_Q)
    return RetrievalMetrics(
        **vars(expected.means(len(query_QC))),
        queries=len(query_QC),
        rows=len(database_NC),
        queries_without_relevant=empty,
        radius=radius,
        precision_at_radius=precision_within / len(query_QC),
        reference=ordered.means(len(query_QC)) if reference else None,
        curve=_curve(count_D, relevant_D, np.arange(bits + 1)),
    )


def evaluate_logits(
    logit_QK: npt.NDArray[np.float32],
    database_NC: CodeArray,
    similar: Similar,
    ks: Sequence[int] = DEFAULT_KS,
) -> RetrievalMetrics:
    """Judge the exact asymmetric ranking of a database of codes by the queries' logits.

    All rows are ranked by `codes.asymmetric`, without a preselection. Rows of one code score alike, so figures
    are expectations under random tie-breaking, as those of `evaluate_codes`. The thresholds of the curve are
    `sum_j l_j b_j / sum_j |l_j|` for codes b in {-1, 1}: from 1 at sign(l) to -1 at its opposite.

    Args:
        logit_QK: logits of the queries; they should not be rows of the database themselves.
        database_NC: codes of the database.
        similar: tells which rows are relevant to which queries.
        ks: cut-offs.

    Raises:
        InputError: as `evaluate_codes`, or logits that are not finite.
    """
    if database_NC.ndim != 2 or database_NC.dtype != np.uint8:
        raise InputError(f"database: expected uint8 codes, got {database_NC.dtype} of shape {database_NC.shape}")
    logit_QK = check_logits(logit_QK, database_NC.shape[1] * 8)
    queries, rows = len(logit_QK), len(database_NC)
    _check_sizes(queries, rows, ks)
    code_UC, code_N = np.unique(database_NC, axis=0, return_inverse=True)
    code_N = code_N.ravel()
    sums, curve, empty = _Sums(ks), _ScoreCurve(), 0
    for start, stop in _blocks(queries, rows * _TABLES):
        similar_QN = _similar_block(similar, start, stop, rows)
        logits = logit_QK[start:stop]
        score_QU = asymmetric(byte_weights(logits), pack(logits > 0)[:, None] ^ code_UC)
        order_QU = np.argsort(score_QU, axis=1)
        sorted_QU = np.take_along_axis(score_QU, order_QU, axis=1)
        bucket_QU = np.zeros(score_QU.shape, np.int32)
        np.cumsum(sorted_QU[:, 1:] > sorted_QU[:, :-1], axis=1, out=bucket_QU[:, 1:])
        rank_QU = np.empty_like(bucket_QU)
        np.put_along_axis(rank_QU, order_QU, bucket_QU, axis=1)
        ranking = TiedRanking(*count_buckets(rank_QU[:, code_N], similar_QN, len(code_UC)))
        sums.add_ranking(ranking)
        empty += int((ranking.relevant_Q == 0).sum())
        most_Q1 = np.abs(logits).sum(axis=1, keepdims=True)
        nearness_QU = 1 - 2 * score_QU / np.maximum(most_Q1, np.finfo(np.float32).tiny)
        curve.add(nearness_QU[:, code_N], similar_QN)
    return RetrievalMetrics(
        **vars(sums.means(queries)),
        queries=queries,
        rows=rows,
        queries_without_relevant=empty,
        radius=None,
        precision_at_radius=None,
        reference=None,
        curve=curve.points(),
    )


def evaluate_scores(
    score: Score,
    queries: int,
    rows: int,
    similar: Similar,
    ks: Sequence[int] = DEFAULT_KS,
    score_range: tuple[float, float] = (-1.0, 1.0),
) -> RetrievalMetrics:
    """Judge a ranking by real-valued scores, such as the cosine of feature vectors.

    Equal scores are ranked in row order: ties of real-valued scores are rare.

    Args:
        score: scores `score_QN` of a block of queries, larger is nearer.
        queries: number of queries.
        rows: number of database rows.
        similar: tells which rows are relevant to which queries.
        ks: cut-offs.
        score_range: lowest and highest score that the precision-recall curve tells apart.

    Raises:
        InputError: no queries, no rows, no positive k, or scores that are NaN or of another shape.
    """
    _check_sizes(queries, rows, ks)
    sums, empty, top = _Sums(ks), 0, min(max(ks), rows)
    curve = _ScoreCurve(*score_range)
    for start, stop in _blocks(queries, rows):
        similar_QN = _similar_block(similar, start, stop, rows)
        score_QN = np.asarray(score(start, stop))
        if score_QN.shape != similar_QN.shape:
            raise InputError(f"scores of shape {score_QN.shape}: expected {similar_QN.shape}")
        if np.isnan(score_QN).any():
            raise InputError(f"scores of the queries {start} to {stop - 1} hold NaN")
        relevant_Q = similar_QN.sum(axis=1)
        empty += int((relevant_Q == 0).sum())
        sums.add_order(np.take_along_axis(similar_QN, _nearest(score_QN, top), axis=1), relevant_Q)
        curve.add(score_QN, similar_QN)
    return RetrievalMetrics(
        **vars(sums.means(queries)),
        queries=queries,
        rows=rows,
        queries_without_relevant=empty,
        radius=None,
        precision_at_radius=None,
        reference=None,
        curve=curve.points(),
    )


class _ScoreCurve:
    """The precision-recall curve of scores, larger is nearer, in bins from `high` down to `low`."""

    def __init__(self, low: float = -1.0, high: float = 1.0) -> None:
        self._low, self._high = low, high
        self._count_D, self._relevant_D = np.zeros(_SCORE_BINS, np.int64), np.zeros(_SCORE_BINS, np.int64)

    def add(self, score_QN: npt.NDArray[np.floating], similar_QN: npt.NDArray[np.bool_]) -> None:
        scale = _SCORE_BINS / (self._high - self._low)
        bin_QN = ((self._high - score_QN) * scale).clip(0, _SCORE_BINS - 1).astype(np.int32)
        count_QD, relevant_QD = count_buckets(bin_QN, similar_QN, _SCORE_BINS)
        self._count_D += count_QD.sum(axis=0)
        self._relevant_D += relevant_QD.sum(axis=0)

    def points(self) -> Curve:
        return _curve(self._count_D, self._relevant_D, np.linspace(self._high, self._low, _SCORE_BINS + 1)[1:])


class _Sums:
    """Sums over queries of what `Cutoffs` reports."""

    def __init__(self, ks: Sequence[int]) -> None:
        self.ks = sorted(set(ks))
        self.precision, self.recall, self.average_precision = (dict.fromkeys(self.ks, 0.0) for _ in range(3))

    def add_ranking(self, ranking: TiedRanking) -> None:
        for k in self.ks:
            cut = min(k, ranking.rows)
            self._add(k, cut, ranking.hits(cut), ranking.average_precision(cut), ranking.relevant_Q)

    def add_order(self, hit_QM: npt.NDArray[np.bool_], relevant_Q: IntArray) -> None:
        """Add queries whose nearest rows are relevant or not as `hit_QM` says, nearest first."""
        found_QM = hit_QM.cumsum(axis=1)
        precision_QM = np.cumsum(found_QM / np.arange(1, hit_QM.shape[1] + 1) * hit_QM, axis=1)
        for k in self.ks:
            cut = min(k, hit_QM.shape[1])
            hits_Q = found_QM[:, cut - 1]
            self._add(k, cut, hits_Q, precision_QM[:, cut - 1] / np.maximum(hits_Q, 1), relevant_Q)

    def _add(
        self,
        k: int,
        cut: int,
        hits_Q: FloatArray | IntArray,
        average_precision_Q: FloatArray,
        relevant_Q: IntArray,
    ) -> None:
        self.precision[k] += float(hits_Q.sum()) / cut
        self.recall[k] += float((hits_Q / np.maximum(relevant_Q, 1)).sum())
        self.average_precision[k] += float(average_precision_Q.sum())

    def means(self, queries: int) -> Cutoffs:
        return Cutoffs(
            *(
                {k: total / queries for k, total in sums.items()}
                for sums in (self.precision, self.recall, self.average_precision)
            )
        )


def _check_sizes(queries: int, rows: int, ks: Sequence[int]) -> None:
    if not queries:
        raise InputError("no queries to evaluate")
    if not rows:
        raise InputError("the database to evaluate against is empty")
    if not ks or min(ks) < 1:
        raise InputError(f"k: {list(ks)} must be positive numbers")


def _blocks(queries: int, rows: int) -> Iterator[tuple[int, int]]:
    # The second bound keeps the tables per query and distance small where the database is.
    step = min(max(1, _PAIRS // rows), _QUERIES)
    for start in range(0, queries, step):
        yield start, min(start + step, queries)


def _similar_block(similar: Similar, start: int, stop: int, rows: int) -> npt.NDArray[np.bool_]:
    similar_QN = np.asarray(similar(start, stop))
    if similar_QN.shape != (stop - start, rows) or similar_QN.dtype != np.bool_:
        raise InputError(
            f"relevance of shape {similar_QN.shape} and type {similar_QN.dtype}: "
            f"expected booleans of shape {(stop - start, rows)}"
        )
    return similar_QN


def _nearest(score_QN: npt.NDArray[np.floating], k: int) -> IntArray:
    """Rows with the k highest scores, in the order of a stable sort but without sorting the rest."""
    queries, rows = score_QN.shape
    edge_Q1 = np.partition(score_QN, rows - k, axis=1)[:, rows - k : rows - k + 1]
    above_QN, equal_QN = score_QN > edge_Q1, score_QN == edge_Q1
    room_Q1 = k - above_QN.sum(axis=1, keepdims=True)
    chosen_QN = above_QN | (equal_QN & (equal_QN.cumsum(axis=1, dtype=np.int32) <= room_Q1))
    row_QM = np.nonzero(chosen_QN)[1].reshape(queries, k)
    order_QM = np.argsort(-np.take_along_axis(score_QN, row_QM, axis=1), axis=1, kind="stable")
    return np.take_along_axis(row_QM, order_QM, axis=1)


def _curve(count_D: IntArray, relevant_D: IntArray, threshold_D: npt.NDArray) -> Curve:
    found_D, hits_D = count_D.cumsum(), relevant_D.cumsum()
    # A threshold that adds nothing to the one before would only repeat its point.
    kept = count_D > 0
    return Curve(
        threshold=[float(value) for value in threshold_D[kept]],
        recall=[float(value) for value in hits_D[kept] / max(1, hits_D[-1])],
        precision=[float(value) for value in hits_D[kept] / found_D[kept]],
    )
