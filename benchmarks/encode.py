"""Rows per second of `distindex encode`, against a bare loop in one process with the same number of threads.

The bare loop reads the same Parquet files with pyarrow, calls the same hasher batch by batch, packs the bits and
writes Parquet: no Ray, no checks of rows and ids, no tasks, nothing to resume. Both use all cores: the loop by
torch's threads, `encode` by one encoder a core, at the same priority. Data and hashers are generated; what a network
has learned does not change its speed.

    python -m benchmarks.encode [--quick]
"""

from __future__ import annotations

import dataclasses
import io
import itertools
import multiprocessing
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image

from benchmarks.reporting import Benchmark
from distindex.config import CorpusConfig, EncodeConfig, FeaturesConfig, WorkersConfig
from distindex.corpus.features import DenseFeatures, Features, fit_features
from distindex.encoding import EncodeReport, encode
from distindex.hashing.hasher import Hasher

BITS, HIDDEN, BATCH_ROWS = 64, 500, 4096
FILES, ROW_GROUP = 8, 25_000


@dataclasses.dataclass(frozen=True)
class Case:
    """One corpus: how many rows in the full run and in the quick one, and how some of them are made."""

    rows: int
    quick_rows: int
    column: Callable[[np.random.Generator, int], pa.Array]
    features: Callable[[pa.Array], Features]

    def size(self, quick: bool) -> int:
        return self.quick_rows if quick else self.rows


def vectors(width: int) -> Callable[[np.random.Generator, int], pa.Array]:
    def column(random: np.random.Generator, rows: int) -> pa.Array:
        x_NV = random.standard_normal((rows, width), dtype=np.float32)
        return pa.ListArray.from_arrays(np.arange(rows + 1, dtype=np.int32) * width, pa.array(x_NV.ravel()))

    return column


def standardized(column: pa.Array) -> Features:
    x_NV = column.flatten().to_numpy().reshape(len(column), -1)
    return DenseFeatures(x_NV.shape[1], "standardize", x_NV.mean(axis=0), x_NV.std(axis=0))


def texts(random: np.random.Generator, rows: int) -> pa.Array:
    """100 words each, of 50,000 that are as unequally frequent as those of a language."""
    word_N = random.zipf(1.3, size=(rows, 100)) % 50_000
    letters = np.array([f"w{''.join(chr(97 + (n // 26**i) % 26) for i in range(4))}" for n in range(50_000)])
    return pa.array([" ".join(words) for words in letters[word_N]])


def images(random: np.random.Generator, rows: int) -> pa.Array:
    """PNG files of 32 x 32 pixels, smooth as photographs are."""
    files = []
    for coarse in random.integers(0, 255, (rows, 6, 6, 3), np.uint8):
        stream = io.BytesIO()
        Image.fromarray(coarse).resize((32, 32), Image.Resampling.BICUBIC).save(stream, "PNG")
        files.append(stream.getvalue())
    return pa.array(files)


SMALLEST = "dense, 128 dimensions"
CASES = {
    SMALLEST: Case(2_000_000, 120_000, vectors(128), standardized),
    "dense, 768 dimensions": Case(2_000_000, 40_000, vectors(768), standardized),
    "texts, 100 words": Case(100_000, 8_000, texts, lambda column: fit_features(FeaturesConfig(), "text", [column])),
    "images, PNG 32 x 32": Case(
        100_000, 8_000, images, lambda column: fit_features(FeaturesConfig(), "image", [column])
    ),
}


def write_corpus(directory: Path, case: Case, rows: int) -> None:
    directory.mkdir()
    count = rows // FILES
    for number in range(FILES):
        random, first = np.random.default_rng(number), number * count
        with pq.ParquetWriter(
            directory / f"{number:04d}.parquet",
            pa.schema([("id", pa.int64()), ("x", case.column(random, 1).type)]),
            use_dictionary=False,
        ) as writer:
            for start in range(0, count, ROW_GROUP):
                size = min(ROW_GROUP, count - start)
                ids = pa.array(range(first + start, first + start + size))
                writer.write_table(pa.table([ids, case.column(random, size)], schema=writer.schema))


def write_hasher(uri: Path, case: Case) -> None:
    features = case.features(case.column(np.random.default_rng(99), 2000))
    widths, generator = [features.width, HIDDEN, HIDDEN, BITS], torch.Generator().manual_seed(0)
    tables = [
        (torch.randn(a, b, generator=generator) / a**0.5, torch.zeros(b)) for a, b in itertools.pairwise(widths)
    ]
    Hasher("csb-vae", BITS, "x", features, tables).save(str(uri))


def bare_loop(corpus: Path, hasher_uri: Path, output: Path, threads: int) -> float:
    """Rows per second of the loop, its start (imports, the hasher) aside."""
    torch.set_num_threads(threads)
    pa.set_cpu_count(threads)
    os.environ["OMP_NUM_THREADS"] = str(threads)
    hasher = Hasher.load(str(hasher_uri))
    schema = pa.schema([("id", pa.int64()), ("code", pa.binary(BITS // 8))])
    rows, began = 0, time.monotonic()
    for path in sorted(corpus.glob("*.parquet")):
        with pq.ParquetFile(path) as parquet, pq.ParquetWriter(output / path.name, schema) as writer:
            for batch in parquet.iter_batches(BATCH_ROWS, columns=["id", "x"]):
                code_NC = hasher.encode(batch.column("x"), checked=True)
                code = pa.Array.from_buffers(schema.field("code").type, len(code_NC), [None, pa.py_buffer(code_NC)])
                writer.write_batch(pa.record_batch([batch.column("id"), code], schema=schema))
                rows += batch.num_rows
    return rows / (time.monotonic() - began)


def in_a_process(*arguments: Any) -> float:
    """The bare loop in a fresh process, as `encode` has its own."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(bare_loop, arguments)


def our_encode(corpus: Path, hasher: Path, output: Path, cores: int) -> EncodeReport:
    workers = WorkersConfig(count=cores, cpus=1)
    return encode(EncodeConfig(CorpusConfig(str(corpus), "x"), str(hasher), str(output), BATCH_ROWS, workers))


def main() -> int:
    benchmark = Benchmark("encode", "Rows per second of encoding a corpus, and the memory that it takes")
    options = benchmark.parse()
    # Ray's workers give way to everything else by default, and the bare loop does not.
    os.environ.setdefault("RAY_worker_niceness", "0")
    cores, rounds = len(os.sched_getaffinity(0)), 1 if options.quick else 3
    rows: list[dict[str, Any]] = []
    figures: dict[str, Any] = {}
    baselines: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory)
        # The first run in a process starts Ray, whose own processes take the cores for some seconds longer.
        smaller = CASES[SMALLEST].size(options.quick) // 10
        write_corpus(root / "smaller", CASES[SMALLEST], smaller)
        write_hasher(root / "hasher", CASES[SMALLEST])
        first = our_encode(root / "smaller", root / "hasher", root / "codes", cores)
        for number, (name, case) in enumerate(CASES.items()):
            corpus, hasher = root / f"corpus-{number}", root / f"hasher-{number}"
            write_corpus(corpus, case, case.size(options.quick))
            write_hasher(hasher, case)
            bare, ours = [], []
            for turn in range(rounds):
                output = root / f"bare-{number}-{turn}"
                output.mkdir()
                bare.append(in_a_process(corpus, hasher, output, cores))
                ours.append(our_encode(corpus, hasher, root / f"codes-{number}-{turn}", cores))
            # The largest would fill a small disk.
            shutil.rmtree(corpus)
            base = statistics.median(bare)
            rate = statistics.median(report.rows_per_second for report in ours)
            checked = statistics.median(r.rows / (r.encoding_seconds + r.checking_seconds) for r in ours)
            figures[name], baselines[name] = round(rate), round(base)
            rows.append(
                {
                    "corpus": name,
                    "rows": case.size(options.quick),
                    "bare loop, rows/s": base,
                    "encode, rows/s": rate,
                    "share of the loop": rate / base,
                    "with the checks": checked / base,
                    "start, s": statistics.median(report.startup_seconds for report in ours),
                    "check, s": statistics.median(report.checking_seconds for report in ours),
                    "MB an encoder": max(report.peak_memory for report in ours) / 1e6,
                }
            )
    memory = {smaller: first.peak_memory / 1e6, rows[0]["rows"]: rows[0]["MB an encoder"]}
    figures["peak memory of an encoder, MB, by rows of 128 dimensions"] = {k: round(v) for k, v in memory.items()}
    figures["start with Ray's own, s"] = round(first.startup_seconds, 1)
    notes = [
        f"{cores} cores; the bare loop with {cores} torch threads, `encode` with {cores} encoders of one thread; "
        f"network {HIDDEN}-{HIDDEN}-{BITS}, batches of {BATCH_ROWS:,} rows, median of {rounds} alternating run(s)",
        "rows/s of encode from the moment that the first encoder begins; the start before it, and reading all ids "
        f"back to compare them with those that went in, are apart; where Ray has to be started too, the start took "
        f"{first.startup_seconds:.1f} s",
        "128 dimensions: "
        + ", ".join(f"{megabytes:,.0f} MB an encoder for {count:,} rows" for count, megabytes in memory.items()),
    ]
    benchmark.report(rows, figures, baselines, notes=notes)
    return 0


if __name__ == "__main__":
    sys.exit(main())
