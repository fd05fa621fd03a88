"""Parquet files: described by their footers, read row group by row group."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa
import pyarrow.parquet as pq

from distindex.config import CorpusConfig
from distindex.corpus.files import CorpusFile, Described, Format, RowGroups, errors_named, select
from distindex.storage import FileInfo, Storage

# Footers are small and far away: many requests at once hide the latency of object storage.
FOOTER_THREADS = 32
_PAGE_BUFFER = 1 << 20


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
    chosen = range(groups.first, groups.first + groups.count) if groups else None
    with errors_named(file.uri, "Parquet"), _open(file.uri, config) as parquet:
        for batch in parquet.iter_batches(batch_rows, row_groups=chosen, columns=schema.names):
            yield pa.Table.from_batches([batch]).select(schema.names)


@contextlib.contextmanager
def _open(uri: str, config: CorpusConfig) -> Iterator[pq.ParquetFile]:
    storage = Storage(uri, config.storage_options)
    with (
        storage.arrow.open_input_file(storage.full_path()) as source,
        # On disk, pages in pieces: without a buffer, pyarrow reads a row group's whole columns at once.
        pq.ParquetFile(source, pre_buffer=not storage.is_local, buffer_size=_PAGE_BUFFER) as parquet,
    ):
        yield parquet


PARQUET = Format("parquet", "Parquet", (".parquet",), _describe, _read)
