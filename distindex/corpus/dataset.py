"""Parquet corpora: one file, a directory or a glob, at any URI, checked before work and streamed in batches."""

# pyright: reportAttributeAccessIssue=false
# (pyarrow.compute makes its functions when it is imported)

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from distindex.config import CorpusConfig
from distindex.corpus.ids import as_ids, id_type
from distindex.corpus.labels import check_label_type
from distindex.corpus.rows import ColumnCheck, FeatureKind, RowCheck, feature_kind
from distindex.errors import InputError, NotFoundError
from distindex.settings import fingerprint
from distindex.storage import FileInfo, Storage, list_files

# Footers are small and far away: many requests at once hide the latency of object storage.
FOOTER_THREADS = 32
_PAGE_BUFFER = 1 << 20

REJECTED_SCHEMA = pa.schema(
    [("file", pa.string()), ("row", pa.int64()), ("id", pa.string()), ("reason", pa.string())]
)


@dataclasses.dataclass(frozen=True)
class CorpusFile:
    """One Parquet file: its URI, size in bytes, the store's version tag, rows and row groups.

    Attributes:
        group_rows: rows of each row group.
        group_bytes: bytes of the corpus's columns in each row group, uncompressed.
    """

    uri: str
    size: int
    etag: str
    rows: int
    row_groups: int
    group_rows: tuple[int, ...] = ()
    group_bytes: tuple[int, ...] = ()


@dataclasses.dataclass(frozen=True)
class RowGroups:
    """Consecutive row groups of one file: the first one's number, how many, and their rows, counted from 0."""

    first: int
    count: int
    first_row: int
    rows: int


@dataclasses.dataclass(frozen=True)
class CorpusBatch:
    """Consecutive rows of one file; `first_row` is the number of the first, counted from 0 in the file."""

    file: CorpusFile
    first_row: int
    table: pa.Table


class Corpus:
    """A checked corpus. Opening reads every file's footer, never its rows.

    Attributes:
        config: where it is and which columns matter.
        files: its files, by URI.
        schema: types of the columns that the config names, the same in all files.
        rows: rows in all files together.
    """

    def __init__(self, config: CorpusConfig, files: tuple[CorpusFile, ...], schema: pa.Schema) -> None:
        self.config = config
        self.files = files
        self.schema = schema
        self.rows = sum(file.rows for file in files)

    @classmethod
    def open(cls, config: CorpusConfig) -> Corpus:
        """Find the files of a corpus and check their columns.

        Raises:
            NotFoundError: nothing is there, or no Parquet file.
            InputError: a file is not Parquet; a column is missing, has an unsuitable type or another type
                than in the first file; there are no rows.
        """
        found = list_files(config.uri, ".parquet", config.storage_options)
        with ThreadPoolExecutor(min(FOOTER_THREADS, len(found))) as pool:
            footers = list(pool.map(lambda info: _footer(info, config), found))
        schema = footers[0][1]
        for file, other in footers[1:]:
            schema = _unify(schema, other, footers[0][0].uri, file.uri)
        _check_types(schema, config)
        corpus = cls(config, tuple(file for file, _ in footers), schema)
        if corpus.rows == 0:
            raise InputError(f"{config.uri}: the corpus is empty: {len(found)} file(s) without a row")
        return corpus

    @property
    def feature_kind(self) -> FeatureKind:
        """What the feature column holds by its type: vectors, texts (also as lists of tokens), or images."""
        return feature_kind(self.schema.field(self.config.feature_column).type, self.config.uri)

    @property
    def id_type(self) -> pa.DataType:
        """The type in which ids are kept: int64 or string."""
        return id_type(self.schema.field(self.config.id_column).type, self.config.uri)

    @cached_property
    def fingerprint(self) -> str:
        """16 hex digits that change when a file (size, version tag, rows) or a named column changes."""
        files = [[file.uri, file.size, file.etag, file.rows] for file in self.files]
        return fingerprint(files, self.columns)

    @property
    def columns(self) -> dict[str, str]:
        """The columns that the config names, each with its role and type."""
        roles = {
            "id": self.config.id_column,
            "features": self.config.feature_column,
            "label": self.config.label_column,
            **{f"payload {i}": name for i, name in enumerate(self.config.payload_columns)},
        }
        return {role: f"{name}: {self.schema.field(name).type}" for role, name in roles.items() if name}

    @cached_property
    def width(self) -> int | None:
        """Width of the vectors: the column type's, else that of the first row that has one; None without vectors.

        Raises:
            InputError: no row holds a vector.
        """
        if self.feature_kind != "dense":
            return None
        name = self.config.feature_column
        kind = self.schema.field(name).type
        if pa.types.is_fixed_size_list(kind) and kind.list_size:
            return kind.list_size
        for batch in self.batches([name], batch_rows=1024):
            lengths = pc.list_value_length(batch.table.column(name)).drop_null()
            if len(lengths) and lengths[0].as_py():
                return lengths[0].as_py()
        raise InputError(f'{self.config.uri}: no row of column "{name}" holds a vector')

    def row_check(self) -> ColumnCheck:
        """The check of vectors or texts before features are fitted: nulls, NaN, infinity, one width.

        Images are checked by `ImageFeatures`, which knows how to read them.

        Raises:
            InputError: no row holds a vector, or the column holds images.
        """
        kind = self.feature_kind
        if kind == "image":
            raise InputError(f'{self.config.uri}: column "{self.config.feature_column}" holds images')
        return ColumnCheck(kind, self.width)

    def batches(
        self,
        columns: Sequence[str],
        batch_rows: int = 8192,
        files: Sequence[CorpusFile] | None = None,
        groups: RowGroups | None = None,
    ) -> Iterator[CorpusBatch]:
        """Stream columns, file by file in order, at most `batch_rows` rows at once.

        Only these columns are read, row group by row group; with `groups` only those of each file.

        Raises:
            NotFoundError: a file has gone since the corpus was opened.
            InputError: a file is damaged.
        """
        schema = self._select(columns)
        for file in self.files if files is None else files:
            first_row = groups.first_row if groups else 0
            chosen = range(groups.first, groups.first + groups.count) if groups else None
            with _errors_named(file.uri), _open(file.uri, self.config) as parquet:
                for batch in parquet.iter_batches(batch_rows, row_groups=chosen, columns=schema.names):
                    table = pa.Table.from_batches([batch]).select(schema.names)
                    yield CorpusBatch(file, first_row, _cast(table, schema, file.uri))
                    first_row += batch.num_rows

    def read(self, columns: Sequence[str]) -> pa.Table:
        """All rows of some columns, in file order.

        Raises:
            NotFoundError: a file has gone since the corpus was opened.
            InputError: a file is damaged.
        """
        schema = self._select(columns)
        tables = []
        for file in self.files:
            with _errors_named(file.uri), _open(file.uri, self.config) as parquet:
                table = parquet.read(columns=schema.names).select(schema.names)
            tables.append(_cast(table, schema, file.uri))
        return pa.concat_tables(tables)

    def places_of(self, identifier: int | str, limit: int = 3) -> list[str]:
        """Where an id is: up to `limit` places, each as `FILE row N` (counted from 0 in the file)."""
        name = self.config.id_column
        places: list[str] = []
        for batch in self.batches([name], batch_rows=1 << 20):
            ids = as_ids(batch.table.column(name), batch.file.uri)
            for row in pc.indices_nonzero(pc.equal(ids, pa.scalar(identifier, ids.type))).to_pylist():
                places.append(f"{batch.file.uri} row {batch.first_row + row}")
            if len(places) >= limit:
                break
        return places[:limit]

    def _select(self, columns: Sequence[str]) -> pa.Schema:
        unknown = [name for name in columns if name not in self.schema.names]
        if unknown:
            raise InputError(
                f'{self.config.uri}: column "{unknown[0]}" is not one that the corpus\'s config names '
                f"({', '.join(self.schema.names)})"
            )
        return pa.schema([self.schema.field(name) for name in dict.fromkeys(columns)])


def split_bad_rows(batch: CorpusBatch, check: RowCheck, config: CorpusConfig) -> tuple[pa.Table, pa.Table]:
    """The rows that can be used, and those put aside.

    A row is bad when its features are (`check`), or when its id is null.

    Args:
        batch: rows with the feature column, the id column, or both.
        check: fitted features, or `Corpus.row_check()` before there are any.
        config: the corpus's; `on_bad_rows` decides.

    Returns:
        The good rows, and the rejected ones as file, row (in the file, from 0), id (as text), reason.

    Raises:
        InputError: there is a bad row and `on_bad_rows` is `fail`: the first, with its file and reason.
    """
    table = batch.table
    reasons: dict[int, str] = {}
    if config.feature_column in table.column_names:
        for row, reason in check.bad_rows(table.column(config.feature_column)):
            reasons[row] = f'column "{config.feature_column}" {reason}'
    has_id = config.id_column in table.column_names
    if has_id and (ids := table.column(config.id_column)).null_count:
        for row in pc.indices_nonzero(ids.is_null()).to_pylist():
            reasons.setdefault(row, f'column "{config.id_column}" is null')
    if not reasons:
        return table, REJECTED_SCHEMA.empty_table()
    rows = sorted(reasons)
    if config.on_bad_rows == "fail":
        raise InputError(
            f"{batch.file.uri} row {batch.first_row + rows[0]}: {reasons[rows[0]]}; "
            "set on_bad_rows to reject to put such rows aside"
        )
    ids = table.column(config.id_column).take(rows).cast(pa.string()) if has_id else [None] * len(rows)
    rejected = pa.table(
        [[batch.file.uri] * len(rows), [batch.first_row + row for row in rows], ids, [reasons[row] for row in rows]],
        schema=REJECTED_SCHEMA,
    )
    good_N = np.ones(table.num_rows, bool)
    good_N[rows] = False
    return table.filter(pa.array(good_N)), rejected


def _check_types(schema: pa.Schema, config: CorpusConfig) -> None:
    id_type(schema.field(config.id_column).type, f'{config.uri}: column "{config.id_column}"')
    feature_kind(schema.field(config.feature_column).type, f'{config.uri}: column "{config.feature_column}"')
    if config.label_column is not None:
        check_label_type(schema.field(config.label_column).type, f'{config.uri}: column "{config.label_column}"')


def _footer(info: FileInfo, config: CorpusConfig) -> tuple[CorpusFile, pa.Schema]:
    with _errors_named(info.uri), _open(info.uri, config) as parquet:
        metadata, schema = parquet.metadata, parquet.schema_arrow
    wanted = [config.id_column, config.feature_column, config.label_column, *config.payload_columns]
    fields = []
    for name in dict.fromkeys(name for name in wanted if name is not None):
        if name not in schema.names:
            raise InputError(f'{info.uri}: no column "{name}"; its columns are {", ".join(schema.names) or "none"}')
        if schema.names.count(name) > 1:
            raise InputError(f'{info.uri}: there are {schema.names.count(name)} columns "{name}"')
        field = schema.field(name)
        fields.append(pa.field(name, field.type))
    groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
    file = CorpusFile(
        info.uri,
        info.size,
        info.etag,
        metadata.num_rows,
        len(groups),
        tuple(group.num_rows for group in groups),
        tuple(_bytes_of(group, {field.name for field in fields}) for group in groups),
    )
    return file, pa.schema(fields)


def _bytes_of(group: pq.RowGroupMetaData, names: set[str]) -> int:
    columns = [group.column(number) for number in range(group.num_columns)]
    return sum(c.total_uncompressed_size for c in columns if c.path_in_schema.partition(".")[0] in names)


def _unify(schema: pa.Schema, other: pa.Schema, first_uri: str, uri: str) -> pa.Schema:
    fields = []
    for a, b in zip(schema, other, strict=True):
        # A file in which all values are null (no row is labeled yet) has lost the column's type.
        if a.type != b.type and not pa.types.is_null(a.type) and not pa.types.is_null(b.type):
            raise InputError(
                f'{uri}: column "{a.name}" has type {b.type}, but type {a.type} in {first_uri}; '
                "all files of a corpus need the same types"
            )
        fields.append(b if pa.types.is_null(a.type) else a)
    return pa.schema(fields)


def _cast(table: pa.Table, schema: pa.Schema, uri: str) -> pa.Table:
    if table.schema.equals(schema):
        return table
    try:
        return table.replace_schema_metadata(None).cast(schema)
    except (pa.ArrowException, ValueError) as error:
        raise InputError(f"{uri}: the file has changed while it was read; start again") from error


@contextlib.contextmanager
def _open(uri: str, config: CorpusConfig) -> Iterator[pq.ParquetFile]:
    storage = Storage(uri, config.storage_options)
    with (
        storage.arrow.open_input_file(storage.full_path()) as source,
        # On disk, pages in pieces: without a buffer, pyarrow reads a row group's whole columns at once.
        pq.ParquetFile(source, pre_buffer=not storage.is_local, buffer_size=_PAGE_BUFFER) as parquet,
    ):
        yield parquet


@contextlib.contextmanager
def _errors_named(uri: str) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        raise NotFoundError(f"{uri}: no such file") from error
    except PermissionError as error:
        raise InputError(f"{uri}: not allowed to read this file") from error
    except (pa.ArrowException, OSError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InputError(f"{uri}: cannot be read as Parquet ({reason})") from error
