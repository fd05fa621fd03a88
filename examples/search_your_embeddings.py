"""Search your own embeddings by learned binary codes, in this process: no service, no cluster to set up.

The vectors here are scikit-learn's 1,797 handwritten digits, and one in ten labels is known. Put your own vectors,
ids and labels in their place. A label may be None; without any labels, training uses the vectors alone.

    python examples/search_your_embeddings.py DIRECTORY
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from sklearn.datasets import load_digits

from distindex import build, connect, encode, train
from distindex.config import BuildConfig, CorpusConfig, EncodeConfig, LabelsConfig, OptimizationConfig, TrainConfig

QUERIES = 100
NEIGHBOURS = 10


def main(directory: Path) -> None:
    """Write the vectors as Parquet, learn 64-bit codes, index them, and search by vectors that were held out."""
    vectors, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(vectors))
    vectors, labels = vectors[order].astype(np.float32), labels[order]

    directory.mkdir(parents=True, exist_ok=True)
    indexed = slice(QUERIES, None)
    table = pa.table(
        {
            "id": [f"digit-{number}" for number in order[indexed]],
            "vector": pa.FixedSizeListArray.from_arrays(vectors[indexed].ravel(), vectors.shape[1]),
            "label": [str(label) for label in labels[indexed]],
        }
    )
    pq.write_table(table, directory / "corpus.parquet")

    corpus = CorpusConfig(
        str(directory / "corpus.parquet"), "vector", label_column="label", payload_columns=["label"]
    )
    hasher, codes, index = (str(directory / name) for name in ("hasher", "codes", "index"))
    train(
        TrainConfig(
            corpus,
            hasher,
            bits=64,
            labels=LabelsConfig(fraction=0.1),
            optimization=OptimizationConfig(epochs=20),
        )
    )
    encode(EncodeConfig(corpus, hasher, codes))
    build(BuildConfig(codes, index, hasher=hasher))

    with connect(index) as searcher:
        found = searcher.search(vectors=vectors[:QUERIES], k=NEIGHBOURS, columns=["label"])
    for match in found[0]:
        print(f"{match.id:>10}  {match.distance} bits away, label {match.payload['label']}")
    same = [match.payload["label"] == str(labels[query]) for query in range(QUERIES) for match in found[query]]
    print(f"{np.mean(same):.3f} of the {NEIGHBOURS} nearest neighbours have the query's label; 8 bytes per vector")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(Path(sys.argv[1]))
