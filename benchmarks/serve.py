"""The service against the same search in process: throughput, latency, and what happens when it is too much.

    python -m benchmarks.serve [--quick] [--rows 10000000] [--data DIRECTORY]

One shard of 64-bit codes, one replica. The load comes from a process of its own: for throughput a few connections
that ask again as soon as they are answered; for latency at light load, and for overload, requests at fixed times,
whether or not those before are answered. Beside it other searchers of the same codes, each with the same k.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.reporting import ROOT, Benchmark
from benchmarks.serve_load import Answered, Form, K, Load, put_load
from benchmarks.serve_peers import Search, faiss_service, free_port, lance_search, usearch_search
from distindex.codes import CodeArray

BITS = 64
BATCHES = (1, 16, 256, 1024)
PEERS: dict[str, Callable[[CodeArray, Path], Search | None]] = {
    "usearch in process": usearch_search,
    "LanceDB in process": lance_search,
}
FAISS = "faiss behind FastAPI"
# Large requests, so that the process that sends them is not what is overloaded; few at once, which is soon reached.
OVERLOADED, EXCESS, MAX_REQUESTS = 256, 3, 32
# Of many codes some peers take minutes for one large request, which would tell nothing that a smaller one has not.
PATIENCE_S = 10


def in_process(search: Callable[[CodeArray], Any], query_QC: CodeArray, batch: int, seconds: float) -> float:
    """Queries a second of one caller."""
    search(query_QC[:batch])
    done, began = 0, time.perf_counter()
    while time.perf_counter() - began < seconds:
        start = done % max(1, len(query_QC) - batch + 1)
        search(query_QC[start : start + batch])
        done += batch
    return done / (time.perf_counter() - began)


def latency(found: Answered) -> dict[str, float]:
    return {f"p{percent} ms": found.milliseconds(percent) for percent in (50, 95, 99)}


def left_out(name: str, batch: int, speed: float | None) -> dict[str, Any] | None:
    """The row of a peer whose requests would take too long, by the queries a second of smaller ones."""
    if speed is None or batch <= speed * PATIENCE_S:
        return None
    return {"service": name, "load": f"left out: {batch / speed:,.0f} s a request", "queries a request": batch}


def throughput(
    urls: dict[Form, str], query_QC: CodeArray, alone: dict[int, float], seconds: float, name: str
) -> list[dict[str, Any]]:
    """One row for each size of a request and each form of it, with the address that takes this form."""
    rows: list[dict[str, Any]] = []
    for batch in BATCHES:
        for form, url in urls.items():
            if out := left_out(name, batch, rows[-1]["queries/s"] if rows else None):
                return [*rows, out]
            load = Load(url, query_QC, batch, form, 8 if batch == 1 else 2, seconds)
            print(f"{name}: {batch} queries a request, {form}", file=sys.stderr, flush=True)
            found = put_load(load)
            if found.failed:
                raise AssertionError(f"{name}: {found.failed} requests failed")
            rows.append(
                {
                    "service": name,
                    "load": "one after another",
                    "queries a request": batch,
                    "as": form,
                    "connections": load.connections,
                    "queries/s": found.rate * batch,
                    "in process": alone[batch],
                    "share": found.rate * batch / alone[batch],
                    **latency(found),
                }
            )
    return rows


def light(url: str, query_QC: CodeArray, seconds: float, name: str) -> dict[str, Any]:
    found = put_load(Load(url, query_QC, 1, "JSON", 64, seconds, rate=20.0))
    return {"service": name, "load": "20 requests/s", "queries a request": 1, "as": "JSON", **latency(found)}


def peer_rows(
    code_NC: CodeArray, query_QC: CodeArray, expected_QK: np.ndarray, directory: Path, seconds: float
) -> list[dict[str, Any]]:
    """Queries a second of the searchers without a service; refuses to time wrong answers."""
    rows = []
    for name, make in PEERS.items():
        search = make(code_NC, directory)
        if search is None:
            rows.append({"service": name, "load": "not installed: pip install distindex[bench]"})
            continue
        few = len(expected_QK)
        if not np.array_equal(np.sort(search(query_QC[:few]), axis=1), expected_QK):
            raise AssertionError(f"{name} and the index disagree about the distances")
        speed = None
        for batch in BATCHES:
            if out := left_out(name, batch, speed):
                rows.append(out)
                break
            speed = in_process(search, query_QC, batch, seconds / 4)
            rows.append(
                {"service": name, "load": "one after another", "queries a request": batch, "queries/s": speed}
            )
    return rows


def main() -> int:
    benchmark = Benchmark("serve", "Queries a second and latency over HTTP against the same search in process")
    benchmark.parser.add_argument("--rows", type=int, default=1_000_000, help="codes in the index")
    benchmark.parser.add_argument("--data", default=str(ROOT.parent / "shared" / "data"), help="real data sets")
    options = benchmark.parse()
    rows, seconds = (100_000, 1.0) if options.quick else (options.rows, 8.0)

    from benchmarks.embedding_codes import EmbeddingCodes
    from distindex.index.index import Index
    from distindex.index.structure import set_search_threads
    from distindex.serve_config import ServeConfig
    from distindex.serving.service import serve

    real = Path(options.data).is_dir()
    if real:
        code_NC, query_QC = EmbeddingCodes(Path(options.data)).make(rows, BITS)
    else:
        random = np.random.default_rng(0)
        code_NC = random.integers(0, 256, (rows, BITS // 8), dtype=np.uint8)
        query_QC = random.integers(0, 256, (1024, BITS // 8), dtype=np.uint8)
    with tempfile.TemporaryDirectory() as directory:
        index = Index.create(f"{directory}/index", code_NC, np.arange(rows))
        set_search_threads(1)
        alone = {
            batch: in_process(lambda part_QC: index.search(part_QC, K), query_QC, batch, seconds / 2)
            for batch in BATCHES
        }
        expected_QK = index.search(query_QC[:32], K).distance_M.reshape(32, K)
        config = ServeConfig(f"{directory}/index", port=free_port(), grpc_port=free_port(), max_requests=MAX_REQUESTS)
        with serve(config, blocking=False) as service:
            urls: dict[Form, str] = {
                "JSON": service.url,
                "Arrow": service.url,
                "gRPC": f"127.0.0.1:{config.grpc_port}",
            }
            table = throughput(urls, query_QC, alone, seconds, "distindex")
            table.append(light(service.url, query_QC, seconds, "distindex"))
            light_p50 = table[-1]["p50 ms"]
            capacity = next(
                row["queries/s"] / OVERLOADED
                for row in table
                if row["queries a request"] == OVERLOADED and row["as"] == "JSON"
            )
            overload = Load(
                service.url, query_QC, OVERLOADED, "JSON", 8 * MAX_REQUESTS, seconds, rate=EXCESS * capacity
            )
            over = put_load(overload)
            table.append(
                {
                    "service": "distindex",
                    "load": f"overload, {EXCESS * capacity:,.0f} requests/s",
                    "queries a request": OVERLOADED,
                    "as": "JSON",
                    "connections": overload.connections,
                    "queries/s": over.rate * OVERLOADED,
                    **latency(over),
                    "turned away": over.refused,
                    "p99 ms of those": float(np.percentile(over.refusal_B, 99)) * 1e3
                    if len(over.refusal_B)
                    else None,
                }
            )
        with faiss_service(code_NC) as url:
            table += throughput({"JSON": url}, query_QC, alone, seconds / 2, FAISS)
            table.append(light(url, query_QC, seconds / 2, FAISS))
        index.close()
        table += peer_rows(code_NC, query_QC, expected_QK, Path(directory), seconds)
    ours = [row for row in table if row["service"] == "distindex"]
    figures: dict[str, Any] = {
        f"share_of_in_process_{row['queries a request']}_{row['as'].lower()}": round(row["share"], 3)
        for row in ours
        if "share" in row
    }
    figures |= {
        "single_queries_a_second": round(ours[0]["queries/s"]),
        "light_load_p50_ms": round(light_p50, 2),
        "light_load_p50_ms_over_in_process": round(light_p50 - 1e3 / alone[1], 2),
        "overload_turned_away": round(over.refused, 3),
        "overload_failed": over.failed,
        "overload_p99_ms": round(over.milliseconds(99), 1),
        "overload_bound_ms": round(1e3 * MAX_REQUESTS / over.rate, 1),
        "overload_answered_of_capacity": round(over.rate / capacity, 2),
        "overload_growth": round(over.growth(), 2),
    }
    baselines = {
        "in process": 1.0,
        "single_queries_a_second": {
            row["service"]: round(row["queries/s"])
            for row in table
            if row["service"] != "distindex" and row.get("queries a request") == 1 and "queries/s" in row
        },
    }
    notes = [
        f"{rows:,} {'real' if real else 'uniform'} codes of {BITS} bits, k = {K}, one shard, one replica. The "
        "baseline is Index.search in process on one thread. Wall time; the process that sends the load shares the "
        "cores with the service. The peers find the same distances, exactly: faiss IndexBinaryFlat on one thread in "
        f"a process of its own, usearch on one thread, LanceDB on all. Overload is {EXCESS} times what {OVERLOADED} "
        "queries a request reach as JSON, at fixed times whether or not answers come; the service takes "
        f"{MAX_REQUESTS} requests at once, and the bound is as many at the rate at which they were answered. Turned "
        "away is who got 429 with Retry-After; any other end is a failure.",
    ]
    usual = options.quick or rows == benchmark.parser.get_default("rows")
    benchmark.report(table, figures, baselines, notes, result=None if usual else f"serve-{rows}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
