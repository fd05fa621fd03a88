"""The exact search structure of a shard: its distinct codes in a faiss IndexBinaryFlat, searched the fastest way.

What faiss does and does not do here was measured, not assumed: the answers of `search` come in
(distance, position) order in both of its modes; the counting mode (`use_heap=False`) is as fast as the
heap for k = 10, 1.4 times as fast for k = 100 and 4 times for k = 10,000.
"""

# pyright: reportAttributeAccessIssue=false
# (faiss makes its Python classes when it is imported)

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import faiss
import numpy as np

from distindex.codes import CodeArray
from distindex.errors import DamagedError
from distindex.index.structure import Neighbors, pad, padded_bits

if TYPE_CHECKING:
    from distindex.index.exact import Exact

_COUNTER_BYTES = 128 << 20
# Longer codes are left to faiss: compiling for each of their lengths would take longer than it saves.
_LONGEST_BITS = 256
# Below this many codes faiss answers in microseconds, and nothing has to be compiled or prepared.
_SMALL = 4096


class Flat:
    """U distinct codes in byte order, searched exactly.

    Args:
        index: the faiss index over the padded codes.
        bits: the length of the codes before padding.
    """

    def __init__(self, index: faiss.IndexBinaryFlat, bits: int) -> None:
        self._index = index
        self.bits = bits
        size = index.ntotal * index.code_size
        # A view of faiss's own (possibly mapped) memory: codes of answers are read without a second copy.
        flat = faiss.rev_swig_ptr(index.xb.data(), size) if size else np.empty(0, np.uint8)
        self._padded_UP: CodeArray = flat.reshape(-1, index.code_size)
        self.code_UC: CodeArray = self._padded_UP[:, : bits // 8]
        self._exact: Exact | None = None

    @classmethod
    def build(cls, code_UC: CodeArray) -> Flat:
        """Index distinct codes that are sorted by their bytes."""
        bits = code_UC.shape[1] * 8
        index = faiss.IndexBinaryFlat(padded_bits(bits))
        index.add(pad(code_UC))
        return cls(index, bits)

    @classmethod
    def open(cls, path: Path, bits: int) -> Flat:
        """Map a file that `write` made.

        Raises:
            DamagedError: faiss cannot read it, or it holds something else.
        """
        try:
            index = faiss.read_index_binary(str(path), faiss.IO_FLAG_MMAP_IFC)
        except RuntimeError as error:
            raise DamagedError(f"{path}: not a readable faiss binary index") from error
        if not isinstance(index, faiss.IndexBinaryFlat) or index.d != padded_bits(bits):
            raise DamagedError(f"{path}: holds another structure than a flat index of {bits} bits")
        return cls(index, bits)

    def prepare(self) -> None:
        """Make the tables and compile the functions that searches use; without it faiss scans."""
        if len(self) >= _SMALL and self.bits <= _LONGEST_BITS and self._exact is None:
            # Here and not above: numba takes half a second to import, and small shards go without.
            from distindex.index.exact import Exact

            self._exact = Exact(self._padded_UP, self.bits, self._knn, self._within)

    def write(self, stream: BinaryIO) -> None:
        faiss.write_index_binary(self._index, faiss.PyCallbackIOWriter(stream.write))

    def __len__(self) -> int:
        return int(self._index.ntotal)

    @property
    def faiss_index(self) -> faiss.IndexBinaryFlat:
        """The codes, padded, as faiss has them."""
        return self._index

    @property
    def way(self) -> str:
        """How it is searched: `direct`, `multi-index`, `scan`, or `faiss`."""
        return self._exact.way if self._exact else "faiss"

    @property
    def memory_bytes(self) -> int:
        """Memory of codes and tables."""
        return self._padded_UP.nbytes + (self._exact.table_bytes if self._exact else 0)

    def knn(self, code_QC: CodeArray, k: int) -> Neighbors:
        """The `min(k, U)` nearest codes of each query."""
        k = min(k, len(self))
        padded_QP = pad(code_QC)
        return self._knn(padded_QP, k) if self._exact is None or not k else self._exact.knn(padded_QP, k)

    def within(self, code_QC: CodeArray, radius: int) -> Neighbors:
        """All codes at most `radius` bits away from each query."""
        padded_QP = pad(code_QC)
        return self._within(padded_QP, radius) if self._exact is None else self._exact.within(padded_QP, radius)

    def _knn(self, padded_QP: CodeArray, k: int) -> Neighbors:
        queries = len(padded_QP)
        distance_QM = np.empty((queries, k), np.int32)
        position_QM = np.empty((queries, k), np.int64)
        if k:
            # The counting mode holds k positions of 8 bytes for every distance of every query at once.
            counters = (self._index.d + 1) * k * 8
            self._index.use_heap = counters > _COUNTER_BYTES
            block = max(1, _COUNTER_BYTES // counters)
            for start in range(0, queries, block):
                part = slice(start, start + block)
                distance_QM[part], position_QM[part] = self._index.search(padded_QP[part], k)
        return Neighbors(np.arange(queries + 1) * k, distance_QM.ravel(), position_QM.ravel())

    def _within(self, padded_QP: CodeArray, radius: int) -> Neighbors:
        # faiss counts what is strictly nearer than its radius.
        limits, distance, position_M = self._index.range_search(padded_QP, min(radius, self._index.d) + 1)
        offset_Q1 = limits.astype(np.int64)
        distance_M = distance.astype(np.int32)
        query_M = np.repeat(np.arange(len(padded_QP)), np.diff(offset_Q1))
        order_M = np.lexsort((position_M, distance_M, query_M))
        return Neighbors(offset_Q1, distance_M[order_M], position_M[order_M])
