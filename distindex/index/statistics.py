"""What the codes of an index look like: how often each bit is 1, and how many rows share a code."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from distindex.codes import unpack
from distindex.index.files import default_cache
from distindex.index.manifest import VersionManifest
from distindex.index.shard import Shard
from distindex.storage import Storage

_CODES_READ = 1 << 18
_SIZES = 64


@dataclasses.dataclass(frozen=True, eq=False)
class ShardStatistics:
    """Counts over the codes of some shards, with the rows that are deleted since.

    Of a shard of more than 262,144 distinct codes as many are read, evenly spread, and the counts scaled to all.

    Attributes:
        rows: rows that were counted.
        one_K: rows whose bit is 1.
        codes_S: distinct codes of 2^s to 2^(s + 1) - 1 rows.
    """

    rows: float
    one_K: npt.NDArray[np.float64]
    codes_S: npt.NDArray[np.float64]

    @classmethod
    def of_shard(cls, shard: Shard) -> ShardStatistics:
        """The counts of one shard; takes about .1 s."""
        distinct, bits = shard.postings.distinct, shard.flat.bits
        position_A = np.unique(np.linspace(0, max(0, distinct - 1), min(distinct, _CODES_READ)).astype(np.int64))
        _, rows_A = shard.postings.rows_of(position_A)
        one_K = np.zeros(bits)
        for start in range(0, len(position_A), 1 << 14):
            part = slice(start, start + (1 << 14))
            one_K += rows_A[part] @ unpack(shard.flat.code_UC[position_A[part]])
        codes_S = np.bincount(np.frexp(rows_A)[1] - 1, minlength=_SIZES).astype(np.float64)
        scale = distinct / max(1, len(position_A))
        return cls(float(rows_A.sum() * scale), one_K * scale, codes_S * scale)

    @classmethod
    def sum(cls, parts: Sequence[ShardStatistics]) -> ShardStatistics:
        """The counts of several shards together; at least one."""
        return cls(
            sum(part.rows for part in parts),
            np.sum([part.one_K for part in parts], axis=0),
            np.sum([part.codes_S for part in parts], axis=0),
        )

    def ones_share(self) -> npt.NDArray[np.float64] | None:
        """Share of the rows in which each bit is 1, `share_K`; None where there is no row."""
        return self.one_K / self.rows if self.rows else None

    def bucket_sizes(self) -> list[tuple[int, int, int]]:
        """How many distinct codes have how many rows: (fewest rows, most rows, codes), up to the largest bucket."""
        used = int(np.flatnonzero(self.codes_S).max(initial=-1)) + 1
        return [(1 << size, (2 << size) - 1, round(codes)) for size, codes in enumerate(self.codes_S[:used].tolist())]


def ones_share(storage: Storage, version: VersionManifest) -> npt.NDArray[np.float64] | None:
    """Share of ones of each bit over the rows of the largest shard, `share_K`; None where no row is stored.

    A shard has the rows of a pseudo-random part of the codes, so it stands for all.
    """
    entry = max(version.shards, key=lambda shard: shard.rows)
    return ShardStatistics.of_shard(Shard.open(storage, entry, default_cache(), searched=False)).ones_share()
