"""The configs of `distindex plan` and `distindex inspect`; see `config`."""

from __future__ import annotations

import dataclasses
from typing import Any

from distindex.config import check


@dataclasses.dataclass
class PlanConfig:
    """Say what building and searching an index of a code set will take, from a sample of it.

    Attributes:
        codes: directory of the code set.
        recall: share of the nearest codes, by distance, that searches must find; 1 allows exact kinds only.
        shards: number of shards; by default as many as `memory_gib` needs.
        memory_gib: memory that one shard may take, in GiB.
        sample: rows of the code set that are read.
        storage_options: passed to the fsspec file system.
    """

    codes: str
    recall: float = 0.99
    shards: int | None = None
    memory_gib: float = 4.0
    sample: int = 250_000
    storage_options: dict[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        check(0 < self.recall <= 1, f"recall: {self.recall} must lie in (0, 1]")
        check(self.shards is None or self.shards > 0, f"shards: {self.shards} must be positive")
        check(self.memory_gib > 0, f"memory_gib: {self.memory_gib} must be positive")
        check(self.sample > 0, f"sample: {self.sample} must be positive")


@dataclasses.dataclass
class InspectConfig:
    """Say what a directory holds: a hasher, a code set, an index or a label store.

    Attributes:
        uri: the directory.
        version: version of an index; 0 takes the newest.
        storage_options: passed to the fsspec file system.
    """

    uri: str
    version: int = 0
    storage_options: dict[str, Any] = dataclasses.field(default_factory=dict)
