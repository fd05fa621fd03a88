"""Rows on their way into shards: one file per source, in which the rows of each shard can be read alone.

A file holds Arrow record batches in rounds: a round takes the next rows of the source and has one batch for each
part, so that part p of P stands in the batches p, p + P, p + 2P, ... Writing takes the memory of a round, reading
that of one part, whatever the size of the source.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from distindex.errors import DamagedError, NotFoundError
from distindex.index.matches import one_chunk
from distindex.storage import Storage

ROWS_AT_ONCE = 1 << 20


def write_runs(
    storage: Storage,
    path: str,
    schema: pa.Schema,
    rounds: Iterable[pa.Table],
    part_of: Callable[[pa.Table], npt.NDArray[np.int64]],
    parts: int,
) -> npt.NDArray[np.int64]:
    """Write the file of one source; it appears when it is whole.

    Args:
        storage: the index.
        path: of the file.
        schema: of all rounds.
        rounds: the rows.
        part_of: the part, from 0, that each row of a round belongs to.
        parts: their number.

    Returns:
        how many rows each part has, `rows_P`.
    """
    rows_P = np.zeros(parts, np.int64)
    with storage.open_output(path) as stream, pa.ipc.new_file(stream, schema) as writer:
        for table in rounds:
            part_N = part_of(table)
            count_P = np.bincount(part_N, minlength=parts)
            # Sorted once and then sliced: the batches are views of one copy.
            ordered = table.take(pa.array(np.argsort(part_N, kind="stable"))).combine_chunks()
            for start, count in zip(np.cumsum(count_P) - count_P, count_P, strict=True):
                slices = [one_chunk(column).slice(int(start), int(count)) for column in ordered.columns]
                writer.write_batch(pa.record_batch(slices, schema=schema))
            rows_P += count_P
    return rows_P


def read_runs(
    storage: Storage, paths: Sequence[str], schema: pa.Schema, part: int, parts: int
) -> tuple[pa.Table, npt.NDArray[np.int64]]:
    """The rows of one part in all files, and how many of them come from each.

    Raises:
        NotFoundError: a file is gone.
        DamagedError: a file is not one of `write_runs`.
    """
    batches: list[pa.RecordBatch] = []
    rows_F = np.zeros(len(paths), np.int64)
    for number, path in enumerate(paths):
        try:
            with storage.arrow.open_input_file(storage.full_path(path)) as source:
                reader = pa.ipc.open_file(source)
                found = [reader.get_batch(at) for at in range(part, reader.num_record_batches, parts)]
        except FileNotFoundError as error:
            raise NotFoundError(f"{storage.full_uri(path)}: no such file") from error
        except pa.ArrowException as error:
            raise DamagedError(f"{storage.full_uri(path)}: cannot be read; remove it and run again") from error
        batches += [batch for batch in found if batch.num_rows]
        rows_F[number] = sum(batch.num_rows for batch in found)
    return pa.Table.from_batches(batches, schema), rows_F
