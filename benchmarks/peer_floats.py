"""Float indexes that autofaiss chooses beside codes of the same embeddings: bytes, speed, and what they find.

    python -m benchmarks.peer_floats [--quick]

Needs the data sets, and autofaiss: `pip install autofaiss 'faiss-cpu<1.12'`, in an environment of its own, since
autofaiss 2.18 calls a function of faiss that newer ones have changed. The protocol is that of benchmarks/quality:
test rows as queries, a row is right where it has the query's label.
"""

from __future__ import annotations

import importlib
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import numpy.typing as npt

from benchmarks.peer_engines import bytes_below
from benchmarks.peers import fastest
from benchmarks.quality.plan import Cell, Plan
from benchmarks.quality.runs import Loaded, Runner, masked, tables_of
from benchmarks.reporting import ROOT, Benchmark
from distindex import codes
from distindex.codes import CodeArray
from distindex.hashing.hasher import Hasher
from distindex.index.index import Index
from distindex.index.structure import set_search_threads

DATASET, BITS, LABELS, K, BATCH = "web_snippets_minilm", 64, 0.1, 100, 64
# What autofaiss may take: anything, and a fifteenth of what the floats take.
LIMITS = ("1GB", "1MB")

Vectors = npt.NDArray[np.float32]
Rows = npt.NDArray[np.int64]


class Judge:
    """The queries, and what is right.

    Args:
        loaded: the data set.
        rows: how many of its rows are in the indexes.
    """

    def __init__(self, loaded: Loaded, rows: int) -> None:
        self.chosen_N = np.random.default_rng(0).permutation(loaded.data.rows)[:rows]
        self._similar_QN = loaded.similar_QN[:, self.chosen_N]

    def row(self, name: str, count: int, build_s: float, search: Callable[[int, int], Rows]) -> dict[str, Any]:
        """A row of the table.

        Args:
            name: of the way.
            count: bytes of its index.
            build_s: seconds to make it, in which codes are learned too.
            search: the rows found for the queries from one number to another.
        """
        queries = len(self._similar_QN)
        found_QK = np.concatenate([search(start, start + BATCH) for start in range(0, queries, BATCH)])
        right_QK = np.take_along_axis(self._similar_QN, found_QK, axis=1) & (found_QK >= 0)
        return {
            "index": name,
            "bytes an item": count / len(self.chosen_N),
            "P@100": float(right_QK.mean()),
            "queries/s": BATCH / fastest(lambda: search(0, BATCH)),
            "build s": build_s,
        }


def float_rows(judge: Judge, vector_NV: Vectors, query_QV: Vectors) -> tuple[list[dict[str, Any]], list[str]]:
    """The exact float index, and those that autofaiss builds; what could not be built."""
    index: Any = faiss.IndexFlatIP(vector_NV.shape[1])
    index.add(vector_NV)
    found = [
        judge.row("float cosine, exact", vector_NV.nbytes, 0.0, lambda a, b: index.search(query_QV[a:b], K)[1]),
    ]
    try:
        autofaiss = importlib.import_module("autofaiss")
    except ImportError:
        return found, ["autofaiss: not installed."]
    failed = []
    for limit in LIMITS:
        started = time.perf_counter()
        try:
            built, about = autofaiss.build_index(
                vector_NV.copy(), save_on_disk=False, max_index_memory_usage=limit, nb_cores=1, verbose=50
            )
        except TypeError as error:
            failed.append(f"autofaiss, {limit}: fails with faiss {faiss.__version__} ({error}).")
            continue
        name = f"autofaiss, {limit}: {about['index_key']}, {about['index_param']}"
        count, taken = len(faiss.serialize_index(built)), time.perf_counter() - started
        found.append(judge.row(name, count, taken, lambda a, b, built=built: built.search(query_QV[a:b], K)[1]))
    return found, failed


def code_row(judge: Judge, name: str, build_s: float, code_NC: CodeArray, query_QC: CodeArray) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as directory:
        started = time.perf_counter()
        with Index.create(directory, code_NC, np.arange(len(code_NC))) as index:
            taken = build_s + time.perf_counter() - started

            def search(start: int, stop: int) -> Rows:
                return np.asarray(index.search(query_QC[start:stop], K).to_table()["id"]).reshape(-1, K)

            return judge.row(name, bytes_below(Path(directory)), taken, search)


def main() -> int:
    benchmark = Benchmark("peer_floats", f"Float indexes of autofaiss beside codes of {BITS} bits, on one core")
    benchmark.parser.add_argument("--data", default=str(ROOT.parent / "shared" / "data"), help="real data sets")
    options = benchmark.parse()
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    faiss.omp_set_num_threads(1)
    set_search_threads(1)
    plan = Plan(ROOT / "benchmarks" / "configs" / "quality.yaml")
    with tempfile.TemporaryDirectory() as work:
        runner = Runner(plan, Path(options.data), Path(work))
        cells = {
            "ITQ, no labels": Cell(DATASET, "itq", BITS, None, plan.seeds[0]),
            "CSB-VAE, a tenth of the labels": Cell(DATASET, "csb-vae", BITS, LABELS, plan.seeds[0]),
        }
        if options.quick:
            cells.popitem()
        table: list[dict[str, Any]] = []
        failed: list[str] = []
        for name, cell in cells.items():
            loaded = runner.load(cell)
            judge = Judge(loaded, 2_000 if options.quick else loaded.data.rows)
            if not table:
                vectors = [np.ascontiguousarray(x, np.float32) for x in (loaded.data.x_NV, loaded.query_QV)]
                for vector_NV in vectors:
                    vector_NV /= np.linalg.norm(vector_NV, axis=1, keepdims=True)
                table, failed = float_rows(judge, vectors[0][judge.chosen_N], vectors[1])
            config, started = plan.config(cell, loaded.directory), time.perf_counter()
            hasher = Hasher(
                config.method.name,
                BITS,
                config.corpus.feature_column,
                loaded.data.features,
                tables_of(config, masked(loaded.data, config)),
            )
            code_NC, query_QC = (codes.pack(hasher.logits(x) > 0) for x in (loaded.data.x_NV, loaded.query_QV))
            taken = time.perf_counter() - started
            table.append(code_row(judge, f"codes: {name}", taken, code_NC[judge.chosen_N], query_QC))
            print(table[-1], file=sys.stderr, flush=True)
    notes = [
        f"{len(judge.chosen_N):,} embeddings of 384 dimensions, {len(query_QC):,} queries, k = {K}, one core. "
        "An autofaiss row says the memory that it was allowed. Bytes are those of the whole index: tables and ids "
        "weigh more here than where there are millions of items.",
        *failed,
    ]
    figures = {row["index"]: {name: row[name] for name in row if name != "index"} for row in table}
    baseline = table[0]["index"]
    benchmark.report(table, figures, {baseline: figures[baseline]}, notes)
    return 0


if __name__ == "__main__":
    sys.exit(main())
