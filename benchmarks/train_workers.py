"""What Ray Train costs, and whether the number of workers changes what is learned.

Default settings on web_snippets, 10% of the labels, three seeds: the same epochs in a bare loop in this process, and
by `distindex train` with one, two and four workers. An epoch's seconds are those between two reports, validation
included; how long a run takes to start stands apart. Precision@100: of the test texts among the training texts.

    python -m benchmarks.train_workers [--quick | --short] [--data DIRECTORY]
"""

from __future__ import annotations

import dataclasses
import logging
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import ray
import torch
from tensorboardX.proto import event_pb2

from benchmarks.reporting import Benchmark
from distindex.config import CorpusConfig, LabelsConfig, OptimizationConfig, TrainConfig, WorkersConfig
from distindex.evaluation import evaluate_codes
from distindex.hashing import Hasher
from distindex.training import train
from distindex.training.data import read_training_set
from distindex.training.loop import Run, build_model, run_epochs

BITS = 32


class BareRun(Run):
    """A run that writes no checkpoints and notes when each epoch ends."""

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self.ends: list[float] = []

    def due(self) -> bool:
        return False

    def report(self, metrics: dict[str, Any], save: bool) -> None:
        self.ends.append(time.time())


def bare(config: TrainConfig, threads: int) -> dict[str, Any]:
    torch.set_num_threads(threads)
    began = time.time()
    data = read_training_set(config)
    run = BareRun(config, build_model(data, config), torch.device("cpu"), 0)
    run_epochs(run, data, 1)
    hasher = Hasher(
        method=config.method.name,
        bits=config.bits,
        feature_column=config.corpus.feature_column,
        features=data.features,
        tables=run.best or run.tables(),
        label_names=data.known.names,
        metadata={},
    )
    return {"began": began, "ends": run.ends, "validation": run.progress.best_precision, "hasher": hasher}


def by_ray_train(config: TrainConfig, workers: int, threads: int) -> dict[str, Any]:
    config = dataclasses.replace(config, workers=WorkersConfig(count=workers, cpus=threads), trackers=["tensorboard"])
    began = time.time()
    report = train(config)
    hasher = Hasher.load(config.output)
    return {"began": began, "ends": _ends(Path(config.output)), "validation": report.precision, "hasher": hasher}


def events(output: Path) -> Iterator[Any]:
    """What a training run wrote for TensorBoard."""
    (path,) = (output / "training" / "tensorboard").iterdir()
    data, start = path.read_bytes(), 0
    # A record is its length, a checksum of it, an event, and a checksum of that.
    while start < len(data):
        length = int.from_bytes(data[start : start + 8], "little")
        yield event_pb2.Event.FromString(data[start + 12 : start + 12 + length])  # pyright: ignore
        start += 16 + length


def _ends(output: Path) -> list[float]:
    """When each epoch was reported."""
    ends: dict[int, float] = {}
    for event in events(output):
        if event.summary.value:
            ends.setdefault(event.step, event.wall_time)
    return [ends[step] for step in sorted(ends)]


def precision_at_100(hasher: Hasher, directory: Path) -> float:
    corpus, queries = (pq.read_table(directory / f"{part}.parquet") for part in ("train", "test"))
    label_N, label_Q = (np.array(table["label"].to_pylist()) for table in (corpus, queries))
    found = evaluate_codes(
        hasher.encode(queries),
        hasher.encode(corpus),
        lambda start, stop: label_Q[start:stop, None] == label_N[None, :],
        ks=(100,),
    )
    return found.precision[100]


def main() -> int:
    benchmark = Benchmark("train_workers", "What Ray Train costs, and what the number of workers changes")
    shared = Path(__file__).resolve().parents[2] / "shared" / "data" / "web_snippets"
    benchmark.parser.add_argument("--data", type=Path, default=shared, help="directory of train.parquet")
    benchmark.parser.add_argument("--short", action="store_true", help="three times 12 epochs, without four workers")
    options = benchmark.parse()
    if not (options.data / "train.parquet").exists():
        print(f"skipped: {options.data}/train.parquet is not there; name its directory with --data")
        return 0
    seeds, epochs = ((0,), 4) if options.quick else ((0, 1, 2), 12 if options.short else 30)
    cores = len(os.sched_getaffinity(0))
    ways: dict[str, tuple[int, int]] = {
        "bare loop, 1 thread": (0, 1),
        "1 worker, 1 thread": (1, 1),
        f"bare loop, {cores} threads": (0, cores),
        f"1 worker, {cores} threads": (1, cores),
        "2 workers, 1 thread each": (2, 1),
    }
    if not options.quick and not options.short:
        ways["4 workers, 1 thread each"] = (4, 1)
    # Four workers need four CPUs by name; on fewer cores they share them.
    ray.init(num_cpus=max(4, cores), include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in ways}
    with tempfile.TemporaryDirectory() as directory:
        for seed in seeds:
            for name, (workers, threads) in ways.items():
                config = TrainConfig(
                    CorpusConfig(str(options.data / "train.parquet"), "text", label_column="label"),
                    f"{directory}/{seed}-{workers}-{threads}",
                    bits=BITS,
                    labels=LabelsConfig(fraction=0.1, seed=20 + seed),
                    optimization=OptimizationConfig(epochs=epochs, seed=seed),
                )
                run = by_ray_train(config, workers, threads) if workers else bare(config, threads)
                run["precision"] = precision_at_100(run.pop("hasher"), options.data)
                found[name].append(run)
    rows: list[dict[str, Any]] = []
    for name, runs in found.items():
        seconds = statistics.median(float(each) for run in runs for each in np.diff(run["ends"]))
        precisions = [run["precision"] for run in runs]
        rows.append(
            {
                "run": name,
                "epoch, s": seconds,
                "start and first epoch, s": statistics.median(run["ends"][0] - run["began"] for run in runs),
                "epochs": statistics.mean(len(run["ends"]) for run in runs),
                "precision@100": statistics.mean(precisions),
                "by seed": " ".join(f"{value:.4f}" for value in precisions),
            }
        )
    by_name = {row["run"]: row for row in rows}
    for threads in sorted({1, cores}):
        s = "s" * (threads > 1)
        base = by_name[f"bare loop, {threads} thread{s}"]["epoch, s"]
        by_name[f"1 worker, {threads} thread{s}"]["over the bare loop"] = (
            by_name[f"1 worker, {threads} thread{s}"]["epoch, s"] / base
        )
    by_name["2 workers, 1 thread each"]["over the bare loop"] = (
        by_name["2 workers, 1 thread each"]["epoch, s"]
        / by_name[f"bare loop, {cores} thread{'s' * (cores > 1)}"]["epoch, s"]
    )
    notes = [
        f"csb-vae, {BITS} bits, {epochs} epochs at most, batches of 200, {cores} cores; gloo between the workers",
        "over the bare loop: with as many threads in all",
    ]
    figures = {
        f"{name}, {what}": round(row[what], 4)
        for name, row in by_name.items()
        for what in row
        if what != "run" and isinstance(row[what], float)
    }
    baselines = {name: figure for name, figure in figures.items() if name.startswith("bare")}
    result = f"{benchmark.name}-short" if options.short else None
    found_here = {name: figure for name, figure in figures.items() if name not in baselines}
    benchmark.report(rows, found_here, baselines, notes=notes, result=result)
    return 0


if __name__ == "__main__":
    sys.exit(main())
