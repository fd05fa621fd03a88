"""One corpus file becomes one part of the code set: what an encoder actor does, without Ray.

The part's name is made from the file's position and fingerprint, and its bytes from the file and the hasher
alone, so that a second attempt at it replaces the same bytes by the same bytes. A record beside it, written
after it, tells a later run that this file is done.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import time
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from distindex.codeset import CODE_COLUMN, ID_COLUMN, OutputFile
from distindex.config import CorpusConfig
from distindex.corpus.dataset import Corpus, CorpusFile, split_bad_rows
from distindex.corpus.ids import as_ids
from distindex.errors import DamagedError, NotFoundError
from distindex.hashing.hasher import Hasher
from distindex.settings import fingerprint
from distindex.storage import Storage

PROGRESS = "_progress"
REJECTED = "rejected"

# Large enough for readers to stream well, small enough for a buffer.
_ROW_GROUP_ROWS = 1 << 18
_ROW_GROUP_BYTES = 64 << 20
_SECONDS_BETWEEN_STOP_CHECKS = 5.0


class StoppedError(Exception):
    """Another file of the same run has failed, so that this one need not be finished."""


@dataclasses.dataclass(frozen=True)
class PartResult:
    """What one corpus file gave.

    Attributes:
        rows: encoded rows.
        rejected: rows put aside.
        part: the part.
        rejected_part: the list of rejected rows, if there are any.
        reused: whether an earlier, interrupted run had made it.
    """

    rows: int
    rejected: int
    part: OutputFile
    rejected_part: OutputFile | None
    reused: bool = False

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> PartResult:
        rejected_part = value["rejected_part"] and OutputFile(**value["rejected_part"])
        return cls(**{**value, "part": OutputFile(**value["part"]), "rejected_part": rejected_part})


@dataclasses.dataclass(frozen=True)
class PartNames:
    """The names of what one corpus file becomes, relative to the output directory."""

    part: str
    rejected: str
    record: str

    @classmethod
    def of(cls, position: int, file: CorpusFile, corpus: Corpus, hasher_fingerprint: str) -> PartNames:
        identity = fingerprint(
            [file.uri, file.size, file.etag, file.rows],
            corpus.columns,
            corpus.config.on_bad_rows,
            hasher_fingerprint,
        )
        stem = f"part-{position:05d}-{identity}"
        return cls(f"{stem}.parquet", f"{REJECTED}/{stem}.parquet", f"{PROGRESS}/{stem}.json")


def output_schema(corpus: Corpus, bits: int) -> pa.Schema:
    """The columns of a part: id, code, and the payload columns with their own names and types."""
    payload = [corpus.schema.field(name) for name in corpus.config.payload_columns]
    fields = [pa.field(ID_COLUMN, corpus.id_type), pa.field(CODE_COLUMN, pa.binary(bits // 8))]
    return pa.schema([*fields, *payload])


def encode_file(
    corpus: Corpus,
    file: CorpusFile,
    hasher: Hasher,
    storage: Storage,
    names: PartNames,
    batch_rows: int,
    stopped: Callable[[], bool],
) -> PartResult:
    """Encode one file of a corpus and write its part, its rejected rows and its record.

    Args:
        corpus: says which columns matter; needs to know no other file.
        file: the file.
        hasher: the hasher.
        storage: the output directory.
        names: what to write.
        batch_rows: rows encoded at once.
        stopped: whether the run has failed elsewhere; asked every few seconds.

    Raises:
        InputError: a bad row with `on_bad_rows: fail`, or a damaged file.
        DamagedError: the file has another number of rows than when the corpus was opened.
        StoppedError: `stopped` said so; nothing was written.
    """
    done = _done_before(storage, names)
    if done is not None:
        return done
    schema = output_schema(corpus, hasher.bits)
    rejected: list[pa.Table] = []

    def good_rows() -> Iterator[pa.Table]:
        checked = time.monotonic()
        for good, bad in _encoded(corpus, file, hasher, schema, batch_rows):
            if bad.num_rows:
                rejected.append(bad)
            if good.num_rows:
                yield good
            if time.monotonic() - checked > _SECONDS_BETWEEN_STOP_CHECKS:
                checked = time.monotonic()
                if stopped():
                    raise StoppedError

    part = _write_parquet(storage, names.part, schema, good_rows())
    rejected_rows = sum(table.num_rows for table in rejected)
    if part.rows + rejected_rows != file.rows:
        storage.remove(names.part)
        raise DamagedError(
            f"{file.uri}: {part.rows + rejected_rows} rows were read, but it had {file.rows} when the job began; "
            "start again when nobody writes to it"
        )
    rejected_part = None
    if rejected:
        rejected_part = _write_parquet(storage, names.rejected, rejected[0].schema, iter(rejected))
    result = PartResult(part.rows, rejected_rows, part, rejected_part)
    storage.write_json(names.record, result.to_json())
    return result


def _encoded(
    corpus: Corpus, file: CorpusFile, hasher: Hasher, schema: pa.Schema, batch_rows: int
) -> Iterator[tuple[pa.Table, pa.Table]]:
    config: CorpusConfig = corpus.config
    columns = list(dict.fromkeys([config.id_column, config.feature_column, *config.payload_columns]))
    for batch in corpus.batches(columns, batch_rows, [file]):
        good, bad = split_bad_rows(batch, hasher.features, config)
        ids = as_ids(good.column(config.id_column), f'{file.uri}: column "{config.id_column}"')
        code_NC = hasher.encode(good.column(config.feature_column)) if good.num_rows else b""
        code = pa.Array.from_buffers(schema.field(CODE_COLUMN).type, good.num_rows, [None, pa.py_buffer(code_NC)])
        payload = [good.column(name) for name in config.payload_columns]
        yield pa.table([ids, code, *payload], schema=schema), bad


def _done_before(storage: Storage, names: PartNames) -> PartResult | None:
    try:
        result = PartResult.from_json(storage.read_json(names.record))
        files = [result.part, *([result.rejected_part] if result.rejected_part else [])]
        whole = all(storage.info(file.path).size == file.bytes for file in files)
    except NotFoundError:
        return None
    return dataclasses.replace(result, reused=True) if whole else None


class _HashedOutput(io.RawIOBase):
    """Counts and hashes what is written to a stream."""

    def __init__(self, stream: BinaryIO) -> None:
        self.stream = stream
        self.sha256 = hashlib.sha256()
        self.size = 0

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        self.stream.write(view)
        self.sha256.update(view)
        self.size += len(view)
        return len(view)

    def tell(self) -> int:
        return self.size


def _write_parquet(storage: Storage, path: str, schema: pa.Schema, tables: Iterator[pa.Table]) -> OutputFile:
    rows = 0
    with storage.open_output(path) as stream:
        output = _HashedOutput(stream)
        sink = pa.PythonFile(output, mode="w")
        # Ids and codes hardly ever repeat: a dictionary would only cost time.
        repeating: Any = [name for name in schema.names if name not in (ID_COLUMN, CODE_COLUMN)] or False
        with pq.ParquetWriter(sink, schema, use_dictionary=repeating) as writer:
            for group in _row_groups(tables):
                writer.write_table(group, row_group_size=group.num_rows)
                rows += group.num_rows
    return OutputFile(path, rows, output.size, output.sha256.hexdigest())


def _row_groups(tables: Iterator[pa.Table]) -> Iterator[pa.Table]:
    waiting: list[pa.Table] = []
    rows = size = 0
    for table in tables:
        waiting.append(table)
        rows += table.num_rows
        size += table.nbytes
        if rows >= _ROW_GROUP_ROWS or size >= _ROW_GROUP_BYTES:
            yield pa.concat_tables(waiting)
            waiting, rows, size = [], 0, 0
    if waiting:
        yield pa.concat_tables(waiting)
