"""Codes like those of real items, as many as wanted: ITQ codes of sentence embeddings and of points between them.

The vectors are the all-MiniLM-L6-v2 embeddings of web_snippets and stackoverflow_short (see the README of the data).
Each new vector lies between a real one and one of its ten nearest, at a place drawn at random, so that it has the
neighbourhood of real texts. Codes are made by ITQ (Gong and Lazebnik 2011) fitted to the real vectors. Queries are
codes of real vectors that no new vector was made from.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq

from distindex import codes
from distindex.codes import CodeArray

SOURCES = ("web_snippets_minilm", "stackoverflow_short_minilm")
_NEIGHBORS = 10
_QUERIES = 1024
# Vectors beside the queries: all pairs of them are compared.
_REAL = 12_000


class EmbeddingCodes:
    """Real vectors, of which 1,024 are queries.

    Args:
        data: directory of the data sets.
    """

    def __init__(self, data: Path) -> None:
        vectors = [_vectors(path) for name in SOURCES for path in sorted((data / name).glob("*.parquet"))]
        vector_NV = np.concatenate(vectors)
        order_N = np.random.default_rng(0).permutation(len(vector_NV))
        self.query_QV = vector_NV[order_N[:_QUERIES]]
        self.real_NV = vector_NV[order_N[_QUERIES : _QUERIES + _REAL]]
        self._mean_V = self.real_NV.mean(axis=0)
        self._near_NA = _nearest(self.real_NV)

    def make(self, rows: int, bits: int) -> tuple[CodeArray, CodeArray]:
        """Codes of so many rows, and of the queries."""
        random = np.random.default_rng(bits)
        project_VK = _itq(self.real_NV - self._mean_V, bits, random)
        parts = []
        for start in range(0, rows, 1 << 16):
            size = min(1 << 16, rows - start)
            first = random.integers(0, len(self.real_NV), size)
            second = self._near_NA[first, random.integers(0, _NEIGHBORS, size)]
            share = random.random((size, 1), dtype=np.float32)
            between = share * self.real_NV[first] + (1 - share) * self.real_NV[second]
            parts.append(codes.pack((between - self._mean_V) @ project_VK > 0))
        return np.concatenate(parts), codes.pack((self.query_QV - self._mean_V) @ project_VK > 0)


def _vectors(path: Path) -> npt.NDArray[np.float32]:
    table = pq.read_table(path)
    column = next(name for name in table.column_names if "list" in str(table.schema.field(name).type))
    values = table.column(column).combine_chunks()
    vector_NV = np.asarray(values.flatten(), np.float32).reshape(len(table), -1)
    return vector_NV / np.linalg.norm(vector_NV, axis=1, keepdims=True)


def _nearest(vector_NV: npt.NDArray[np.float32]) -> npt.NDArray[np.int64]:
    parts = []
    for start in range(0, len(vector_NV), 2048):
        similarity = vector_NV[start : start + 2048] @ vector_NV.T
        parts.append(np.argpartition(-similarity, _NEIGHBORS, axis=1)[:, : _NEIGHBORS + 1][:, 1:])
    return np.concatenate(parts)


def _itq(centered_NV: npt.NDArray[np.float32], bits: int, random: np.random.Generator) -> npt.NDArray[np.float32]:
    _, vectors = np.linalg.eigh(centered_NV.T @ centered_NV)
    principal_VK = vectors[:, ::-1][:, :bits]
    projected_NK = centered_NV @ principal_VK
    rotation_KK = np.linalg.qr(random.standard_normal((bits, bits)))[0]
    for _ in range(20):
        left, _, right = np.linalg.svd(np.sign(projected_NK @ rotation_KK).T @ projected_NK)
        rotation_KK = (left @ right).T
    return (principal_VK @ rotation_KK).astype(np.float32)
