"""Lance tables: each fragment of the newest version is a unit, read by rows. Deleted rows are not there."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa

from distindex.config import CorpusConfig
from distindex.corpus.files import CorpusFile, Described, Format, RowGroups, errors_named, select
from distindex.corpus.tables import package
from distindex.errors import DamagedError, InputError
from distindex.listing import FileInfo
from distindex.settings import fingerprint
from distindex.storage import Storage

# A fragment has a million rows by default, and no smaller parts that can be told apart.
_GROUP_ROWS = 1 << 16
# The names of fsspec's s3fs, and those of Lance.
_OPTIONS = {
    "key": "aws_access_key_id",
    "secret": "aws_secret_access_key",
    "token": "aws_session_token",
    "endpoint_url": "aws_endpoint",
}


def _open(config: CorpusConfig) -> Any:
    lance = package("lance", "lance", config.uri)
    options = {_OPTIONS[name]: str(value) for name, value in config.storage_options.items() if name in _OPTIONS}
    if options.get("aws_endpoint", "").startswith("http://"):
        options["allow_http"] = "true"
    try:
        return lance.dataset(Storage(config.uri).location, storage_options=options or None)
    except ValueError as error:
        # What the package raises where there is no table, and where it cannot read one.
        raise InputError(f"{config.uri}: cannot be read as a Lance table ({str(error).splitlines()[0]})") from error


def _describe(config: CorpusConfig, _: Sequence[FileInfo]) -> list[Described]:
    with errors_named(config.uri, LANCE.title):
        table = _open(config)
        schema = select(table.schema, config, config.uri)
        return [(_fragment(config, fragment), schema) for fragment in table.get_fragments()]


def _fragment(config: CorpusConfig, fragment: Any) -> CorpusFile:
    rows, files, deleted = fragment.count_rows(), fragment.data_files(), fragment.deletion_file()
    # Lance never writes a name twice.
    tag = fingerprint([file.path for file in files], str(deleted), rows)
    size = sum(file.file_size_bytes or 0 for file in files)
    group_rows = tuple(min(_GROUP_ROWS, rows - first) for first in range(0, rows, _GROUP_ROWS))
    group_bytes = tuple(size * count // rows for count in group_rows)
    uri = f"{config.uri}#{fragment.fragment_id}"
    return CorpusFile(uri, size, tag, rows, len(group_rows), group_rows, group_bytes, LANCE.name)


def _read(
    config: CorpusConfig, file: CorpusFile, schema: pa.Schema, batch_rows: int, groups: RowGroups | None
) -> Iterator[pa.Table]:
    first, rows = (groups.first_row, groups.rows) if groups else (0, file.rows)
    with errors_named(file.uri, LANCE.title):
        fragment = _open(config).get_fragment(int(file.uri.rpartition("#")[2]))
        if fragment is None or _fragment(config, fragment).etag != file.etag:
            raise DamagedError(f"{file.uri}: the table has changed since the job began; start again")
        scanner = fragment.scanner(columns=schema.names, offset=first, limit=rows, batch_size=batch_rows)
        for batch in scanner.to_batches():
            yield pa.Table.from_batches([batch]).select(schema.names)


LANCE = Format("lance", "a Lance table", (), _describe, _read)
