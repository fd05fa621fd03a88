"""The code set: a directory of Parquet parts (id, code, payload) and the manifest that names them.

The manifest is written last and only if there is none, so that a directory with a manifest is complete. A
reader takes the files that the manifest names and never lists the directory: what a failed attempt left
behind is not part of the code set.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from distindex.errors import DamagedError, FormatError, NotFoundError, reason_of
from distindex.storage import Storage, sha256_of

FORMAT_VERSION = 1
KIND = "code-set"
MANIFEST = "manifest.json"
ID_COLUMN = "id"
CODE_COLUMN = "code"

IdType = Literal["int64", "string"]


@dataclasses.dataclass(frozen=True)
class HasherReference:
    """The hasher that made the codes: where it was, and its fingerprint."""

    uri: str
    fingerprint: str


@dataclasses.dataclass(frozen=True)
class PayloadColumn:
    """A column carried along, with its Arrow type as text."""

    name: str
    type: str


@dataclasses.dataclass(frozen=True)
class InputFile:
    """A corpus file that was encoded: size in bytes, version tag of the store, rows."""

    uri: str
    size: int
    etag: str
    rows: int


@dataclasses.dataclass(frozen=True)
class OutputFile:
    """A file of the code set, its path relative to the directory."""

    path: str
    rows: int
    bytes: int
    sha256: str


@dataclasses.dataclass(frozen=True)
class PartSource:
    """What a part was made of: consecutive rows of one input.

    Attributes:
        input: position of the corpus file in the manifest's `inputs`.
        first_row: number of the first row, counted from 0 in the file.
        rows: rows that went in, those of the part and the rejected ones.
        ids: sum over the ids of the part that does not depend on their order, 32 hexadecimal digits.
    """

    input: int
    first_row: int
    rows: int
    ids: str


@dataclasses.dataclass(frozen=True)
class CodeSetManifest:
    """What a code set consists of.

    Attributes:
        bits: length of the codes.
        hasher: the hasher that made them.
        id_type: type of the id column.
        payload: the columns besides id and code.
        rows: encoded rows, in all files together.
        rejected: rows put aside; rows + rejected is the number of input rows.
        inputs: the corpus files, in order.
        files: the parts, in the order of their inputs, those of one input one after another in the order of its
            rows; an input without a good row still has its part.
        rejected_files: the lists of rejected rows (columns file, row, id, reason).
        fingerprint: equal exactly for code sets of the same inputs, columns and hasher.
        created: UTC time in ISO 8601.
        command: what made it.
        sources: what each of `files` was made of; empty in code sets of before there was more than a part an input.
        ids: the sum over all ids, as in `sources`.
        earlier: the corpus files that had been encoded before, into other code sets, and were left out.
    """

    bits: int
    hasher: HasherReference
    id_type: IdType
    payload: tuple[PayloadColumn, ...]
    rows: int
    rejected: int
    inputs: tuple[InputFile, ...]
    files: tuple[OutputFile, ...]
    rejected_files: tuple[OutputFile, ...] = ()
    fingerprint: str = ""
    created: str = ""
    command: str = ""
    sources: tuple[PartSource, ...] = ()
    ids: str = ""
    earlier: tuple[InputFile, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return {"format_version": FORMAT_VERSION, "kind": KIND, **dataclasses.asdict(self)}

    @classmethod
    def from_json(cls, value: Any, where: str) -> CodeSetManifest:
        """Read a manifest.

        Args:
            value: the parsed JSON.
            where: what errors name.

        Raises:
            FormatError: not a code set, or of a format version that this release does not know.
            DamagedError: a field is missing or has the wrong type.
        """
        if not isinstance(value, Mapping) or value.get("kind") != KIND:
            raise FormatError(f"{where}: not the manifest of a code set; `distindex encode` writes one")
        version = value.get("format_version")
        if version != FORMAT_VERSION:
            raise FormatError(f"{where}: format version {version} of a code set; this release knows {FORMAT_VERSION}")
        try:
            manifest = cls(
                bits=int(value["bits"]),
                hasher=HasherReference(**value["hasher"]),
                id_type=value["id_type"],
                payload=tuple(PayloadColumn(**column) for column in value["payload"]),
                rows=int(value["rows"]),
                rejected=int(value["rejected"]),
                inputs=tuple(InputFile(**file) for file in value["inputs"]),
                files=tuple(OutputFile(**file) for file in value["files"]),
                rejected_files=tuple(OutputFile(**file) for file in value.get("rejected_files", ())),
                fingerprint=str(value.get("fingerprint", "")),
                created=str(value.get("created", "")),
                command=str(value.get("command", "")),
                sources=tuple(PartSource(**source) for source in value.get("sources", ())),
                ids=str(value.get("ids", "")),
                earlier=tuple(InputFile(**file) for file in value.get("earlier", ())),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise DamagedError(f"{where}: the manifest of the code set is damaged ({error!r})") from error
        if manifest.id_type not in ("int64", "string"):
            raise DamagedError(f"{where}: id_type {manifest.id_type!r} is neither int64 nor string")
        if manifest.rows != sum(file.rows for file in manifest.files):
            raise DamagedError(f"{where}: the rows of its files do not add up to {manifest.rows} rows")
        return manifest


class CodeSet:
    """A committed code set.

    Attributes:
        storage: its directory.
        manifest: what it consists of.
    """

    def __init__(self, storage: Storage, manifest: CodeSetManifest) -> None:
        self.storage = storage
        self.manifest = manifest

    @classmethod
    def open(cls, uri: str, options: Mapping[str, Any] | None = None) -> CodeSet:
        """Open the code set in a directory.

        Raises:
            NotFoundError: there is no manifest: no code set, or one whose encoding has not finished.
            FormatError: a manifest of another kind or an unknown format version.
            DamagedError: the manifest is damaged.
        """
        storage = Storage(uri, options)
        try:
            value = storage.read_json(MANIFEST)
        except NotFoundError as error:
            raise NotFoundError(
                f"{uri}: no code set here ({MANIFEST} is missing); `distindex encode` writes it when it is done"
            ) from error
        return cls(storage, CodeSetManifest.from_json(value, storage.full_uri(MANIFEST)))

    def read(self, file: OutputFile, columns: Sequence[str] | None = None, verify: bool = False) -> pa.Table:
        """Read columns (default: all) of one part, in its row order.

        Args:
            file: one of `manifest.files` or `manifest.rejected_files`.
            columns: names; `id` is int64 or string, `code` fixed_size_binary[C].
            verify: check the sha256 of the whole file first, which reads all its bytes.

        Raises:
            NotFoundError: the file is gone.
            DamagedError: its size, its sha256 (with `verify`) or its rows differ from the manifest, or it
                cannot be read.
        """
        where = self.storage.full_uri(file.path)
        try:
            if verify:
                data = self.storage.read_bytes(file.path)
                if hashlib.sha256(data).hexdigest() != file.sha256:
                    raise DamagedError(f"{where}: does not match the sha256 in {MANIFEST}; encode again")
                source: Any = pa.BufferReader(data)
            else:
                size = self.storage.info(file.path).size
                if size != file.bytes:
                    raise DamagedError(f"{where}: {size} bytes, but {MANIFEST} says {file.bytes}; encode again")
                source = self.storage.arrow.open_input_file(self.storage.full_path(file.path))
            with source, pq.ParquetFile(source) as parquet:
                table = parquet.read(columns=None if columns is None else list(columns))
        except (pa.ArrowException, OSError) as error:
            raise DamagedError(f"{where}: cannot be read as Parquet ({reason_of(error)})") from error
        if table.num_rows != file.rows:
            raise DamagedError(f"{where}: {table.num_rows} rows, but {MANIFEST} says {file.rows}")
        return table

    def rounds(self, file: OutputFile, columns: Sequence[str], rows: int) -> Iterator[pa.Table]:
        """Columns of one part, some rows at a time, after the sha256 of the whole file was checked.

        Args:
            file: one of `manifest.files`.
            columns: names, in the order that is wanted.
            rows: rows at a time, at most; memory is that of these.

        Raises:
            NotFoundError: the file is gone.
            DamagedError: it differs from the manifest, or cannot be read.
        """
        where = self.storage.full_uri(file.path)
        with self.storage.open_input(file.path) as stream:
            if sha256_of(stream) != file.sha256:
                raise DamagedError(f"{where}: does not match the sha256 in {MANIFEST}; encode again")
        expected = {ID_COLUMN: self.manifest.id_type, CODE_COLUMN: f"fixed_size_binary[{self.manifest.bits // 8}]"}
        read = 0
        try:
            source = self.storage.arrow.open_input_file(self.storage.full_path(file.path))
            with source, pq.ParquetFile(source) as parquet:
                schema = parquet.schema_arrow
                for name in columns:
                    if name not in schema.names:
                        raise DamagedError(f"{where}: has no column {name!r}, which {MANIFEST} names; encode again")
                for batch in parquet.iter_batches(rows, columns=list(columns)):
                    table = pa.Table.from_batches([batch]).select(list(columns))
                    for name, kind in expected.items():
                        if name in columns and (str(table[name].type) != kind or table[name].null_count):
                            raise DamagedError(f"{where}: column {name!r} is not {kind} without nulls; encode again")
                    read += table.num_rows
                    yield table
        except (pa.ArrowException, OSError) as error:
            raise DamagedError(f"{where}: cannot be read as Parquet ({reason_of(error)})") from error
        if read != file.rows:
            raise DamagedError(f"{where}: {read} rows, but {MANIFEST} says {file.rows}")

    def payload_fields(self) -> list[pa.Field]:
        """The payload columns with their types, as the first part has them; none where there is no part.

        Raises:
            NotFoundError: the part is gone.
            DamagedError: it cannot be read, or has no such column.
        """
        if not self.manifest.files:
            return []
        file = self.manifest.files[0]
        where = self.storage.full_uri(file.path)
        try:
            source = self.storage.arrow.open_input_file(self.storage.full_path(file.path))
            with source, pq.ParquetFile(source) as parquet:
                schema = parquet.schema_arrow
        except FileNotFoundError as error:
            raise NotFoundError(f"{where}: no such file") from error
        except (pa.ArrowException, OSError) as error:
            raise DamagedError(f"{where}: cannot be read as Parquet ({reason_of(error)})") from error
        fields = []
        for column in self.manifest.payload:
            if column.name not in schema.names:
                raise DamagedError(f"{where}: has no column {column.name!r}, which {MANIFEST} names; encode again")
            kind = schema.field(column.name).type
            fields.append(pa.field(column.name, kind.value_type if pa.types.is_dictionary(kind) else kind))
        return fields


def commit(storage: Storage, manifest: CodeSetManifest) -> None:
    """Publish a code set: write its manifest, which must not exist yet.

    Raises:
        ConflictError: another writer has committed to this directory.
    """
    storage.create_json(MANIFEST, manifest.to_json())
