"""JSON Lines and CSV, plain or gzipped: read once to count their rows and find their types, then streamed.

Types come from all rows, not from the first ones: a label that is null for a million rows may be a text after them.
"""

# pyright: reportAttributeAccessIssue=false
# (pyarrow.compute makes its functions when it is imported)

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import BinaryIO

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.json

from distindex.config import CorpusConfig
from distindex.corpus.files import CorpusFile, Described, Format, RowGroups, errors_named, select
from distindex.errors import InputError
from distindex.listing import FileInfo
from distindex.storage import Storage

# What is parsed at once; a longer row makes it as long as it needs.
BLOCK_BYTES = 8 << 20
_THREADS = 4

Scan = Callable[[CorpusConfig, str], tuple[int, pa.Schema]]


def _describe(config: CorpusConfig, found: Sequence[FileInfo], kind: Format, scan: Scan) -> list[Described]:
    def describe(info: FileInfo) -> Described:
        with errors_named(info.uri, kind.title):
            rows, schema = scan(config, info.uri)
        return CorpusFile(info.uri, info.size, info.etag, rows, 1, (rows,), (info.size,), kind.name), schema

    with ThreadPoolExecutor(min(_THREADS, len(found))) as pool:
        return list(pool.map(describe, found))


@contextlib.contextmanager
def _open(uri: str, config: CorpusConfig) -> Iterator[BinaryIO]:
    with Storage(uri, config.storage_options).open_input("") as stream:
        if uri.endswith(".gz"):
            with pa.CompressedInputStream(pa.PythonFile(stream, mode="r"), "gzip") as plain:
                yield plain  # type: ignore[misc]
        else:
            yield stream


# JSON Lines


def _blocks(stream: BinaryIO) -> Iterator[bytes]:
    """Whole lines, of about `BLOCK_BYTES` together."""
    return (block for block in _whole_lines(stream) if block.strip())


def _whole_lines(stream: BinaryIO) -> Iterator[bytes]:
    rest = b""
    while block := stream.read(BLOCK_BYTES):
        end = block.rfind(b"\n") + 1
        if end:
            yield rest + block[:end]
            rest = block[end:]
        else:
            rest += block
    yield rest


def _parse(block: bytes, schema: pa.Schema | None = None) -> pa.Table:
    read = pa.json.ReadOptions(use_threads=False, block_size=len(block) + 1)
    known = pa.json.ParseOptions(explicit_schema=schema, unexpected_field_behavior="ignore" if schema else "infer")
    return pa.json.read_json(io.BytesIO(block), read, known)


def _scan_json(config: CorpusConfig, uri: str) -> tuple[int, pa.Schema]:
    rows, schema = 0, pa.schema([])
    with _open(uri, config) as stream:
        for block in _blocks(stream):
            try:
                table = _parse(block)
            except pa.ArrowInvalid as error:
                raise pa.ArrowInvalid(f"{error}, counted from row {rows}") from error
            found = pa.schema([pa.field(field.name, _as_written(field.type)) for field in table.schema])
            schema = promoted(schema, found, f"{uri}: rows before and after {rows}")
            rows += table.num_rows
    return rows, select(schema, config, uri)


def _as_written(kind: pa.DataType) -> pa.DataType:
    """Texts that look like dates stay texts."""
    if pa.types.is_timestamp(kind):
        return pa.string()
    return pa.list_(_as_written(kind.value_type)) if pa.types.is_list(kind) else kind


def promoted(a: pa.Schema, b: pa.Schema, where: str) -> pa.Schema:
    """The columns of both; an integer here and a fraction there make a fraction, null takes any other type.

    Raises:
        InputError: a column has types that do not go together.
    """
    try:
        return pa.unify_schemas([a, b], promote_options="permissive")
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        reason = (str(error).strip().splitlines() or [""])[0]
        raise InputError(f"{where}: the types of a column do not go together ({reason})") from error


def _read_json(
    config: CorpusConfig, file: CorpusFile, schema: pa.Schema, batch_rows: int, groups: RowGroups | None
) -> Iterator[pa.Table]:
    with errors_named(file.uri, JSONL.title), _open(file.uri, config) as stream:
        for block in _blocks(stream):
            yield from _cut(_parse(block, schema).select(schema.names), batch_rows)


# CSV


@contextlib.contextmanager
def _open_csv(uri: str, config: CorpusConfig, columns: pa.Schema | None) -> Iterator[pa.csv.CSVStreamingReader]:
    types = {field.name: field.type for field in columns} if columns is not None else {}
    with (
        _open(uri, config) as stream,
        pa.csv.open_csv(
            stream,
            read_options=pa.csv.ReadOptions(use_threads=False, block_size=BLOCK_BYTES),
            # Texts may hold line breaks.
            parse_options=pa.csv.ParseOptions(newlines_in_values=True),
            convert_options=pa.csv.ConvertOptions(
                column_types=types,
                include_columns=list(types) or None,
                # An empty cell is null; "" is an empty text, and NA is a text.
                null_values=[""],
                strings_can_be_null=True,
                quoted_strings_can_be_null=False,
            ),
        ) as reader,
    ):
        yield reader


def _scan_csv(config: CorpusConfig, uri: str) -> tuple[int, pa.Schema]:
    with _open_csv(uri, config, None) as reader:
        texts = select(pa.schema([(name, pa.string()) for name in reader.schema.names]), config, uri)
    rows = 0
    possible = {name: [pa.null(), pa.int64(), pa.float64(), pa.string()] for name in texts.names}
    possible[config.id_column].remove(pa.float64())
    with _open_csv(uri, config, texts) as reader:
        for batch in reader:
            rows += batch.num_rows
            for name, types in possible.items():
                while not _fits(batch.column(name), types[0]):
                    types.pop(0)
    return rows, pa.schema([(name, types[0]) for name, types in possible.items()])


def _fits(texts: pa.Array, kind: pa.DataType) -> bool:
    if pa.types.is_null(kind):
        return texts.null_count == len(texts)
    if pa.types.is_string(kind):
        return True
    # 007 is no number: what is read comes back as it was.
    if pc.any(pc.match_substring_regex(texts, r"^(\+|-?0[0-9])")).as_py():
        return False
    try:
        texts.cast(kind)
    except pa.ArrowInvalid:
        return False
    return True


def _read_csv(
    config: CorpusConfig, file: CorpusFile, schema: pa.Schema, batch_rows: int, groups: RowGroups | None
) -> Iterator[pa.Table]:
    with errors_named(file.uri, CSV.title), _open_csv(file.uri, config, schema) as reader:
        for batch in reader:
            yield from _cut(pa.Table.from_batches([batch]), batch_rows)


def _cut(table: pa.Table, rows: int) -> Iterator[pa.Table]:
    for first in range(0, table.num_rows, rows):
        yield table.slice(first, rows)


JSONL = Format(
    "jsonl",
    "JSON Lines",
    (".jsonl", ".ndjson", ".jsonl.gz", ".ndjson.gz"),
    lambda config, found: _describe(config, found, JSONL, _scan_json),
    _read_json,
)
CSV = Format(
    "csv", "CSV", (".csv", ".csv.gz"), lambda config, found: _describe(config, found, CSV, _scan_csv), _read_csv
)
