"""Every path and URI of the project goes through here: one object over fsspec.

A `Storage` is a directory on disk or a prefix in object storage. Paths inside it are relative, with
forward slashes. It writes in two ways only: `write_*` replaces atomically, `create_*` fails if the name
exists, which is what commits rest on.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import hashlib
import json
import os
import uuid
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

import fsspec
import pyarrow.fs

from distindex.errors import ConflictError, InputError, NotFoundError

_EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs"}


@dataclasses.dataclass(frozen=True)
class FileInfo:
    """One stored file: its full URI, its size in bytes, and the store's version tag (etag or mtime)."""

    uri: str
    size: int
    etag: str


def _filesystem(uri: str, options: Mapping[str, Any]) -> tuple[fsspec.AbstractFileSystem, str]:
    protocol = uri.split("://", 1)[0] if "://" in uri else "file"
    if protocol == "file":
        path = uri.removeprefix("file://")
        return fsspec.filesystem("file"), os.path.abspath(os.path.expanduser(path))
    try:
        return fsspec.core.url_to_fs(uri, **options)
    except ImportError as error:
        extra = _EXTRAS.get(protocol)
        hint = f"pip install 'distindex[{extra}]'" if extra else f"install the fsspec package for {protocol}://"
        raise InputError(f"{uri}: reading {protocol}:// needs a package that is not installed: {hint}") from error
    except ValueError as error:
        raise InputError(f"{uri}: {error}") from error


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
        return _filesystem(self.uri, self.options)

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

    def child(self, path: str) -> Storage:
        return Storage(self.full_uri(path), self.options)

    @cached_property
    def arrow(self) -> pyarrow.fs.FileSystem:
        """The pyarrow file system under this URI; use it with `full_path`."""
        if self.is_local:
            return pyarrow.fs.LocalFileSystem()
        return pyarrow.fs.PyFileSystem(pyarrow.fs.FSSpecHandler(self.fs))

    # Reading

    def exists(self, path: str = "") -> bool:
        # A fresh look: fsspec caches listings, and another process may just have written the name.
        self.fs.invalidate_cache()
        return bool(self.fs.exists(self.full_path(path)))

    def read_bytes(self, path: str) -> bytes:
        try:
            return self.fs.cat_file(self.full_path(path))  # type: ignore[return-value]
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
            raise NotFoundError(f"{self.full_uri(path)}: no such file") from error

    def read_json(self, path: str) -> Any:
        try:
            return json.loads(self.read_bytes(path))
        except ValueError as error:
            raise InputError(f"{self.full_uri(path)}: not valid JSON ({error})") from error

    def open_input(self, path: str) -> BinaryIO:
        try:
            return self.fs.open(self.full_path(path), "rb")  # type: ignore[return-value]
        except FileNotFoundError as error:
            raise NotFoundError(f"{self.full_uri(path)}: no such file") from error

    def names(self, path: str = "") -> list[str]:
        """Names of what lies directly in `path`, sorted; empty where there is no such directory."""
        self.fs.invalidate_cache()
        try:
            found = self.fs.ls(self.full_path(path), detail=False)
        except (FileNotFoundError, NotADirectoryError):
            return []
        return sorted(name for entry in found if (name := str(entry).rstrip("/").rsplit("/", 1)[-1]))

    def info(self, path: str = "") -> FileInfo:
        """Size and version tag of one file.

        Raises:
            NotFoundError: there is no such file.
        """
        try:
            found = self.fs.info(self.full_path(path))
        except FileNotFoundError as error:
            raise NotFoundError(f"{self.full_uri(path)}: no such file") from error
        return _file_info(self.full_uri(path), found)

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
                self.fs.get_file(self.full_path(path), str(temporary))
            except FileNotFoundError as error:
                raise NotFoundError(f"{self.full_uri(path)}: no such file") from error
            os.replace(temporary, local)
        return local

    # Writing

    def write_bytes(self, path: str, data: bytes) -> None:
        """Write or replace a file; a reader sees the old or the new content, never a part."""
        with self.open_output(path) as stream:
            stream.write(data)

    def write_json(self, path: str, value: Any) -> None:
        self.write_bytes(path, (json.dumps(value, indent=1, ensure_ascii=False) + "\n").encode())

    @contextlib.contextmanager
    def open_output(self, path: str) -> Iterator[BinaryIO]:
        """A stream whose file appears under its name only when the block ends without an error."""
        full = self.full_path(path)
        if not self.is_local:
            # Object stores show an object only when its upload is complete.
            stream = self.fs.open(full, "wb")
            try:
                yield stream  # type: ignore[misc]
            except BaseException:
                discard = getattr(stream, "discard", None)
                if discard is not None:
                    with contextlib.suppress(NotImplementedError):
                        discard()
                stream.closed = True  # type: ignore[misc]
                raise
            stream.close()
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

        Raises:
            ConflictError: the name exists.
        """
        full = self.full_path(path)
        taken = ConflictError(f"{self.full_uri(path)}: exists already")
        if not self.is_local:
            try:
                self.fs.pipe_file(full, data, mode="create")
            except FileExistsError as error:
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

    def create_json(self, path: str, value: Any) -> None:
        self.create_bytes(path, (json.dumps(value, indent=1, ensure_ascii=False) + "\n").encode())

    def remove(self, path: str) -> None:
        """Remove a file or a directory with all it holds; nothing happens where it does not exist."""
        with contextlib.suppress(FileNotFoundError):
            self.fs.rm(self.full_path(path), recursive=True)

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
        self.fs.invalidate_cache()
        try:
            when = self.fs.modified(self.full_path(path))
        except FileNotFoundError as error:
            raise NotFoundError(f"{self.full_uri(path)}: no such file") from error
        return when if when.tzinfo else when.replace(tzinfo=datetime.UTC)


def _file_info(uri: str, found: Mapping[str, Any]) -> FileInfo:
    etag = found.get("ETag") or found.get("etag") or found.get("mtime") or found.get("created") or ""
    return FileInfo(uri, int(found.get("size") or 0), str(etag).strip('"'))


def list_files(uri: str, suffix: str, options: Mapping[str, Any] | None = None) -> list[FileInfo]:
    """The files that a URI names: one file, all below a directory with `suffix`, or all that a glob matches.

    Sorted by URI. Names that start with `.` or `_` are left out, as Parquet writers put notes there.

    Raises:
        NotFoundError: nothing is there.
    """
    fs, path = _filesystem(uri, options or {})
    prefix = uri.split("://", 1)[0] + "://" if "://" in uri else ""
    fs.invalidate_cache()
    if any(character in path for character in "*?["):
        found: dict[str, Any] = fs.glob(path, detail=True)  # type: ignore[assignment]
        hint = "the pattern matches no file"
    elif fs.isfile(path):
        found = {path: fs.info(path)}
        hint = ""
    else:
        found = {p: i for p, i in dict(fs.find(path, detail=True)).items() if str(p).endswith(suffix)}
        hint = f"no {suffix} file is below it" if fs.exists(path) else "no such file or directory"
    base = path.split("*", 1)[0]
    files = [
        _file_info(prefix + str(p) if prefix and not prefix.startswith("file") else str(p), info)
        for p, info in sorted(found.items())
        if info.get("type", "file") == "file"
        and not any(part[:1] in "._" for part in str(p)[len(base) :].split("/") if part)
    ]
    if not files:
        raise NotFoundError(f"{uri}: {hint or 'no such file or directory'}")
    return files


def sha256_of(stream: BinaryIO) -> str:
    """Hexadecimal sha256 of what is left of a stream."""
    return hashlib.file_digest(stream, "sha256").hexdigest()  # type: ignore[arg-type]
