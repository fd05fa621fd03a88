"""Compaction: shards that are small, or of which much is deleted, written anew as fewer and full ones.

Needs no faiss of its own.
"""

from __future__ import annotations

import dataclasses

import pyarrow as pa

from distindex.errors import InputError
from distindex.index.changes import replace_shards, worth_rewriting
from distindex.index.construction import Construction, split_shard, write_parts
from distindex.index.manifest import ShardEntry, VersionManifest, read_manifest
from distindex.index.tasks import Each, one_by_one
from distindex.storage import Storage

DELETED_SHARE = 0.1
SMALL_SHARE = 0.5


@dataclasses.dataclass(frozen=True)
class Compaction:
    """What compacting would do to a version.

    Attributes:
        version: the version.
        chosen: the shards that are written anew.
        shards: the number of shards that take their place.
    """

    version: VersionManifest
    chosen: tuple[ShardEntry, ...]
    shards: int


def plan_compaction(
    storage: Storage, shards: int = 0, deleted_share: float = DELETED_SHARE, small_share: float = SMALL_SHARE
) -> Compaction:
    """Choose what to write anew.

    Args:
        storage: the index.
        shards: write all rows anew, into this number of shards; 0 takes only the shards that are worth it, and as
            many for them as have the size of the largest.
        deleted_share: a shard is worth it where more than this share of its rows is deleted.
        small_share: and where it has less rows than this share of the largest one's.

    Raises:
        NotFoundError: there is no index.
        InputError: a number out of range.
    """
    if shards < 0:
        raise InputError(f"shards: {shards} must not be negative")
    version = read_manifest(storage)
    if shards:
        return Compaction(version, version.shards, shards)
    chosen = worth_rewriting(version, deleted_share, small_share)
    deleted = {deletion.shard: deletion.rows for deletion in version.deletions}
    rows = sum(entry.rows - deleted.get(entry.name, 0) for entry in chosen)
    largest = max(entry.rows - deleted.get(entry.name, 0) for entry in version.shards)
    return Compaction(version, tuple(chosen), max(1, -(-rows // max(1, largest))))


def compact(
    storage: Storage, plan: Compaction, *, command: str = "compact", each: Each = one_by_one
) -> VersionManifest:
    """Write the chosen shards anew; rows that are deleted meanwhile are deleted from the new ones.

    Where all shards are chosen, the result is that of building the remaining rows from scratch.

    Returns:
        the version that was committed, or the newest where nothing changes.

    Raises:
        ConflictError: another writer has replaced one of the shards meanwhile.
        DamagedError: a file is missing, changed or cut.
    """
    version = plan.version
    if not plan.chosen:
        return version
    sources = [(number, entry, version.deletion_of(entry.name)) for number, entry in enumerate(plan.chosen)]
    construction = Construction.of(
        storage,
        ["compact", [[entry.sha256, deletion.sha256 if deletion else None] for _, entry, deletion in sources]],
        bits=version.bits,
        id_type=version.id_type,
        payload=_payload_fields(storage, plan.chosen[0]),
        sources=[entry.name for entry in plan.chosen],
        shards=plan.shards,
        rows_to_check=0,
    )
    with construction.cleaned():
        counts = each(split_shard, construction, sources, what="reading shards")
        entries = write_parts(construction, counts, version.kind, version.recall_target, each)
        return replace_shards(storage, version, plan.chosen, entries, command=command, each=each)


def _payload_fields(storage: Storage, entry: ShardEntry) -> list[pa.Field]:
    from distindex.index.shard import payload_schema

    return list(payload_schema(storage, entry))
