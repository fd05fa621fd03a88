"""The same codes in other engines: speed, recall, time to build and bytes, on one core, in one run.

    python -m benchmarks.peers [--quick] [--rows 1000000] [--only scans|graphs] [--without NAME]

`peer_engines` says what to install; an engine that is not installed is left out, and said so. Build times include
bringing the codes in. Real-like codes need the data sets (see `embedding_codes`); without them, uniform ones.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import faiss
import numpy as np

from benchmarks.embedding_codes import EmbeddingCodes
from benchmarks.peer_engines import ENGINES, K, Open, Rows
from benchmarks.reporting import ROOT, Benchmark
from distindex import codes
from distindex.codes import CodeArray
from distindex.index.structure import set_search_threads

BITS = 64
GROUPS = ("scans", "graphs")
_BATCH = 64
# Seconds after which a measurement is not repeated.
_LONG_S = 2.0


def fastest(work: Callable[[], Any]) -> float:
    """Seconds of the fastest of at most twenty runs, on the clock: servers work in other processes."""
    times: list[float] = []
    while len(times) < 20 and sum(times) < _LONG_S:
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return min(times)


def recall(code_NC: CodeArray, query_QC: CodeArray, row_QK: Rows) -> float:
    """Share of the K answers that are no farther than the K-th nearest; rows of -1 are none."""
    found = 0
    for query_C, row_K in zip(query_QC, row_QK, strict=True):
        distance_N = codes.hamming(query_C[None], code_NC)[0]
        last = np.partition(distance_N, K - 1)[K - 1]
        found += int((distance_N[row_K[row_K >= 0]] <= last).sum())
    return found / (len(query_QC) * K)


def measure(name: str, open_engine: Open, code_NC: CodeArray, query_QC: CodeArray) -> dict[str, Any]:
    """One engine's row of the table.

    Raises:
        ImportError: it is not installed.
    """
    with tempfile.TemporaryDirectory() as directory:
        started = time.perf_counter()
        with open_engine(code_NC, Path(directory)) as engine:
            build_s = time.perf_counter() - started
            row_QK = engine.search(query_QC)
            return {
                "engine": name,
                "build s": build_s,
                "bytes a code": engine.bytes / len(code_NC),
                "recall": recall(code_NC, query_QC, row_QK),
                "one query, ms": 1e3 * fastest(lambda: engine.search(query_QC[:1])),
                "queries/s in batches": len(query_QC) / fastest(lambda: engine.search(query_QC)),
            }


def main() -> int:
    benchmark = Benchmark("peers", f"The {K} nearest of codes of {BITS} bits in other engines, on one core")
    benchmark.parser.add_argument("--rows", type=int, default=1_000_000, help="codes in each engine")
    benchmark.parser.add_argument("--data", default=str(ROOT.parent / "shared" / "data"), help="real data sets")
    benchmark.parser.add_argument("--only", choices=GROUPS, help="scans or graphs alone, beside the first engine")
    benchmark.parser.add_argument("--without", action="append", default=[], help="name of an engine to leave out")
    options = benchmark.parse()
    rows = 100_000 if options.quick else options.rows
    if Path(options.data).is_dir():
        code_NC, query_QC = EmbeddingCodes(Path(options.data)).make(rows, BITS)
        made = "codes of sentence embeddings"
    else:
        made, random = "uniform codes", np.random.default_rng(0)
        code_NC, query_QC = (random.integers(0, 256, (n, BITS // 8), dtype=np.uint8) for n in (rows, _BATCH))
    # What the engines start has this core, too.
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    faiss.omp_set_num_threads(1)
    set_search_threads(1)
    baseline, *_ = ENGINES
    table, missing = [], [f"{name}: left out." for name in options.without]
    for name, open_engine in ENGINES.items():
        group = GROUPS[name.endswith("HNSW")]
        if name in options.without or (name != baseline and options.only not in (None, group)):
            continue
        try:
            row = measure(name, open_engine, code_NC, query_QC[:_BATCH])
        except ImportError as error:
            missing.append(f"{name}: not installed ({error}).")
            continue
        table.append(row)
        print(row, file=sys.stderr, flush=True)
    faiss_speed = table[0]["queries/s in batches"]
    table = [{**row, "speed": row["queries/s in batches"] / faiss_speed} for row in table]
    notes = [
        f"{len(code_NC):,} {made} of {BITS} bits, k = {K}, one core for an engine and its servers, on the clock. "
        f"Batches have {_BATCH} queries; a speed is theirs over the first engine's. Recall counts by distance.",
        *missing,
    ]
    figures = {row["engine"]: {name: row[name] for name in row if name != "engine"} for row in table}
    result = f"peers-{options.only}" if options.only else None
    benchmark.report(table, figures, {baseline: figures[baseline]}, notes, result)
    return 0


if __name__ == "__main__":
    sys.exit(main())
