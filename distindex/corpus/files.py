"""What the readers of all formats share: the file that is a unit of a corpus, and how its columns are checked."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence

import pyarrow as pa

from distindex.config import CorpusConfig
from distindex.errors import InputError, NotFoundError, reason_of
from distindex.listing import FileInfo


@dataclasses.dataclass(frozen=True)
class CorpusFile:
    """One file of a corpus, or one directory of images: a unit that is read from its first row to its last.

    Attributes:
        uri: where it is.
        size: bytes.
        etag: the store's version tag; of a directory of images a fingerprint of all their tags.
        rows: rows in it.
        row_groups: pieces that can be read alone; one where the format has none.
        group_rows: rows of each row group.
        group_bytes: bytes of the corpus's columns in each row group, uncompressed.
        format: what reads it, one of `formats.FORMATS`.
    """

    uri: str
    size: int
    etag: str
    rows: int
    row_groups: int
    group_rows: tuple[int, ...] = ()
    group_bytes: tuple[int, ...] = ()
    format: str = "parquet"


@dataclasses.dataclass(frozen=True)
class RowGroups:
    """Consecutive row groups of one file: the first one's number, how many, and their rows, counted from 0."""

    first: int
    count: int
    first_row: int
    rows: int


def cut_row_groups(file: CorpusFile, size: float) -> list[RowGroups]:
    """Cut a file between its row groups into pieces of about `size` bytes of the corpus's columns, uncompressed.

    A piece ends with the row group with which it reaches that size. A row group is never cut: it would have to be
    read twice. A format without row groups is one piece.
    """
    found: list[RowGroups] = []
    first = first_row = rows = held = 0
    for number, (group_rows, group_bytes) in enumerate(zip(file.group_rows, file.group_bytes, strict=True)):
        rows, held = rows + group_rows, held + group_bytes
        if held >= size:
            found.append(RowGroups(first, number + 1 - first, first_row, rows))
            first, first_row, rows, held = number + 1, first_row + rows, 0, 0
    if rows or not found:
        found.append(RowGroups(first, file.row_groups - first, first_row, file.rows - first_row))
    return found


Described = tuple[CorpusFile, pa.Schema]


@dataclasses.dataclass(frozen=True)
class Format:
    """How corpora of one format are read.

    Attributes:
        name: as in `corpus.format`.
        title: as errors call it.
        suffixes: of its files.
        describe: the files that were found, each with the types of the columns that the config names.
        read: columns of one file, `batch_rows` at once at most, or of some of its row groups.
    """

    name: str
    title: str
    suffixes: tuple[str, ...]
    describe: Callable[[CorpusConfig, Sequence[FileInfo]], list[Described]]
    read: Callable[[CorpusConfig, CorpusFile, pa.Schema, int, RowGroups | None], Iterator[pa.Table]]


def named_columns(config: CorpusConfig) -> list[str]:
    """The columns that the config names, each once."""
    wanted = [config.id_column, config.feature_column, config.label_column, *config.payload_columns]
    return list(dict.fromkeys(name for name in wanted if name is not None))


def select(schema: pa.Schema, config: CorpusConfig, uri: str) -> pa.Schema:
    """The columns that the config names, of those that a file has.

    Raises:
        InputError: one is missing, or there twice.
    """
    fields = []
    for name in named_columns(config):
        if name not in schema.names:
            raise InputError(f'{uri}: no column "{name}"; its columns are {", ".join(schema.names) or "none"}')
        if schema.names.count(name) > 1:
            raise InputError(f'{uri}: there are {schema.names.count(name)} columns "{name}"')
        fields.append(pa.field(name, schema.field(name).type))
    return pa.schema(fields)


@contextlib.contextmanager
def errors_named(uri: str, title: str) -> Iterator[None]:
    """Say which file could not be read, and as what.

    Raises:
        NotFoundError: there is no such file.
        InputError: it may not be read, or it is damaged.
    """
    try:
        yield
    except FileNotFoundError as error:
        raise NotFoundError(f"{uri}: no such file") from error
    except PermissionError as error:
        raise InputError(f"{uri}: not allowed to read this file") from error
    except (pa.ArrowException, OSError, EOFError) as error:
        reason = reason_of(error)
        raise InputError(f"{uri}: cannot be read as {title} ({reason})") from error
