"""How good codes are: retrieval metrics that treat ties exactly, comparisons of methods, reports and plots."""

from distindex.evaluation.metrics import (
    Curve,
    Cutoffs,
    RetrievalMetrics,
    evaluate_codes,
    evaluate_logits,
    evaluate_scores,
)
from distindex.evaluation.protocol import MethodResult, compare_methods, cosine_score, table_row
from distindex.evaluation.statistics import CodeStatistics, code_statistics
from distindex.evaluation.table import format_table

# Reports and plots are imported by their modules' names: they load matplotlib, which training never needs.
__all__ = [
    "CodeStatistics",
    "Curve",
    "Cutoffs",
    "MethodResult",
    "RetrievalMetrics",
    "code_statistics",
    "compare_methods",
    "cosine_score",
    "evaluate_codes",
    "evaluate_logits",
    "evaluate_scores",
    "format_table",
    "table_row",
]
