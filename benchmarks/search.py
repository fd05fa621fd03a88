"""Exact search of the in-process index against faiss IndexBinaryFlat and a numpy scan: same codes, same answers.

`uniform` codes are the worst case, without near neighbours or duplicates. `clustered` codes are drawn around
centres with a tenth of the bits flipped, several rows a code on average, as learned codes are.

    python -m benchmarks.search [--quick]
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import faiss
import numpy as np

from benchmarks.reporting import Benchmark
from distindex import codes
from distindex.codes import CodeArray
from distindex.index.index import Index
from distindex.index.structure import set_search_threads

QUERIES = 64
REPETITIONS = 3


def uniform(random: np.random.Generator, rows: int, bits: int) -> CodeArray:
    return random.integers(0, 256, (rows, bits // 8), dtype=np.uint8)


def clustered(random: np.random.Generator, rows: int, bits: int) -> CodeArray:
    """Ten rows a code on average: each distinct code is a centre with a tenth of its bits flipped."""
    distinct = max(1, rows // 10)
    centre = uniform(random, max(1, distinct // 100), bits)
    flips = codes.pack(random.random((distinct, bits)) < 0.1)
    return (centre[random.integers(0, len(centre), distinct)] ^ flips)[random.integers(0, distinct, rows)]


def seconds(work: Callable[[], Any]) -> float:
    """CPU seconds of the fastest repetition: other work on the machine does not count."""
    times = []
    for _ in range(REPETITIONS):
        started = time.process_time()
        work()
        times.append(time.process_time() - started)
    return min(times)


def compare(
    database_NC: CodeArray, query_QC: CodeArray, k: int, directory: str
) -> tuple[dict[str, float], dict[str, float]]:
    """Milliseconds a query of each engine, and bytes a row; refuses to time answers that differ."""
    bits = database_NC.shape[1] * 8
    flat = faiss.IndexBinaryFlat(bits)
    flat.add(database_NC)  # type: ignore[call-arg]
    index = Index.create(directory, database_NC, np.arange(len(database_NC)))
    matches = index.search(query_QC, k)
    expected, _ = flat.search(query_QC, k)  # type: ignore[call-arg]
    if not np.array_equal(matches.distance_M.reshape(len(query_QC), -1), expected):
        raise AssertionError("the index and IndexBinaryFlat disagree about the distances")

    def numpy_scan() -> None:
        np.argpartition(codes.hamming(query_QC[:8], database_NC), k - 1, axis=1)

    times = {
        "distindex": seconds(lambda: index.search(query_QC, k)) / len(query_QC),
        "IndexBinaryFlat": seconds(lambda: flat.search(query_QC, k)) / len(query_QC),  # type: ignore[call-arg]
        "numpy scan": seconds(numpy_scan) / 8,
    }
    sizes = {
        "distindex": index.manifest.bytes / len(database_NC),
        "IndexBinaryFlat": bits / 8 + 8,
    }
    index.close()
    return {name: value * 1000 for name, value in times.items()}, sizes


def main() -> int:
    benchmark = Benchmark("search", "exact Hamming search against faiss IndexBinaryFlat and numpy, one thread")
    options = benchmark.parse()
    set_search_threads(1)
    rows = 100_000 if options.quick else 1_000_000
    random = np.random.default_rng(0)
    table, figures, baselines = [], {}, {}
    for bits in (16, 24, 64, 128):
        for kind in (clustered, uniform):
            database_NC = kind(random, rows, bits)
            query_QC = database_NC[random.integers(0, rows, QUERIES)] ^ codes.pack(
                random.random((QUERIES, bits)) < 0.03
            )
            for k in (10, 100):
                with tempfile.TemporaryDirectory() as directory:
                    times, sizes = compare(database_NC, query_QC, k, directory)
                speedup = times["IndexBinaryFlat"] / times["distindex"]
                table.append(
                    {
                        "codes": kind.__name__,
                        "bits": bits,
                        "k": k,
                        "distinct": len(np.unique(database_NC, axis=0)),
                        **{f"{name} ms/query": value for name, value in times.items()},
                        "speed-up": speedup,
                        "bytes/row": sizes["distindex"],
                        "flat + ids bytes/row": sizes["IndexBinaryFlat"],
                    }
                )
                name = f"{kind.__name__}_{bits}_bits_k{k}"
                figures[f"{name}_speedup"] = round(speedup, 2)
                baselines[f"{name}_flat_ms"] = round(times["IndexBinaryFlat"], 4)
    benchmark.report(
        table, figures, baselines, notes=[f"{rows:,} codes, {QUERIES} queries a batch, CPU time, one thread"]
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
