"""How often each bit of the codes of an index is 1."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from distindex.codes import unpack
from distindex.index.files import default_cache
from distindex.index.manifest import VersionManifest
from distindex.index.shard import Shard
from distindex.storage import Storage

_CODES_READ = 1 << 18


def ones_share(storage: Storage, version: VersionManifest) -> npt.NDArray[np.float64] | None:
    """Share of ones of each bit over the rows of the largest shard, `share_K`; None where no row is stored.

    A shard has the rows of a pseudo-random part of the codes, so it stands for all. Of a shard of more than 262,144
    distinct codes as many are read, evenly spread.
    """
    entry = max(version.shards, key=lambda shard: shard.rows)
    if not entry.rows:
        return None
    shard = Shard.open(storage, entry, default_cache(), searched=False)
    position_A = np.unique(np.linspace(0, entry.distinct - 1, min(entry.distinct, _CODES_READ)).astype(np.int64))
    _, rows_A = shard.postings.rows_of(position_A)
    ones_K = np.zeros(version.bits)
    for start in range(0, len(position_A), 1 << 14):
        part = slice(start, start + (1 << 14))
        ones_K += rows_A[part] @ unpack(shard.flat.code_UC[position_A[part]])
    return ones_K / rows_A.sum()
