"""Deleted rows: of each shard, the ids that a version no longer counts. Needs no faiss.

A file `deletions/<first 32 digits of its sha256>.arrow` has one column `id`, ascending. A version names at most one
for each of its shards, with all ids that were deleted from it: a later deletion writes a new file.
"""

from __future__ import annotations

# pyright: reportAttributeAccessIssue=false
# (pyarrow.compute makes its functions when it is imported)
import hashlib
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from distindex.errors import DamagedError
from distindex.index.files import checked_file, map_arrow, write_arrow
from distindex.index.manifest import DeletionEntry, ShardEntry
from distindex.index.matches import one_chunk
from distindex.storage import Storage

DIRECTORY = "deletions"


def deletion_path(entry: DeletionEntry) -> str:
    """Where the file of a deletion is, inside the index."""
    return f"{DIRECTORY}/{entry.sha256[:32]}.arrow"


def write_deletion(storage: Storage, shard: ShardEntry, id_D: pa.Array) -> DeletionEntry:
    """Write the ids that are deleted from a shard, all of them different and in the shard, in any order."""
    table = pa.table({"id": id_D.take(pc.array_sort_indices(id_D))})
    sink = pa.BufferOutputStream()
    write_arrow(table, sink)  # type: ignore[arg-type]
    data = sink.getvalue().to_pybytes()
    entry = DeletionEntry(shard.name, len(id_D), len(data), hashlib.sha256(data).hexdigest())
    # Also where it is there: its age is what protects it from `gc` until a version names it.
    storage.write_bytes(deletion_path(entry), data)
    return entry


def read_deletion(storage: Storage, entry: DeletionEntry, cache: Path) -> pa.Array:
    """The deleted ids.

    Raises:
        DamagedError: the file is missing, changed or cut; names it.
    """
    path = checked_file(storage, deletion_path(entry), entry.sha256, cache)
    id_D = one_chunk(map_arrow(path).column("id"))
    if len(id_D) != entry.rows:
        raise DamagedError(f"{storage.full_uri(deletion_path(entry))}: {len(id_D)} ids, not {entry.rows}")
    return id_D


def is_among(id_N: pa.Array | pa.ChunkedArray, id_D: pa.Array) -> npt.NDArray[np.bool_]:
    """Which of the ids are among the others."""
    return (
        np.asarray(pc.is_in(id_N, value_set=id_D).to_numpy(zero_copy_only=False), bool)
        if len(id_N)
        else (np.zeros(0, bool))
    )


def places_among(id_N: pa.Array, id_D: pa.Array) -> npt.NDArray[np.int64]:
    """Where each of the ids stands among the others, which are all different; -1 where it does not."""
    if not len(id_D):
        return np.full(len(id_N), -1)
    return pc.index_in(id_N, value_set=id_D).fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64)
