"""How an index of tens of millions of codes is built, changed and searched on one machine: time, memory, bytes a row.

    python -m benchmarks.scale --quick
    python -m benchmarks.scale --rows 50000000 --shards 8 --work /fast/disk

Two code sets are made: uniform ones, where every code is different, and ones that fall as learned codes do: 20,000
clusters whose sizes follow Zipf's law, each bit of a cluster flipped with a probability of its own, most near 0,
so that many rows share a code and neighbours are near.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.reporting import Benchmark
from distindex.building import append, build, compact, delete
from distindex.change_config import AppendConfig, CompactConfig, DeleteConfig
from distindex.codeset import CodeSetManifest, HasherReference, OutputFile, commit
from distindex.config import BuildConfig
from distindex.index.index import Index
from distindex.index.structure import set_search_threads
from distindex.storage import Storage

BITS = 64
FILE_ROWS = 1_000_000
CLUSTERS = 20_000
QUERIES = 64


def uniform_codes(rows: int, random: np.random.Generator) -> npt.NDArray[np.uint8]:
    return random.integers(0, 256, (rows, BITS // 8), np.uint8)


def clustered_codes(rows: int, random: np.random.Generator) -> npt.NDArray[np.uint8]:
    """Codes of the same clusters for any generator; only which rows are drawn depends on it."""
    clusters = np.random.default_rng(0)
    center_LK = clusters.integers(0, 2, (CLUSTERS, BITS), np.uint8)
    flip_LK = clusters.beta(0.15, 3.0, (CLUSTERS, BITS)).astype(np.float32)
    share_L = 1 / np.arange(1, CLUSTERS + 1)
    cluster_N = random.choice(CLUSTERS, rows, p=share_L / share_L.sum())
    code_NC = np.empty((rows, BITS // 8), np.uint8)
    for start in range(0, rows, 100_000):
        part = cluster_N[start : start + 100_000]
        flipped = random.random((len(part), BITS), np.float32) < flip_LK[part]
        code_NC[start : start + len(part)] = np.packbits(center_LK[part] ^ flipped, axis=1, bitorder="little")
    return code_NC


MAKERS = {"clustered": clustered_codes, "uniform": uniform_codes}


def write_code_set(root: Path, kind: str, rows: int, first_id: int, seed: int) -> str:
    """Ids are consecutive from `first_id`, in random order within each file."""
    storage = Storage(str(root))
    parts = []
    for number, start in enumerate(range(0, rows, FILE_ROWS)):
        count = min(FILE_ROWS, rows - start)
        random = np.random.default_rng([seed, number])
        code_NC = MAKERS[kind](count, random)
        ids = pa.array(random.permutation(count).astype(np.int64) + first_id + start)
        code = pa.FixedSizeBinaryArray.from_buffers(pa.binary(BITS // 8), count, [None, pa.py_buffer(code_NC)])
        path = f"part-{number:05d}.parquet"
        with storage.open_output(path) as stream:
            pq.write_table(pa.table({"id": ids, "code": code}), stream, compression="none", use_dictionary=False)
        data = storage.read_bytes(path)
        parts.append(OutputFile(path, count, len(data), hashlib.sha256(data).hexdigest()))
    hasher = HasherReference("none", kind)
    commit(storage, CodeSetManifest(BITS, hasher, "int64", (), rows, 0, (), tuple(parts)))
    return str(root)


class MemoryWatch:
    """The largest resident size that any process started by this one, or this one, has had meanwhile."""

    def __init__(self) -> None:
        self.peak = 0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> MemoryWatch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._ended.wait(0.25):
            for status in Path("/proc").glob("[0-9]*/status"):
                try:
                    text, command = status.read_text(), (status.parent / "cmdline").read_bytes()
                except OSError:
                    continue
                # Ray's own servers are not part of the job.
                if command.startswith(b"ray::") or status.parent.name == str(os.getpid()):
                    self.peak = max(self.peak, kilobytes(text, "VmRSS:") << 10)


def kilobytes(status: str, name: str) -> int:
    return next((int(line.split()[1]) for line in status.splitlines() if line.startswith(name)), 0)


def resident() -> int:
    return kilobytes(Path("/proc/self/status").read_text(), "VmRSS:") << 10


def seconds_per_query(index: Index, query_QC: npt.NDArray[np.uint8], batch: int, k: int) -> float:
    started = time.perf_counter()
    for start in range(0, len(query_QC), batch):
        index.search(query_QC[start : start + batch], k)
    return (time.perf_counter() - started) / len(query_QC)


def measure(kind: str, rows: int, shards: int, work: Path) -> dict[str, Any]:
    codes = write_code_set(work / f"{kind}-codes", kind, rows, 0, seed=1)
    home = str(work / f"{kind}-index")
    with MemoryWatch() as watch:
        built = build(BuildConfig(codes, home, shards=shards))
    shutil.rmtree(codes)
    random = np.random.default_rng(5)
    query_QC = MAKERS[kind](QUERIES, random)

    before = resident()
    started = time.perf_counter()
    index = Index.open(home)
    opened = time.perf_counter() - started
    one, many = seconds_per_query(index, query_QC[:8], 1, 10), seconds_per_query(index, query_QC, QUERIES, 10)
    # Every page of the files that searches can reach.
    for shard in index._shards or ():
        for array in (shard.flat.code_UC, shard.postings.delta_D, shard.id_N.to_numpy()):
            array.sum()
    held = resident() - before
    index.close()

    added = rows // 50
    more = write_code_set(work / f"{kind}-more", kind, added, rows, seed=2)
    with MemoryWatch() as append_watch:
        appended = append(AppendConfig(more, home))
    deleted = delete(DeleteConfig(home, ids=random.choice(rows, added, replace=False).tolist()))
    with MemoryWatch() as compact_watch:
        compacted = compact(CompactConfig(home, shards=shards))
    with Index.open(home) as index:
        assert index.rows == rows
    shutil.rmtree(home)
    return {
        "codes": kind,
        "rows": rows,
        "distinct": built.distinct,
        "shards": shards,
        "build s": round(built.seconds, 1),
        "build peak MB": watch.peak // 10**6,
        "bytes/row on disk": round(built.bytes / rows, 2),
        "bytes/row in memory": round(held / rows, 2),
        "open s": round(opened, 2),
        "ms/query": round(1000 * one, 2),
        f"ms/query of {QUERIES}": round(1000 * many, 2),
        "append 2% s": round(appended.seconds, 1),
        "append peak MB": append_watch.peak // 10**6,
        "delete 2% s": round(deleted.seconds, 1),
        "compact s": round(compacted.seconds, 1),
        "compact peak MB": compact_watch.peak // 10**6,
    }


def main() -> None:
    benchmark = Benchmark("scale", "An index built, changed and searched on one machine: time, memory, bytes a row.")
    benchmark.parser.add_argument("--rows", type=int, default=50_000_000, help="rows of each code set")
    benchmark.parser.add_argument("--shards", type=int, default=8, help="shards of each index")
    benchmark.parser.add_argument("--work", help="directory for what is built (default: a temporary one)")
    arguments = benchmark.parse()
    rows, shards = (1_000_000, 2) if arguments.quick else (arguments.rows, arguments.shards)
    set_search_threads(os.cpu_count() or 1)
    with tempfile.TemporaryDirectory(dir=arguments.work) as work:
        table = [measure(kind, rows, shards, Path(work)) for kind in MAKERS]
    transposed = [
        {"measure": name} | {row["codes"]: row[name] for row in table} for name in table[0] if name != "codes"
    ]
    figures = {row["codes"]: {name: value for name, value in row.items() if name != "codes"} for row in table}
    # A code of 8 bytes and an id of 8, and 15% for everything else.
    limit = round(1.15 * (BITS // 8 + 8), 2)
    benchmark.report(
        transposed,
        figures,
        {"bytes/row on disk": limit, "bytes/row in memory": limit},
        notes=[
            f"{BITS} bits, int64 ids, no payload. The baseline of bytes a row is code + id + 15%.",
            "Searches of k = 10 in one process with all shards. Bytes in memory are the growth of its resident size,",
            "with every page of the files touched. Peaks are of the job's largest process, sampled every 0.25 s.",
        ],
    )


if __name__ == "__main__":
    main()
