"""The approximate search structures: faiss's binary IVF, Hash, MultiHash and HNSW over the distinct codes.

Their setting is the smallest that reaches the recall asked for on held-out codes. Answers are sorted by (distance,
position): they are a part of the whole exact ranking, in its order.
"""

# pyright: reportAttributeAccessIssue=false
# (faiss makes its Python classes when it is imported)

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import faiss
import numpy as np

from distindex.codes import CodeArray
from distindex.errors import DamagedError, InputError
from distindex.index.flat import Flat
from distindex.index.kinds import CAPABILITIES, Recall, refuse
from distindex.index.structure import Neighbors, pad, padded_bits

RECALL_K = 10
_HELD_OUT = 256
# Of fewer codes too few can be held out to say anything: they are searched with the largest setting.
_LEAST_MEASURED = 500
_LINKS = 16
_CONSTRUCTION = 64
_HASHES = 4
# faiss's attribute for the setting of each kind, and the values that are tried in turn.
_SETTINGS: Mapping[str, tuple[int, ...]] = {
    "ivf": tuple(1 << power for power in range(17)),
    "hash": (0, 1, 2, 3, 4),
    "multihash": (0, 1, 2, 3, 4),
    "hnsw": tuple(1 << power for power in range(3, 14)),
}
_CLASSES = {
    "ivf": faiss.IndexBinaryIVF,
    "hash": faiss.IndexBinaryHash,
    "multihash": faiss.IndexBinaryMultiHash,
    "hnsw": faiss.IndexBinaryHNSW,
}


class Approximate:
    """U distinct codes in byte order, of which a search looks at some.

    Args:
        kind: one of `kinds.CAPABILITIES` that is not exact.
        index: the faiss index, whose ids are positions.
        flat: the codes.
        parameters: how it was built, and the setting it is searched with.
    """

    def __init__(self, kind: str, index: Any, flat: Flat, parameters: Mapping[str, Any]) -> None:
        self.kind = kind
        self.bits = flat.bits
        self.code_UC: CodeArray = flat.code_UC
        self.parameters = dict(parameters)
        self._index = index
        self._flat = flat
        self.set(int(parameters[CAPABILITIES[kind].setting or ""]))

    @classmethod
    def build(cls, kind: str, flat: Flat, recall: float) -> Approximate:
        """Index distinct codes that are sorted by their bytes.

        Args:
            kind: as above.
            flat: the codes.
            recall: what the setting must reach for the nearest 10 codes, by distance.

        Raises:
            InputError: no setting reaches the recall.
        """
        code_UC = flat.code_UC
        codes = len(code_UC)
        size = min(_HELD_OUT, codes // 10) if codes >= _LEAST_MEASURED else 0
        held = np.sort(np.random.default_rng(0).choice(codes, size, replace=False))
        kept = np.setdiff1d(np.arange(codes), held, assume_unique=True)
        # One thread: the bytes of a shard, and so its name, must not depend on how threads interleave.
        threads = faiss.omp_get_max_threads()
        faiss.omp_set_num_threads(1)
        try:
            index, parameters = _empty(kind, code_UC)
            index.add_with_ids(pad(code_UC[kept]), kept)
            made = cls(kind, index, flat, parameters)
            reached = made._tune(held, kept, recall)
            if len(held):
                index.add_with_ids(pad(code_UC[held]), held)
        finally:
            faiss.omp_set_num_threads(threads)
        made.parameters["recall"] = dataclasses.asdict(reached) if reached else None
        return made

    @classmethod
    def open(cls, path: Path, kind: str, flat: Flat, parameters: Mapping[str, Any]) -> Approximate:
        """Read a file that `write` made.

        Raises:
            DamagedError: faiss cannot read it, or it holds something else.
        """
        try:
            index = faiss.read_index_binary(str(path))
        except RuntimeError as error:
            raise DamagedError(f"{path}: not a readable faiss binary index") from error
        if not isinstance(_inner(index), _CLASSES[kind]) or index.d != padded_bits(flat.bits):
            raise DamagedError(f"{path}: holds another structure than {kind} of {flat.bits} bits")
        if index.ntotal != len(flat):
            raise DamagedError(f"{path}: holds {index.ntotal} codes, but the shard has {len(flat)}")
        if kind == "multihash" and len(flat).bit_count() == 1:
            # Of a power of two of codes faiss's file loses a bucket that holds them all.
            index, _ = _empty(kind, flat.code_UC)
            index.add_with_ids(pad(flat.code_UC), np.arange(len(flat)))
        return cls(kind, index, flat, parameters)

    def write(self, stream: BinaryIO) -> None:
        faiss.write_index_binary(self._index, faiss.PyCallbackIOWriter(stream.write))

    def __len__(self) -> int:
        return len(self._flat)

    def set(self, value: int) -> None:
        """Search with another value of the kind's setting; larger finds more and takes longer."""
        inner = _inner(self._index)
        if self.kind == "hnsw":
            inner.hnsw.efSearch = value
        elif self.kind == "ivf":
            inner.nprobe = value
        else:
            inner.nflip = value
        self.parameters[CAPABILITIES[self.kind].setting or ""] = value

    def knn(self, code_QC: CodeArray, k: int) -> Neighbors:
        """The nearest codes found for each query, at most `min(k, U)`."""
        k = min(k, len(self))
        if not k or not len(code_QC):
            return Neighbors(np.zeros(len(code_QC) + 1, np.int64), np.empty(0, np.int32), np.empty(0, np.int64))
        distance_Qk, position_Qk = self._index.search(pad(code_QC), k)
        # Where it found fewer, faiss fills with id -1, HNSW at the distance INT_MIN.
        found_Qk = position_Qk >= 0
        query_M = np.nonzero(found_Qk)[0]
        return _ordered(query_M, distance_Qk[found_Qk], position_Qk[found_Qk], len(code_QC))

    def within(self, code_QC: CodeArray, radius: int) -> Neighbors:
        """The codes found at most `radius` bits away from each query.

        Raises:
            InputError: the kind cannot search by radius.
        """
        if not CAPABILITIES[self.kind].radius:
            raise refuse(self.kind, "radius", "give a limit too, or build an index of kind flat")
        if not len(self) or not len(code_QC):
            return self.knn(code_QC, 0)
        # faiss counts what is strictly nearer than its radius.
        limits, distance_M, position_M = self._index.range_search(pad(code_QC), min(radius, self._index.d) + 1)
        query_M = np.repeat(np.arange(len(code_QC)), np.diff(limits.astype(np.int64)))
        return _ordered(query_M, distance_M.astype(np.int32), position_M, len(code_QC))

    def _tune(self, held: np.ndarray, kept: np.ndarray, target: float) -> Recall | None:
        """Search with the smallest setting that reaches the target; None where there is nothing to measure by."""
        # Not more cells than there are, nor more flips than bits, which faiss takes for none.
        most = self.parameters.get("nlist", self.parameters.get("bits_hashed", max(_SETTINGS[self.kind])))
        settings = sorted({min(value, most) for value in _SETTINGS[self.kind]})
        if not len(held):
            self.set(settings[-1])
            return None
        k = min(RECALL_K, len(kept))
        query_QC = self.code_UC[held]
        exact = Flat.build(self.code_UC[kept]).knn(query_QC, k)
        last_Q = exact.distance_M.reshape(len(held), k)[:, -1]
        reached = 0.0
        for value in settings:
            self.set(value)
            reached = recall_of(self.knn(query_QC, k), last_Q, k)
            if reached >= target:
                return Recall(target, round(reached, 4), k, len(held))
        raise InputError(
            f"recall: {self.kind} reaches {reached:.3f} on these codes at most, not {target}; "
            "ask for less, or use flat or ivf"
        )


def recall_of(found: Neighbors, last_Q: np.ndarray, k: int) -> float:
    """The share of k exact neighbours that was found, counted by the distance of the last of them."""
    query_M = np.repeat(np.arange(len(last_Q)), np.diff(found.offset_Q1))
    return float((found.distance_M <= last_Q[query_M]).sum() / (k * len(last_Q)))


def _empty(kind: str, code_UC: CodeArray) -> tuple[Any, dict[str, Any]]:
    """A faiss index that takes ids, and its parameters with the least setting."""
    codes, bits = len(code_UC), code_UC.shape[1] * 8
    width = padded_bits(bits)
    if kind == "ivf":
        # Cells of about sqrt(U) / 4 codes: as many cells to compare a query with as codes in a few of them.
        cells = max(1, min(1 << 16, codes // 8, 1 << int(np.log2(4 * np.sqrt(codes) + 1))))
        quantizer = faiss.IndexBinaryFlat(width)
        # Codes drawn at random do as well as k-means on learned codes, and take a hundredth of its time.
        chosen = np.sort(np.random.default_rng(1).choice(codes, min(cells, codes), replace=False))
        quantizer.add(pad(code_UC[chosen]))
        index = faiss.IndexBinaryIVF(quantizer, width, cells)
        index.is_trained = True
        return index, {"nlist": cells, "nprobe": 1}
    # Not fewer than 4 bits: with a single one faiss finds nothing.
    size = max(4, int(np.log2(max(1, codes))))
    if kind == "hash":
        used = min(bits, size, 24)
        return faiss.IndexBinaryHash(width, used), {"bits_hashed": used, "nflip": 0}
    if kind == "multihash":
        used = max(1, min(bits // _HASHES, size, 24))
        index = faiss.IndexBinaryIDMap(faiss.IndexBinaryMultiHash(width, _HASHES, used))
    else:
        inner = faiss.IndexBinaryHNSW(width, _LINKS)
        inner.hnsw.efConstruction = _CONSTRUCTION
        index = faiss.IndexBinaryIDMap(inner)
    if kind == "multihash":
        return index, {"hashes": _HASHES, "bits_hashed": used, "nflip": 0}
    return index, {"links": _LINKS, "construction": _CONSTRUCTION, "efSearch": 8}


def _inner(index: Any) -> Any:
    return faiss.downcast_IndexBinary(index.index) if isinstance(index, faiss.IndexBinaryIDMap) else index


def _ordered(query_M: np.ndarray, distance_M: np.ndarray, position_M: np.ndarray, queries: int) -> Neighbors:
    order_M = np.lexsort((position_M, distance_M, query_M))
    offset_Q1 = np.searchsorted(query_M, np.arange(queries + 1))
    return Neighbors(offset_Q1, distance_M[order_M].astype(np.int32), position_M[order_M].astype(np.int64))
