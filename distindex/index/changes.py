"""Changes of an index, each of which adds a version: append, delete, compact, roll back. Needs no faiss of its own.

A change is computed against the newest version and committed as the next. Where another writer was first, it is
computed again for what that writer changed, and committed after it: no change is lost, and none waits for a lock.

The work on single shards is done by steps that the caller runs where it likes (`tasks.Each`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from distindex.errors import ConflictError, InputError, NotFoundError
from distindex.index.deletions import deletion_path, is_among, read_deletion, write_deletion
from distindex.index.files import default_cache
from distindex.index.manifest import DeletionEntry, ShardEntry, VersionManifest, commit, read_manifest
from distindex.index.partition import as_ids, group_of_ids
from distindex.index.tasks import Each, one_by_one
from distindex.storage import Storage

OnConflict = Literal["refuse", "replace"]
# Each attempt that fails is one of another writer that succeeded.
_ATTEMPTS = 1000


class Ids(Protocol):
    """Ids in groups by `partition.group_of_ids`, one of which is in memory at a time."""

    @property
    def groups(self) -> int:
        """Number of groups."""
        ...

    def group(self, number: int) -> pa.Array:
        """The ids of one group."""
        ...


@dataclasses.dataclass(frozen=True)
class IdsInMemory:
    """Ids that are few enough for one group."""

    ids: pa.Array
    groups: int = 1

    def group(self, number: int) -> pa.Array:
        """All of them."""
        return self.ids


@dataclasses.dataclass(frozen=True)
class Withdrawal:
    """What taking ids out of one shard means.

    Attributes:
        rows: how many rows of the shard that are not deleted yet have one of the ids.
        example: the id of one of them.
        deletion: what is deleted from the shard then, with what was before; None where it was not written.
    """

    rows: int
    example: int | str | None
    deletion: DeletionEntry | None


def withdraw(shared: tuple[Storage, Ids, bool], item: tuple[ShardEntry, DeletionEntry | None]) -> Withdrawal:
    """Look for ids in a shard, and write the deletion of those that are there if `shared` says so."""
    # Here and not above: the caller may have torch loaded, whose OpenMP runtime faiss does not get on with.
    from distindex.index.shard import stored_ids

    storage, ids, write = shared
    entry, before = item
    id_N = stored_ids(storage, entry, default_cache())
    found_N = _among(id_N, ids)
    already = None if before is None else read_deletion(storage, before, default_cache())
    if already is not None and found_N.any():
        found_N &= ~is_among(id_N, already)
    rows = int(found_N.sum())
    if not rows:
        return Withdrawal(0, None, before)
    found = id_N.take(pa.array(np.flatnonzero(found_N)))
    deletion = None
    if write:
        deletion = write_deletion(storage, entry, found if already is None else pa.concat_arrays([already, found]))
    return Withdrawal(rows, found[0].as_py(), deletion)


def _among(id_N: pa.Array, ids: Ids) -> npt.NDArray[np.bool_]:
    if ids.groups == 1:
        return is_among(id_N, ids.group(0))
    found_N = np.zeros(len(id_N), bool)
    if not ids.groups:
        return found_N
    group_N = group_of_ids(id_N, ids.groups)
    order_N = np.argsort(group_N, kind="stable")
    bound_G = np.searchsorted(group_N[order_N], np.arange(ids.groups + 1))
    for group in range(ids.groups):
        rows = order_N[bound_G[group] : bound_G[group + 1]]
        if len(rows):
            found_N[rows] = is_among(id_N.take(pa.array(rows)), ids.group(group))
    return found_N


class _Withdrawals:
    """`withdraw` for the shards of a version, remembered for those that the next version still has unchanged."""

    def __init__(self, storage: Storage, ids: Ids, write: bool, each: Each) -> None:
        self._shared = (storage, ids, write)
        self._each = each
        self._known: dict[tuple[ShardEntry, DeletionEntry | None], Withdrawal] = {}

    def of(self, version: VersionManifest) -> dict[str, Withdrawal]:
        """By name of the shard."""
        pairs = [(entry, version.deletion_of(entry.name)) for entry in version.shards]
        new = [pair for pair in pairs if pair not in self._known]
        self._known.update(zip(new, self._each(withdraw, self._shared, new, what="looking for ids"), strict=True))
        return {pair[0].name: self._known[pair] for pair in pairs}


Plan = Callable[[VersionManifest], tuple[Sequence[ShardEntry], Sequence[DeletionEntry]] | None]


def publish(storage: Storage, command: str, plan: Plan) -> VersionManifest:
    """Commit what a plan makes of the newest version, again for the next one where another writer was first.

    Args:
        storage: the index.
        command: recorded in the version.
        plan: the shards and deletions of the version after a given one; None where nothing is to change.

    Returns:
        the version that was committed, or the newest where nothing is to change.
    """
    for attempt in range(_ATTEMPTS):
        parent = read_manifest(storage)
        planned = plan(parent)
        if planned is None:
            return parent
        after = dataclasses.replace(parent, version=parent.version + 1, parent=parent.version, command=command)
        try:
            return commit(storage, after, *planned)
        except ConflictError:
            if attempt == _ATTEMPTS - 1:
                raise
    raise AssertionError("unreachable: the last attempt returns or raises")


def joined(
    shards: Sequence[ShardEntry], deletions: Sequence[DeletionEntry], new: Sequence[ShardEntry]
) -> tuple[list[ShardEntry], list[DeletionEntry]]:
    """Shards and deletions of a version with new shards beside the old.

    A new shard that has the name, and so the rows, of an old one takes its place with nothing deleted from it: ids
    are unique, so all rows of the old one are deleted.
    """
    names = {entry.name for entry in new}
    kept = [entry for entry in shards if entry.name not in names]
    return [*kept, *new], [deletion for deletion in deletions if deletion.shard not in names]


def add_shards(
    storage: Storage,
    ids: Ids,
    rows: int,
    write: Callable[[VersionManifest, bool], Sequence[ShardEntry]],
    *,
    on_conflict: OnConflict,
    command: str,
    each: Each = one_by_one,
) -> tuple[VersionManifest, int]:
    """Add rows to an index as new shards.

    Args:
        storage: the index.
        ids: of the new rows, all different.
        rows: their number.
        write: writes the shards with the kind of a version, or with False only says what would be written.
        on_conflict: refuse ids that the index has already, or delete the rows that it has.
        command: recorded in the version.
        each: runs the steps.

    Returns:
        the version, and how many of its rows were replaced; the newest version as it is where it has just these
        shards already.

    Raises:
        InputError: ids that the index has already; nothing was written.
    """
    withdrawals = _Withdrawals(storage, ids, on_conflict == "replace", each)
    written: dict[tuple[str, float], Sequence[ShardEntry]] = {}
    replaced = 0

    def plan(parent: VersionManifest) -> tuple[Sequence[ShardEntry], Sequence[DeletionEntry]] | None:
        nonlocal replaced
        found = withdrawals.of(parent)
        replaced = sum(withdrawal.rows for withdrawal in found.values())
        # A job that was killed after its commit, and runs again.
        if replaced == rows and _has(parent, [entry for entry in write(parent, False) if entry.rows]):
            replaced = 0
            return None
        if replaced and on_conflict == "refuse":
            example = next(withdrawal.example for withdrawal in found.values() if withdrawal.rows)
            more = f" and {replaced - 1:,} more are" if replaced > 1 else " is"
            raise InputError(
                f"{storage.uri}: id {example!r}{more} in version {parent.version} already; delete them first, or "
                "replace them with on_conflict; nothing was written"
            )
        # All shards of a version have its kind, which another writer may have changed.
        kind = (parent.kind, parent.recall_target)
        if kind not in written:
            written[kind] = write(parent, True)
        deletions = [withdrawal.deletion for withdrawal in found.values() if withdrawal.deletion is not None]
        return joined(parent.shards, deletions, written[kind])

    return publish(storage, command, plan), replaced


def _has(version: VersionManifest, entries: Sequence[ShardEntry]) -> bool:
    return all(entry in version.shards and version.deletion_of(entry.name) is None for entry in entries)


def delete(
    storage: Storage, ids: Any, *, command: str = "delete", each: Each = one_by_one
) -> tuple[VersionManifest, int]:
    """Delete the rows with these ids.

    Args:
        storage: the index.
        ids: integers or texts, as the index has them; those that it does not have change nothing.
        command: recorded in the version.
        each: runs the steps.

    Returns:
        the version, and how many rows were deleted; the newest version as it is where none of the ids is in it.

    Raises:
        InputError: ids of another type than the index has.
    """
    newest = read_manifest(storage)
    id_D = as_ids(ids, "ids")
    if not len(id_D):
        return newest, 0
    if str(id_D.type) != newest.id_type:
        raise InputError(f"{storage.uri}: has ids of type {newest.id_type}, these are {id_D.type}")
    withdrawals = _Withdrawals(storage, IdsInMemory(id_D), True, each)
    deleted = 0

    def plan(parent: VersionManifest) -> tuple[Sequence[ShardEntry], Sequence[DeletionEntry]] | None:
        nonlocal deleted
        found = withdrawals.of(parent)
        deleted = sum(withdrawal.rows for withdrawal in found.values())
        deletions = [withdrawal.deletion for withdrawal in found.values() if withdrawal.deletion is not None]
        return (parent.shards, deletions) if deleted else None

    return publish(storage, command, plan), deleted


def replace_shards(
    storage: Storage,
    before: VersionManifest,
    chosen: Sequence[ShardEntry],
    new: Sequence[ShardEntry],
    *,
    command: str,
    each: Each = one_by_one,
) -> VersionManifest:
    """Put shards in the place of others that have the same rows, as compaction does.

    Args:
        storage: the index.
        before: the version whose remaining rows of `chosen` are in `new`.
        chosen: the shards that go.
        new: the shards that come.
        command: recorded in the version.
        each: runs the steps.

    Raises:
        ConflictError: another writer has replaced one of the shards meanwhile, or brought back rows of it.
    """
    names = {entry.name for entry in chosen}

    def plan(parent: VersionManifest) -> tuple[Sequence[ShardEntry], Sequence[DeletionEntry]] | None:
        late = [_deleted_since(storage, before, parent, entry) for entry in chosen]
        ids = pa.concat_arrays([part for part in late if part is not None] or [pa.array([], pa.int64())])
        shards, deletions = joined(
            [entry for entry in parent.shards if entry.name not in names],
            [deletion for deletion in parent.deletions if deletion.shard not in names],
            new,
        )
        if len(ids):
            shared = (storage, IdsInMemory(ids), True)
            found = each(withdraw, shared, [(entry, None) for entry in new], what="applying late deletions")
            deletions += [withdrawal.deletion for withdrawal in found if withdrawal.deletion is not None]
        if {*shards} == {*parent.shards} and {*deletions} == {*parent.deletions}:
            return None
        return shards, deletions

    return publish(storage, command, plan)


def _deleted_since(
    storage: Storage, before: VersionManifest, now: VersionManifest, entry: ShardEntry
) -> pa.Array | None:
    """Ids that were deleted from a shard after `before`."""
    old, new = before.deletion_of(entry.name), now.deletion_of(entry.name)
    if entry not in now.shards:
        raise ConflictError(
            f"{storage.uri}: version {now.version} ({now.command}) no longer has shard {entry.name}, which was being "
            "replaced; run again"
        )
    if old == new:
        return None
    was, is_now = (
        pa.array([], pa.type_for_alias(now.id_type))
        if part is None
        else read_deletion(storage, part, default_cache())
        for part in (old, new)
    )
    if not is_among(was, is_now).all():
        raise ConflictError(f"{storage.uri}: version {now.version} ({now.command}) brought back rows; run again")
    return is_now.filter(pa.array(~is_among(is_now, was)))


def worth_rewriting(version: VersionManifest, deleted_share: float, small_share: float) -> list[ShardEntry]:
    """The shards of which more than a share is deleted, and those with less rows than a share of the largest's.

    A small shard alone, of which nothing is deleted, has nothing to be merged with.
    """
    rows = {entry.name: entry.rows for entry in version.shards}
    for deletion in version.deletions:
        rows[deletion.shard] -= deletion.rows
    largest = max(rows.values())
    chosen = [
        entry
        for entry in version.shards
        if entry.rows - rows[entry.name] > deleted_share * entry.rows or rows[entry.name] < small_share * largest
    ]
    alone = len(chosen) == 1 and version.deletion_of(chosen[0].name) is None
    return [] if alone else chosen


def roll_back(storage: Storage, version: int, *, command: str = "rollback") -> VersionManifest:
    """Add a version with the content of an earlier one.

    Raises:
        NotFoundError: there is no such version.
        DamagedError: one of its shards is gone.
        ConflictError: another writer committed meanwhile.
    """
    from distindex.index.shard import keep_shard

    if version < 1:
        raise NotFoundError(f"{storage.uri}: has no version {version}; versions count from 1")
    newest, old = read_manifest(storage), read_manifest(storage, version)
    if (old.shards, old.deletions) == (newest.shards, newest.deletions):
        return newest
    for entry in old.shards:
        keep_shard(storage, entry)
    for deletion in old.deletions:
        read_deletion(storage, deletion, default_cache())
        storage.write_bytes(deletion_path(deletion), storage.read_bytes(deletion_path(deletion)))
    after = dataclasses.replace(old, version=newest.version + 1, parent=newest.version, command=command)
    return commit(storage, after, old.shards, old.deletions)
