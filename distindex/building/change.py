"""Delete, compact, list versions, roll back, collect garbage: what users call, with Ray where rows are touched."""

from __future__ import annotations

import dataclasses
import datetime
import sys
import time
from typing import Any

from distindex.building.each import on_ray
from distindex.change_config import CompactConfig, DeleteConfig, GarbageConfig, RollbackConfig, VersionsConfig
from distindex.errors import InputError
from distindex.index import changes, compaction
from distindex.index.garbage import find_garbage, remove_garbage
from distindex.index.manifest import VersionManifest, read_manifest, versions
from distindex.progress import say
from distindex.runtime import start_ray
from distindex.settings import command_line
from distindex.storage import Storage


@dataclasses.dataclass(frozen=True)
class _Changed:
    """A version after a change.

    Attributes:
        uri: directory of the index.
        version: number of the newest version.
        rows: its rows.
        shards: its shards.
        bytes: size of its files.
        seconds: wall time.
    """

    uri: str
    version: int
    rows: int
    shards: int
    bytes: int
    seconds: float


@dataclasses.dataclass(frozen=True)
class DeleteReport(_Changed):
    """What was deleted.

    Attributes:
        deleted: rows that were deleted.
        missing: ids that the index did not have.
    """

    deleted: int
    missing: int


@dataclasses.dataclass(frozen=True)
class CompactReport(_Changed):
    """What was compacted.

    Attributes:
        rewritten: shards that were written anew.
        dropped: deleted rows that are no longer stored.
        bytes_before: size of the files of the version before.
    """

    rewritten: int
    dropped: int
    bytes_before: int


@dataclasses.dataclass(frozen=True)
class RollbackReport(_Changed):
    """What was brought back.

    Attributes:
        restored: the version whose content the newest has.
    """

    restored: int


@dataclasses.dataclass(frozen=True)
class VersionReport:
    """One version.

    Attributes:
        version: its number.
        created: time of its commit.
        rows: its rows.
        deleted: rows that its shards hold, but that are deleted.
        shards: its shards.
        bytes: size of its files.
        parent: the version that it followed.
        command: what made it.
    """

    version: int
    created: str
    rows: int
    deleted: int
    shards: int
    bytes: int
    parent: int | None
    command: str


@dataclasses.dataclass(frozen=True)
class GarbageReport:
    """What could go, or is gone.

    Attributes:
        uri: directory of the index.
        removed: whether it is gone.
        versions: numbers of the versions.
        paths: shards, deletions and files of unfinished jobs that no other version names.
        bytes: size of these.
    """

    uri: str
    removed: bool
    versions: tuple[int, ...]
    paths: tuple[str, ...]
    bytes: int


def delete(config: DeleteConfig) -> DeleteReport:
    """Delete rows by their ids. Ids that the index does not have change nothing.

    Raises:
        NotFoundError: there is no index, or no such file of ids.
        InputError: an id is not of the index's type.
    """
    started = time.monotonic()
    storage = Storage(config.index, config.storage_options)
    ids = _ids(config, read_manifest(storage).id_type)
    say(f"delete: {len(ids):,} ids from {storage.uri}")
    start_ray()
    manifest, deleted = changes.delete(storage, ids, command=command_line(sys.argv), each=on_ray)
    return DeleteReport(**_changed(storage, manifest, started), deleted=deleted, missing=len(ids) - deleted)


def _ids(config: DeleteConfig, id_type: str) -> list[int] | list[str]:
    given: list[Any] = list(config.ids)
    where = "ids"
    if config.ids_file:
        where = config.ids_file
        text = Storage(config.ids_file, config.storage_options).read_bytes("")
        try:
            given = text.decode().splitlines()
        except UnicodeDecodeError as error:
            raise InputError(f"{where}: is not UTF-8 text with one id a line") from error
    unique = dict.fromkeys(str(item) for item in given)
    if id_type == "string":
        return list(unique)
    numbers = []
    for item in unique:
        try:
            numbers.append(int(item))
        except ValueError as error:
            raise InputError(f"{where}: {item!r} is no integer, but the ids of {config.index} are") from error
        if not -(1 << 63) <= numbers[-1] < 1 << 63:
            raise InputError(f"{where}: {item} does not fit into 64 bits")
    return numbers


def compact(config: CompactConfig) -> CompactReport:
    """Write small shards, and those with deleted rows, anew.

    Raises:
        NotFoundError: there is no index.
        ConflictError: another writer has replaced one of the shards meanwhile.
        DamagedError: a file of the index is missing, changed or cut.
    """
    started = time.monotonic()
    storage = Storage(config.index, config.storage_options)
    plan = compaction.plan_compaction(storage, config.shards, config.deleted_share, config.small_share)
    before = plan.version
    say(
        f"compact: {len(plan.chosen)} of {len(before.shards)} shards of {storage.uri} version {before.version} -> "
        f"{plan.shards if plan.chosen else 0} shards"
    )
    if plan.chosen:
        start_ray()
    manifest = compaction.compact(storage, plan, command=command_line(sys.argv), each=on_ray)
    return CompactReport(
        **_changed(storage, manifest, started),
        rewritten=len(plan.chosen) if manifest.version > before.version else 0,
        dropped=max(0, before.deleted - manifest.deleted),
        bytes_before=before.bytes,
    )


def roll_back(config: RollbackConfig) -> RollbackReport:
    """Add a version with the content of an earlier one; nothing is removed.

    Raises:
        NotFoundError: there is no such index or version.
        ConflictError: another writer committed meanwhile.
    """
    started = time.monotonic()
    storage = Storage(config.index, config.storage_options)
    manifest = changes.roll_back(storage, config.version, command=command_line(sys.argv))
    return RollbackReport(**_changed(storage, manifest, started), restored=config.version)


def _changed(storage: Storage, manifest: VersionManifest, started: float) -> dict[str, Any]:
    return {
        "uri": storage.uri,
        "version": manifest.version,
        "rows": manifest.rows,
        "shards": len(manifest.shards),
        "bytes": manifest.bytes,
        "seconds": time.monotonic() - started,
    }


def list_versions(config: VersionsConfig) -> list[VersionReport]:
    """The versions of an index, the oldest first.

    Raises:
        NotFoundError: there is no index.
    """
    storage = Storage(config.index, config.storage_options)
    read_manifest(storage)
    manifests = [read_manifest(storage, number) for number in versions(storage)]
    return [
        VersionReport(
            manifest.version,
            manifest.created,
            manifest.rows,
            manifest.deleted,
            len(manifest.shards),
            manifest.bytes,
            manifest.parent,
            manifest.command,
        )
        for manifest in manifests
    ]


def collect_garbage(config: GarbageConfig) -> GarbageReport:
    """Find, and remove if told to, the versions before the newest `keep` and what no other version names.

    Raises:
        NotFoundError: there is no index.
    """
    storage = Storage(config.index, config.storage_options)
    age = datetime.timedelta(hours=config.older_than_hours)
    found = find_garbage(storage, config.keep, age)
    if config.remove:
        found = remove_garbage(storage, found, age)
    return GarbageReport(storage.uri, config.remove, found.versions, found.paths, found.bytes)
