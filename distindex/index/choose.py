"""Choosing the kind of an index by trying kinds out on a sample of its codes."""

from __future__ import annotations

import time

import numpy as np

from distindex.codes import CodeArray
from distindex.errors import InputError
from distindex.index.approximate import RECALL_K, Approximate
from distindex.index.flat import Flat
from distindex.index.kinds import Choice
from distindex.index.structure import SearchStructure

_QUERIES = 256
# Below this size nothing is worth an answer that may lack something.
_ALWAYS_EXACT = 100_000
# How much faster an approximate kind must be to be worth it.
_WORTH = 2.0


def choose(code_UC: CodeArray, distinct: int, recall: float) -> Choice:
    """The kind for shards of `distinct` codes of which `code_UC` is a sample.

    Flat and ivf are tried on the sample and on a quarter of it, and their times extrapolated. The other kinds are
    not tried: hash and multihash were behind ivf everywhere, and hnsw takes ten times the memory.

    Args:
        code_UC: distinct codes in byte order.
        distinct: distinct codes in a shard.
        recall: share of the nearest codes, by distance, that must be found; with 1 only flat will do.
    """
    if recall == 1:
        return Choice("flat", "a recall of 1 was asked for, and flat is exact")
    if distinct < _ALWAYS_EXACT or len(code_UC) < 4096:
        return Choice("flat", f"{distinct:,} distinct codes a shard are few enough to search all of them")
    random = np.random.default_rng(0)
    held = np.sort(random.choice(len(code_UC), _QUERIES, replace=False))
    query_QC, rest_UC = code_UC[held], np.delete(code_UC, held, axis=0)
    seconds: dict[str, list[float]] = {"flat": [], "ivf": []}
    reached = 0.0
    way = ""
    for part_UC in (rest_UC[::4], rest_UC):
        flat = Flat.build(np.ascontiguousarray(part_UC))
        try:
            ivf = Approximate.build("ivf", flat, recall)
        except InputError as error:
            return Choice("flat", f"ivf does not do on a sample of {len(part_UC):,} codes: {error}")
        flat.prepare()
        seconds["flat"].append(seconds_per_query(flat, query_QC))
        seconds["ivf"].append(seconds_per_query(ivf, query_QC))
        reached, way = ivf.parameters["recall"]["reached"], flat.way
    expected = {kind: _at(times, len(rest_UC), distinct) for kind, times in seconds.items()}
    measured = (
        f"on a sample of {len(rest_UC):,} distinct codes flat ({way}) takes {seconds['flat'][1] * 1e6:.1f} us "
        f"a query and ivf {seconds['ivf'][1] * 1e6:.1f} us at a recall of {reached:.3f}; "
        f"at {distinct:,} codes a shard {expected['flat'] * 1e6:.1f} us and {expected['ivf'] * 1e6:.1f} us "
        "are expected"
    )
    if expected["flat"] > _WORTH * expected["ivf"]:
        return Choice("ivf", measured)
    return Choice("flat", f"{measured}, and exact answers are worth a factor of {_WORTH:g}")


def seconds_per_query(structure: SearchStructure, query_QC: CodeArray) -> float:
    """CPU seconds for the nearest ten codes of one query of a batch, the best of three runs."""
    times = []
    for _ in range(3):
        started = time.thread_time()
        structure.knn(query_QC, RECALL_K)
        times.append(time.thread_time() - started)
    return max(min(times), 1e-9) / len(query_QC)


def _at(times: list[float], codes: int, distinct: int) -> float:
    """The time at another size, by the power law through a quarter of the sample and the whole of it."""
    power = float(np.clip(np.log(times[1] / times[0]) / np.log(4), 0, 1))
    return times[1] * (distinct / codes) ** power
