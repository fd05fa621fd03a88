"""The files that a URI names."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

from distindex.errors import NotFoundError
from distindex.filesystems import filesystem
from distindex.retry import persistently


@dataclasses.dataclass(frozen=True)
class FileInfo:
    """One stored file: its full URI, its size in bytes, and the store's version tag (etag or mtime)."""

    uri: str
    size: int
    etag: str


def file_info(uri: str, found: Mapping[str, Any]) -> FileInfo:
    """What a file system says of a file."""
    etag = found.get("ETag") or found.get("etag") or found.get("mtime") or found.get("created") or ""
    return FileInfo(uri, int(found.get("size") or 0), str(etag).strip('"'))


def list_files(uri: str, suffixes: Sequence[str], options: Mapping[str, Any] | None = None) -> list[FileInfo]:
    """The files that a URI names: one file, all below a directory with one of `suffixes`, or all that a glob matches.

    Sorted by URI. Names that start with `.` or `_` are left out, as Parquet writers put notes there.

    Raises:
        NotFoundError: nothing is there.
    """
    fs, path = filesystem(uri, options or {})
    prefix = uri.split("://", 1)[0] + "://" if "://" in uri else ""

    def look() -> tuple[dict[str, Any], str]:
        fs.invalidate_cache()
        if any(character in path for character in "*?["):
            return dict(fs.glob(path, detail=True)), "the pattern matches no file"  # type: ignore[arg-type]
        # Not `fs.isfile`, to which what the store does not tell is no file.
        found = fs.info(path)
        if found.get("type") == "file":
            return {path: found}, ""
        below = dict(fs.find(path, detail=True)).items()
        return {p: i for p, i in below if str(p).endswith(tuple(suffixes))}, f"no {suffixes[0]} file is below it"

    try:
        found, hint = persistently(uri, look)
    except FileNotFoundError as error:
        raise NotFoundError(f"{uri}: no such file or directory") from error
    # Hidden is what lies below, not the place that was asked for.
    base = re.split(r"[*?\[]", path, maxsplit=1)[0]
    base = path if base == path else base[: base.rfind("/") + 1]
    files = [
        file_info(prefix + str(p) if prefix and not prefix.startswith("file") else str(p), info)
        for p, info in sorted(found.items())
        if info.get("type", "file") == "file"
        and not any(part[:1] in "._" for part in str(p)[len(base) :].split("/") if part)
    ]
    if not files:
        raise NotFoundError(f"{uri}: {hint}")
    return files
