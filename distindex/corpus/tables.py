"""Delta and Iceberg tables, by the Parquet files that their newest snapshot consists of.

Their own packages say which files these are. That is exact as long as no row of a file is deleted by a note elsewhere
and the columns of the files are those of the table; other tables are refused.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from distindex.config import CorpusConfig
from distindex.corpus.files import named_columns
from distindex.errors import InputError, NotFoundError, reason_of
from distindex.listing import FileInfo
from distindex.storage import Storage

_THREADS = 16
# The names of fsspec's s3fs, and those of the packages.
_DELTA_OPTIONS = {
    "key": "AWS_ACCESS_KEY_ID",
    "secret": "AWS_SECRET_ACCESS_KEY",
    "token": "AWS_SESSION_TOKEN",
    "endpoint_url": "AWS_ENDPOINT_URL",
}
_ICEBERG_OPTIONS = {
    "key": "s3.access-key-id",
    "secret": "s3.secret-access-key",
    "token": "s3.session-token",
    "endpoint_url": "s3.endpoint",
}


def package(name: str, extra: str, uri: str) -> Any:
    """The package that reads a kind of table.

    Raises:
        InputError: it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise InputError(
            f"{uri}: reading {extra.capitalize()} tables needs a package that is not installed: "
            f"pip install 'distindex[{extra}]'"
        ) from error


def delta_files(config: CorpusConfig) -> list[FileInfo]:
    """The files of the newest version of a Delta table.

    Raises:
        InputError: the package is missing, the table cannot be read, or its files alone are not its rows.
    """
    deltalake = package("deltalake", "delta", config.uri)
    given = config.storage_options.items()
    options = {_DELTA_OPTIONS[name]: value for name, value in given if name in _DELTA_OPTIONS}
    if str(options.get("AWS_ENDPOINT_URL", "")).startswith("http://"):
        options["AWS_ALLOW_HTTP"] = "true"
    storage = Storage(config.uri)
    try:
        table = deltalake.DeltaTable(storage.location, storage_options=options or None)
        deleted = sum(batch.num_rows for batch in table.deletion_vectors())
        uris, metadata = table.file_uris(), table.metadata()
    except (deltalake.exceptions.DeltaError, OSError) as error:
        raise _unreadable(config, "Delta", error) from error
    if deleted:
        raise InputError(
            f"{config.uri}: {deleted} file(s) of this Delta table have rows that are deleted by deletion vectors, "
            "which are not read; purge them first (REORG TABLE ... APPLY (PURGE))"
        )
    if metadata.configuration.get("delta.columnMapping.mode", "none") != "none":
        raise InputError(f"{config.uri}: this Delta table maps its columns' names, which is not read; export it")
    for name in named_columns(config):
        if name in metadata.partition_columns:
            raise InputError(
                f'{config.uri}: column "{name}" partitions this Delta table and is not in its files; leave it out'
            )
    return _infos(uris, config)


def iceberg_files(config: CorpusConfig) -> list[FileInfo]:
    """The files of the current snapshot of an Iceberg table, which its directory or its metadata file names.

    Raises:
        NotFoundError: there is no metadata file.
        InputError: the package is missing, the table cannot be read, or its files alone are not its rows.
    """
    table_module = package("pyiceberg.table", "iceberg", config.uri)
    given = config.storage_options.items()
    properties = {_ICEBERG_OPTIONS[name]: value for name, value in given if name in _ICEBERG_OPTIONS}
    location = _newest_metadata(Storage(config.uri, config.storage_options))
    try:
        table = table_module.StaticTable.from_metadata(location, properties)
        tasks = list(table.scan().plan_files())
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise _unreadable(config, "Iceberg", error) from error
    if any(task.delete_files for task in tasks):
        raise InputError(
            f"{config.uri}: rows of this Iceberg table are deleted by delete files, which are not read; "
            "rewrite its data files first (rewrite_data_files)"
        )
    other = [task.file for task in tasks if task.file.file_format != "PARQUET"]
    if other:
        raise InputError(f"{config.uri}: {other[0].file_path} is no Parquet file; only those are read")
    for name in named_columns(config):
        fields = [field for schema in table.schemas().values() for field in schema.fields]
        numbers = {field.field_id for field in fields if field.name == name}
        if len(numbers) > 1:
            raise InputError(
                f'{config.uri}: column "{name}" was dropped and added again, so that older files have another column '
                "of this name; export the table"
            )
    return _infos([task.file.file_path for task in tasks], config)


TABLES: dict[str, Callable[[CorpusConfig], list[FileInfo]]] = {
    "delta": delta_files,
    "iceberg": iceberg_files,
}


def _newest_metadata(storage: Storage) -> str:
    if storage.uri.endswith(".metadata.json"):
        return storage.location
    numbered = {
        (int(match[1]), name)
        for name in storage.names("metadata")
        if (match := re.match(r"v?(\d+).*\.metadata\.json$", name))
    }
    if not numbered:
        raise NotFoundError(f"{storage.uri}: no Iceberg table here (metadata/*.metadata.json is missing)")
    return f"{storage.location}/metadata/{max(numbered)[1]}"


def _infos(uris: Sequence[str], config: CorpusConfig) -> list[FileInfo]:
    if not uris:
        raise InputError(f"{config.uri}: the table is empty")
    with ThreadPoolExecutor(min(_THREADS, len(uris))) as pool:
        return list(pool.map(lambda uri: Storage(uri, config.storage_options).info(), sorted(uris)))


def _unreadable(config: CorpusConfig, title: str, error: Exception) -> InputError:
    reason = reason_of(error)
    return InputError(f"{config.uri}: cannot be read as a table of {title} ({reason})")
