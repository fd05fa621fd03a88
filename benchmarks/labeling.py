"""Retrieval quality over the number of labels, by how they were chosen: DH-APS, what it is compared with, its parts.

    python -m benchmarks.labeling --only dataset=web_snippets,bits=16,seed=20
    python -m benchmarks.labeling --report

One run is one curve: from 1% to 30% of the rows are labeled in rounds, each round chooses by the hasher of the one
before, and each hasher is trained anew on the labels so far, as `benchmarks.quality` trains. The first 1% is drawn at
random, the same for all but balanced-random, and those that are pretrained: these choose it by a hasher of no label.
Finished runs are kept in benchmarks/results/labeling and not run again.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import tempfile
import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import yaml

from benchmarks.quality.plan import Cell, Plan, chosen
from benchmarks.quality.runs import Loaded, Runner, tables_of, with_labels
from benchmarks.quality.store import Results
from benchmarks.reporting import ROOT, Benchmark, commit
from distindex import codes
from distindex.config import OptimizationConfig, TrainConfig
from distindex.corpus.labels import Labels
from distindex.errors import DistindexError
from distindex.evaluation.plots import precision_over_labels_figure, save_figure
from distindex.evaluation.protocol import compare_methods
from distindex.hashing.hasher import Hasher
from distindex.label_config import SelectionConfig
from distindex.labeling import Pool, select
from distindex.labeling.pair_loss import PairLoss
from distindex.labeling.strategies import BASELINES
from distindex.runtime import prepare_environment
from distindex.settings import fingerprint
from distindex.storage import Storage
from distindex.training.data import TrainingSet, neighbors_of

REFERENCE_LEVEL = 0.1
PRECISION_AT, AVERAGE_AT = 100, 1000

_DH_APS = SelectionConfig("dh-aps")
PRETRAINED = "pretrained "
STRATEGIES: dict[str, SelectionConfig] = {
    "dh-aps": _DH_APS,
    **{name: dataclasses.replace(SelectionConfig(), strategy=name) for name in BASELINES},
    "dh-aps without uncertainty": dataclasses.replace(_DH_APS, uncertainty=0.0),
    "dh-aps without representativeness": dataclasses.replace(_DH_APS, representativeness=0.0),
    "dh-aps without diversity": dataclasses.replace(_DH_APS, diversity=0.0),
    "dh-aps by uncertainty alone": dataclasses.replace(_DH_APS, representativeness=0.0, diversity=0.0),
    "dh-aps sym-linear": dataclasses.replace(_DH_APS, kernel="sym-linear"),
    "dh-aps align-max": dataclasses.replace(_DH_APS, kernel="align-max"),
    "dh-aps relaxed": dataclasses.replace(_DH_APS, optimizer="relaxed"),
    f"{PRETRAINED}dh-aps": _DH_APS,
    f"{PRETRAINED}typical": SelectionConfig("typical"),
    f"{PRETRAINED}typical-badge": SelectionConfig("typical-badge"),
}


class Curves:
    """All curves, and what is common to them.

    Args:
        path: what benchmarks/configs/labeling/curves.yaml says, or another file like it.
        plan: how each hasher is trained.

    Attributes:
        epochs: of each training; None for those of `plan`.
    """

    def __init__(self, path: Path, plan: Plan) -> None:
        read = yaml.safe_load(path.read_text())
        self.plan = plan
        self.epochs: int | None = read["epochs"]
        self._read = read

    def cells(self) -> list[Cell]:
        """One for each curve; its method is `HOST: STRATEGY`."""
        return [
            Cell(dataset, f"{host}: {strategy}", bits, None, seed)
            for dataset in self._read["datasets"]
            for seed in self._read["seeds"]
            for bits in self._read["bits"]
            for host in self._read["hosts"]
            for strategy in self._read.get("strategies", STRATEGIES)
        ]

    def levels(self, dataset: str) -> list[float]:
        """Shares of the rows that are labeled after each round."""
        return self._read["datasets"][dataset].get("levels", self._read["levels"])

    def rows(self, dataset: str) -> int | None:
        """At most so many rows of a data set, drawn by a fixed seed; None for all."""
        return self._read["datasets"][dataset].get("rows")

    def fingerprint(self, cell: Cell) -> str:
        """Of all that a curve depends on, as `Plan.fingerprint` has it, and how labels are chosen."""
        host, strategy = cell.method.split(": ")
        trained = self.plan.fingerprint(dataclasses.replace(cell, method=host, labels=1.0))
        asked = [self.levels(cell.dataset), self.epochs, self.rows(cell.dataset)]
        settings = [trained, STRATEGIES[strategy], *asked]
        return fingerprint(*settings, *([PRETRAINED] if strategy.startswith(PRETRAINED) else []))


class Curve:
    """Makes curves one after the other; keeps what several of them begin with.

    Args:
        curves: what they have in common.
        runner: reads the data sets.
    """

    def __init__(self, curves: Curves, runner: Runner) -> None:
        self.curves, self.runner = curves, runner
        self._first: dict[Any, tuple[npt.NDArray[np.float32], dict[str, Any]]] = {}

    def run(self, cell: Cell) -> dict[str, Any]:
        """The figures after each round."""
        torch.set_num_threads(1)
        host, strategy = cell.method.split(": ")
        trained = dataclasses.replace(cell, method=host, labels=1.0)
        loaded = _sampled(self.runner.load(trained), self.curves.rows(cell.dataset))
        config = self.curves.plan.config(trained, loaded.directory)
        if self.curves.epochs is not None:
            config.optimization = OptimizationConfig(
                **{**dataclasses.asdict(config.optimization), "epochs": self.curves.epochs}
            )
        data = dataclasses.replace(loaded.data, **neighbors_of(config, loaded.data.features, loaded.data.x_NV))
        truth, keep_N = data.known, np.zeros(data.rows, bool)
        key, pretrained = (cell.dataset, host, cell.bits, cell.seed), strategy.startswith(PRETRAINED)
        logit_NK = np.zeros((data.rows, config.bits), np.float32)
        if pretrained:
            if (*key, PRETRAINED) not in self._first:
                hasher = _trained(host, config, data, truth.hide(keep_N))
                self._first[*key, PRETRAINED] = hasher.logits(data.x_NV), {}
            logit_NK, _ = self._first[*key, PRETRAINED]
        selection = dataclasses.replace(STRATEGIES[strategy], seed=cell.seed)
        points = []
        for number, level in enumerate(self.curves.levels(cell.dataset)):
            began = time.monotonic()
            pool = Pool(logit_NK, truth.hide(keep_N), PairLoss(config.method, config.bits), truth)
            blind = number == 0 and strategy != "balanced-random" and not pretrained
            how = dataclasses.replace(selection, strategy="random") if blind else selection
            keep_N[select(pool, how, round(level * data.rows) - int(keep_N.sum())).rows] = True
            selected = time.monotonic() - began
            if blind and key in self._first:
                logit_NK, figures = self._first[key]
            else:
                hasher = _trained(host, config, data, truth.hide(keep_N))
                logit_NK = hasher.logits(data.x_NV)
                figures = self._judge(hasher, logit_NK, loaded)
                if blind:
                    self._first[key] = logit_NK, figures
            labels = truth.hide(keep_N)
            points.append(
                {"level": level, "labels": int(keep_N.sum()), "classes": _classes(labels), **figures}
                | {"select_seconds": round(selected, 2)}
            )
        return {"points": points, "rows": data.rows, "queries": loaded.query_QV.shape[0]}

    def _judge(self, hasher: Hasher, logit_NK: npt.NDArray[np.float32], loaded: Loaded) -> dict[str, Any]:
        pair = (codes.pack(hasher.logits(loaded.query_QV) > 0), codes.pack(logit_NK > 0))
        cutoffs = (PRECISION_AT, AVERAGE_AT)
        found = compare_methods({"": pair}, loaded.similar, cutoffs, reference=False)[0].metrics
        return {
            "precision": found.precision[PRECISION_AT],
            "mean_average_precision": found.mean_average_precision[AVERAGE_AT],
        }


def _trained(host: str, config: TrainConfig, data: TrainingSet, known: Labels) -> Hasher:
    tables = tables_of(config, with_labels(data, known))
    return Hasher(host, config.bits, config.corpus.feature_column, data.features, tables)


def _sampled(loaded: Loaded, rows: int | None) -> Loaded:
    """At most so many of its rows; None for all."""
    data = loaded.data
    if rows is None or rows >= data.rows:
        return loaded
    kept = np.sort(np.random.default_rng(0).permutation(data.rows)[:rows])
    part = dataclasses.replace(
        with_labels(data, data.known.take(kept)),
        x_NV=data.x_NV[kept],  # type: ignore[index]
        target_NV=data.target_NV[kept],  # type: ignore[index]
    )
    return dataclasses.replace(loaded, data=part, similar_QN=loaded.similar_QN[:, kept])


def _classes(labels: Labels) -> int:
    return len(np.unique(labels.index))


def labels_to_reach(points: Sequence[tuple[float, float]], wanted: float) -> float | None:
    """The share of labels at which a curve first has a precision, between two rounds on a logarithmic scale.

    None where it never does.

    Args:
        points: share of labels and precision, by share.
        wanted: the precision.
    """
    for (before, low), (level, high) in zip([points[0], *points], points, strict=False):
        if high >= wanted:
            part = 1.0 if high == low else (wanted - low) / (high - low)
            return float(np.exp(np.log(before) + max(0.0, part) * (np.log(level) - np.log(before))))
    return None


def main(argv: Sequence[str] | None = None) -> int:
    benchmark = Benchmark("labeling", "retrieval quality over the number of labels, by how they were chosen")
    parser = benchmark.parser
    parser.add_argument("--only", action="append", default=[], metavar="NAME=VALUE,...", help="a part of the runs")
    parser.add_argument("--report", action="store_true", help="write tables and curves of the runs that are there")
    parser.add_argument("--plan", type=Path, help="what to run (default: benchmarks/configs/labeling/curves.yaml)")
    parser.add_argument(
        "--data", type=Path, default=ROOT.parent / "shared" / "data", help="directory of the published data sets"
    )
    parser.add_argument(
        "--work", type=Path, default=Path.home() / ".cache" / "distindex" / "quality", help="prepared data sets"
    )
    options = benchmark.parse(argv)
    prepare_environment()
    configs = ROOT / "benchmarks" / "configs"
    path = options.plan or configs / "labeling" / ("quick.yaml" if options.quick else "curves.yaml")
    curves = Curves(path, Plan(configs / "quality.yaml"))
    try:
        with tempfile.TemporaryDirectory() as scratch:
            results = Results(Path(scratch) if options.quick else Path(options.output) / "labeling")
            return _work(benchmark, options, curves, results)
    except DistindexError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def _work(benchmark: Benchmark, options: argparse.Namespace, curves: Curves, results: Results) -> int:
    every = curves.cells()
    cells = chosen(every, options.only)
    if not options.report:
        curve = Curve(curves, Runner(curves.plan, options.data, options.work))
        there = results.read(curves, cells)
        for cell in cells:
            if cell in there or not (options.data / cell.dataset).is_dir():
                continue
            began = time.monotonic()
            found = curve.run(cell)
            spent = round(time.monotonic() - began, 1)
            now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
            found |= {"epochs": curves.epochs, "seconds": spent, **commit(), "created": now}
            results.append(cell, curves.fingerprint(cell), found)
            line = ", ".join(f"{point['precision']:.3f}" for point in found["points"])
            print(f"{cell}: {line} ({spent:.0f} s)", flush=True)
    runs = results.read(curves, every)
    if not runs:
        print("skipped: no run is there to report")
        return 0
    for dataset in dict.fromkeys(cell.dataset for cell in runs):
        own = {cell: run for cell, run in runs.items() if cell.dataset == dataset}
        _report(benchmark, options, curves, dataset, own)
    return 0


def _report(
    benchmark: Benchmark,
    options: argparse.Namespace,
    curves: Curves,
    dataset: str,
    runs: Mapping[Cell, Mapping[str, Any]],
) -> None:
    table, figures, baselines = [], {}, {}
    levels = curves.levels(dataset)
    for bits in sorted({cell.bits or 0 for cell in runs}):
        points = {
            method: {
                cell.seed: run["points"] for cell, run in runs.items() if (cell.method, cell.bits) == (method, bits)
            }
            for method in dict.fromkeys(cell.method for cell in runs if cell.bits == bits)
        }
        precision = {method: _table(own.values(), "precision") for method, own in points.items()}
        for method, precision_SL in precision.items():
            mean_L, spread_L = precision_SL.mean(0), precision_SL.std(0)
            row = {"method": method, "bits": bits, "seeds": len(precision_SL)}
            row |= {f"P@{PRECISION_AT}, {level:.0%}": mean for level, mean in zip(levels, mean_L, strict=True)}
            average = float(_table(points[method].values(), "mean_average_precision").mean(0)[-1])
            row[f"mAP@{AVERAGE_AT}, {levels[-1]:.0%}"] = average
            row["spread"] = float(spread_L.mean()) if len(precision_SL) > 1 else None
            by_seed = points.get(f"{method.split(': ')[0]}: random", {})
            reached = None
            # Seeds differ by more than strategies do: with those alone that both have.
            if points[method].keys() <= by_seed.keys() and REFERENCE_LEVEL in levels:
                random_SL = _table([by_seed[seed] for seed in points[method]], "precision")
                wanted = float(random_SL.mean(0)[levels.index(REFERENCE_LEVEL)])
                share = labels_to_reach(list(zip(levels, mean_L, strict=True)), wanted)
                reached = "not reached" if share is None else f"{share:.1%}"
            row["labels for random's 10%"] = reached
            table.append(row)
            target = baselines if method.endswith(": random") else figures
            target[f"{method.replace(': ', '_')}_{bits}"] = [round(float(mean), 4) for mean in mean_L]
        if options.quick:
            continue
        for host in dict.fromkeys(method.split(": ")[0] for method in precision):
            drawn = {
                method.removeprefix(f"{host}: "): dict(
                    zip(levels, zip(own.mean(0), own.std(0), strict=True), strict=True)
                )
                for method, own in precision.items()
                if method.startswith(f"{host}: ")
            }
            title = f"{dataset}, {host}, {bits} bits"
            figure = precision_over_labels_figure(drawn, {}, PRECISION_AT, title, close=True)
            save_figure(figure, Storage(options.output), f"labeling/{dataset}-{host}-{bits}-bits.png")
    some = next(iter(runs.values()))
    notes = [
        f"{some['queries']:,} queries in {some['rows']:,} rows; means over the seeds of P@{PRECISION_AT} when that "
        "share of the rows is labeled; spread: standard deviation over the seeds, mean of the columns.",
        "labels for random's 10%: share of labels at which the curve reaches what random reaches with 10%, of the "
        "same seeds.",
        f"Each hasher is trained for {some['epochs'] or 'as many'} epochs"
        + ("." if some["epochs"] else " as benchmarks.quality trains it."),
    ]
    benchmark.report(table, figures or baselines, baselines, notes, result=f"labeling-{dataset}")


def _table(curves: Collection[Sequence[Mapping[str, Any]]], name: str) -> npt.NDArray[np.float64]:
    """One figure of all points, `[seeds, levels]`."""
    return np.array([[point[name] for point in points] for points in curves])


if __name__ == "__main__":
    sys.exit(main())
