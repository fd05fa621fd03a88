"""The files of a shard, and writing them.

A shard has distinct codes in a search structure, the rows of each code, their ids and payload.
It is an immutable directory named by its content:

    codes.faiss     the distinct codes, zero-padded (see `structure.padded_bits`), in byte order
    structure.faiss what an approximate kind searches instead of them; absent for exact kinds
    postings.arrow  where the rows of each distinct code begin, see `postings`
    ids.arrow       id: the ids of the rows, which are stored in (code bytes, id) order
    payload.arrow   the payload columns in the same order; absent where there is no payload
    shard.json      rows, distinct codes, lengths, and the size and sha256 of each file

The same rows in any order give the same bytes, and so the same name.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from functools import partial
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from distindex.codes import CodeArray
from distindex.errors import NotFoundError
from distindex.index.files import write_arrow
from distindex.index.flat import Flat
from distindex.index.kinds import DEFAULT_RECALL
from distindex.index.manifest import ShardEntry
from distindex.index.matches import id_ranks, sortable_words
from distindex.index.postings import Postings
from distindex.index.structure import padded_bits
from distindex.index.structures import STRUCTURE_FILE, build_approximate
from distindex.storage import Storage, sha256_of

# Format 1 had postings of 8 bytes a code.
FORMAT_VERSION, OLDEST_FORMAT_VERSION = 2, 1
DIRECTORY = "shards"
CODES, POSTINGS, IDS, PAYLOAD = "codes.faiss", "postings.arrow", "ids.arrow", "payload.arrow"
DESCRIPTION = "shard.json"


def write_shard(
    storage: Storage,
    code_NC: CodeArray,
    id_N: pa.Array,
    payload: pa.Table | None,
    *,
    kind: str = "flat",
    recall: float = DEFAULT_RECALL,
    store: bool = True,
) -> ShardEntry:
    """Write the rows of one shard below `shards/` of an index; nothing is written where it is there already.

    Only its description is written in any case: its age is what protects the shard from `gc` until a version
    names it.

    Args:
        storage: the index.
        code_NC: codes of the rows, in any order.
        id_N: their ids, int64 or string, all different.
        payload: their payload columns; None or no columns where there are none.
        kind: its search structure.
        recall: what an approximate kind must reach.
        store: False only says what would be written.

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
        CODES: flat.write,
        POSTINGS: partial(write_arrow, Postings.of_offsets(offset_U1).to_table()),
        IDS: partial(write_arrow, pa.table({"id": id_N.take(order)})),
    }
    approximate = build_approximate(kind, flat, recall)
    if approximate is not None:
        writers[STRUCTURE_FILE] = approximate.write
    columns = plain_payload(payload)
    if columns is not None:
        writers[PAYLOAD] = partial(write_arrow, columns.take(order))
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
    if store:
        for name, write in writers.items():
            if not _is_there(home, name, files[name]["sha256"]):
                with home.open_output(name) as stream:
                    write(stream)
        home.write_bytes(DESCRIPTION, data)
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
