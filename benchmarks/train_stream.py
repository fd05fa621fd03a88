"""Memory and speed of `distindex train` on a corpus that is streamed, at two sizes, the second ten times the first.

Generated texts of some ten words, 200 files, one row in a thousand labeled. What the processes hold for themselves
(anonymous memory) is looked at every quarter of a second: the driver, the training worker, the reader beside it and
the tasks that read the corpus before. Ray's object store, which they share, is apart.

    python -m benchmarks.train_stream [--quick] [--rows ROWS]
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from benchmarks.reporting import Benchmark
from distindex.config import (
    CorpusConfig,
    LabelsConfig,
    MethodConfig,
    OptimizationConfig,
    TrainConfig,
    ValidationConfig,
    WorkersConfig,
)
from distindex.training import TrainReport, train

FILES, WORDS, VOCABULARY, CLASSES = 200, 10, 30_000, 20
BATCH_SIZE, HIDDEN = 2_000, 256
ROLES = {"RayTrainWorker": "worker", "Reader": "reader"}


def write_corpus(directory: Path, rows: int) -> int:
    """Texts whose words depend on their class; returns their bytes, uncompressed."""
    directory.mkdir()
    words = pa.array([f"w{''.join(chr(97 + (n // 26**i) % 26) for i in range(4))}" for n in range(VOCABULARY)])
    size = 0
    for number in range(FILES):
        random, count = np.random.default_rng(number), rows // FILES
        label_N = random.integers(0, CLASSES, count)
        word_NW = (random.zipf(1.4, size=(count, WORDS)) * (1 + label_N[:, None])) % VOCABULARY
        offsets = pa.array(np.arange(count + 1, dtype=np.int32) * WORDS)
        lists = pa.ListArray.from_arrays(offsets, words.take(pa.array(word_NW.ravel())))
        text = pc.binary_join(lists, " ")  # type: ignore[attr-defined]
        label = pa.array([f"class {c}" for c in label_N])
        ids = pa.array(np.arange(count) + number * count)
        pq.write_table(pa.table({"id": ids, "text": text, "label": label}), directory / f"{number:04d}.parquet")
        size += text.nbytes
    return size


class Memory:
    """The largest anonymous memory of the processes below this one, in MB, by what they do."""

    def __init__(self) -> None:
        self.peak: dict[str, float] = defaultdict(float)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Memory:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(0.25):
            listing = subprocess.run(["ps", "-eo", "pid=,ppid=,args="], capture_output=True, text=True, check=True)
            found = [line.split(None, 2) for line in listing.stdout.splitlines()]
            parents = {int(each[0]): int(each[1]) for each in found}
            for process, _, title in (each for each in found if len(each) == 3):
                role = self._role(int(process), title, parents)
                if role is not None:
                    self.peak[role] = max(self.peak[role], _anonymous(int(process)))

    @staticmethod
    def _role(process: int, title: str, parents: dict[int, int]) -> str | None:
        if process == os.getpid():
            return "driver"
        if not title.startswith("ray::"):
            return None
        while process in parents and process != os.getpid():
            process = parents[process]
        if process != os.getpid():
            return None
        return next((role for name, role in ROLES.items() if name in title), "tasks before")


def _anonymous(process: int) -> float:
    try:
        status = Path(f"/proc/{process}/status").read_text()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) / 1e3 for line in status.splitlines() if line.startswith("RssAnon")), 0.0)


def run(corpus: Path, output: Path, memory_gib: float) -> tuple[TrainReport, dict[str, float]]:
    config = TrainConfig(
        CorpusConfig(str(corpus), "text", label_column="label"),
        str(output),
        bits=64,
        labels=LabelsConfig(fraction=0.001),
        method=MethodConfig(hidden=[HIDDEN]),
        optimization=OptimizationConfig(epochs=1, batch_size=BATCH_SIZE),
        validation=ValidationConfig(),
        workers=WorkersConfig(count=1, cpus=1),
        memory_gib=memory_gib,
    )
    with Memory() as memory:
        report = train(config)
    return report, dict(memory.peak)


def main() -> int:
    benchmark = Benchmark("train_stream", "Memory and speed of training on a corpus that is streamed")
    benchmark.parser.add_argument("--rows", type=int, default=5_000_000, help="rows of the larger corpus")
    options = benchmark.parse()
    most = 40_000 if options.quick else options.rows
    memory_gib = 2.0**-11 if options.quick else 0.0625
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as directory:
        for count in (most // 10, most):
            corpus = Path(directory) / f"corpus-{count}"
            size = write_corpus(corpus, count)
            began = time.monotonic()
            report, peak = run(corpus, Path(directory) / f"hasher-{count}", memory_gib)
            epoch = report.history[0]
            rows.append(
                {
                    "rows": report.rows,
                    "texts, MB": size / 1e6,
                    "before the first step, s": time.monotonic() - began - epoch["seconds"],
                    "epoch, s": epoch["seconds"],
                    "rows/s": epoch["rows_per_second"],
                    "precision": report.precision,
                    **{f"{role}, MB": peak.get(role, 0.0) for role in ("driver", "worker", "reader", "tasks before")},
                }
            )
    small, large = rows
    notes = [
        f"{FILES} files, texts of {WORDS} words; csb-vae, {HIDDEN} hidden units, batches of {BATCH_SIZE:,}, one "
        f"epoch, one worker of one thread and its reader on {len(os.sched_getaffinity(0))} cores; "
        f"memory_gib {memory_gib}, below what either corpus takes in memory",
        "MB: the largest anonymous memory of a process of that kind; of it some 400 MB are Python, torch and Ray",
    ]
    figures = {
        f"{name} at {row['rows']:,} rows": round(row[name]) for row in rows for name in row if name.endswith("MB")
    } | {f"rows/s at {row['rows']:,} rows": row["rows/s"] for row in rows}
    growth = {"rows, the larger over the smaller corpus": round(large["rows"] / small["rows"], 1)}
    benchmark.report(rows, figures, growth, notes=notes)
    return 0


if __name__ == "__main__":
    sys.exit(main())
