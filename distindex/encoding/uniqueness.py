"""Whether ids are unique over all parts: a shuffle of the id columns by hash, in Ray tasks."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import ray

from distindex.codeset import ID_COLUMN, CodeSet, CodeSetManifest, OutputFile
from distindex.corpus.ids import repeated_ids
from distindex.runtime import fetch
from distindex.storage import Storage

# About 400 MB of int64 ids in one task.
IDS_PER_TASK = 50_000_000


def repeated_id(storage: Storage, manifest: CodeSetManifest, ids_per_task: int = IDS_PER_TASK) -> int | str | None:
    """An id that more than one row of the parts has, or None if all are unique.

    Args:
        storage: the directory of the parts.
        manifest: names the parts; it need not be committed yet.
        ids_per_task: ids that one task holds at most, on average.
    """
    code_set = CodeSet(storage, manifest)
    groups = _groups(manifest.files, ids_per_task)
    buckets = max(1, -(-manifest.rows // ids_per_task))
    split = ray.remote(num_cpus=1, num_returns=buckets)(_split_ids)
    check = ray.remote(num_cpus=1)(_first_repeated)
    pieces: list[Any] = [split.remote(code_set, group, buckets) for group in groups]
    by_bucket = [pieces] if buckets == 1 else [[group[b] for group in pieces] for b in range(buckets)]
    for found in fetch([check.remote(*bucket) for bucket in by_bucket]):
        if found is not None:
            return found
    return None


def _groups(files: Sequence[OutputFile], ids_per_task: int) -> list[list[OutputFile]]:
    groups: list[list[OutputFile]] = [[]]
    rows = 0
    for file in files:
        if rows and rows + file.rows > ids_per_task:
            groups.append([])
            rows = 0
        groups[-1].append(file)
        rows += file.rows
    return groups


def _split_ids(code_set: CodeSet, files: Sequence[OutputFile], buckets: int) -> Any:
    tables = [code_set.read(file, [ID_COLUMN]) for file in files]
    ids = pa.concat_tables(tables).column(ID_COLUMN)
    if buckets == 1:
        return ids
    bucket_N = bucket_of(ids, buckets)
    return [ids.filter(pa.array(bucket_N == bucket)) for bucket in range(buckets)]


def bucket_of(ids: pa.ChunkedArray, buckets: int) -> np.ndarray:
    """The bucket of each id: equal for equal ids, and evenly spread."""
    if pa.types.is_integer(ids.type):
        # The high bits of a product with an odd constant (Knuth, multiplicative hashing).
        mixed_N = ids.to_numpy().astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) >> np.uint64(32)
    else:
        texts = ids.cast(pa.binary()).to_pylist()
        mixed_N = np.fromiter((zlib.crc32(text) for text in texts), np.uint64, len(texts))
    return mixed_N % np.uint64(buckets)


def _first_repeated(*pieces: pa.ChunkedArray) -> int | str | None:
    repeated = repeated_ids(pa.chunked_array([chunk for piece in pieces for chunk in piece.chunks], pieces[0].type))
    return repeated[0].as_py() if len(repeated) else None
