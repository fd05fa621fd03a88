"""What the parts hold, read back before they are committed: whether every id that went in came out, and once.

The ids of all parts are shuffled by hash, in Ray tasks. Their sums are compared with those of the ids that the
encoders read; the two sides share nothing but the parts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import pyarrow as pa
import ray

from distindex.codeset import ID_COLUMN, CodeSet, CodeSetManifest, OutputFile
from distindex.corpus.id_sum import IdSum
from distindex.corpus.ids import bucket_of, first_repeated
from distindex.errors import DamagedError
from distindex.runtime import fetch
from distindex.storage import Storage

# About 400 MB of int64 ids in one task.
IDS_PER_TASK = 50_000_000


class WrittenPart(NamedTuple):
    """A part and its list of rejected rows."""

    part: OutputFile
    rejected: OutputFile | None = None


class ReadBack(NamedTuple):
    """What the files of a code set hold.

    Attributes:
        parts: the sum over the ids of each part.
        rejected: the sum over the ids, null ones aside, of each list of rejected rows.
        repeated: an id that more than one row has, or None if all are unique.
    """

    parts: list[IdSum]
    rejected: list[IdSum]
    repeated: int | str | None


def read_back(
    storage: Storage, manifest: CodeSetManifest, written: Sequence[WrittenPart], ids_per_task: int = IDS_PER_TASK
) -> ReadBack:
    """Read the ids of the files that encoding has written.

    Args:
        storage: the directory of the parts.
        manifest: its types and its number of rows; it need not be committed yet.
        written: the parts.
        ids_per_task: ids that one task holds at most, on average.

    Raises:
        NotFoundError: a file is gone.
        DamagedError: a file is not what was written.
    """
    code_set = CodeSet(storage, manifest)
    groups = _groups(written, ids_per_task)
    buckets = max(1, -(-manifest.rows // ids_per_task))
    split = ray.remote(num_cpus=1, num_returns=buckets + 1)(_split_ids)
    check = ray.remote(num_cpus=1)(first_repeated)
    pieces: list[Any] = [split.remote(code_set, group, buckets) for group in groups]
    found = fetch([check.remote(*(group[bucket] for group in pieces)) for bucket in range(1, buckets + 1)])
    sums = [pair for group in fetch([group[0] for group in pieces]) for pair in group]
    repeated = next((identifier for identifier in found if identifier is not None), None)
    return ReadBack([part for part, _ in sums], [rejected for _, rejected in sums], repeated)


def _groups(written: Sequence[WrittenPart], ids_per_task: int) -> list[list[WrittenPart]]:
    groups: list[list[WrittenPart]] = [[]]
    rows = 0
    for each in written:
        if rows and rows + each.part.rows > ids_per_task:
            groups.append([])
            rows = 0
        groups[-1].append(each)
        rows += each.part.rows
    return groups


def _split_ids(code_set: CodeSet, group: Sequence[WrittenPart], buckets: int) -> tuple[Any, ...]:
    """The sums of each part and of its rejected rows, and the ids of all parts by bucket."""
    kind = pa.int64() if code_set.manifest.id_type == "int64" else pa.string()
    ids: list[pa.ChunkedArray] = [pa.chunked_array([], kind)]
    sums = []
    for part, rejected in group:
        column = code_set.read(part, [ID_COLUMN]).column(ID_COLUMN)
        if column.type != kind or column.null_count:
            raise DamagedError(f"{code_set.storage.full_uri(part.path)}: its ids are not {kind} without nulls")
        aside = code_set.read(rejected, [ID_COLUMN]).column(ID_COLUMN).cast(kind) if rejected else []
        sums.append((IdSum.of(column), IdSum.of(aside) if rejected else IdSum()))
        ids.append(column)
    every = pa.chunked_array([chunk for column in ids for chunk in column.chunks], kind)
    if buckets == 1:
        return sums, every
    bucket_N = bucket_of(every, buckets)
    return sums, *(every.filter(pa.array(bucket_N == bucket)) for bucket in range(buckets))
