"""What answers about pairs bring beside a few labels, and what as many labels would.

    python -m benchmarks.pair_answers

web_snippets, 16 bits, CSB-VAE with 8 epochs: 200 rows have labels; then so many pairs of other rows are answered from
their true labels, or so many more rows are labeled. Pairs are random, or half of them alike, or chosen by DH-APS with
the hasher of the labels alone.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from benchmarks.quality.plan import Cell, Plan
from benchmarks.quality.runs import Loaded, Runner, tables_of, with_labels
from benchmarks.reporting import ROOT, Benchmark
from distindex import codes
from distindex.config import TrainConfig
from distindex.corpus.labels import Labels
from distindex.corpus.pair_answers import NO_PAIRS, RowPairs, close
from distindex.evaluation.protocol import compare_methods
from distindex.hashing.hasher import Hasher
from distindex.label_config import SelectionConfig
from distindex.labeling import Pool, select
from distindex.labeling.pair_loss import PairLoss
from distindex.runtime import prepare_environment
from distindex.training.data import TrainingSet, neighbors_of

DATASET, METHOD, BITS = "web_snippets", "csb-vae", 16
ALONE, ITEMS = "labels alone", "more labels"
RANDOM, HALVES, CHOSEN = "random pairs", "pairs, half of them alike", "pairs by dh-aps"
_TRIED = 20


class Runs:
    """The trainings of one seed.

    Args:
        plan: settings of the methods.
        runner: reads the data set.
        seed: of all draws.
        epochs: of each training.
        labels: rows that have a label at first.
    """

    def __init__(self, plan: Plan, runner: Runner, seed: int, epochs: int, labels: int) -> None:
        cell = Cell(DATASET, METHOD, BITS, 1.0, seed)
        self._loaded: Loaded = runner.load(cell)
        self._config: TrainConfig = plan.config(cell, self._loaded.directory)
        self._config.optimization = dataclasses.replace(self._config.optimization, epochs=epochs)
        data = self._loaded.data
        near = neighbors_of(self._config, data.features, data.x_NV)
        self._data: TrainingSet = dataclasses.replace(data, **near)
        self._random = np.random.default_rng([seed, 7])
        self._order = self._random.permutation(data.rows)
        self._labels = labels
        self._logit_NK = np.zeros((data.rows, BITS), np.float32)

    def figures(self, kind: str, count: int) -> dict[str, float]:
        """The codes' quality with so many answers of a kind; the labels alone come first."""
        truth = self._data.known
        kept = self._order[: self._labels + (count if kind == ITEMS else 0)]
        known = truth.hide(np.isin(np.arange(self._data.rows), kept))
        row_Q2 = NO_PAIRS.row_Q2 if kind in (ALONE, ITEMS) else self._pairs(kind, count, known)
        similar_Q = truth.index[row_Q2[:, 0]] == truth.index[row_Q2[:, 1]]
        known, answered = close(known, RowPairs(row_Q2, similar_Q))
        data = dataclasses.replace(with_labels(self._data, known), answered=answered)
        column = self._config.corpus.feature_column
        hasher = Hasher(METHOD, BITS, column, data.features, tables_of(self._config, data))
        logit_NK = hasher.logits(data.x_NV)
        if kind == ALONE:
            self._logit_NK = logit_NK
        packed = (codes.pack(hasher.logits(self._loaded.query_QV) > 0), codes.pack(logit_NK > 0))
        found = compare_methods({"": packed}, self._loaded.similar, (100, 1000), reference=False)[0].metrics
        return {
            "alike": float(similar_Q.mean()) if len(similar_Q) else float("nan"),
            "labeled": float(known.labeled().sum()),
            "P@100": found.precision[100],
            "mAP@1000": found.mean_average_precision[1000],
        }

    def _pairs(self, kind: str, count: int, known: Labels) -> npt.NDArray[np.int64]:
        truth, config = self._data.known, self._config
        if kind == CHOSEN:
            pool = Pool(self._logit_NK, known, PairLoss(config.method, config.bits))
            return select(pool, SelectionConfig("dh-aps"), 2 * count).pair_Q2[:count]
        rows = self._random.choice(self._order[self._labels :], (_TRIED * count, 2))
        row_Q2 = np.unique(np.sort(rows[rows[:, 0] != rows[:, 1]], axis=1), axis=0)
        row_Q2 = self._random.permutation(row_Q2)
        if kind == RANDOM:
            return row_Q2[:count]
        alike_Q = truth.index[row_Q2[:, 0]] == truth.index[row_Q2[:, 1]]
        return np.concatenate([row_Q2[alike_Q][: count // 2], row_Q2[~alike_Q][: count - count // 2]])


def main(argv: Sequence[str] | None = None) -> int:
    benchmark = Benchmark("pair_answers", "what answers about pairs bring beside a few labels")
    benchmark.parser.add_argument("--seeds", type=int, nargs="+", default=[20, 144])
    benchmark.parser.add_argument("--labels", type=int, default=200, help="rows that have a label at first")
    benchmark.parser.add_argument("--answers", type=int, nargs="+", default=[500, 2000])
    benchmark.parser.add_argument("--epochs", type=int, default=8)
    benchmark.parser.add_argument(
        "--data", type=Path, default=ROOT.parent / "shared" / "data", help="directory of the published data sets"
    )
    benchmark.parser.add_argument(
        "--work", type=Path, default=Path.home() / ".cache" / "distindex" / "quality", help="prepared data sets"
    )
    options = benchmark.parse(argv)
    if not (options.data / DATASET).is_dir():
        print(f"skipped: {options.data} has no {DATASET}")
        return 0
    prepare_environment()
    torch.set_num_threads(1)
    seeds, answers, epochs = options.seeds, options.answers, options.epochs
    if options.quick:
        seeds, answers, epochs = seeds[:1], [200], 1
    plan = Plan(ROOT / "benchmarks" / "configs" / "quality.yaml")
    runner = Runner(plan, options.data, options.work)
    asked = [(ALONE, 0), *((kind, count) for count in answers for kind in (RANDOM, HALVES, CHOSEN, ITEMS))]
    found: dict[tuple[str, int], list[dict[str, float]]] = {each: [] for each in asked}
    for seed in seeds:
        runs = Runs(plan, runner, seed, epochs, options.labels)
        for kind, count in asked:
            found[kind, count].append(runs.figures(kind, count))
            print(f"seed {seed}: {count:,} {kind}: {found[kind, count][-1]['P@100']:.3f}", flush=True)
    table: list[dict[str, Any]] = []
    for (kind, count), figures in found.items():
        means = {name: float(np.mean([each[name] for each in figures])) for name in figures[0]}
        spread = float(np.std([each["P@100"] for each in figures])) if len(figures) > 1 else None
        labeled, alike = round(means["labeled"]), None if np.isnan(means["alike"]) else means["alike"]
        table.append({"answers": kind, "count": count, **means, "labeled": labeled, "alike": alike, "spread": spread})
    named = {f"{row['answers']}, {row['count']}": round(row["P@100"], 4) for row in table}
    notes = [
        f"{DATASET}, {BITS} bits, {METHOD}, {epochs} epochs; {options.labels} labels, then so many answers; means "
        f"over seeds {', '.join(map(str, seeds))}; spread: standard deviation of P@100 over the seeds.",
        "alike: share of the pairs that are; labeled: rows with a label, those that follow from pairs included.",
    ]
    baselines = {name: value for name, value in named.items() if name.startswith((ALONE, ITEMS))}
    benchmark.report(table, {name: named[name] for name in named if name not in baselines}, baselines, notes)
    return 0


if __name__ == "__main__":
    sys.exit(main())
