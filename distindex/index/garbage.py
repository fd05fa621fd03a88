"""Removing what no kept version of an index names. Needs no faiss."""

from __future__ import annotations

import dataclasses
import datetime

from distindex.errors import InputError, NotFoundError
from distindex.index.construction import DIRECTORY as BUILDING
from distindex.index.deletions import DIRECTORY as DELETIONS
from distindex.index.deletions import deletion_path
from distindex.index.manifest import read_manifest, version_path, versions
from distindex.storage import Storage

_SHARDS = "shards"


@dataclasses.dataclass(frozen=True)
class Garbage:
    """What can go.

    Attributes:
        versions: numbers of the versions.
        paths: directories of shards and of unfinished jobs, and files of deletions, inside the index.
        bytes: their size.
    """

    versions: tuple[int, ...]
    paths: tuple[str, ...]
    bytes: int


def find_garbage(storage: Storage, keep: int, older_than: datetime.timedelta) -> Garbage:
    """The versions before the newest `keep`, and what none of the others names.

    What was written less than `older_than` ago is left alone: a writer may be about to commit it, or a reader to open
    it.

    Raises:
        InputError: keep is not positive.
        NotFoundError: there is no index.
    """
    if keep < 1:
        raise InputError(f"keep: {keep} must be at least 1, the version that readers open")
    read_manifest(storage)
    before = datetime.datetime.now(datetime.UTC) - older_than
    doomed = [number for number in versions(storage)[:-keep] if _is_old(storage, version_path(number), before)]
    paths = _unnamed(storage, set(doomed), before)
    return Garbage(tuple(doomed), tuple(paths), sum(_size(storage, path) for path in paths))


def remove_garbage(storage: Storage, garbage: Garbage, older_than: datetime.timedelta) -> Garbage:
    """Remove it: the versions first, then what no version names now.

    Returns:
        what was removed.
    """
    before = datetime.datetime.now(datetime.UTC) - older_than
    for number in garbage.versions:
        storage.remove(version_path(number))
    # Looked for again: a writer may have come back to a shard since, and has then written its description anew.
    unnamed = set(_unnamed(storage, set(), before))
    removed, size = [], 0
    for path in garbage.paths:
        if path in unnamed:
            size += _size(storage, path)
            storage.remove(path)
            removed.append(path)
    return Garbage(garbage.versions, tuple(removed), size)


def _unnamed(storage: Storage, doomed: set[int], before: datetime.datetime) -> list[str]:
    named: set[str] = set()
    for number in versions(storage):
        if number not in doomed:
            manifest = read_manifest(storage, number)
            named |= {f"{_SHARDS}/{entry.name}" for entry in manifest.shards}
            named |= {deletion_path(entry) for entry in manifest.deletions}
    stored = [f"{home}/{name}" for home in (_SHARDS, DELETIONS, BUILDING) for name in storage.names(home)]
    return [path for path in stored if path not in named and _is_old(storage, path, before)]


def _is_old(storage: Storage, path: str, before: datetime.datetime) -> bool:
    """Whether a file, or every file in a directory, was last written before a time."""
    inside = [f"{path}/{name}" for name in storage.names(path)] if "." not in path.rpartition("/")[2] else [path]
    try:
        return all(storage.modified(file) <= before for file in inside)
    except NotFoundError:
        # Somebody else is at work on it.
        return False


def _size(storage: Storage, path: str) -> int:
    names = storage.names(path) if "." not in path.rpartition("/")[2] else []
    try:
        return sum(storage.info(f"{path}/{name}").size for name in names) if names else storage.info(path).size
    except NotFoundError:
        return 0
