"""The service against the same search in process: throughput, latency, and what happens when it is too much.

    python -m benchmarks.serve [--quick] [--rows 1000000] [--data DIRECTORY]

One shard of 64-bit codes, one replica. The load comes from a process of its own: for throughput a few connections
that ask again as soon as they are answered; for latency at light load requests at fixed times, whether or not those
before are answered; for overload more connections than the service takes requests at once.
"""

from __future__ import annotations

import asyncio
import dataclasses
import multiprocessing
import socket
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from benchmarks.reporting import ROOT, Benchmark
from distindex.codes import CodeArray, to_hex

BITS, K = 64, 10
ARROW = "application/vnd.apache.arrow.stream"


@dataclasses.dataclass(frozen=True)
class Load:
    """What a load process sends.

    Attributes:
        url: the service.
        query_QC: queries to choose from.
        batch: queries a request.
        arrow: send and take Arrow streams instead of JSON.
        connections: requests at once; with `rate` the most.
        seconds: for how long.
        rate: requests a second, sent at fixed times; None sends the next when one is answered.
    """

    url: str
    query_QC: CodeArray
    batch: int
    arrow: bool
    connections: int
    seconds: float
    rate: float | None = None


@dataclasses.dataclass(frozen=True)
class Answered:
    """What came back: seconds of each request that was answered, how many were turned away, and the time in all."""

    latency_A: list[float]
    refused: int
    seconds: float

    def milliseconds(self, percent: float) -> float:
        return float(np.percentile(self.latency_A, percent)) * 1e3


def bodies(load: Load) -> tuple[list[bytes], dict[str, str]]:
    """Some different requests, ready to send, and their headers."""
    from distindex.serving import question
    from distindex.serving.request import make_request

    made = []
    for start in range(0, min(len(load.query_QC), 64 * load.batch), load.batch):
        part_QC = load.query_QC[start : start + load.batch]
        if load.arrow:
            made.append(question.to_arrow(make_request(part_QC, k=K)))
        else:
            texts = ",".join(f'"{text}"' for text in to_hex(part_QC))
            made.append(f'{{"codes":[{texts}],"k":{K}}}'.encode())
    return made, {"Content-Type": ARROW, "Accept": ARROW} if load.arrow else {"Content-Type": "application/json"}


async def _send(load: Load) -> Answered:
    contents, headers = bodies(load)
    latency_A: list[float] = []
    refused = sent = 0
    limits = httpx.Limits(max_connections=load.connections, max_keepalive_connections=load.connections)
    async with httpx.AsyncClient(limits=limits, timeout=60.0) as client:

        async def ask(number: int, asked: float) -> None:
            nonlocal refused
            content = contents[number % len(contents)]
            response = await client.post(f"{load.url}/v1/search", content=content, headers=headers)
            if response.status_code == 429:
                refused += 1
                return
            response.raise_for_status()
            latency_A.append(time.perf_counter() - asked)

        async def again_and_again(first: int) -> None:
            number = first
            while time.perf_counter() < until:
                await ask(number, time.perf_counter())
                number += load.connections

        await ask(0, time.perf_counter())
        latency_A.clear()
        began = time.perf_counter()
        until = began + load.seconds
        if load.rate is None:
            await asyncio.gather(*(again_and_again(first) for first in range(load.connections)))
        else:
            waiting: list[Awaitable[None]] = []
            while (due := began + sent / load.rate) < until:
                await asyncio.sleep(max(0.0, due - time.perf_counter()))
                # From when it was due: a service that is late must not be asked less for it.
                waiting.append(asyncio.create_task(ask(sent, due)))
                sent += 1
            await asyncio.gather(*waiting)
        return Answered(latency_A, refused, time.perf_counter() - began)


def _load_process(load: Load, result: Any) -> None:
    result.put(asyncio.run(_send(load)))


def put_load(load: Load) -> Answered:
    """Send the load from a process of its own."""
    context = multiprocessing.get_context("spawn")
    result = context.Queue()
    process = context.Process(target=_load_process, args=(load, result))
    process.start()
    answered = result.get(timeout=load.seconds + 120)
    process.join()
    return answered


def in_process(search: Callable[[CodeArray], Any], query_QC: CodeArray, batch: int, seconds: float) -> float:
    """Queries a second of one thread."""
    search(query_QC[:batch])
    done, began = 0, time.perf_counter()
    while time.perf_counter() - began < seconds:
        start = done % max(1, len(query_QC) - batch + 1)
        search(query_QC[start : start + batch])
        done += batch
    return done / (time.perf_counter() - began)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def main() -> int:
    benchmark = Benchmark("serve", "Queries a second and latency over HTTP against the same search in process")
    benchmark.parser.add_argument("--rows", type=int, default=1_000_000, help="codes in the index")
    benchmark.parser.add_argument("--data", default=str(ROOT.parent / "shared" / "data"), help="real data sets")
    options = benchmark.parse()
    rows, seconds = (100_000, 1.5) if options.quick else (options.rows, 8.0)

    from benchmarks.embedding_codes import EmbeddingCodes
    from distindex.config import ServeConfig
    from distindex.index.index import Index
    from distindex.index.structure import set_search_threads
    from distindex.serving.service import serve

    real = Path(options.data).is_dir()
    if real:
        code_NC, query_QC = EmbeddingCodes(Path(options.data)).make(rows, BITS)
    else:
        random = np.random.default_rng(0)
        code_NC = random.integers(0, 256, (rows, BITS // 8), dtype=np.uint8)
        query_QC = random.integers(0, 256, (1024, BITS // 8), dtype=np.uint8)
    table: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as directory:
        index = Index.create(directory, code_NC, np.arange(rows))
        set_search_threads(1)
        alone = {
            batch: in_process(lambda part_QC: index.search(part_QC, K), query_QC, batch, seconds / 2)
            for batch in (1, 16, 256, 1024)
        }
        config = ServeConfig(directory, port=free_port())
        with serve(config, blocking=False) as service:
            for batch in alone:
                for arrow in (False, True):
                    load = Load(service.url, query_QC, batch, arrow, 8 if batch == 1 else 2, seconds)
                    found = put_load(load)
                    speed = len(found.latency_A) * batch / found.seconds
                    table.append(
                        {
                            "load": "one after another",
                            "queries a request": batch,
                            "as": "Arrow" if arrow else "JSON",
                            "connections": load.connections,
                            "queries/s": speed,
                            "in process": alone[batch],
                            "share": speed / alone[batch],
                            **_latency(found),
                        }
                    )
            light = put_load(Load(service.url, query_QC, 1, False, 64, seconds, rate=20.0))
            table.append({"load": "20 requests/s", "queries a request": 1, "as": "JSON", **_latency(light)})
            many = 3 * config.max_requests
            over = put_load(Load(service.url, query_QC, 16, False, many, seconds))
            table.append(
                {
                    "load": "overload",
                    "queries a request": 16,
                    "as": "JSON",
                    "connections": many,
                    "queries/s": len(over.latency_A) * 16 / over.seconds,
                    **_latency(over),
                    "turned away": over.refused / max(1, over.refused + len(over.latency_A)),
                }
            )
        index.close()
    figures: dict[str, Any] = {
        f"share_of_in_process_{row['queries a request']}_{row['as'].lower()}": round(row["share"], 3)
        for row in table
        if "share" in row
    }
    figures |= {
        "light_load_p50_ms": round(light.milliseconds(50), 2),
        "light_load_p50_ms_over_in_process": round(light.milliseconds(50) - 1e3 / alone[1], 2),
        "overload_turned_away": round(table[-1]["turned away"], 3),
        "overload_p99_ms": round(over.milliseconds(99), 1),
    }
    notes = [
        f"{rows:,} {'real' if real else 'uniform'} codes of {BITS} bits, k = {K}, one shard, one replica. The "
        "baseline is Index.search in process on one thread. Wall time; the process that sends the load shares the "
        "cores with the service.",
    ]
    benchmark.report(table, figures, {"in process": 1.0}, notes)
    return 0


def _latency(found: Answered) -> dict[str, float]:
    return {f"p{percent} ms": found.milliseconds(percent) for percent in (50, 95, 99)}


if __name__ == "__main__":
    sys.exit(main())
