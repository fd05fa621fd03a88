"""Seconds and memory of choosing what to label next: 60,000 rows of 64 bits, a million candidate pairs.

    python -m benchmarks.label_selection

Each strategy runs in a process of its own, on one thread, over codes of ten clusters; 600 rows have labels, 600 are
chosen. random is what the others are held against.
"""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import resource
import sys
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from benchmarks.reporting import Benchmark
from distindex.corpus.labels import read_labels
from distindex.label_config import CandidatesConfig, SelectionConfig
from distindex.labeling import Pool, select
from distindex.labeling.pair_loss import PairLoss
from distindex.labeling.strategies import BASELINES, make_candidates
from distindex.method_config import MethodConfig

BITS, CLASSES = 64, 10
SETTINGS: dict[str, SelectionConfig] = {
    **{name: dataclasses.replace(SelectionConfig(), strategy=name) for name in BASELINES},
    "dh-aps, sym-linear": SelectionConfig("dh-aps", kernel="sym-linear"),
    "dh-aps, sym-rbf": SelectionConfig("dh-aps", kernel="sym-rbf"),
    "dh-aps, align-max": SelectionConfig("dh-aps", kernel="align-max"),
    "dh-aps, sym-linear, relaxed": SelectionConfig("dh-aps", kernel="sym-linear", optimizer="relaxed"),
    "dh-aps, sym-rbf, relaxed": SelectionConfig("dh-aps", kernel="sym-rbf", optimizer="relaxed"),
}


def made_pool(rows: int, labeled: int) -> Pool:
    """Codes in ten clusters, by label."""
    random = np.random.default_rng(0)
    label_N = random.integers(0, CLASSES, rows)
    noise_NK = random.standard_normal((rows, BITS), dtype=np.float32)
    logit_NK = 2 * random.standard_normal((CLASSES, BITS), dtype=np.float32)[label_N] + 2 * noise_NK
    truth = read_labels(pa.array(label_N))
    keep_N = np.zeros(rows, bool)
    keep_N[random.permutation(rows)[:labeled]] = True
    return Pool(logit_NK, truth.hide(keep_N), PairLoss(MethodConfig(), BITS), truth)


def measured(name: str, rows: int, pairs: int, budget: int) -> dict[str, Any]:
    """Seconds for the candidates and for the choice, and the most memory that the process had, in MiB."""
    pool = made_pool(rows, budget)
    settings = dataclasses.replace(SETTINGS[name], candidates=CandidatesConfig(pairs=pairs))
    # What every strategy reads, and the imports, are no part of the choice.
    _ = pool.unlabeled, pool.code_NK, pool.output_NK, pool.square_N
    before = _peak_mib()
    began = time.perf_counter()
    candidates = make_candidates(pool, settings) if settings.strategy == "dh-aps" else None
    made = time.perf_counter()
    chosen = select(pool, settings, budget, candidates).rows
    ended = time.perf_counter()
    return {
        "strategy": name,
        "candidates": len(candidates[0]) if candidates else None,
        "candidates, s": round(made - began, 2) if candidates else None,
        "choice, s": round(ended - made, 2),
        "chosen": len(chosen),
        "MiB before": before,
        "MiB at most": _peak_mib(),
    }


def _peak_mib() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def main(argv: Sequence[str] | None = None) -> int:
    benchmark = Benchmark("label_selection", "seconds and memory of choosing what to label next")
    benchmark.parser.add_argument("--rows", type=int, default=60_000)
    benchmark.parser.add_argument("--pairs", type=int, default=1_000_000)
    benchmark.parser.add_argument("--budget", type=int, default=600, help="rows to choose; as many have labels")
    options = benchmark.parse(argv)
    sizes = (6_000, 50_000, 60) if options.quick else (options.rows, options.pairs, options.budget)
    for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[variable] = "1"
    context = multiprocessing.get_context("spawn")
    table = []
    for name in SETTINGS:
        with context.Pool(1) as process:
            table.append(process.apply(measured, (name, *sizes)))
        print(f"{name}: {table[-1]['choice, s']} s", flush=True)
    seconds = {row["strategy"]: round((row["candidates, s"] or 0) + row["choice, s"], 2) for row in table}
    notes = [f"{sizes[0]:,} rows of {BITS} bits, {sizes[2]:,} of them labeled, {sizes[2]:,} to choose; one thread."]
    figures = {name: value for name, value in seconds.items() if name != "random"}
    benchmark.report(table, figures, {"random": seconds["random"]}, notes)
    return 0


if __name__ == "__main__":
    sys.exit(main())
