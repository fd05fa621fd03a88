"""What an evaluation leaves behind: metrics.json and the plots."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from distindex.errors import InputError
from distindex.evaluation.plots import (
    bit_balance_figure,
    precision_at_k_figure,
    precision_recall_figure,
    save_figure,
)
from distindex.evaluation.protocol import MethodResult
from distindex.storage import Storage

FORMAT_VERSION = 1


def write_report(
    storage: Storage, results: Sequence[MethodResult], details: Mapping[str, Any] | None = None
) -> list[str]:
    """Write the plots and then metrics.json; returns their URIs, metrics.json first.

    Args:
        storage: the output directory.
        results: one per method, the one to look at first.
        details: anything JSON that identifies the run (hasher, corpora, settings), kept under "details".

    Raises:
        InputError: no results, or two of one name.
    """
    metrics = {result.method: result.metrics for result in results}
    if not results or len(metrics) < len(results):
        raise InputError(f"a report needs methods of different names, got {[r.method for r in results]}")
    statistics = {result.method: result.statistics for result in results if result.statistics}
    figures = {
        "precision-recall.png": precision_recall_figure(metrics),
        "precision-at-k.png": precision_at_k_figure(metrics),
    }
    if statistics:
        figures["bit-balance.png"] = bit_balance_figure(statistics)
    for path, figure in figures.items():
        save_figure(figure, storage, path)
    storage.write_json(
        "metrics.json",
        {
            "format_version": FORMAT_VERSION,
            "kind": "evaluation",
            "details": dict(details or {}),
            "methods": [result.to_json() for result in results],
        },
    )
    return [storage.full_uri(path) for path in ("metrics.json", *figures)]
