"""Answers of a search as columns, and merging the answers of several shards. Needs no faiss."""

# pyright: reportAttributeAccessIssue=false
# (pyarrow.compute makes its functions when it is imported)

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from distindex.codes import CodeArray
from distindex.errors import InputError

_COLUMNS = ["query", "id", "distance", "code"]


@dataclasses.dataclass(frozen=True)
class Match:
    """One answer: the row's id, its distance to the query in bits, its code in hexadecimal, its payload.

    `score` is its asymmetric distance where the answers were rescored, else None.
    """

    id: int | str
    distance: int
    code: str
    payload: dict[str, Any]
    score: float | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class Matches:
    """The answers to Q queries, M in all, per query ordered by (distance, code bytes, id).

    Rescored answers have a score, and are ordered by (score, distance, code bytes, id).

    Attributes:
        offset_Q1: answers of query q are `offset_Q1[q]:offset_Q1[q + 1]` of the other arrays.
        distance_M: Hamming distances in bits.
        code_MC: the codes of the rows found.
        id_M: their ids, int64 or string.
        payload: M rows of the payload columns that were asked for; None where none was.
        version: the index version that answered.
        missing_shards: positions of shards that did not answer; empty means a complete answer.
        score_M: asymmetric distances (see `codes.asymmetric`); None where the answers were not rescored.
    """

    offset_Q1: npt.NDArray[np.int64]
    distance_M: npt.NDArray[np.int32]
    code_MC: CodeArray
    id_M: pa.Array
    payload: pa.Table | None
    version: int
    missing_shards: tuple[int, ...] = ()
    score_M: npt.NDArray[np.float32] | None = None

    def __len__(self) -> int:
        return len(self.offset_Q1) - 1

    def __getitem__(self, query: int) -> list[Match]:
        if not -len(self) <= query < len(self):
            raise IndexError(f"query {query} of {len(self)}")
        start, stop = self.offset_Q1[query % len(self)], self.offset_Q1[query % len(self) + 1]
        size = int(stop - start)
        payload = self.payload.slice(start, size).to_pylist() if self.payload is not None else [{}] * size
        scores = self.score_M[start:stop].tolist() if self.score_M is not None else [None] * size
        return [
            Match(item, int(distance), code.tobytes().hex(), dict(extra), score)
            for item, distance, code, extra, score in zip(
                self.id_M.slice(start, size).to_pylist(),
                self.distance_M[start:stop],
                self.code_MC[start:stop],
                payload,
                scores,
                strict=True,
            )
        ]

    def __iter__(self) -> Iterator[list[Match]]:
        return (self[query] for query in range(len(self)))

    @property
    def query_M(self) -> npt.NDArray[np.int64]:
        """The query that each answer belongs to."""
        return np.repeat(np.arange(len(self)), np.diff(self.offset_Q1))

    def where(self, keep_M: npt.NDArray[np.bool_]) -> Matches:
        """Only the answers that `keep_M` marks, in their order."""
        kept_M1 = starts_of(keep_M)
        return self.take(np.flatnonzero(keep_M), kept_M1[self.offset_Q1])

    def part(self, start: int, stop: int) -> Matches:
        """The answers to the queries from `start` to `stop` only."""
        if (start, stop) == (0, len(self)):
            return self
        first, last = int(self.offset_Q1[start]), int(self.offset_Q1[stop])
        return dataclasses.replace(
            self,
            offset_Q1=self.offset_Q1[start : stop + 1] - first,
            distance_M=self.distance_M[first:last],
            code_MC=self.code_MC[first:last],
            id_M=self.id_M.slice(first, last - first),
            payload=None if self.payload is None else self.payload.slice(first, last - first),
            score_M=None if self.score_M is None else self.score_M[first:last],
        )

    def take(self, order_M: npt.NDArray[np.int64], offset_Q1: npt.NDArray[np.int64]) -> Matches:
        """The answers at `order_M` of the flat arrays, as those of the queries that `offset_Q1` delimits."""
        rows = pa.array(order_M)
        return dataclasses.replace(
            self,
            offset_Q1=offset_Q1,
            distance_M=self.distance_M[order_M],
            code_MC=self.code_MC[order_M],
            id_M=self.id_M.take(rows),
            payload=None if self.payload is None else self.payload.take(rows),
            score_M=None if self.score_M is None else self.score_M[order_M],
        )

    def to_table(self) -> pa.Table:
        """Columns query, id, distance, code, the score where there is one, then the payload.

        The version and the missing shards are in its metadata.
        """
        size = self.code_MC.shape[1]
        code = pa.FixedSizeBinaryArray.from_buffers(
            pa.binary(size), len(self.code_MC), [None, pa.py_buffer(np.ascontiguousarray(self.code_MC))]
        )
        columns = [pa.array(self.query_M), self.id_M, pa.array(self.distance_M), code]
        names = list(_COLUMNS)
        if self.score_M is not None:
            columns.append(pa.array(self.score_M))
            names.append("score")
        payload = [] if self.payload is None else list(self.payload.columns)
        names += [] if self.payload is None else self.payload.column_names
        notes = {
            "version": self.version,
            "queries": len(self),
            "missing": list(self.missing_shards),
            # By its name a score could be a payload column.
            "scored": self.score_M is not None,
        }
        return pa.table([*columns, *payload], names=names).replace_schema_metadata({"matches": json.dumps(notes)})

    @classmethod
    def from_table(cls, table: pa.Table) -> Matches:
        """The inverse of `to_table`.

        Raises:
            InputError: the table was not made by `to_table`.
        """
        notes = (table.schema.metadata or {}).get(b"matches")
        if table.column_names[:4] != _COLUMNS or notes is None:
            raise InputError(f"a table with columns {table.column_names} does not hold matches")
        about = json.loads(notes)
        query_M = table.column(0).to_numpy()
        offset_Q1 = np.searchsorted(query_M, np.arange(about["queries"] + 1)).astype(np.int64)
        scored = bool(about["scored"])
        payload = table.select(list(range(4 + scored, table.num_columns))).replace_schema_metadata()
        return cls(
            offset_Q1=offset_Q1,
            distance_M=np.asarray(table.column(2).to_numpy(), np.int32),
            code_MC=code_rows(table.column(3)),
            id_M=one_chunk(table.column(1)),
            payload=payload if payload.num_columns else None,
            version=about["version"],
            missing_shards=tuple(about["missing"]),
            score_M=np.asarray(table.column(4).to_numpy(), np.float32) if scored else None,
        )


def one_after_another(parts: Sequence[Matches]) -> Matches:
    """The answers to consecutive batches of queries as the answers to all of them; at least one part."""
    if len(parts) == 1:
        return parts[0]
    first = parts[0]
    starts = np.cumsum([0, *(len(part.id_M) for part in parts[:-1])])
    offsets = [part.offset_Q1[1:] + start for part, start in zip(parts, starts, strict=True)]
    payload = None
    if first.payload is not None:
        payload = pa.concat_tables([part.payload for part in parts if part.payload is not None])
    score_M = None
    if first.score_M is not None:
        score_M = np.concatenate([part.score_M for part in parts if part.score_M is not None])
    return Matches(
        offset_Q1=np.concatenate([[0], *offsets]).astype(np.int64),
        distance_M=np.concatenate([part.distance_M for part in parts]),
        code_MC=np.concatenate([part.code_MC for part in parts]),
        id_M=one_chunk(pa.chunked_array([part.id_M for part in parts], type=first.id_M.type)),
        payload=payload,
        version=first.version,
        missing_shards=tuple(sorted({shard for part in parts for shard in part.missing_shards})),
        score_M=score_M,
    )


def merge(parts: Sequence[Matches], k: int | None) -> Matches:
    """The answers of disjoint shards as one, at most `k` per query, in the order of `Matches`.

    Args:
        parts: answers to the same queries from the same version; each row stands in one part only.
        k: answers kept per query; None keeps all.

    Raises:
        InputError: no parts, or parts of different queries, versions, code lengths or columns, or some with
            scores and some without.
    """
    if not parts:
        raise InputError("merging the answers of shards: there are none")
    _check_alike(parts)
    queries = len(parts[0])
    if len(parts) == 1 and (k is None or np.diff(parts[0].offset_Q1).max(initial=0) <= k):
        return parts[0]
    every = one_after_another(parts)
    if len(parts) == 1:
        query_M = every.query_M
        order_M = np.arange(len(query_M))
    else:
        query_M = every.query_M % max(queries, 1)
        kept_M = _within_reach(every, query_M, queries, k)
        query_M = query_M[kept_M]
        keys = [
            id_ranks(every.id_M.take(pa.array(kept_M))),
            *sortable_words(every.code_MC[kept_M])[::-1],
            every.distance_M[kept_M],
        ]
        order_M = np.lexsort([*keys, *([] if every.score_M is None else [every.score_M[kept_M]]), query_M])
        order_M = kept_M[order_M]
    counts_Q = np.bincount(query_M, minlength=queries)
    if k is not None and counts_Q.max(initial=0) > k:
        start_Q = np.cumsum(counts_Q) - counts_Q
        order_M = order_M[np.arange(len(order_M)) - np.repeat(start_Q, counts_Q) < k]
        counts_Q = np.minimum(counts_Q, k)
    return every.take(order_M, starts_of(counts_Q))


def _within_reach(
    every: Matches, query_M: npt.NDArray[np.integer], queries: int, k: int | None
) -> npt.NDArray[np.int64]:
    """The answers, in their order, that are no farther than the k-th of their query: sorting all would cost more.

    Where answers are ordered by a score first, that is all of them.
    """
    if k is None or every.score_M is not None or not len(query_M):
        return np.arange(len(query_M))
    width = int(every.distance_M.max()) + 1
    counts_QD = np.bincount(query_M * width + every.distance_M, minlength=queries * width).reshape(queries, width)
    farthest_Q = (np.cumsum(counts_QD, axis=1) < k).sum(axis=1)
    return np.flatnonzero(every.distance_M <= farthest_Q[query_M])


def _check_alike(parts: Sequence[Matches]) -> None:
    def describe(part: Matches) -> dict[str, Any]:
        return {
            "queries": len(part),
            "version": part.version,
            "code bytes": part.code_MC.shape[1],
            "id type": str(part.id_M.type),
            "payload": None if part.payload is None else part.payload.schema.names,
            "scores": part.score_M is not None,
        }

    first = describe(parts[0])
    for part in parts[1:]:
        other = describe(part)
        for name, value in first.items():
            if other[name] != value:
                raise InputError(f"merging the answers of shards: {name} {value} and {other[name]} differ")


def starts_of(size_A: npt.NDArray[np.integer] | npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
    """Where parts of these sizes begin one after another, and where the last one ends."""
    start_A1 = np.zeros(len(size_A) + 1, np.int64)
    np.cumsum(size_A, out=start_A1[1:])
    return start_A1


def one_chunk(column: pa.ChunkedArray | pa.Array) -> pa.Array:
    """A column as one array."""
    if isinstance(column, pa.Array):
        return column
    if column.num_chunks == 1:
        return column.chunk(0)
    return pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], column.type)


def code_rows(column: pa.ChunkedArray | pa.Array) -> CodeArray:
    """A fixed_size_binary column without nulls as `code_NC`, without a copy where it is one chunk."""
    size = column.type.byte_width
    chunks = column.chunks if isinstance(column, pa.ChunkedArray) else [column]
    parts = []
    for chunk in chunks:
        data = np.frombuffer(chunk.buffers()[1] or b"", np.uint8)
        parts.append(data[chunk.offset * size : (chunk.offset + len(chunk)) * size].reshape(-1, size))
    if len(parts) == 1:
        return parts[0]
    return np.concatenate(parts) if parts else np.empty((0, size), np.uint8)


def id_ranks(id_N: pa.Array) -> npt.NDArray[np.integer]:
    """Integers that sort as the ids do: int64 by value, strings by their UTF-8 bytes."""
    if pa.types.is_integer(id_N.type):
        return id_N.to_numpy(zero_copy_only=False)
    return pc.rank(id_N, "ascending", tiebreaker="dense").to_numpy(zero_copy_only=False)


def sortable_words(code_NC: CodeArray) -> list[npt.NDArray[np.uint64]]:
    """The codes as big-endian 64-bit words, most significant first, so that numbers sort as bytes do."""
    rows, size = code_NC.shape
    padded = np.zeros((rows, -(-size // 8) * 8), np.uint8)
    padded[:, :size] = code_NC
    words_NW = padded.view(">u8").astype(np.uint64)
    return [np.ascontiguousarray(words_NW[:, word]) for word in range(words_NW.shape[1])]
