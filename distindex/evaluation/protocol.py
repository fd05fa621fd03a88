"""Several methods judged on the same queries, database and relevance."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.sparse

from distindex.codes import CodeArray
from distindex.errors import InputError
from distindex.evaluation.metrics import (
    DEFAULT_KS,
    RetrievalMetrics,
    Score,
    Similar,
    evaluate_codes,
    evaluate_logits,
    evaluate_scores,
)
from distindex.evaluation.statistics import CodeStatistics, code_statistics

FeatureMatrix = Any
"""A dense float32 array or a CSR matrix, `x_NV`; type checkers know too little of the latter."""


@dataclasses.dataclass
class MethodResult:
    """One method's line in a comparison.

    Attributes:
        method: its name.
        bits: length of its codes; None where it ranks by float vectors.
        bytes_per_item: what one database item takes, without its id.
        metrics: retrieval quality.
        statistics: how the database's codes use their bits; None without codes, and for a rescored method,
            whose codes are those of the method itself.
        milliseconds_per_query: measured by the caller; None where nobody measured.
    """

    method: str
    bits: int | None
    bytes_per_item: float
    metrics: RetrievalMetrics
    statistics: CodeStatistics | None = None
    milliseconds_per_query: float | None = None

    def to_json(self) -> dict[str, Any]:
        return {
            "method": self.method,
            "bits": self.bits,
            "bytes_per_item": self.bytes_per_item,
            "milliseconds_per_query": self.milliseconds_per_query,
            "metrics": self.metrics.to_json(),
            "codes": self.statistics.to_json() if self.statistics else None,
        }


def compare_methods(
    codes: Mapping[str, tuple[CodeArray, CodeArray]],
    similar: Similar,
    ks: Sequence[int] = DEFAULT_KS,
    radius: int = 2,
    cosine: tuple[FeatureMatrix, FeatureMatrix] | None = None,
    reference: bool = True,
    logits: Mapping[str, npt.NDArray[np.float32]] | None = None,
) -> list[MethodResult]:
    """Judge each method's codes, and float cosine where features are given.

    A method with logits is judged twice: by Hamming distance, and as "NAME, rescored" by asymmetric distance.

    Args:
        codes: per method its `query_QC` and `database_NC`.
        similar: which rows are relevant to which queries, the same for all methods.
        ks: cut-offs.
        radius: radius in bits of precision at radius.
        cosine: features `x_QV` and `x_NV` (dense or CSR) for the ranking by cosine.
        reference: also rank codes in the reference code's order.
        logits: for some of the methods the `logit_QK` of the queries.

    Raises:
        InputError: as `evaluate_codes`, `evaluate_logits` and `cosine_score`, naming the method.
    """
    results = []
    for method, (query_QC, database_NC) in codes.items():
        try:
            metrics = evaluate_codes(query_QC, database_NC, similar, ks, radius, reference)
        except InputError as error:
            raise InputError(f"{method}: {error}") from error
        statistics = code_statistics(database_NC)
        results.append(MethodResult(method, statistics.bits, statistics.bits / 8, metrics, statistics))
        if logits and method in logits:
            name = rescored_name(method)
            try:
                metrics = evaluate_logits(logits[method], database_NC, similar, ks)
            except InputError as error:
                raise InputError(f"{name}: {error}") from error
            results.append(MethodResult(name, statistics.bits, statistics.bits / 8, metrics))
    if cosine is not None:
        query_QV, database_NV = cosine
        metrics = evaluate_scores(
            cosine_score(query_QV, database_NV), query_QV.shape[0], database_NV.shape[0], similar, ks
        )
        results.append(MethodResult("float cosine", None, _bytes_per_row(database_NV), metrics))
    return results


def rescored_name(method: str) -> str:
    """The name under which a method's asymmetric ranking is reported."""
    return f"{method}, rescored"


def cosine_score(query_QV: FeatureMatrix, database_NV: FeatureMatrix) -> Score:
    """Cosines for `evaluate_scores`; a row of zeros has cosine 0 with everything.

    Raises:
        InputError: the two have different widths, or only one is sparse.
    """
    if query_QV.shape[1:] != database_NV.shape[1:]:
        raise InputError(
            f"queries of shape {query_QV.shape} and a database of shape {database_NV.shape}: widths differ"
        )
    if scipy.sparse.issparse(query_QV) != scipy.sparse.issparse(database_NV):
        raise InputError("queries and database must both be sparse or both be dense")
    # Here, since importing scikit-learn takes as long as torch, and training loads this room.
    from sklearn.preprocessing import normalize

    unit_QV: Any = normalize(query_QV)
    unit_NV: Any = normalize(database_NV)

    def score(start: int, stop: int) -> npt.NDArray[np.float32]:
        product_QN = unit_QV[start:stop] @ unit_NV.T
        return product_QN.toarray() if scipy.sparse.issparse(product_QN) else product_QN

    return score


def table_row(result: MethodResult) -> dict[str, Any]:
    """One row for `format_table`; every method has the same columns."""
    metrics, statistics = result.metrics, result.statistics
    row: dict[str, Any] = {
        "method": result.method,
        "bits": result.bits,
        "bytes/item": round(result.bytes_per_item, 1),
    }
    row |= {f"P@{k}": value for k, value in metrics.precision.items()}
    row |= {f"R@{k}": value for k, value in metrics.recall.items()}
    row |= {f"mAP@{k}": value for k, value in metrics.mean_average_precision.items()}
    row["P@radius"] = metrics.precision_at_radius
    row["distinct codes"] = statistics.distinct if statistics else None
    row["largest bucket"] = statistics.largest_bucket if statistics else None
    row["ms/query"] = result.milliseconds_per_query
    return row


def _bytes_per_row(x_NV: FeatureMatrix) -> float:
    stored = (x_NV.data, x_NV.indices) if scipy.sparse.issparse(x_NV) else (x_NV,)
    return sum(array.nbytes for array in stored) / x_NV.shape[0]
