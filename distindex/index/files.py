"""Arrow files of an index: written whole, checked against their sha256, mapped."""

from __future__ import annotations

import os
from pathlib import Path
from typing import BinaryIO

import pyarrow as pa

from distindex.errors import DamagedError, NotFoundError
from distindex.storage import Storage, sha256_of


def default_cache() -> Path:
    """Where copies of files from object storage are kept."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "distindex"


def write_arrow(table: pa.Table, stream: BinaryIO) -> None:
    """Write a table as one uncompressed record batch, so that it can be mapped."""
    table = table.combine_chunks()
    with pa.ipc.new_file(stream, table.schema, options=pa.ipc.IpcWriteOptions(compression=None)) as writer:
        writer.write_table(table)


def map_arrow(path: Path) -> pa.Table:
    """A table over the mapped file."""
    with pa.memory_map(str(path)) as source:
        return pa.ipc.open_file(source).read_all()


def checked_file(home: Storage, name: str, sha256: str, cache: Path) -> Path:
    """A local path to a file, or a copy of it in `cache`, whose content has this sha256.

    Raises:
        DamagedError: the file is missing or has other content; names it.
    """
    where = home.full_uri(name)
    for attempt in range(2):
        try:
            path = home.fetch(name, cache)
        except NotFoundError as error:
            raise DamagedError(f"{where}: the file is missing; build the index again") from error
        with path.open("rb") as stream:
            found = sha256_of(stream)
        if found == sha256:
            return path
        if home.is_local or attempt:
            break
        # The copy in the cache may be the damaged one.
        path.unlink(missing_ok=True)
    raise DamagedError(f"{where}: does not match its recorded sha256; build the index again")
