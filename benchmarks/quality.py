"""Retrieval quality of SSB-VAE on short texts, on their sentence embeddings, and on images.

Beside it, in the same run, PCA-sign, ITQ and LSH codes of the same length and float cosine.

Queries are the test rows (of images a sample), the database all training rows, relevance is the same class;
figures are expectations under random ties. The baselines run here, on the same features; the reference code's
own figures are those of its measured runs (`reference_precision_at_100` in the config).

    python -m benchmarks.quality [--quick] [--dataset web_snippets_minilm] [--data DIRECTORY]
"""

from __future__ import annotations

import dataclasses
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from benchmarks.reporting import Benchmark
from distindex import settings
from distindex.config import CorpusConfig, TrainConfig
from distindex.evaluation.protocol import MethodResult, table_row
from distindex.evaluation.run import Judged, judge, read_judged
from distindex.hashing import Hasher
from distindex.training import train

HERE = Path(__file__).resolve().parent
DATASETS = ("web_snippets", "web_snippets_minilm", "fashion_mnist", "cifar10_jpeg")
COLUMNS = ("P@100", "P@1000", "mAP@100", "mAP@1000", "distinct codes", "largest bucket")


@dataclasses.dataclass(frozen=True)
class Run:
    """One trained hasher: code length, share of labels, seed (of the label mask and of training)."""

    bits: int
    labels: float
    seed: int


def runs(plan: dict[str, Any], quick: bool) -> list[Run]:
    """Every run of the plan; with `quick` the smallest one."""
    every = [Run(b, f, s) for b in plan["bits"] for f in plan["labels"] for s in plan["mask_seeds"]]
    return every[:1] if quick else every


def train_one(run: Run, plan: dict[str, Any], data: Path, home: Path, quick: bool) -> Hasher:
    """Train with the config in benchmarks/configs; all labels of the mask are used, the last epoch is kept."""
    output = home / f"{run.bits}-{run.labels}-{run.seed}"
    made = settings.load(
        TrainConfig,
        str(HERE / "configs" / plan["train"]),
        [
            f"--corpus.uri={data / 'train.parquet'}",
            f"--output={output}",
            f"--bits={run.bits}",
            f"--labels.fraction={run.labels}",
            f"--labels.seed={run.seed}",
            f"--optimization.seed={run.seed}",
            *([f"--optimization.epochs={plan.get('quick_epochs', 6)}"] if quick else []),
        ],
    )
    train(made)
    return Hasher.load(str(output))


def sample(queries: Judged, count: int | None) -> Judged:
    """Some of the queries, drawn at random and the same in every run; all of them without a count."""
    rows = len(queries.labels)
    if count is None or count >= rows:
        return queries
    chosen = np.sort(np.random.default_rng(0).permutation(rows)[:count])
    return Judged(queries.x_NV[chosen], queries.labels.take(chosen))


def mean_row(method: str, bits: int | None, labels: float | None, results: list[MethodResult]) -> dict[str, Any]:
    """A table row: the mean over seeds, and the spread of precision@100."""
    rows = [table_row(result) for result in results]
    values = {name: [row[name] for row in rows if row[name] is not None] for name in COLUMNS}
    row: dict[str, Any] = {"method": method, "bits": bits, "labels": None if labels is None else f"{labels:.0%}"}
    row |= {name: float(np.mean(found)) if found else None for name, found in values.items()}
    row["P@100 spread"] = float(np.std(values["P@100"], ddof=1)) if len(rows) > 1 else None
    row["seeds"] = len(rows)
    return row


def main() -> int:
    benchmark = Benchmark("quality", "retrieval quality of learned codes")
    shared = HERE.parents[1] / "shared" / "data"
    benchmark.parser.add_argument(
        "--dataset", choices=DATASETS, default=DATASETS[0], help="which plan of benchmarks/configs to run"
    )
    benchmark.parser.add_argument("--data", type=Path, help="directory of train.parquet and test.parquet")
    options = benchmark.parse()
    benchmark.name = f"quality-{options.dataset}"
    data: Path = options.data or shared / options.dataset
    if not (data / "train.parquet").exists():
        print(f"skipped: the data set {options.dataset} is not there; name its directory with --data")
        return 0
    plan = yaml.safe_load((HERE / "configs" / f"quality-{options.dataset}.yaml").read_text())
    reference = {(r["bits"], r["labels"]): r["precision"] for r in plan.get("reference_precision_at_100", ())}
    ks = [100, 1000]
    results: dict[tuple[int, float], list[MethodResult]] = {}
    rescored: dict[tuple[int, float], list[MethodResult]] = {}
    baselines: dict[tuple[str, int | None], MethodResult] = {}
    with tempfile.TemporaryDirectory() as directory:
        for run in runs(plan, options.quick):
            hasher = train_one(run, plan, data, Path(directory), options.quick)
            corpora = [
                CorpusConfig(str(data / f"{name}.parquet"), hasher.feature_column, label_column="label")
                for name in ("test", "train")
            ]
            queries, database = (read_judged(corpus, hasher) for corpus in corpora)
            queries = sample(queries, plan.get("queries"))
            first = (run.bits, run.labels) not in results and ("lsh", run.bits) not in baselines
            judged = judge(hasher, queries, database, ks, 2, baselines=first)
            results.setdefault((run.bits, run.labels), []).append(judged[0])
            rescored.setdefault((run.bits, run.labels), []).append(judged[1])
            baselines |= {(r.method, r.bits): r for r in judged[2:]}
    rows, figures, base = [], {}, {}
    for (bits, labels), found in results.items():
        row = mean_row("ssb-vae", bits, labels, found)
        row["reference"] = reference.get((bits, labels))
        rows.append(row)
        name = f"ssb_vae_{bits}_bits_{labels:.0%}_labels"
        figures[name] = round(row["P@100"], 4)
        figures[f"{name}_distinct_codes"] = row["distinct codes"]
        if (bits, labels) in reference:
            base[name] = reference[bits, labels]
        rows.append(mean_row("ssb-vae, rescored", bits, labels, rescored[bits, labels]))
        figures[f"{name}_rescored"] = round(rows[-1]["P@100"], 4)
    for (method, bits), result in sorted(baselines.items(), key=lambda item: (item[0][1] or 0, item[0][0])):
        rows.append(mean_row(method, bits, None, [result]))
        base[f"{method.replace(' ', '_')}{f'_{bits}_bits' if bits else ''}"] = round(rows[-1]["P@100"], 4)
    notes = ["reference: P@100 of the reference code's own runs, mean of its seeds"] if reference else []
    benchmark.report(rows, figures, base, notes=notes)
    return 0


if __name__ == "__main__":
    sys.exit(main())
