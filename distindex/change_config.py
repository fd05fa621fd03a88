"""The configs of the verbs that change an index; see `config`."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

from distindex.config import check


@dataclasses.dataclass
class AppendConfig:
    """Add the rows of a code set to an index, as a new version.

    Attributes:
        codes: directory of the code set.
        index: directory of the index.
        hasher: directory of the hasher, checked against the code set.
        shards: number of shards that the new rows go to.
        on_conflict: what to do with ids that the index has already: stop, or replace their rows.
        storage_options: passed to the fsspec file system.
    """

    codes: str
    index: str
    hasher: str | None = None
    shards: int = 1
    on_conflict: Literal["refuse", "replace"] = "refuse"
    storage_options: dict[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        check(self.shards > 0, f"shards: {self.shards} must be positive")


@dataclasses.dataclass
class DeleteConfig:
    """Delete rows of an index by their ids, as a new version.

    Attributes:
        index: directory of the index.
        ids: the ids.
        ids_file: a file with one id a line, instead of ids.
        storage_options: passed to the fsspec file system.
    """

    index: str
    ids: list[int | str] = dataclasses.field(default_factory=list)
    ids_file: str | None = None
    storage_options: dict[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        check(bool(self.ids) != bool(self.ids_file), "give ids or ids_file, one of them")


@dataclasses.dataclass
class CompactConfig:
    """Write small shards, and those with deleted rows, anew as fewer and full ones, as a new version.

    Attributes:
        index: directory of the index.
        shards: write all rows anew, into this number of shards; 0 takes only the shards that are worth it.
        deleted_share: a shard is worth it where more than this share of its rows is deleted.
        small_share: and where it has less rows than this share of the largest one's.
        storage_options: passed to the fsspec file system.
    """

    index: str
    shards: int = 0
    deleted_share: float = 0.1
    small_share: float = 0.5
    storage_options: dict[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        check(self.shards >= 0, f"shards: {self.shards} must not be negative")
        for name in ("deleted_share", "small_share"):
            check(0 <= getattr(self, name) <= 1, f"{name}: {getattr(self, name)} must lie in [0, 1]")


@dataclasses.dataclass
class GarbageConfig:
    """Say which old versions of an index and which files that no version needs could go; remove them if told to.

    Attributes:
        index: directory of the index.
        keep: the newest so many versions stay.
        older_than_hours: what was written later than so many hours ago stays, as it may be in use.
        remove: remove them; otherwise they are only counted.
        storage_options: passed to the fsspec file system.
    """

    index: str
    keep: int = 10
    older_than_hours: float = 24.0
    remove: bool = False
    storage_options: dict[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        check(self.keep > 0, f"keep: {self.keep} must be positive")
        check(self.older_than_hours >= 0, f"older_than_hours: {self.older_than_hours} must not be negative")


@dataclasses.dataclass
class VersionsConfig:
    """List the versions of an index.

    Attributes:
        index: directory of the index.
        storage_options: passed to the fsspec file system.
    """

    index: str
    storage_options: dict[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass
class RollbackConfig:
    """Add a version of an index with the content of an earlier one.

    Attributes:
        index: directory of the index.
        version: number of the earlier version.
        storage_options: passed to the fsspec file system.
    """

    index: str
    version: int
    storage_options: dict[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        check(self.version > 0, f"version: {self.version} must be positive")
