"""Versions of an index: one JSON file each, created only if absent, so a version is all there or not."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from distindex.errors import ConflictError, DamagedError, FormatError, InputError, NotFoundError
from distindex.index.kinds import DEFAULT_RECALL, check_kind, parameters
from distindex.storage import Storage

FORMAT_VERSION = 1


@dataclasses.dataclass(frozen=True)
class ShardEntry:
    """One shard as a version names it.

    Attributes:
        name: directory below `shards/`: the first 32 digits of `sha256`.
        rows: rows in it.
        distinct: distinct codes in it.
        bytes: size of its files.
        sha256: of its shard.json, which holds the sha256 of each of its files.
        recall: what an approximate kind reached when it was built, see `kinds.Recall`; None for exact kinds.
    """

    name: str
    rows: int
    distinct: int
    bytes: int
    sha256: str
    # A mapping has no hash; sha256 tells shards apart.
    recall: Mapping[str, Any] | None = dataclasses.field(default=None, hash=False)

    def to_json(self) -> dict[str, Any]:
        value = dataclasses.asdict(self)
        return value if self.recall is not None else {name: item for name, item in value.items() if name != "recall"}


@dataclasses.dataclass(frozen=True)
class DeletionEntry:
    """The rows of one shard that a version no longer counts.

    Attributes:
        shard: name of the shard.
        rows: how many of its rows are deleted.
        bytes: size of the file with their ids, `deletions/<first 32 digits of sha256>.arrow`.
        sha256: of that file.
    """

    shard: str
    rows: int
    bytes: int
    sha256: str


@dataclasses.dataclass(frozen=True)
class VersionManifest:
    """What one version of an index consists of.

    Attributes:
        version: its number, from 1.
        bits: length of the codes.
        id_type: int64 or string.
        payload: name and type of each payload column.
        shards: its shards; shards without rows are left out, unless there is no row at all.
        hasher: `uri` and `fingerprint` of the hasher that made the codes; None where it is not known.
        kind: search structure inside the shards.
        parameters: of the kind.
        deletions: what was deleted since the shards were built, at most one entry for each shard.
        parent: the version that this one followed; None for the first.
        created: time of the commit, ISO 8601 in UTC.
        command: what made it.
    """

    version: int
    bits: int
    id_type: str
    payload: tuple[Mapping[str, str], ...]
    shards: tuple[ShardEntry, ...]
    hasher: Mapping[str, str] | None = None
    kind: str = "flat"
    parameters: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    deletions: tuple[DeletionEntry, ...] = ()
    parent: int | None = None
    created: str = ""
    command: str = ""

    @property
    def rows(self) -> int:
        """Rows that are not deleted."""
        return sum(shard.rows for shard in self.shards) - self.deleted

    @property
    def deleted(self) -> int:
        """Rows that are stored, but deleted."""
        return sum(deletion.rows for deletion in self.deletions)

    @property
    def distinct(self) -> int:
        """Distinct codes that are stored; one that stands in several shards counts in each."""
        return sum(shard.distinct for shard in self.shards)

    @property
    def bytes(self) -> int:
        """Size of all files that the version names."""
        return sum(shard.bytes for shard in self.shards) + sum(deletion.bytes for deletion in self.deletions)

    @property
    def recall_target(self) -> float:
        """Recall that shards of an approximate kind are built for; what is added has the same."""
        return self.parameters.get("recall", {}).get("target", DEFAULT_RECALL)

    def deletion_of(self, shard: str) -> DeletionEntry | None:
        """What is deleted from a shard, by its name; None where nothing is."""
        return next((deletion for deletion in self.deletions if deletion.shard == shard), None)

    def to_json(self) -> dict[str, Any]:
        shards = [shard.to_json() for shard in self.shards]
        return {"format_version": FORMAT_VERSION, **dataclasses.asdict(self), "shards": shards}

    @classmethod
    def from_json(cls, value: Any, where: str) -> VersionManifest:
        """Parse a version file.

        Raises:
            FormatError: of a format version, kind or feature that this release does not know.
            DamagedError: not a version file.
        """
        check_format(value, where, FORMAT_VERSION)
        fields = {name: item for name, item in value.items() if name != "format_version"}
        try:
            fields["shards"] = tuple(ShardEntry(**shard) for shard in fields["shards"])
            fields["payload"] = tuple(fields["payload"])
            fields["deletions"] = tuple(DeletionEntry(**entry) for entry in fields.get("deletions", ()))
            manifest = cls(**fields)
        except (KeyError, TypeError) as error:
            raise DamagedError(f"{where}: not a version file of an index ({error})") from error
        if not manifest.shards:
            raise DamagedError(f"{where}: names no shard")
        check_kind(manifest.kind, where)
        stored = {shard.name: shard.rows for shard in manifest.shards}
        deleted_from = [deletion.shard for deletion in manifest.deletions]
        if len(set(deleted_from)) < len(deleted_from) or any(
            not 0 < deletion.rows <= stored.get(deletion.shard, 0) for deletion in manifest.deletions
        ):
            raise DamagedError(f"{where}: its deletions do not belong to its shards")
        return manifest


def check_format(value: Any, where: str, known: int, oldest: int | None = None) -> None:
    """Refuse a JSON file that carries a format version beyond `known`, before `oldest`, or none.

    `oldest` is `known` where it is left out.

    Raises:
        FormatError: naming the version it carries.
        DamagedError: it carries none.
    """
    if not isinstance(value, Mapping) or "format_version" not in value:
        raise DamagedError(f"{where}: carries no format_version")
    found = value["format_version"]
    least = known if oldest is None else oldest
    if not isinstance(found, int) or not least <= found <= known:
        reads = str(known) if least == known else f"{least} to {known}"
        raise FormatError(f"{where}: format version {found}; this release reads {reads}, use a newer one")


def version_path(version: int) -> str:
    return f"versions/{version:08d}.json"


def versions(storage: Storage) -> list[int]:
    """The numbers of all committed versions, ascending."""
    return sorted(
        int(found[1]) for name in storage.names("versions") if (found := re.fullmatch(r"(\d{8,})\.json", name))
    )


def read_manifest(storage: Storage, version: int = 0) -> VersionManifest:
    """Read one version; 0 takes the newest.

    Raises:
        NotFoundError: there is no index, or it has no such version.
        FormatError, DamagedError: the file is of another release, or broken.
    """
    known = versions(storage)
    if not known:
        raise NotFoundError(f"{storage.uri}: no index here (no versions/*.json); `distindex build` makes one")
    number = version or known[-1]
    if number not in known:
        listed = ", ".join(map(str, known[-10:]))
        raise NotFoundError(f"{storage.uri}: has no version {number}; the newest are {listed}")
    path = version_path(number)
    manifest = VersionManifest.from_json(storage.read_json(path), storage.full_uri(path))
    if manifest.version != number:
        raise DamagedError(f"{storage.full_uri(path)}: says that it is version {manifest.version}")
    return manifest


def newest_manifest(storage: Storage) -> VersionManifest | None:
    """The newest version; None where the directory holds no index yet."""
    return read_manifest(storage) if versions(storage) else None


def following(
    parent: VersionManifest | None,
    storage: Storage,
    *,
    bits: int,
    id_type: str,
    payload: Sequence[Mapping[str, str]],
    hasher: Mapping[str, str] | None,
    command: str,
    kind: str = "flat",
    recall: float = DEFAULT_RECALL,
) -> VersionManifest:
    """The version after `parent` (None: the first), still without shards.

    Raises:
        InputError: its codes cannot be compared with those of the parent: other bits, ids or hasher.
    """
    planned = VersionManifest(
        version=parent.version + 1 if parent else 1,
        bits=bits,
        id_type=id_type,
        payload=tuple(payload),
        shards=(),
        hasher=hasher,
        kind=kind,
        parameters=parameters(kind, recall, ()),
        parent=parent.version if parent else None,
        command=command,
    )
    if parent:
        where = f"{storage.uri}: version {parent.version}"
        hint = "use another output"
        if bits != parent.bits:
            raise InputError(f"{where} has codes of {parent.bits} bits, these have {bits} bits; {hint}")
        if id_type != parent.id_type:
            raise InputError(f"{where} has ids of type {parent.id_type}, these are {id_type}; {hint}")
        old, new = ((made_by or {}).get("fingerprint") for made_by in (parent.hasher, hasher))
        if old and new and old != new:
            raise InputError(f"{where} was made by hasher {old}, these codes by hasher {new}; {hint}")
    return planned


def check_columns(parent: VersionManifest, storage: Storage, payload: Sequence[Mapping[str, str]]) -> list[str]:
    """The payload columns of an index, which rows that are added to it must have too, in whatever order.

    Raises:
        InputError: they have others, or of other types.
    """
    expected, found = (
        {column["name"]: column["type"] for column in columns} for columns in (parent.payload, payload)
    )
    if expected != found:
        old, new = (
            ", ".join(f"{name} ({kind})" for name, kind in names.items()) or "none" for names in (expected, found)
        )
        raise InputError(f"{storage.uri}: its payload columns are {old}, but those of the new rows are {new}")
    return list(expected)


def commit(
    storage: Storage,
    manifest: VersionManifest,
    shards: Sequence[ShardEntry],
    deletions: Sequence[DeletionEntry] = (),
) -> VersionManifest:
    """Publish a version: from here on, readers see it. Of several writers of one number one succeeds.

    Args:
        storage: the index.
        manifest: of `following`.
        shards: its shards, all of them written; those without rows are left out.
        deletions: what is deleted from these shards, all files written.

    Returns:
        the manifest as it was written.

    Raises:
        ConflictError: the version exists; names who made it.
    """
    kept = tuple([shard for shard in shards if shard.rows] or shards[:1])
    names = {shard.name for shard in kept}
    stamped = dataclasses.replace(
        manifest,
        shards=kept,
        deletions=tuple(deletion for deletion in deletions if deletion.shard in names),
        parameters=parameters(manifest.kind, manifest.recall_target, [shard.recall for shard in kept]),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    try:
        storage.create_json(version_path(stamped.version), stamped.to_json())
    except ConflictError as error:
        winner = read_manifest(storage, stamped.version)
        raise ConflictError(
            f"{storage.uri}: version {winner.version} was committed by another writer at {winner.created} "
            f"({winner.command or 'no command recorded'}); run again to add the next version"
        ) from error
    return stamped
