"""Rows that are in memory, on their way into shards."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from distindex.codes import CodeArray, check_codes
from distindex.config import check_bits
from distindex.errors import InputError
from distindex.index.kinds import DEFAULT_RECALL
from distindex.index.manifest import ShardEntry, VersionManifest, following
from distindex.index.partition import as_ids, duplicate_rows, shard_of_codes
from distindex.index.shard_files import plain_payload, write_shard
from distindex.storage import Storage


class Rows(NamedTuple):
    """Checked rows, all ids different.

    Attributes:
        code_NC: one code per row.
        id_N: int64 or string.
        payload: plain columns; None where there are none.
    """

    code_NC: CodeArray
    id_N: pa.Array
    payload: pa.Table | None

    @classmethod
    def of(cls, code_NC: npt.ArrayLike, ids: Any, payload: pa.Table | None, shards: int) -> Rows:
        """Check them.

        Raises:
            InputError: arrays of different lengths, wrong types, an id that stands twice, or no positive `shards`.
        """
        codes = np.asarray(code_NC)
        if codes.ndim != 2:
            raise InputError(f"codes of shape {codes.shape}: expected rows of bytes")
        bits = codes.shape[1] * 8
        check_bits(bits)
        codes = check_codes(codes, bits)
        id_N = as_ids(ids, "ids")
        if shards < 1:
            raise InputError(f"shards: {shards} must be positive")
        columns = plain_payload(payload)
        lengths = {"ids": len(id_N)} | ({"payload": columns.num_rows} if columns is not None else {})
        for name, length in lengths.items():
            if length != len(codes):
                raise InputError(f"{name}: {length} rows, but there are {len(codes)} codes")
        twice = duplicate_rows(id_N)
        if twice:
            raise InputError(f"id {id_N[twice[0]].as_py()!r} stands twice, in rows {twice[0]} and {twice[1]}")
        return cls(codes, id_N, columns)

    def following(
        self,
        parent: VersionManifest | None,
        storage: Storage,
        hasher: Mapping[str, str] | None,
        command: str,
        kind: str = "flat",
        recall: float = DEFAULT_RECALL,
    ) -> VersionManifest:
        """The version after `parent` with these rows, still without shards; see `manifest.following`."""
        columns = [] if self.payload is None else self.payload.schema
        return following(
            parent,
            storage,
            bits=self.code_NC.shape[1] * 8,
            id_type=str(self.id_N.type),
            payload=[{"name": field.name, "type": str(field.type)} for field in columns],
            hasher=hasher,
            command=command,
            kind=kind,
            recall=recall,
        )

    def in_columns(self, columns: Sequence[str]) -> Rows:
        """With the payload columns in this order."""
        return self if self.payload is None else self._replace(payload=self.payload.select(list(columns)))

    def write(self, storage: Storage, shards: int, version: VersionManifest, store: bool = True) -> list[ShardEntry]:
        """Write them into so many shards of the kind of a version; where `store` is False, only say what would be."""
        shard_N = shard_of_codes(self.code_NC, shards)
        entries = []
        for shard in range(shards):
            rows = np.flatnonzero(shard_N == shard)
            part = None if self.payload is None else self.payload.take(pa.array(rows))
            if len(rows) or len(self.code_NC) == shard == 0:
                ids = self.id_N.take(pa.array(rows))
                entries.append(
                    write_shard(
                        storage,
                        self.code_NC[rows],
                        ids,
                        part,
                        kind=version.kind,
                        recall=version.recall_target,
                        store=store,
                    )
                )
        return entries
