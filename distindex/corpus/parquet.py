"""Parquet files: described by their footers, read row group by row group."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa
import pyarrow.parquet as pq

from distindex.config import CorpusConfig
from distindex.corpus.files import CorpusFile, Described, Format, RowGroups, errors_named, select
from distindex.errors import InputError
from distindex.listing import FileInfo
from distindex.storage import Storage

# Footers are small and far away: many requests at once hide the latency of object storage.
FOOTER_THREADS = 32
_PAGE_BUFFER = 1 << 20
# About as many as a row group has.
_BATCHES_AHEAD = 8


def _describe(config: CorpusConfig, found: Sequence[FileInfo]) -> list[Described]:
    with ThreadPoolExecutor(min(FOOTER_THREADS, len(found))) as pool:
        return list(pool.map(lambda info: _footer(info, config), found))


def _footer(info: FileInfo, config: CorpusConfig) -> Described:
    with errors_named(info.uri, "Parquet"), _open(info.uri, config) as parquet:
        metadata, schema = parquet.metadata, parquet.schema_arrow
    chosen = select(schema, config, info.uri)
    groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
    file = CorpusFile(
        info.uri,
        info.size,
        info.etag,
        metadata.num_rows,
        len(groups),
        tuple(group.num_rows for group in groups),
        tuple(_bytes_of(group, set(chosen.names)) for group in groups),
    )
    return file, chosen


def _bytes_of(group: pq.RowGroupMetaData, names: set[str]) -> int:
    columns = [group.column(number) for number in range(group.num_columns)]
    return sum(c.total_uncompressed_size for c in columns if c.path_in_schema.partition(".")[0] in names)


def _read(
    config: CorpusConfig, file: CorpusFile, schema: pa.Schema, batch_rows: int, groups: RowGroups | None
) -> Iterator[pa.Table]:
    chosen = range(groups.first, groups.first + groups.count) if groups else range(file.row_groups)
    with errors_named(file.uri, "Parquet"), _open(file.uri, config) as parquet:
        if (parquet.metadata.num_rows, parquet.metadata.num_row_groups) != (file.rows, file.row_groups):
            raise InputError(f"{file.uri}: the file has changed while it was read; start again")
        if Storage(file.uri).is_local:
            batches = parquet.iter_batches(batch_rows, row_groups=chosen, columns=schema.names)
        else:
            batches = _ahead(_by_row_group(parquet, batch_rows, chosen, schema.names))
        for batch in batches:
            yield pa.Table.from_batches([batch]).select(schema.names)


def _by_row_group(
    parquet: pq.ParquetFile, batch_rows: int, groups: Sequence[int], columns: list[str]
) -> Iterator[pa.RecordBatch]:
    for group in groups:
        # One at a time: pyarrow keeps the fetched bytes of all that it was asked for.
        yield from parquet.iter_batches(batch_rows, row_groups=[group], columns=columns)


def _ahead(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """The same batches, fetched while those before are worked on."""
    with ThreadPoolExecutor(1) as pool:
        waiting = deque(pool.submit(next, batches, None) for _ in range(_BATCHES_AHEAD))
        while (batch := waiting.popleft().result()) is not None:
            waiting.append(pool.submit(next, batches, None))
            yield batch


@contextlib.contextmanager
def _open(uri: str, config: CorpusConfig) -> Iterator[pq.ParquetFile]:
    storage = Storage(uri, config.storage_options)
    if storage.is_local:
        # Pages in pieces: without a buffer, pyarrow reads a row group's whole columns at once.
        source, how = (
            storage.arrow.open_input_file(storage.full_path()),
            {"pre_buffer": False, "buffer_size": _PAGE_BUFFER},
        )
    else:
        # pyarrow joins the columns that lie side by side into one range, and needs no other bytes.
        source = pa.PythonFile(storage.open_input("", read_ahead=False), mode="r")
        how = {"pre_buffer": True}
    with source, pq.ParquetFile(source, **how) as parquet:
        yield parquet


PARQUET = Format("parquet", "Parquet", (".parquet",), _describe, _read)
