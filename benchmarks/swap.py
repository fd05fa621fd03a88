"""A service under steady load that goes from version to version: what fails, what waits, what memory is kept.

    python -m benchmarks.swap [--quick] [--rows 200000] [--shards 1] [--swaps 100]

Requests come from a process of their own at fixed times, whether or not those before are answered. Each answer is
compared with that of its version in process. The baseline is the same load on the same service with no swap.
"""

from __future__ import annotations

import asyncio
import dataclasses
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import numpy.typing as npt

from benchmarks.reporting import Benchmark
from benchmarks.serve_peers import free_port
from distindex.codes import CodeArray, to_hex

BITS, K, CONNECTIONS = 64, 10, 64
# Beside each other in the ids: which version an answer is of can be seen in every row of it.
APART = 1 << 40
PAUSE_S = 0.3


@dataclasses.dataclass(frozen=True)
class Load:
    """What the load process sends: single queries, `rate` a second, until it is told to stop.

    Attributes:
        url: the service.
        texts: the queries in hexadecimal.
        expected: for each version, the ids that answer each query.
        rate: requests a second.
    """

    url: str
    texts: list[str]
    expected: Mapping[int, list[list[int]]]
    rate: float


@dataclasses.dataclass(frozen=True)
class Seen:
    """What came back.

    Attributes:
        due_A: when each request was due, in seconds of the system's monotonic clock.
        latency_A: seconds from then to its answer.
        version_A: the version that answered.
        failed: requests without an answer, each with its reason.
        wrong: answers that are not those of the version that they name.
    """

    due_A: npt.NDArray[np.float64]
    latency_A: npt.NDArray[np.float64]
    version_A: npt.NDArray[np.int64]
    failed: list[str]
    wrong: int

    def between(self, began: float, ended: float) -> npt.NDArray[np.float64]:
        """The latencies of the requests that were due in a span of time."""
        return self.latency_A[(self.due_A >= began) & (self.due_A < ended)]


async def _send(load: Load, stop: Any) -> Seen:
    answered: list[tuple[float, float, int]] = []
    failed: list[str] = []
    wrong = 0
    connector = aiohttp.TCPConnector(limit=CONNECTIONS)
    async with aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(60)) as session:

        async def ask(number: int, due: float) -> None:
            nonlocal wrong
            query = number % len(load.texts)
            try:
                body = {"codes": load.texts[query], "k": K}
                async with session.post(f"{load.url}/v1/search", json=body) as response:
                    if response.status != 200:
                        failed.append(f"{response.status} {await response.text()}")
                        return
                    answer = await response.json()
            except (aiohttp.ClientError, TimeoutError) as error:
                failed.append(repr(error))
                return
            answered.append((due, time.monotonic() - due, answer["version"]))
            wrong += [row["id"] for row in answer["results"][0]] != load.expected[answer["version"]][query]

        began, sent = time.monotonic(), 0
        tasks: set[asyncio.Task[None]] = set()
        while not stop.is_set():
            due = began + sent / load.rate
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            task = asyncio.create_task(ask(sent, due))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
            sent += 1
        await asyncio.gather(*tasks)
    due_A, latency_A, version_A = (np.array(column) for column in zip(*answered, strict=True))
    return Seen(due_A, latency_A, version_A.astype(np.int64), failed, wrong)


def _load_process(load: Load, stop: Any, result: Any) -> None:
    result.put(asyncio.run(_send(load, stop)))


def service_memory() -> tuple[float, int]:
    """MiB of the service's replicas, and how many processes these are.

    Shared pages count once; pages of files do not, as the share of those of libraries depends on who else runs.
    """
    parents: dict[int, int] = {}
    sizes: dict[int, int] = {}
    for process in Path("/proc").iterdir():
        if not process.name.isdigit():
            continue
        try:
            # After the name in parentheses: the state and the parent.
            stat = (process / "stat").read_text().rpartition(")")[2].split()
            parents[int(process.name)] = int(stat[1])
            if (process / "cmdline").read_bytes().startswith(b"ray::ServeReplica:"):
                lines = (process / "smaps_rollup").read_text().splitlines()
                kept = [int(line.split()[1]) for line in lines if line.startswith(("Pss_Anon:", "Pss_Shmem:"))]
                sizes[int(process.name)] = sum(kept)
        except OSError:
            # It has ended meanwhile.
            continue

    def is_ours(process: int) -> bool:
        while process and process != os.getpid():
            process = parents.get(process, 0)
        return bool(process)

    ours = [size for process, size in sizes.items() if is_ours(process)]
    return sum(ours) / 1024, len(ours)


def make_index(uri: str, rows: int, shards: int, query_QC: CodeArray) -> dict[int, list[list[int]]]:
    """Two versions with other codes and ids; for each the ids that answer the queries, in process."""
    from distindex.index.index import Index

    expected = {}
    for version in (1, 2):
        code_NC = np.random.default_rng(version).integers(0, 256, (rows, BITS // 8), np.uint8)
        with Index.create(uri, code_NC, version * APART + np.arange(rows), shards=shards) as index:
            found = index.search(query_QC, K)
        expected[version] = found.id_M.to_numpy().reshape(len(query_QC), K).tolist()
    return expected


def percentiles(seconds_A: npt.NDArray[np.float64]) -> dict[str, float]:
    values = {f"p{share} ms": float(np.percentile(seconds_A, share)) * 1e3 for share in (50, 95, 99)}
    return {**values, "longest ms": float(seconds_A.max()) * 1e3}


def main() -> int:
    benchmark = Benchmark("swap", "A service under steady load that goes from version to version")
    benchmark.parser.add_argument("--rows", type=int, default=200_000, help="codes in each version")
    benchmark.parser.add_argument("--shards", type=int, default=1, help="shards of each version")
    benchmark.parser.add_argument("--swaps", type=int, default=100, help="changes of the version")
    benchmark.parser.add_argument("--rate", type=float, default=50.0, help="requests a second")
    options = benchmark.parse()
    rows, swaps, quiet_s = (20_000, 6, 3.0) if options.quick else (options.rows, options.swaps, 20.0)

    from distindex.serve_config import DeployConfig, ServeConfig
    from distindex.serving.deploy import deploy
    from distindex.serving.service import serve

    query_QC = np.random.default_rng(0).integers(0, 256, (200, BITS // 8), np.uint8)
    with tempfile.TemporaryDirectory() as directory:
        expected = make_index(f"{directory}/index", rows, options.shards, query_QC)
        began = time.monotonic()
        with serve(ServeConfig(f"{directory}/index", version=1, port=free_port()), blocking=False) as service:
            start_s = time.monotonic() - began
            context = multiprocessing.get_context("spawn")
            stop, result = context.Event(), context.Queue()
            load = Load(service.url, to_hex(query_QC), expected, options.rate)
            process = context.Process(target=_load_process, args=(load, stop, result))
            process.start()
            # The load has to come up, and both versions to be loaded once: what is allocated then stays.
            time.sleep(3.0)
            for version in (2, 1):
                deploy(DeployConfig(service.url, version))
            time.sleep(PAUSE_S)
            (before_mib, before_processes), quiet = service_memory(), time.monotonic()
            time.sleep(quiet_s)
            swapping, swap_s = time.monotonic(), []
            for swap in range(swaps):
                swap_s.append(deploy(DeployConfig(service.url, 2 - swap % 2)).seconds)
                time.sleep(PAUSE_S)
            ended = time.monotonic()
            # As long as Serve takes to end the last processes.
            time.sleep(10.0)
            after_mib, after_processes = service_memory()
            stop.set()
            seen: Seen = result.get(timeout=120)
            process.join()
    alone_A, during_A = seen.between(quiet, swapping), seen.between(swapping, ended)
    table = [
        {"": "no swaps", "seconds": swapping - quiet, "answers": len(alone_A), **percentiles(alone_A)},
        {"": f"{swaps} swaps", "seconds": ended - swapping, "answers": len(during_A), **percentiles(during_A)},
    ]
    versions, counts = np.unique(seen.version_A, return_counts=True)
    answers = ", ".join(f"{count:,} of version {version}" for version, count in zip(versions, counts, strict=True))
    figures = {
        "swaps": swaps,
        "requests": len(seen.latency_A) + len(seen.failed),
        "failed": len(seen.failed),
        "wrong_answers": seen.wrong,
        "swap_s_median": round(float(np.median(swap_s)), 3),
        "swap_s_longest": round(max(swap_s), 3),
        "p99_ms": round(table[1]["p99 ms"], 2),
        "memory_mib": round(after_mib, 1),
        "memory_growth": round(after_mib / before_mib - 1, 4),
        "processes": after_processes,
    }
    baselines = {
        "p99_ms": round(table[0]["p99 ms"], 2),
        "memory_mib": round(before_mib, 1),
        "processes": before_processes,
        "start_s": round(start_s, 2),
    }
    notes = [
        f"Two versions of {rows:,} uniform codes of {BITS} bits in {options.shards} shards, single queries, k = {K}, "
        f"{options.rate:g} requests a second from a process that shares the cores: {answers}. "
        "An answer is wrong unless it is, row by row, that of the version that it names. Memory is what the "
        "service's replicas hold besides files (proportional set size), after both versions had been served once and "
        "10 s after the last swap. "
        f"Without swaps another version takes a new start: {start_s:.1f} s without an answer.",
        *[f"Failed: {reason}" for reason in sorted(set(seen.failed))[:5]],
    ]
    benchmark.report(table, figures, baselines, notes, "swap" if options.shards == 1 else "swap-shards")
    return 0 if not seen.failed and not seen.wrong else 1


if __name__ == "__main__":
    sys.exit(main())
