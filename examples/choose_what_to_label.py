"""What to label next: do labels that are asked for by uncertainty teach more than as many at random?

The items are scikit-learn's handwritten digits, and their known labels stand in for people who would be asked. Two
strategies spend the same budget in the same rounds, each with several seeds, because one run proves nothing.

    python examples/choose_what_to_label.py DIRECTORY
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from sklearn.datasets import load_digits

from distindex import label
from distindex.config import CorpusConfig, MethodConfig, OptimizationConfig, TrainConfig, ValidationConfig
from distindex.label_config import LabelRunConfig, SelectionConfig

QUERIES = 300
ROUNDS, BUDGET = 4, 80
SEEDS = range(5)


def main(directory: Path) -> None:
    """Precision of the ten nearest after each round, for two strategies."""
    directory.mkdir(parents=True, exist_ok=True)
    vectors, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(vectors))
    table = pa.table({"id": order, "vector": list(vectors[order].astype(np.float32)), "label": labels[order]})
    pq.write_table(table.slice(0, QUERIES), directory / "queries.parquet")
    pq.write_table(table.slice(QUERIES), directory / "corpus.parquet")
    corpus, queries = (
        CorpusConfig(str(directory / f"{name}.parquet"), "vector", label_column="label")
        for name in ("corpus", "queries")
    )

    precision: dict[str, list[list[float]]] = {}
    for strategy in ("random", "margin"):
        for seed in SEEDS:
            report = label(
                LabelRunConfig(
                    TrainConfig(
                        corpus,
                        str(directory / f"{strategy}-{seed}"),
                        bits=32,
                        # In closed form, which takes a second; a network learns more from as many labels.
                        method=MethodConfig(name="ssh"),
                        optimization=OptimizationConfig(seed=seed),
                        validation=ValidationConfig(fraction=0),
                    ),
                    rounds=ROUNDS,
                    budget=BUDGET,
                    oracle="simulated",
                    selection=SelectionConfig(strategy, seed=seed),
                    queries=queries,
                    k=10,
                )
            )
            precision.setdefault(strategy, []).append([each["precision"] for each in report.rounds])
    labeled = [each["labeled"] for each in report.rounds]
    print(f"\nlabels     {'   '.join(f'{count:>13}' for count in labeled)}")
    for strategy, runs in precision.items():
        mean, least, most = np.mean(runs, axis=0), np.min(runs, axis=0), np.max(runs, axis=0)
        figures = [f"{m:.3f} ({low:.2f}-{high:.2f})" for m, low, high in zip(mean, least, most, strict=True)]
        print(f"{strategy:10} {'  '.join(figures)}")
    ahead = sum(margin[-1] > random[-1] for random, margin in zip(*precision.values(), strict=True))
    print(f"with {labeled[-1]} labels margin is ahead in {ahead} of {len(SEEDS)} runs")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(Path(sys.argv[1]))
