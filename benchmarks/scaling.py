"""What one process does for the whole of a large job, by the number of files, shards and workers.

    python -m benchmarks.scaling --quick
    python -m benchmarks.scaling

Everything else of a job is a task on some worker. Each step is measured at several sizes, ten times apart or so; its
cost for one file, shard, task or row must not grow, and the largest projects to 10 billion rows in 10,000 files and
64 shards.
"""

from __future__ import annotations

import logging
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray

from benchmarks.reporting import Benchmark
from distindex.building.each import on_ray
from distindex.codeset import CodeSet, CodeSetManifest, HasherReference, InputFile, OutputFile, PartSource, commit
from distindex.config import CorpusConfig
from distindex.corpus.dataset import Corpus
from distindex.encoding.tasks import plan_tasks
from distindex.index import manifest as versions
from distindex.index.manifest import ShardEntry
from distindex.index.matches import Matches, merge
from distindex.index.partition import shard_of_codes
from distindex.runtime import prepare_environment
from distindex.storage import Storage

BITS = 64
# Processes that answer at once, as many idle ones would; more of them would only fight for the cores.
WORKERS = 4
PROJECTED = {"files": 10_000, "tasks": 10_000, "shards": 64, "rows": 10**10}
QUERIES, K = 64, 100
SHA = "0" * 64

Step = tuple[str, str, int, float]


def seconds(work: Callable[[], Any], repeats: int, clock: Callable[[], float] = time.process_time) -> float:
    """The shortest of some runs, by default in processor time of this process: what else runs only adds to it."""
    taken = []
    for _ in range(repeats):
        began = clock()
        work()
        taken.append(clock() - began)
    return min(taken)


def files_of_a_corpus(root: Path, count: int, repeats: int) -> Iterator[Step]:
    """Finding the files and their schemas, and cutting them into tasks with the names of what they give."""
    home = root / f"corpus-{count}"
    home.mkdir()
    table = pa.table({"id": pa.array(range(4)), "vector": pa.array(np.zeros((4, 8), np.float32).tolist())})
    for number in range(count):
        pq.write_table(table, home / f"{number:06d}.parquet")
    config = CorpusConfig(str(home), "vector")
    yield "open a corpus", "files", count, seconds(lambda: Corpus.open(config), repeats)
    corpus = Corpus.open(config)

    def plan() -> None:
        for task in plan_tasks(corpus, 256.0):
            task.names(corpus, "fingerprint")

    yield "plan the tasks", "files", count, seconds(plan, repeats)


def manifest_of_a_code_set(root: Path, count: int, repeats: int) -> Iterator[Step]:
    """Committing what was encoded, and reading it again."""
    inputs = tuple(InputFile(f"s3://bucket/corpus/{n:06d}.parquet", 1 << 28, SHA[:32], 10**6) for n in range(count))
    files = tuple(OutputFile(f"part-{n:05d}-{SHA[:16]}.parquet", 10**6, 1 << 24, SHA) for n in range(count))
    sources = tuple(PartSource(n, 0, 10**6, SHA[:32]) for n in range(count))
    hasher = HasherReference("s3://bucket/hasher", SHA[:16])
    manifest = CodeSetManifest(
        BITS, hasher, "int64", (), count * 10**6, 0, inputs, files, sources=sources, ids=SHA[:32]
    )
    homes = iter(range(repeats))
    yield (
        "commit a code set", "files", count,
        seconds(lambda: commit(Storage(str(root / f"codes-{count}-{next(homes)}")), manifest), repeats),
    )  # fmt: skip
    yield "open a code set", "files", count, seconds(lambda: CodeSet.open(str(root / f"codes-{count}-0")), repeats)


def manifest_of_an_index(root: Path, count: int, repeats: int) -> Iterator[Step]:
    """Committing a version and reading it."""
    shards = [ShardEntry(f"{n:032x}", 10**8, 10**8, 1 << 31, f"{n:064x}") for n in range(count)]
    homes = iter(range(repeats))

    def write() -> None:
        storage = Storage(str(root / f"index-{count}-{next(homes)}"))
        planned = versions.following(
            None, storage, bits=BITS, id_type="int64", payload=[], hasher=None, command="benchmark"
        )
        versions.commit(storage, planned, shards)

    yield "commit a version", "shards", count, seconds(write, repeats)
    storage = Storage(str(root / f"index-{count}-0"))
    yield "read a version", "shards", count, seconds(lambda: versions.read_manifest(storage), repeats)


def merging(count: int, repeats: int) -> Iterator[Step]:
    """Merging the answers of the shards to a batch of queries, which the router does."""
    random = np.random.default_rng(0)
    parts = []
    for shard in range(count):
        distances = np.sort(random.integers(0, 12, (QUERIES, K)), axis=1).astype(np.int32).ravel()
        rows = QUERIES * K
        parts.append(
            Matches(
                np.arange(QUERIES + 1) * K,
                distances,
                random.integers(0, 256, (rows, BITS // 8), dtype=np.uint8),
                pa.array(random.permutation(rows) * count + shard),
                pa.table({"label": pa.array(["a"] * rows)}),
                1,
            )
        )
    yield f"merge answers ({QUERIES} queries, k = {K})", "shards", count, seconds(lambda: merge(parts, K), repeats)


def routing(rows: int, repeats: int) -> Iterator[Step]:
    """The shard of each row, which every worker computes."""
    code_NC = np.random.default_rng(0).integers(0, 256, (rows, BITS // 8), dtype=np.uint8)
    yield "find the shard of codes", "rows", rows, seconds(lambda: shard_of_codes(code_NC, 64), repeats)


def nothing(shared: Any, item: int) -> int:
    return item


def dispatching(count: int, repeats: int) -> Iterator[Step]:
    """Handing tasks to workers and taking their answers, where the tasks themselves take no time."""
    items = list(range(count))

    def dispatch() -> None:
        assert on_ray(nothing, None, items, what="dispatch") == items

    # By the clock on the wall, since the workers are part of it.
    yield "dispatch to workers", "tasks", count, seconds(dispatch, repeats, time.perf_counter)


def growth(steps: Sequence[Step]) -> list[dict[str, Any]]:
    """The table: each step at each of its sizes, with the cost of one and that over the one at the size before."""
    rows, before = [], {}
    for name, unit, count, taken in steps:
        one = taken / count
        rows.append(
            {
                "step": name,
                "of": unit,
                "number": count,
                "ms": round(1e3 * taken, 2),
                "ns each": round(1e9 * one, 1),
                "over the size before": round(one / before[name], 2) if name in before else None,
                "projected s": round(one * PROJECTED[unit], 3),
            }
        )
        before[name] = one
    return rows


def main() -> None:
    benchmark = Benchmark("scaling", "The serial parts of large jobs by files, shards and workers")
    arguments = benchmark.parse()
    files = [50, 250] if arguments.quick else [100, 1_000, 5_000]
    shards = [8, 64] if arguments.quick else [8, 64, 512]
    tasks = [100, 1_000] if arguments.quick else [100, 1_000, 10_000]
    codes = [100_000, 1_000_000] if arguments.quick else [1_000_000, 10_000_000]
    repeats = 3
    prepare_environment()
    steps: list[Step] = []
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        for count in files:
            steps += [*files_of_a_corpus(root, count, repeats), *manifest_of_a_code_set(root, count, repeats)]
        for count in shards:
            steps += [*manifest_of_an_index(root, count, repeats), *merging(count, repeats)]
        for count in codes:
            steps += routing(count, repeats)
    ray.init(
        address="local", num_cpus=WORKERS, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR
    )
    try:
        on_ray(nothing, None, list(range(100)), what="warm up")
        for count in tasks:
            steps += dispatching(count, 3 if count < 10_000 else 1)
    finally:
        ray.shutdown()
    order = list(dict.fromkeys(step[0] for step in steps))
    rows = growth(sorted(steps, key=lambda step: order.index(step[0])))
    last = {row["step"]: row for row in rows}
    benchmark.report(
        rows,
        figures={
            "largest_growth": max(row["over the size before"] for row in last.values()),
            "projected_s": sum(row["projected s"] for row in last.values() if row["of"] in ("files", "tasks")),
        },
        baselines={"largest_growth": 1.0},
        notes=[
            "A cost of one that falls with the size is a fixed part that is shared; one that grows would not scale. "
            "Merging sorts, so that eight times the shards are some 1.2 times the cost of each.",
            f"Projected to {PROJECTED['rows']:,} rows, {PROJECTED['files']:,} files, {PROJECTED['shards']} shards. "
            "Files are on a local disk; in an object store each file that is opened costs a request more.",
            "The shard of each code is found by the workers, so that its projection is their time in all.",
            "Processor time of one process, besides which it waits for its files; dispatching in time on the wall.",
        ],
    )


if __name__ == "__main__":
    main()
