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


def asymmetric_scores(logit_QK: npt.NDArray[np.float32], code_NC: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """Sums of |logit| over the bits where a code differs from the signs: `score_QN`, summed in float64."""
    bit_NK = np.unpackbits(code_NC, axis=1, bitorder="little").astype(bool)
    rows = [
        np.where(bit_NK != (logit_K > 0), np.abs(logit_K.astype(np.float64)), 0).sum(axis=1) for logit_K in logit_QK
    ]
    return np.array(rows, np.float64).reshape(len(logit_QK), len(code_NC)).astype(np.float32)


def asymmetric_search(
    logit_QK: npt.NDArray[np.float32],
    code_NC: npt.NDArray[np.uint8],
    ids: Sequence[int] | Sequence[str],
    *,
    k: int,
    candidates: int | None = None,
) -> list[list[tuple[float, int, str, int | str]]]:
    """Per query the best k rows as (score, distance, code in hexadecimal, id) in that order.

    Only rows of the first `candidates` distinct codes in (distance, code) order take part; None takes all.
    """
    codes = [code.tobytes().hex() for code in code_NC]
    query_QC = np.packbits(logit_QK > 0, axis=1, bitorder="little")
    found = []
    for score_N, distance_N in zip(asymmetric_scores(logit_QK, code_NC), distances(query_QC, code_NC), strict=True):
        chosen = set(sorted({(int(d), code) for d, code in zip(distance_N, codes, strict=True)})[:candidates])
        every = zip(score_N.tolist(), distance_N.tolist(), codes, ids, strict=True)
        found.append(sorted(row for row in every if (row[1], row[2]) in chosen)[:k])
    return found
