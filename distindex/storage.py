"""Every path and URI of the project goes through here: one object over fsspec.

A `Storage` is a directory on disk or a prefix in object storage. Paths inside it are relative, with
forward slashes. It writes in two ways only: `write_*` replaces atomically, `create_*` fails if the name
exists, which is what commits rest on.

What fails in object storage and may succeed a little later is tried again (`retry`); what cannot succeed is an
error in one line at once.
"""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import json
import os
import uuid
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property, partial
from pathlib import Path
from typing import Any, BinaryIO

import fsspec
import pyarrow.fs

from distindex.errors import ConflictError, InputError, NotFoundError
from distindex.filesystems import filesystem
from distindex.listing import FileInfo, file_info
from distindex.retry import ShortReadError, explained, persistently
from distindex.streams import READ_AHEAD_BYTES, Upload, open_ranges

_FETCH_THREADS = 8


class Storage:
    """A directory on disk or a prefix in object storage, named by one URI.

    Args:
        uri: a path, `file://`, `s3://bucket/prefix`, `gs://...`, or any URI that fsspec knows.
        options: passed to the fsspec file system (endpoint, credentials); usually empty, since
            credentials come from the environment.

    Raises:
        InputError: the URI's protocol is unknown or its package is not installed (at first use).
    """

    def __init__(self, uri: str, options: Mapping[str, Any] | None = None) -> None:
        if not uri:
            raise InputError("an empty path was given where a file or directory is expected")
        self.uri = uri.rstrip("/") or "/"
        self.options = dict(options or {})

    def __repr__(self) -> str:
        return f"Storage({self.uri!r})"

    def __getstate__(self) -> dict[str, Any]:
        return {"uri": self.uri, "options": self.options}

    @cached_property
    def _fs_root(self) -> tuple[fsspec.AbstractFileSystem, str]:
        return filesystem(self.uri, self.options)

    @property
    def fs(self) -> fsspec.AbstractFileSystem:
        return self._fs_root[0]

    @property
    def is_local(self) -> bool:
        return "://" not in self.uri or self.uri.startswith("file://")

    def full_path(self, path: str = "") -> str:
        """The path of `path` as the fsspec (and pyarrow) file system wants it."""
        root = self._fs_root[1].rstrip("/")
        return f"{root}/{path}" if path else root

    def full_uri(self, path: str = "") -> str:
        return f"{self.uri}/{path}" if path else self.uri

    @property
    def location(self) -> str:
        """The URI as `list_files` names what lies below it."""
        return self.full_path() if self.is_local else f"{self.uri.split('://', 1)[0]}://{self.full_path()}"

    def child(self, path: str) -> Storage:
        return Storage(self.full_uri(path), self.options)

    @cached_property
    def arrow(self) -> pyarrow.fs.FileSystem:
        """The pyarrow file system under this URI; use it with `full_path`."""
        if self.is_local:
            return pyarrow.fs.LocalFileSystem()
        return pyarrow.fs.PyFileSystem(_ArrowHandler(self))

    # Reading

    def exists(self, path: str = "") -> bool:
        """Whether there is a file or a directory of this name now.

        Raises:
            DistindexError: the store does not say.
        """
        if self.is_local:
            return bool(self.fs.exists(self.full_path(path)))
        try:
            # Not `fs.exists`, to which a store that does not answer is one where nothing exists.
            self._stat(path)
        except FileNotFoundError:
            return False
        return True

    def read_bytes(self, path: str, size: int | None = None) -> bytes:
        """All of a file.

        Args:
            path: its name.
            size: its bytes, where they are known, which saves asking the store.

        Raises:
            NotFoundError: there is no such file.
        """
        if size and not self.is_local:
            return self._read_range(path, size, 0, size)
        with self.open_input(path) as stream:
            return stream.read()

    def read_json(self, path: str) -> Any:
        try:
            return json.loads(self.read_bytes(path))
        except ValueError as error:
            raise InputError(f"{self.full_uri(path)}: not valid JSON ({error})") from error

    def open_input(self, path: str, read_ahead: bool = True) -> BinaryIO:
        """The file as a seekable stream.

        Args:
            path: its name.
            read_ahead: in object storage, whether small reads are worth a large one; not for a reader that knows
                which ranges it needs.

        Raises:
            NotFoundError: there is no such file.
        """
        if self.is_local:
            with self._named(path):
                return open(self.full_path(path), "rb")
        size = self.info(path).size
        return open_ranges(size, partial(self._read_range, path, size), read_ahead)

    def _read_range(self, path: str, size: int, start: int, stop: int) -> bytes:
        uri, full = self.full_uri(path), self.full_path(path)

        def read() -> bytes:
            data: bytes = self.fs.cat_file(full, start=start, end=stop)  # type: ignore[assignment]
            if len(data) == stop - start:
                return data
            if self.info(path).size != size:
                raise InputError(f"{uri}: the file has changed while it was read; start again")
            raise ShortReadError(f"{len(data)} of {stop - start} bytes arrived")

        with self._named(path):
            return persistently(uri, read)

    def _stat(self, path: str) -> Mapping[str, Any]:
        def look() -> Mapping[str, Any]:
            # fsspec caches listings, and another process may just have written the name.
            self.fs.invalidate_cache()
            return self.fs.info(self.full_path(path))

        return persistently(self.full_uri(path), look)

    @contextlib.contextmanager
    def _named(self, path: str) -> Iterator[None]:
        try:
            yield
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
            raise NotFoundError(f"{self.full_uri(path)}: no such file") from error

    def names(self, path: str = "") -> list[str]:
        """Names of what lies directly in `path`, sorted; empty where there is no such directory."""

        def look() -> list[Any]:
            self.fs.invalidate_cache()
            return self.fs.ls(self.full_path(path), detail=False)

        try:
            found = persistently(self.full_uri(path), look)
        except (FileNotFoundError, NotADirectoryError):
            return []
        return sorted(name for entry in found if (name := str(entry).rstrip("/").rsplit("/", 1)[-1]))

    def info(self, path: str = "") -> FileInfo:
        """Size and version tag of one file.

        Raises:
            NotFoundError: there is no such file.
        """
        with self._named(path):
            found = self._stat(path)
            if found.get("type", "file") != "file":
                raise IsADirectoryError
        return file_info(self.full_uri(path), found)

    def fetch(self, path: str, cache: Path) -> Path:
        """A local path to the file: itself where it is on disk, otherwise a copy in `cache`, made once."""
        if self.is_local:
            local = Path(self.full_path(path))
            if not local.exists():
                raise NotFoundError(f"{self.full_uri(path)}: no such file")
            return local
        cache.mkdir(parents=True, exist_ok=True)
        local = cache / f"{hashlib.sha256(self.full_uri(path).encode()).hexdigest()[:24]}-{Path(path).name}"
        if not local.exists():
            temporary = local.with_name(f"{local.name}.{uuid.uuid4().hex}.tmp")
            try:
                with open(temporary, "wb") as stream:
                    self._copy(path, stream)
                os.replace(temporary, local)
            finally:
                temporary.unlink(missing_ok=True)
        return local

    def _copy(self, path: str, target: BinaryIO) -> None:
        size = self.info(path).size
        starts = range(0, size, READ_AHEAD_BYTES)

        def read(start: int) -> bytes:
            return self._read_range(path, size, start, min(start + READ_AHEAD_BYTES, size))

        with ThreadPoolExecutor(_FETCH_THREADS) as pool:
            # Round by round: what has arrived and is not yet written is in memory.
            for first in range(0, len(starts), _FETCH_THREADS):
                target.writelines(pool.map(read, starts[first : first + _FETCH_THREADS]))

    # Writing

    def write_bytes(self, path: str, data: bytes) -> None:
        """Write or replace a file; a reader sees the old or the new content, never a part."""
        if self.is_local:
            with self.open_output(path) as stream:
                stream.write(data)
            return
        self._put(path, data, mode="overwrite")

    def _put(self, path: str, data: bytes, mode: str) -> None:
        uri, full = self.full_uri(path), self.full_path(path)
        try:
            persistently(uri, lambda: self.fs.pipe_file(full, data, mode=mode))
        except FileNotFoundError as error:
            raise NotFoundError(f"{uri}: nothing can be written here ({error})") from error

    def write_json(self, path: str, value: Any) -> None:
        self.write_bytes(path, (json.dumps(value, indent=1, ensure_ascii=False) + "\n").encode())

    @contextlib.contextmanager
    def open_output(self, path: str) -> Iterator[BinaryIO]:
        """A stream whose file appears under its name only when the block ends without an error."""
        full = self.full_path(path)
        if not self.is_local:
            # Object stores show an object only when its upload is complete.
            try:
                opened = self.fs.open(full, "wb")
            except Exception as error:
                raise explained(self.full_uri(path), error) from error
            upload = Upload(self.full_uri(path), opened, partial(self._has_size, path))
            try:
                yield upload  # type: ignore[misc]
            except BaseException:
                upload.abandon()
                raise
            upload.finish()
            return
        os.makedirs(os.path.dirname(full), exist_ok=True)
        temporary = f"{full}.{uuid.uuid4().hex}.tmp"
        try:
            with open(temporary, "wb") as local:
                yield local
                local.flush()
                os.fsync(local.fileno())
            os.replace(temporary, full)
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary)

    def create_bytes(self, path: str, data: bytes) -> None:
        """Write a file that must not exist yet: of several writers exactly one succeeds.

        In object storage a writer that finds its own bytes there has succeeded: the answer to its first request may
        have been lost, and another writer of the same bytes did the same work.

        Raises:
            ConflictError: the name exists.
        """
        full = self.full_path(path)
        taken = ConflictError(f"{self.full_uri(path)}: exists already")
        if not self.is_local:
            try:
                self._put(path, data, mode="create")
            except FileExistsError as error:
                if not self._has_size(path, len(data)) or self.read_bytes(path) != data:
                    raise taken from error
            return
        os.makedirs(os.path.dirname(full), exist_ok=True)
        temporary = f"{full}.{uuid.uuid4().hex}.tmp"
        try:
            with open(temporary, "wb") as stream:
                stream.write(data)
                stream.flush()
                os.fsync(stream.fileno())
            # Unlike rename, link fails when the target exists: the one atomic put-if-absent of POSIX.
            os.link(temporary, full)
        except FileExistsError as error:
            raise taken from error
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary)

    def _has_size(self, path: str, size: int) -> bool:
        try:
            return self.info(path).size == size
        except NotFoundError:
            return False

    def create_json(self, path: str, value: Any) -> None:
        self.create_bytes(path, (json.dumps(value, indent=1, ensure_ascii=False) + "\n").encode())

    def remove(self, path: str) -> None:
        """Remove a file or a directory with all it holds; nothing happens where it does not exist."""

        def work() -> None:
            self.fs.invalidate_cache()
            self.fs.rm(self.full_path(path), recursive=True)

        with contextlib.suppress(FileNotFoundError):
            persistently(self.full_uri(path), work)

    def prune(self, path: str) -> None:
        """Remove a directory and those above it, up to this one, as long as they are empty.

        Object stores have no empty directories.
        """
        if not self.is_local:
            return
        with contextlib.suppress(OSError):
            while path:
                os.rmdir(self.full_path(path))
                path = path.rpartition("/")[0]
            os.rmdir(self.full_path())

    def modified(self, path: str) -> datetime.datetime:
        """When a file was last written, in UTC.

        Raises:
            NotFoundError: there is no such file.
        """

        def look() -> datetime.datetime:
            self.fs.invalidate_cache()
            return self.fs.modified(self.full_path(path))

        with self._named(path):
            when = persistently(self.full_uri(path), look)
        return when if when.tzinfo else when.replace(tzinfo=datetime.UTC)


class _ArrowHandler(pyarrow.fs.FSSpecHandler):
    """pyarrow's handler of fsspec file systems, with the streams and retries of `Storage`."""

    def __init__(self, storage: Storage) -> None:
        super().__init__(storage.fs)
        self._options = storage.options
        self._prefix = storage.uri.split("://", 1)[0] + "://"

    def _at(self, path: str) -> Storage:
        return Storage(self._prefix + path, self._options)

    def get_file_info(self, paths: list[str]) -> list[pyarrow.fs.FileInfo]:
        return [self._info(path) for path in paths]

    def _info(self, path: str) -> pyarrow.fs.FileInfo:
        try:
            found = self._at(path)._stat("")
        except FileNotFoundError:
            return pyarrow.fs.FileInfo(path, pyarrow.fs.FileType.NotFound)
        return self._create_file_info(path, found)

    def open_input_stream(self, path: str) -> pyarrow.PythonFile:
        return self.open_input_file(path)

    def open_input_file(self, path: str) -> pyarrow.PythonFile:
        try:
            return pyarrow.PythonFile(self._at(path).open_input(""), mode="r")
        except NotFoundError as error:
            # What pyarrow's own file systems raise.
            raise FileNotFoundError(str(error)) from error


def sha256_of(stream: BinaryIO) -> str:
    """Hexadecimal sha256 of what is left of a stream."""
    return hashlib.file_digest(stream, "sha256").hexdigest()  # type: ignore[arg-type]
