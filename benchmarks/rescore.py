"""Asymmetric search against Hamming search: what it finds, and what it costs.

Quality: SSB-VAE hashers, trained in this process with a tenth of the labels, on the digits of scikit-learn and,
where the data is there, web_snippets. Each ranks the held-out queries by Hamming distance and by the asymmetric
distance of the queries' logits: the same codes, the same queries. Figures are expectations under random ties.

Time: `Index.search` with and without logits over codes of 64 bits, the scoring alone of 1,000 candidates a query
against numpy's unpackbits and a product of matrices, and how much of the true ranking the candidates hold.

    python -m benchmarks.rescore [--quick] [--data DIRECTORY]
"""

from __future__ import annotations

import dataclasses
import itertools
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
import torch

from benchmarks.reporting import Benchmark
from benchmarks.search import seconds
from distindex import codes
from distindex.codes import CodeArray
from distindex.config import (
    CorpusConfig,
    LabelsConfig,
    MethodConfig,
    OptimizationConfig,
    TrainConfig,
    ValidationConfig,
)
from distindex.evaluation.protocol import table_row
from distindex.evaluation.run import judge, read_judged
from distindex.hashing import Hasher
from distindex.index.index import Index
from distindex.index.structure import set_search_threads
from distindex.quickstart.data import write_digits
from distindex.storage import Storage
from distindex.training.data import read_training_set
from distindex.training.loop import build_model, train_epoch
from distindex.training.optimizer import Optimizer

HERE = Path(__file__).resolve().parent
K, CANDIDATES, QUERIES = 100, 1000, 256
COLUMNS = ("P@100", "mAP@100", "distinct codes")


@dataclasses.dataclass(frozen=True)
class Task:
    """A data set: what is searched and for what, and how its hashers are trained."""

    name: str
    database: CorpusConfig
    queries: CorpusConfig
    method: MethodConfig
    epochs: int


def tasks(directory: str, data: Path, quick: bool) -> list[Task]:
    """The digits, written to the directory, and web_snippets where it is there."""
    write_digits(Storage(directory))
    digits = _corpora(Path(directory), ("corpus", "queries"), "pixels")
    found = [Task("digits", *digits, method=MethodConfig(), epochs=40)]
    if (data / "train.parquet").exists():
        snippets = _corpora(data, ("train", "test"), "text")
        # The settings for texts of configs/quality.yaml.
        method = MethodConfig(class_weight=3, pair_weight=3, input_dropout=0.5, dropout=0.5)
        found.append(Task("web_snippets", *snippets, method=method, epochs=6 if quick else 30))
    return found


def _corpora(home: Path, names: tuple[str, str], feature_column: str) -> list[CorpusConfig]:
    return [CorpusConfig(str(home / f"{name}.parquet"), feature_column, label_column="label") for name in names]


def train(task: Task, bits: int, seed: int) -> Hasher:
    """A hasher trained in this process, on one thread and without Ray."""
    settings = TrainConfig(
        task.database,
        "",
        bits=bits,
        labels=LabelsConfig(fraction=0.1, seed=seed),
        method=task.method,
        optimization=OptimizationConfig(epochs=task.epochs, seed=seed),
        validation=ValidationConfig(fraction=0),
    )
    data = read_training_set(settings)
    model = build_model(data, settings)
    optimizer = Optimizer(model, settings.optimization)
    for epoch in range(task.epochs):
        train_epoch(model, optimizer, data, settings, epoch, 0, 1, torch.device("cpu"))
    tables = model.eval().encoder.export()
    return Hasher("ssb-vae", bits, task.database.feature_column, data.features, tables)


def quality(task: Task, runs: Sequence[tuple[int, int]]) -> list[dict[str, Any]]:
    """A row for each code length and ranking, means over the seeds.

    Args:
        task: the data set.
        runs: code lengths with the seeds of the label mask and of the training.
    """
    found: dict[tuple[int, str], list[dict[str, Any]]] = {}
    for bits, seed in runs:
        hasher = train(task, bits, seed)
        queries, database = (read_judged(corpus, hasher) for corpus in (task.queries, task.database))
        plain, rescored = (table_row(r) for r in judge(hasher, queries, database, [K], 2, baselines=False))
        rescored["distinct codes"] = plain["distinct codes"]
        found.setdefault((bits, "Hamming"), []).append(plain)
        found.setdefault((bits, "rescored"), []).append(rescored)
    return [
        {"data": task.name, "bits": bits, "ranking": ranking, "seeds": len(rows)}
        | {column: float(np.mean([row[column] for row in rows])) for column in COLUMNS}
        for (bits, ranking), rows in found.items()
    ]


def overlap(index: Index, logit_QK: np.ndarray, candidates: int) -> float:
    """Share of the true asymmetric top k that a preselection of so many codes holds, by score."""
    exact = index.search(k=K, logits=logit_QK, candidates=index.distinct)
    found = index.search(k=K, logits=logit_QK, candidates=candidates)
    assert exact.score_M is not None
    assert found.score_M is not None
    worst_Q1 = exact.score_M.reshape(len(logit_QK), -1)[:, -1:]
    return float((found.score_M.reshape(len(logit_QK), -1) <= worst_Q1).mean())


def speed(database_NC: CodeArray) -> dict[str, float]:
    """Milliseconds a query of both searches, microseconds a query of the scoring alone, by name."""
    random = np.random.default_rng(0)
    rows = len(database_NC)
    sign_QK = 2.0 * codes.unpack(database_NC[random.integers(0, rows, QUERIES)]) - 1
    logit_QK = (sign_QK + 0.7 * random.standard_normal(sign_QK.shape)).astype(np.float32)
    query_QC = codes.pack(logit_QK > 0)
    differing_QNC = query_QC[:, None] ^ database_NC[random.integers(0, rows, (QUERIES, CANDIDATES))]

    def score() -> np.ndarray:
        return codes.asymmetric(codes.byte_weights(logit_QK), differing_QNC)

    def score_by_product() -> np.ndarray:
        bit_QNK = np.unpackbits(differing_QNC, axis=2, bitorder="little").astype(np.float32)
        return (bit_QNK @ np.abs(logit_QK)[:, :, None])[:, :, 0]

    np.testing.assert_allclose(score(), score_by_product(), rtol=1e-4)
    with tempfile.TemporaryDirectory() as directory:
        index = Index.create(directory, database_NC, np.arange(rows))
        found = {
            "hamming_ms": seconds(lambda: index.search(query_QC, K)) / QUERIES * 1e3,
            "rescored_ms": seconds(lambda: index.search(k=K, logits=logit_QK, candidates=CANDIDATES)) / QUERIES * 1e3,
            "score_us": seconds(score) / QUERIES * 1e6,
            "score_by_product_us": seconds(score_by_product) / QUERIES * 1e6,
        }
        for candidates in (CANDIDATES, 10 * CANDIDATES):
            found[f"held_by_{candidates}"] = overlap(index, logit_QK[:32], candidates)
        index.close()
    return found


def uniform(random: np.random.Generator, rows: int, bits: int) -> CodeArray:
    """Codes of independent, even bits."""
    return random.integers(0, 256, (rows, bits // 8), dtype=np.uint8)


def clustered(random: np.random.Generator, rows: int, bits: int) -> CodeArray:
    """Ten rows a code on average: each distinct code is a centre with a tenth of its bits flipped."""
    distinct = max(1, rows // 10)
    centre = uniform(random, max(1, distinct // 100), bits)
    flips = codes.pack(random.random((distinct, bits)) < 0.1)
    return (centre[random.integers(0, len(centre), distinct)] ^ flips)[random.integers(0, distinct, rows)]


def main() -> int:
    benchmark = Benchmark("rescore", "asymmetric search against Hamming search, quality and time, one thread")
    shared = HERE.parents[1] / "shared" / "data" / "web_snippets"
    benchmark.parser.add_argument("--data", type=Path, default=shared, help="directory of web_snippets")
    options = benchmark.parse()
    torch.set_num_threads(1)
    set_search_threads(1)
    lengths, seeds = ((16, 64), (20,)) if options.quick else ((16, 32, 64), (20, 144, 1028))
    runs = list(itertools.product(lengths, seeds))
    table, figures, baselines = [], {}, {}
    with tempfile.TemporaryDirectory() as directory:
        for task in tasks(directory, options.data, options.quick):
            # A run on web_snippets takes longest by far.
            table += quality(task, runs[:1] if options.quick and task.name == "web_snippets" else runs)
    for row in table:
        side = baselines if row["ranking"] == "Hamming" else figures
        side[f"{row['data']}_{row['bits']}_bits_precision_at_100"] = round(row["P@100"], 4)
    rows = 100_000 if options.quick else 1_000_000
    notes = [f"Labels of a tenth of the rows. Time: {rows:,} codes of 64 bits, {QUERIES} queries a batch, k = {K}."]
    for kind in (clustered, uniform):
        found = {name: round(value, 4) for name, value in speed(kind(np.random.default_rng(1), rows, 64)).items()}
        figures |= {f"{kind.__name__}_{name}": value for name, value in found.items()}
        baselines[f"{kind.__name__}_rescored_ms"] = found["hamming_ms"]
        baselines[f"{kind.__name__}_score_us"] = found["score_by_product_us"]
        notes.append(
            f"{kind.__name__} codes: Hamming search {found['hamming_ms']:.3f} ms a query, rescored with "
            f"{CANDIDATES:,} candidates {found['rescored_ms']:.3f} ms, of which scoring {found['score_us']:.0f} us "
            f"(by unpackbits and a product of matrices {found['score_by_product_us']:.0f} us); {CANDIDATES:,} "
            f"candidates hold {found[f'held_by_{CANDIDATES}']:.3f} of the true asymmetric top {K}, "
            f"{10 * CANDIDATES:,} hold {found[f'held_by_{10 * CANDIDATES}']:.3f}."
        )
    benchmark.report(table, figures, baselines, notes)
    return 0


if __name__ == "__main__":
    sys.exit(main())
