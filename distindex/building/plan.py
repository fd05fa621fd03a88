"""`distindex plan`: what an index of a code set will take, before it is built."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from distindex.building.sample import sample_of
from distindex.codeset import CodeSet
from distindex.errors import InputError
from distindex.index.choose import choose
from distindex.index.construction import write_memory
from distindex.index.flat import Flat
from distindex.index.kinds import CAPABILITIES
from distindex.index.postings import BLOCK
from distindex.index.structure import padded_bits
from distindex.index.structures import build_approximate
from distindex.plan_config import PlanConfig
from distindex.progress import say

# See `postings`: 1 byte a code where hardly any code is shared, 2 where many are.
_POSTING_BYTES = 2 + 8 / BLOCK


def plan(config: PlanConfig) -> dict[str, Any]:
    """Facts about the index that `distindex build --kind auto` would make, by name.

    Sizes are computed from the formats, the rate of building and the times of searches are measured on a sample on
    this machine, and the number of distinct codes is extrapolated from it.

    Raises:
        NotFoundError: there is no code set.
        InputError: it has no rows.
        DamagedError: a file of it does not match its sha256.
    """
    code_set = CodeSet.open(config.codes, config.storage_options)
    codes = code_set.manifest
    if not codes.rows:
        raise InputError(f"{config.codes}: the code set has no rows to plan for")
    say(f"plan: reading {min(config.sample, codes.rows):,} of {codes.rows:,} rows of {config.codes}")
    sample = sample_of(code_set, config.sample)
    distinct = sample.distinct_of(codes.rows)
    code_bytes = padded_bits(codes.bits) // 8
    # Codes, where the rows of each begin, ids and payload.
    stored = distinct * (code_bytes + _POSTING_BYTES) + codes.rows * sample.bytes_per_row
    shards = config.shards or max(1, int(np.ceil(stored / (config.memory_gib * 2**30))))
    choice = choose(sample.code_UC, distinct // shards, config.recall)
    structure_bytes, seconds_per_row = _try_out(sample.code_UC, sample.rows, choice.kind, config.recall)
    memory = stored + distinct * structure_bytes
    rows = -(-codes.rows // shards)
    return {
        "rows": codes.rows,
        "bits": codes.bits,
        "sample rows": sample.rows,
        "distinct codes": distinct,
        "rows per code": round(codes.rows / distinct, 2),
        "kind": choice.kind,
        "why": choice.reason,
        "shards": shards,
        "rows per shard": rows,
        "bytes per shard": round(
            (stored + (0 if CAPABILITIES[choice.kind].exact else distinct * structure_bytes)) / shards
        ),
        "memory per shard": round(memory / shards),
        "memory per build task": write_memory(rows, codes.bits / 8 + sample.bytes_per_row, choice.kind),
        "hours to build on one core": round(seconds_per_row * codes.rows / 3600, 4),
    }


def _try_out(code_UC: np.ndarray, rows: int, kind: str, recall: float) -> tuple[float, float]:
    """Bytes a distinct code that searching takes beside the codes, and seconds a row to sort and index."""
    started = time.thread_time()
    order_U = np.random.default_rng(0).permutation(len(code_UC))
    np.lexsort(code_UC[order_U].T[::-1])
    flat = Flat.build(code_UC)
    approximate = build_approximate(kind, flat, recall)
    seconds = time.thread_time() - started
    if approximate is not None:
        return float(CAPABILITIES[kind].bytes_per_code[1]), seconds / rows
    flat.prepare()
    return flat.memory_bytes / len(code_UC) - padded_bits(flat.bits) / 8, seconds / rows
