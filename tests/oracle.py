"""Brute-force Hamming search, by unpacking bits and nothing of distindex: what every search must equal."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Answer = tuple[int, str, int | str]


def distances(query_QC: npt.NDArray[np.uint8], code_NC: npt.NDArray[np.uint8]) -> npt.NDArray[np.int64]:
    """All Hamming distances `distance_QN` in bits."""
    bit_NK = np.unpackbits(code_NC, axis=1).astype(bool)
    bit_QK = np.unpackbits(query_QC, axis=1).astype(bool)
    rows = [(bit_NK ^ query_K).sum(axis=1) for query_K in bit_QK]
    return np.array(rows, np.int64).reshape(len(query_QC), len(code_NC))


def search(
    query_QC: npt.NDArray[np.uint8],
    code_NC: npt.NDArray[np.uint8],
    ids: Sequence[int] | Sequence[str],
    *,
    k: int | None = None,
    radius: int | None = None,
) -> list[list[Answer]]:
    """Per query the rows as (distance, code in hexadecimal, id) in that order: the best k, or all in radius."""
    codes = [code.tobytes().hex() for code in code_NC]
    rows = sorted(range(len(codes)), key=lambda row: (codes[row], ids[row]))
    found = []
    for distance_N in distances(query_QC, code_NC):
        # The rows stand in (code, id) order, and the sort is stable.
        order = sorted(rows, key=lambda row, of=distance_N: of[row])
        kept = order if radius is None else [row for row in order if distance_N[row] <= radius]
        found.append([(int(distance_N[row]), codes[row], ids[row]) for row in kept[:k]])
    return found
