"""One task becomes one part of the code set: what an encoder actor does, without Ray.

The part's name is made from the task's position and fingerprint, and its bytes from the file and the hasher
alone, so that a second attempt at it replaces the same bytes by the same bytes. A record beside it, written
after it, tells a later run that this task is done.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from distindex.codes import CodeArray
from distindex.codeset import CODE_COLUMN, ID_COLUMN, OutputFile
from distindex.config import CorpusConfig
from distindex.corpus.dataset import Corpus, split_bad_rows
from distindex.corpus.id_sum import IdSum
from distindex.corpus.ids import as_ids
from distindex.encoding.tasks import PartNames, Task
from distindex.errors import DamagedError, NotFoundError, TooManyRejectedError
from distindex.hashing.hasher import Hasher
from distindex.storage import Storage

# Large enough for readers to stream well, small enough for a buffer.
_ROW_GROUP_ROWS = 1 << 18
_ROW_GROUP_BYTES = 64 << 20
# What is kept of a batch lies between the network's large arrays, which then find no gap again that they fit into: 28
# MB for 4,096 rows and two layers of 500 units, until it is copied together with that of the other batches.
_JOINED_ROWS = 1 << 16
# Products of matrices of few rows are added up in another order, and the bits of numbers near 0 would depend on how
# many rows happen to be in a batch. Fewer rows are repeated.
_FEWEST_ROWS = 64
_SECONDS_BETWEEN_STOP_CHECKS = 5.0
# Broken images have reasons without number.
_REASONS = 20
_OTHER_REASONS = "other reasons"


class StoppedError(Exception):
    """Another task of the same run has failed, or another run has committed, so that this one need not end."""


@dataclasses.dataclass(frozen=True)
class PartResult:
    """What one task gave.

    Attributes:
        rows: encoded rows.
        rejected: rows put aside.
        part: the part.
        rejected_part: the list of rejected rows, if there are any.
        input_ids: sum over the ids that were read, null ones aside.
        reasons: rejected rows by reason.
        examples: the first rejected rows, each with its place and reason.
        reused: whether an earlier, interrupted run had made it.
    """

    rows: int
    rejected: int
    part: OutputFile
    rejected_part: OutputFile | None
    input_ids: IdSum
    reasons: dict[str, int] = dataclasses.field(default_factory=dict)
    examples: list[str] = dataclasses.field(default_factory=list)
    reused: bool = False

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> PartResult:
        return cls(
            **{
                **value,
                "part": OutputFile(**value["part"]),
                "rejected_part": value["rejected_part"] and OutputFile(**value["rejected_part"]),
                "input_ids": IdSum(**value["input_ids"]),
            }
        )


class _Rejected:
    """The rejected rows of one task, as far as it has come."""

    def __init__(self, limit: int | None) -> None:
        self.limit = limit
        self.tables: list[pa.Table] = []
        self.reasons: Counter[str] = Counter()
        self.rows = 0

    def add(self, table: pa.Table) -> None:
        self.tables.append(table)
        self.rows += table.num_rows
        for reason in table.column("reason").to_pylist():
            self.reasons[reason if reason in self.reasons or len(self.reasons) < _REASONS else _OTHER_REASONS] += 1
        if self.limit is not None and self.rows > self.limit:
            raise too_many_rejected(self.rows, self.limit, self.examples())

    def examples(self) -> list[str]:
        found = pa.concat_tables(self.tables).slice(0, 3).to_pylist() if self.tables else []
        return [f"{row['file']} row {row['row']}: {row['reason']}" for row in found]


def too_many_rejected(rows: int, limit: int, examples: list[str]) -> TooManyRejectedError:
    return TooManyRejectedError(
        f"{rows:,} rows are rejected so far, and max_rejected allows {limit:,}: {'; '.join(examples)}; "
        "mend the corpus, or raise max_rejected and run it again to go on"
    )


def output_schema(corpus: Corpus, bits: int) -> pa.Schema:
    """The columns of a part: id, code, and the payload columns with their own names and types."""
    payload = [corpus.schema.field(name) for name in corpus.config.payload_columns]
    fields = [pa.field(ID_COLUMN, corpus.id_type), pa.field(CODE_COLUMN, pa.binary(bits // 8))]
    return pa.schema([*fields, *payload])


def encode_task(
    corpus: Corpus,
    task: Task,
    hasher: Hasher,
    storage: Storage,
    batch_rows: int,
    stopped: Callable[[], bool],
    max_rejected: int | None = None,
) -> PartResult:
    """Encode the rows of one task and write its part, its rejected rows and its record.

    Args:
        corpus: says which columns matter; needs to know no other file.
        task: the rows.
        hasher: the hasher.
        storage: the output directory.
        batch_rows: rows encoded at once.
        stopped: whether the run need not go on; asked every few seconds.
        max_rejected: rows that may be rejected.

    Raises:
        InputError: a bad row with `on_bad_rows: fail`, or a damaged file.
        TooManyRejectedError: more rows than `max_rejected` are bad.
        DamagedError: the file has another number of rows than when the corpus was opened.
        StoppedError: `stopped` said so; nothing was written.
    """
    names = task.names(corpus, hasher.fingerprint)
    done = done_before(storage, names)
    if done is not None:
        return done
    schema = output_schema(corpus, hasher.bits)
    rejected = _Rejected(max_rejected)
    input_ids = IdSum()

    def good_rows() -> Iterator[pa.Table]:
        nonlocal input_ids
        checked = time.monotonic()
        for good, bad, ids in encoded_batches(corpus, task, hasher, schema, batch_rows):
            input_ids += ids
            if bad.num_rows:
                rejected.add(bad)
            if good.num_rows:
                yield good
            if time.monotonic() - checked > _SECONDS_BETWEEN_STOP_CHECKS:
                checked = time.monotonic()
                if stopped():
                    raise StoppedError

    part = _store(storage, names.part, schema, good_rows())
    if part.rows + rejected.rows != task.rows:
        storage.remove(names.part)
        raise DamagedError(
            f"{task.file.uri}: {part.rows + rejected.rows} rows were read, but it had {task.rows} when the job "
            "began; start again when nobody writes to it"
        )
    rejected_part = None
    if rejected.tables:
        rejected_part = _store(storage, names.rejected, rejected.tables[0].schema, iter(rejected.tables))
    result = PartResult(
        part.rows, rejected.rows, part, rejected_part, input_ids, dict(rejected.reasons), rejected.examples()
    )
    storage.write_json(names.record, result.to_json())
    return result


def encoded_batches(
    corpus: Corpus, task: Task, hasher: Hasher, schema: pa.Schema, batch_rows: int
) -> Iterator[tuple[pa.Table, pa.Table, IdSum]]:
    """Batch by batch: the good rows encoded, the rejected ones, and the sum over the ids of both."""
    config: CorpusConfig = corpus.config
    columns = list(dict.fromkeys([config.id_column, config.feature_column, *config.payload_columns]))
    where = f'{task.file.uri}: column "{config.id_column}"'
    for batch in corpus.batches(columns, batch_rows, [task.file], None if task.whole else task.groups):
        read_ids = IdSum.of(as_ids(batch.table.column(config.id_column), where))
        good, bad = split_bad_rows(batch, hasher.features, config)
        ids = as_ids(good.column(config.id_column), where)
        code_NC = _encode(hasher, good.column(config.feature_column)) if good.num_rows else b""
        code = pa.Array.from_buffers(schema.field(CODE_COLUMN).type, good.num_rows, [None, pa.py_buffer(code_NC)])
        payload = [good.column(name) for name in config.payload_columns]
        yield pa.table([ids, code, *payload], schema=schema), bad, read_ids


def _encode(hasher: Hasher, column: pa.ChunkedArray) -> CodeArray:
    rows = len(column)
    if rows >= _FEWEST_ROWS:
        return hasher.encode(column, checked=True)
    return hasher.encode(column.take(pa.array(np.arange(_FEWEST_ROWS) % rows)), checked=True)[:rows]


def done_before(storage: Storage, names: PartNames) -> PartResult | None:
    """What an earlier run has made of a task; None where it must be done, or done again."""
    try:
        result = PartResult.from_json(storage.read_json(names.record))
        files = [result.part, *([result.rejected_part] if result.rejected_part else [])]
        whole = all(storage.info(file.path).size == file.bytes for file in files)
    except (NotFoundError, KeyError, TypeError):
        # No record, or one of a release that recorded less.
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


def _store(storage: Storage, path: str, schema: pa.Schema, tables: Iterator[pa.Table]) -> OutputFile:
    with storage.open_output(path) as stream:
        output = _HashedOutput(stream)
        rows = write_parquet(pa.PythonFile(output, mode="w"), schema, tables)
    return OutputFile(path, rows, output.size, output.sha256.hexdigest())


def write_parquet(sink: Any, schema: pa.Schema, tables: Iterator[pa.Table]) -> int:
    """Write a part to a sink of pyarrow's; returns its rows."""
    rows = 0
    # Ids and codes hardly ever repeat: a dictionary would only cost time.
    repeating: Any = [name for name in schema.names if name not in (ID_COLUMN, CODE_COLUMN)] or False
    with pq.ParquetWriter(sink, schema, use_dictionary=repeating) as writer:
        for group in _row_groups(tables):
            writer.write_table(group, row_group_size=group.num_rows)
            rows += group.num_rows
    return rows


def _row_groups(tables: Iterator[pa.Table]) -> Iterator[pa.Table]:
    return _joined(_joined(tables, _JOINED_ROWS), _ROW_GROUP_ROWS)


def _joined(tables: Iterator[pa.Table], rows: int) -> Iterator[pa.Table]:
    """Some tables as one, in new memory: at least so many rows, or `_ROW_GROUP_BYTES`, but for the last."""
    waiting: list[pa.Table] = []
    for table in tables:
        waiting.append(table)
        held = sum(each.num_rows for each in waiting), sum(each.nbytes for each in waiting)
        if held[0] >= rows or held[1] >= _ROW_GROUP_BYTES:
            yield pa.concat_tables(waiting).combine_chunks()
            waiting = []
    if waiting:
        yield pa.concat_tables(waiting).combine_chunks()
