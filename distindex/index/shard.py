"""One shard: distinct codes in a search structure, the rows of each code, their ids and payload.

A shard is an immutable directory named by its content:

    codes.faiss     the distinct codes, zero-padded (see `structure.padded_bits`), in byte order
    structure.faiss what an approximate kind searches instead of them; absent for exact kinds
    postings.arrow  offset: int64[U+1]; the rows of distinct code u are offset[u]:offset[u+1]
    ids.arrow       id: the ids of the rows, which are stored in (code bytes, id) order
    payload.arrow   the payload columns in the same order; absent where there is no payload
    shard.json      rows, distinct codes, lengths, and the size and sha256 of each file

The same rows in any order give the same bytes, and so the same name.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from distindex.codes import CodeArray, asymmetric, byte_weights
from distindex.errors import DamagedError, NotFoundError
from distindex.index.candidates import Nominees, can_be_answers
from distindex.index.flat import Flat
from distindex.index.kinds import DEFAULT_RECALL, check_kind
from distindex.index.manifest import ShardEntry, check_format
from distindex.index.matches import Matches, id_ranks, one_chunk, sortable_words
from distindex.index.structure import Neighbors, SearchStructure, padded_bits
from distindex.index.structures import STRUCTURE_FILE, build_approximate, open_structure
from distindex.storage import Storage, sha256_of

FORMAT_VERSION = 1
DIRECTORY = "shards"
_CODES, _POSTINGS, _IDS, _PAYLOAD = "codes.faiss", "postings.arrow", "ids.arrow", "payload.arrow"
_DESCRIPTION = "shard.json"


def write_shard(
    storage: Storage,
    code_NC: CodeArray,
    id_N: pa.Array,
    payload: pa.Table | None,
    kind: str = "flat",
    recall: float = DEFAULT_RECALL,
) -> ShardEntry:
    """Write the rows of one shard below `shards/` of an index; nothing is written where it is there already.

    Args:
        storage: the index.
        code_NC: codes of the rows, in any order.
        id_N: their ids, int64 or string, all different.
        payload: their payload columns; None or no columns where there are none.
        kind: its search structure.
        recall: what an approximate kind must reach.

    Raises:
        InputError: the kind cannot reach the recall on these codes; nothing was written.
    """
    order_N = _row_order(code_NC, id_N)
    sorted_NC = code_NC[order_N]
    starts = np.ones(len(sorted_NC), bool)
    starts[1:] = (sorted_NC[1:] != sorted_NC[:-1]).any(axis=1)
    first_U = np.flatnonzero(starts)
    flat = Flat.build(sorted_NC[first_U])
    offset_U1 = np.append(first_U, len(sorted_NC)).astype(np.int64)
    order = pa.array(order_N)
    writers: dict[str, Callable[[BinaryIO], None]] = {
        _CODES: flat.write,
        _POSTINGS: partial(_write_arrow, pa.table({"offset": offset_U1})),
        _IDS: partial(_write_arrow, pa.table({"id": id_N.take(order)})),
    }
    approximate = build_approximate(kind, flat, recall)
    if approximate is not None:
        writers[STRUCTURE_FILE] = approximate.write
    columns = plain_payload(payload)
    if columns is not None:
        writers[_PAYLOAD] = partial(_write_arrow, columns.take(order))
    # Hashed before anything is stored: what is there already under its name is not written again.
    sinks = {name: _HashingSink() for name in writers}
    for name, write in writers.items():
        write(sinks[name])  # type: ignore[arg-type]
    files = {name: {"bytes": sink.size, "sha256": sink.digest.hexdigest()} for name, sink in sorted(sinks.items())}
    description = {
        "format_version": FORMAT_VERSION,
        "kind": kind,
        **({"parameters": approximate.parameters} if approximate is not None else {}),
        "bits": flat.bits,
        "padded_bits": padded_bits(flat.bits),
        "rows": len(sorted_NC),
        "distinct": len(first_U),
        "id_type": str(id_N.type),
        "files": files,
    }
    data = (json.dumps(description, indent=1) + "\n").encode()
    sha256 = hashlib.sha256(data).hexdigest()
    home = storage.child(f"{DIRECTORY}/{sha256[:32]}")
    for name, write in writers.items():
        if not _is_there(home, name, files[name]["sha256"]):
            with home.open_output(name) as stream:
                write(stream)
    if not _is_there(home, _DESCRIPTION, sha256):
        home.write_bytes(_DESCRIPTION, data)
    return ShardEntry(
        name=sha256[:32],
        rows=len(sorted_NC),
        distinct=len(first_U),
        bytes=sum(sink.size for sink in sinks.values()) + len(data),
        sha256=sha256,
        recall=approximate.parameters["recall"] if approximate is not None else None,
    )


def _row_order(code_NC: CodeArray, id_N: pa.Array) -> npt.NDArray[np.int64]:
    return np.lexsort((id_ranks(id_N), *sortable_words(code_NC)[::-1]))


def plain_payload(payload: pa.Table | None) -> pa.Table | None:
    """Payload without what depends on how it was read: dictionaries and the writer's notes. None if empty."""
    if payload is None or not payload.num_columns:
        return None
    columns = [
        column.cast(column.type.value_type) if pa.types.is_dictionary(column.type) else column
        for column in payload.columns
    ]
    return pa.table(columns, names=payload.column_names)


def _write_arrow(table: pa.Table, stream: BinaryIO) -> None:
    table = table.combine_chunks()
    with pa.ipc.new_file(stream, table.schema, options=pa.ipc.IpcWriteOptions(compression=None)) as writer:
        writer.write_table(table)


class _HashingSink:
    """A stream that keeps the size and sha256 of what is written to it, and nothing else."""

    closed = False

    def __init__(self) -> None:
        self.size = 0
        self.digest = hashlib.sha256()

    def write(self, data: Any) -> int:
        size = memoryview(data).nbytes
        self.digest.update(data)
        self.size += size
        return size

    def tell(self) -> int:
        return self.size

    def flush(self) -> None:
        pass

    def writable(self) -> bool:
        return True


def _is_there(home: Storage, name: str, sha256: str) -> bool:
    # By content and not by size: building again is what repairs a damaged shard.
    try:
        with home.open_input(name) as stream:
            return sha256_of(stream) == sha256
    except NotFoundError:
        return False


@dataclasses.dataclass(frozen=True)
class Shard:
    """An opened shard of N rows and U distinct codes; its files are mapped, not copied, where it can be.

    Attributes:
        flat: the distinct codes.
        structure: what finds them; the same as `flat` for that kind.
        offset_U1: the rows of distinct code u are `offset_U1[u]:offset_U1[u + 1]`.
        id_N: ids, ascending within a code.
        payload: payload columns; None where the index has none.
    """

    flat: Flat
    structure: SearchStructure
    offset_U1: npt.NDArray[np.int64]
    id_N: pa.ChunkedArray
    payload: pa.Table | None

    @classmethod
    def open(cls, storage: Storage, entry: ShardEntry, cache: Path) -> Shard:
        """Open a shard that a version names, every file checked against its recorded sha256.

        Args:
            storage: the index.
            entry: the shard.
            cache: directory for copies of the files of an index in object storage.

        Raises:
            DamagedError: a file is missing, cut, changed, or belongs to another shard; names the file.
            FormatError: of a format version that this release does not know.
        """
        home = storage.child(f"{DIRECTORY}/{entry.name}")
        where = home.full_uri(_DESCRIPTION)
        try:
            data = home.read_bytes(_DESCRIPTION)
        except NotFoundError as error:
            raise DamagedError(f"{where}: the file is missing; build the index again") from error
        if hashlib.sha256(data).hexdigest() != entry.sha256:
            raise DamagedError(f"{where}: does not match the sha256 in the version file; build the index again")
        description = json.loads(data)
        check_format(description, where, FORMAT_VERSION)
        paths = {name: _checked(home, name, about, cache) for name, about in description["files"].items()}
        check_kind(description["kind"], where)
        flat = Flat.open(paths[_CODES], description["bits"])
        shard = cls(
            flat=flat,
            structure=open_structure(description["kind"], flat, description.get("parameters", {}), paths),
            offset_U1=one_chunk(_map_arrow(paths[_POSTINGS]).column("offset")).to_numpy(),
            id_N=_map_arrow(paths[_IDS]).column("id"),
            payload=_map_arrow(paths[_PAYLOAD]) if _PAYLOAD in paths else None,
        )
        counts = (len(shard.flat), len(shard.offset_U1) - 1, len(shard.id_N))
        if counts != (entry.distinct, entry.distinct, entry.rows):
            raise DamagedError(f"{home.uri}: its files disagree about the number of rows; build the index again")
        return shard

    def search(
        self,
        code_QC: CodeArray,
        *,
        version: int,
        k: int | None,
        radius: int | None,
        limit: int | None,
        columns: Sequence[str],
    ) -> Matches:
        """The k nearest rows, or the rows within `radius` bits (the best `limit` of them)."""
        most = k if radius is None else limit
        if most is None:
            neighbors = self.structure.within(code_QC, radius or 0)
        else:
            # The best rows carry at most as many codes, and these are the best codes.
            neighbors = self.structure.knn(code_QC, most)
            if radius is not None:
                neighbors = neighbors.cut(radius)
        return self._expand(neighbors, version, columns, most)

    def nominate(
        self,
        code_QC: CodeArray,
        logit_QK: npt.NDArray[np.float32],
        *,
        version: int,
        k: int,
        candidates: int,
        columns: Sequence[str],
        whole: bool,
    ) -> Nominees:
        """What the shard contributes to an asymmetric search; see `candidates`.

        Args:
            code_QC: the signs of the logits.
            logit_QK: the queries.
            version: of the index.
            k: answers per query.
            candidates: distinct codes that are scored, at least k.
            columns: payload columns of the rows.
            whole: the index has no other shards.
        """
        # Exact for every kind: candidates that one shard misses would change what others may leave out.
        nearest = self.flat.knn(code_QC, candidates)
        shape = (len(code_QC), min(candidates, len(self.flat)))
        position_QA = nearest.position_M.reshape(shape)
        distance_QA = nearest.distance_M.astype(np.int16).reshape(shape)
        code_QAC = self.flat.code_UC[position_QA]
        score_QA = asymmetric(byte_weights(logit_QK), code_QAC ^ code_QC[:, None])
        query_A, place_A = np.nonzero(can_be_answers(score_QA, k))
        # The sort is stable, so that equal scores stay in (distance, code) order.
        order_A = np.lexsort((score_QA[query_A, place_A], query_A))
        query_A, place_A = query_A[order_A], place_A[order_A]
        chosen = Neighbors(
            np.searchsorted(query_A, np.arange(len(code_QC) + 1)),
            nearest.distance_M.reshape(shape)[query_A, place_A],
            position_QA[query_A, place_A],
        )
        matches = self._expand(
            chosen, version, columns, k if whole else None, each=k, score_A=score_QA[query_A, place_A]
        )
        told = 0 if whole else shape[1]
        return Nominees(distance_QA[:, :told], code_QAC[:, :told], matches)

    def _expand(
        self,
        neighbors: Neighbors,
        version: int,
        columns: Sequence[str],
        most: int | None,
        each: int | None = None,
        score_A: npt.NDArray[np.float32] | None = None,
    ) -> Matches:
        """From codes to rows, at most `most` per query and `each` per code."""
        first_A = self.offset_U1[neighbors.position_M]
        size_A = self.offset_U1[neighbors.position_M + 1] - first_A
        if each is not None:
            size_A = np.minimum(size_A, each)
        before_A1 = np.concatenate([[0], np.cumsum(size_A)])
        if most is not None:
            # Cut before expanding: one code may have millions of rows.
            start_Q = before_A1[neighbors.offset_Q1[:-1]]
            before_A = before_A1[:-1] - np.repeat(start_Q, np.diff(neighbors.offset_Q1))
            size_A = np.clip(most - before_A, 0, size_A)
            before_A1 = np.concatenate([[0], np.cumsum(size_A)])
        answer_M = np.repeat(np.arange(len(size_A)), size_A)
        rows = pa.array(np.arange(before_A1[-1]) + np.repeat(first_A - before_A1[:-1], size_A))
        return Matches(
            offset_Q1=before_A1[neighbors.offset_Q1],
            distance_M=neighbors.distance_M[answer_M],
            code_MC=self.flat.code_UC[neighbors.position_M[answer_M]],
            id_M=one_chunk(self.id_N.take(rows)),
            payload=self.payload.select(list(columns)).take(rows) if columns and self.payload is not None else None,
            version=version,
            score_M=None if score_A is None else score_A[answer_M],
        )


def _checked(home: Storage, name: str, about: Mapping[str, Any], cache: Path) -> Path:
    where = home.full_uri(name)
    for attempt in range(2):
        try:
            path = home.fetch(name, cache)
        except NotFoundError as error:
            raise DamagedError(f"{where}: the file is missing; build the index again") from error
        with path.open("rb") as stream:
            found = sha256_of(stream)
        if found == about["sha256"]:
            return path
        if home.is_local or attempt:
            break
        # The copy in the cache may be the damaged one.
        path.unlink(missing_ok=True)
    raise DamagedError(f"{where}: does not match its recorded sha256; build the index again")


def _map_arrow(path: Path) -> pa.Table:
    with pa.memory_map(str(path)) as source:
        return pa.ipc.open_file(source).read_all()
