"""How well codes use their bits."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from distindex.codes import CodeArray
from distindex.errors import InputError
from distindex.evaluation.expectation import FloatArray

_BITS = 1 << 22


@dataclasses.dataclass(frozen=True)
class CodeStatistics:
    """How codes use their bits. Precision can be won by collapsing onto one code per class; this shows it.

    Attributes:
        rows: number of codes.
        bits: their length.
        distinct: number of distinct codes.
        largest_bucket: rows that share the most frequent code.
        bucket_entropy: entropy in bits of the distribution of rows over the distinct codes.
        bit_balance_K: share of ones in each bit; 0.5 is balanced.
    """

    rows: int
    bits: int
    distinct: int
    largest_bucket: int
    bucket_entropy: float
    bit_balance_K: FloatArray

    def to_json(self) -> dict[str, Any]:
        return {**vars(self), "bit_balance_K": [round(float(share), 6) for share in self.bit_balance_K]}


def code_statistics(code_NC: CodeArray) -> CodeStatistics:
    """Count distinct codes and ones per bit.

    Raises:
        InputError: no codes.
    """
    rows, size = code_NC.shape
    if not rows:
        raise InputError("no codes to describe")
    padded_NC = np.zeros((rows, -(-size // 8) * 8), np.uint8)
    padded_NC[:, :size] = code_NC
    word_NW = padded_NC.view(np.uint64)
    word_NW = word_NW[np.lexsort(word_NW.T)]
    first = np.flatnonzero(np.concatenate(([True], (word_NW[1:] != word_NW[:-1]).any(axis=1))))
    bucket = np.diff(np.append(first, rows))
    one_K = np.zeros(size * 8, np.int64)
    block = max(1, _BITS // (size * 8))
    for start in range(0, rows, block):
        part = np.unpackbits(code_NC[start : start + block], axis=1, bitorder="little")
        one_K += part.sum(axis=0, dtype=np.int64)
    share = bucket / rows
    return CodeStatistics(
        rows=rows,
        bits=size * 8,
        distinct=len(bucket),
        largest_bucket=int(bucket.max()),
        # log2 of a share of 1 may come out as -0.0
        bucket_entropy=abs(float((share * np.log2(share)).sum())),
        bit_balance_K=one_K / rows,
    )
