"""Exact search against faiss IndexBinaryFlat, usearch and a numpy scan; recall and speed of the approximate kinds.

    python -m benchmarks.search [--quick] [--rows 10000000] [--data DIRECTORY]

Real-like codes need the data sets (see `embedding_codes`); without them only uniform codes are measured.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import faiss
import numpy as np

from benchmarks.embedding_codes import EmbeddingCodes
from benchmarks.reporting import ROOT, Benchmark
from distindex import codes
from distindex.codes import CodeArray
from distindex.index.approximate import Approximate, recall_of
from distindex.index.flat import Flat
from distindex.index.index import Index
from distindex.index.structure import set_search_threads

# Seconds after which a measurement is not repeated.
_LONG_S = 0.5
# Codes in the index unless said otherwise.
_ROWS = 1_000_000
# Queries that the slow engines get.
_FEW = 4


def seconds(work: Callable[[], Any]) -> float:
    """CPU seconds of the fastest of at most twenty runs: other work on the machine does not count."""
    times: list[float] = []
    while len(times) < 20 and sum(times) < _LONG_S:
        started = time.process_time()
        work()
        times.append(time.process_time() - started)
    return min(times)


def usearch_scan(database_NC: CodeArray, query_QC: CodeArray, k: int) -> Callable[[], Any] | None:
    """An exact search by usearch; None where it is not installed."""
    try:
        from usearch.compiled import MetricKind
        from usearch.index import search
    except ImportError:
        return None
    return lambda: search(database_NC, query_QC, k, MetricKind.Hamming, exact=True, threads=1)


def compare(
    database_NC: CodeArray, query_QC: CodeArray, ks: Sequence[int], batches: Sequence[int], slow: bool
) -> list[dict[str, Any]]:
    """Microseconds a query of each engine; refuses to time answers that differ from faiss's."""
    bits = database_NC.shape[1] * 8
    baseline: Any = faiss.IndexBinaryFlat(bits)
    baseline.add(database_NC)
    rows = []
    with tempfile.TemporaryDirectory() as directory:
        index = Index.create(directory, database_NC, np.arange(len(database_NC)))
        (shard,) = index._open_shards()
        for k in ks:
            expected, _ = baseline.search(query_QC[:32], k)
            found = index.search(query_QC[:32], k)
            if not np.array_equal(found.distance_M.reshape(32, -1), expected):
                raise AssertionError("the index and IndexBinaryFlat disagree about the distances")
            few = query_QC[:_FEW]
            scan = usearch_scan(database_NC, few, k) if slow else None
            beside = {"usearch us": seconds(scan) / _FEW * 1e6 if scan else None, "numpy us": None}
            if slow:
                taken = seconds(lambda q=few, k=k: np.argpartition(codes.hamming(q, database_NC), k - 1, axis=1))
                beside["numpy us"] = taken / _FEW * 1e6
            for batch in batches:
                part_QC = query_QC[:batch]
                ours = seconds(lambda q=part_QC, k=k: index.search(q, k)) / batch * 1e6
                structure = seconds(lambda q=part_QC, k=k: shard.structure.knn(q, k)) / batch * 1e6
                # faiss takes a query at a time: 64 of a batch say what all would.
                theirs = seconds(lambda q=part_QC[:64], k=k: baseline.search(q, k)) / min(batch, 64) * 1e6
                rows.append(
                    {
                        "bits": bits,
                        "distinct": index.distinct,
                        "way": shard.flat.way,
                        "k": k,
                        "batch": batch,
                        "IndexBinaryFlat us": theirs,
                        "codes us": structure,
                        "search us": ours,
                        "speed-up": theirs / ours,
                        **beside,
                    }
                )
        index.close()
    return rows


def curve(kind: str, database_NC: CodeArray, query_QC: CodeArray, exact_us: float) -> list[dict[str, Any]]:
    """Recall of the nearest ten by distance and microseconds a query, for each value of the kind's setting."""
    flat = Flat.build(np.unique(database_NC, axis=0))
    last_Q = flat.knn(query_QC, 10).distance_M.reshape(len(query_QC), 10)[:, -1]
    structure = Approximate.build(kind, flat, 0.0)
    points = []
    for value in {"ivf": (1, 2, 4, 8, 16, 32, 64), "hnsw": (8, 16, 32, 64, 128)}.get(kind, (0, 1, 2, 3)):
        structure.set(value)
        recall = recall_of(structure.knn(query_QC, 10), last_Q, 10)
        taken = seconds(lambda: structure.knn(query_QC, 10)) / len(query_QC) * 1e6
        points.append({"kind": kind, "setting": value, "recall@10": recall, "us": taken, "flat us": exact_us})
    return points


def plot(points: Sequence[dict[str, Any]], directory: Path, name: str) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 4))
    for kind in dict.fromkeys(point["kind"] for point in points):
        chosen = [point for point in points if point["kind"] == kind]
        axes.plot([p["recall@10"] for p in chosen], [1e6 / p["us"] for p in chosen], "o-", label=kind)
    axes.axhline(1e6 / points[0]["flat us"], color="black", linestyle="--", label="flat (exact)")
    axes.set(xlabel="recall of the nearest 10, by distance", ylabel="queries a second", yscale="log")
    axes.legend()
    figure.tight_layout()
    directory.mkdir(parents=True, exist_ok=True)
    figure.savefig(directory / name, dpi=120)


def main() -> int:
    benchmark = Benchmark("search", "Hamming search against faiss IndexBinaryFlat, usearch and numpy, one thread")
    benchmark.parser.add_argument("--rows", type=int, default=_ROWS, help="codes in the index")
    benchmark.parser.add_argument("--data", default=str(ROOT.parent / "shared" / "data"), help="real data sets")
    options = benchmark.parse()
    set_search_threads(1)
    rows = 100_000 if options.quick else options.rows
    lengths = (16, 32, 64, 128) if options.quick else (16, 24, 32, 64, 96, 128, 192, 256)
    ks, batches = ((10, 100), (1, 64)) if options.quick else ((10, 100, 1000), (1, 16, 256, 1024))
    random = np.random.default_rng(0)
    real = EmbeddingCodes(Path(options.data)) if Path(options.data).is_dir() else None
    table: list[dict[str, Any]] = []
    points: list[dict[str, Any]] = []
    for bits in lengths:
        uniform = random.integers(0, 256, (rows + 1024, bits // 8), dtype=np.uint8)
        sources = {"uniform": (uniform[:rows], uniform[rows:])}
        if real is not None:
            sources = {"real": real.make(rows, bits), **sources}
        for name, (database_NC, query_QC) in sources.items():
            measured = compare(database_NC, query_QC, ks, batches, slow=not options.quick)
            table += [{"codes": name, **row} for row in measured]
            print(name, bits, [round(row["speed-up"], 1) for row in measured], file=sys.stderr, flush=True)
            if bits == 64 and name == next(iter(sources)):
                exact_us = measured[len(batches) - 1]["codes us"]
                # The graph of ten million codes takes an hour.
                for kind in ("ivf",) if options.quick or rows > 2 * _ROWS else ("ivf", "hash", "multihash", "hnsw"):
                    points += curve(kind, database_NC, query_QC, exact_us)
    figures: dict[str, Any] = {"curve": points}
    for name in dict.fromkeys(row["codes"] for row in table):
        batched = [row for row in table if row["codes"] == name and row["batch"] >= 16]
        short = [row["speed-up"] for row in batched if row["bits"] in (16, 32, 64) and row["k"] <= 100]
        figures[f"{name}_speedup_least"] = round(min(row["speed-up"] for row in batched), 2)
        figures[f"{name}_speedup_geometric_mean_16_32_64"] = round(float(np.exp(np.mean(np.log(short)))), 2)
        figures[f"{name}_speedup_least_one_query"] = round(
            min(row["speed-up"] for row in table if row["codes"] == name and row["batch"] == 1), 2
        )
    result = "search" if options.quick or rows == _ROWS else f"search-{rows}"
    plot(points, Path(options.output), f"{result}-recall.png")
    notes = [
        f"{rows:,} codes, CPU time, one thread, microseconds a query. `search` is Index.search with ids, `codes` the "
        "search of distinct codes alone; the speed-up is that of `search`. Real: see benchmarks/embedding_codes.py.",
    ]
    benchmark.report(table, figures, {"IndexBinaryFlat": 1.0}, notes, result)
    return 0


if __name__ == "__main__":
    sys.exit(main())
