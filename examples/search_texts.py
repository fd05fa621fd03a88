"""Search texts by what they are about, learned from a few labels: the documentation of SciPy.

The texts are the docstrings of SciPy's functions and classes, which every installation has; the label of a text is
its module, and one in five keeps it in training. Codes learned so say first of all which module a text belongs to;
the order within a module is what is left of the words: good for "what is like this function", rough for a question.

    python examples/search_texts.py DIRECTORY
"""

from __future__ import annotations

import importlib
import inspect
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from distindex import build, connect, encode, evaluate, train
from distindex.config import (
    BuildConfig,
    CorpusConfig,
    EncodeConfig,
    EvaluateConfig,
    LabelsConfig,
    OptimizationConfig,
    TrainConfig,
)

MODULES = "cluster.hierarchy fft integrate interpolate linalg ndimage optimize signal sparse spatial special stats"
LIKE = ["optimize.bisect", "interpolate.CubicSpline", "ndimage.rotate"]
QUESTIONS = [
    "remove noise from a recorded signal with a filter",
    "count connected regions of an image",
    "eigenvalues of a symmetric matrix",
    "group observations by a tree of clusters",
]
HELD_OUT = 200


def read_documentation() -> pa.Table:
    """One row for each function and class that has a docstring: id, text, label."""
    rows = {}
    for module in MODULES.split():
        public = importlib.import_module(f"scipy.{module}")
        for name in sorted(public.__all__):
            text = inspect.getdoc(getattr(public, name)) or ""
            if len(text.split()) > 20:
                # The start of a docstring says what it is about; examples further down are of everything.
                rows[text] = {"id": f"{module}.{name}", "text": text[:1000], "label": module}
    return pa.Table.from_pylist(list(rows.values()))


def main(directory: Path) -> None:
    """Learn codes of 64 bits, index the texts, judge by texts that were held out, and ask."""
    directory.mkdir(parents=True, exist_ok=True)
    texts = read_documentation()
    order = np.random.default_rng(0).permutation(len(texts))
    # What is asked about by its name must be in the index: it is moved to the end.
    asked = np.isin(texts["id"].to_numpy()[order], LIKE)
    texts = texts.take(np.concatenate([order[~asked], order[asked]]))
    pq.write_table(texts.slice(HELD_OUT), directory / "corpus.parquet")
    pq.write_table(texts.slice(0, HELD_OUT), directory / "queries.parquet")

    corpus, queries = (
        CorpusConfig(str(directory / f"{name}.parquet"), "text", label_column="label", payload_columns=["label"])
        for name in ("corpus", "queries")
    )
    hasher, codes, index = (str(directory / name) for name in ("hasher", "codes", "index"))
    train(
        TrainConfig(
            corpus,
            hasher,
            bits=64,
            labels=LabelsConfig(fraction=0.2),
            optimization=OptimizationConfig(epochs=20, batch_size=100),
        )
    )
    encode(EncodeConfig(corpus, hasher, codes))
    build(BuildConfig(codes, index, hasher=hasher))

    evaluation = str(directory / "evaluation")
    report = evaluate(EvaluateConfig(hasher, corpus, queries, evaluation, k=[10], baselines=True))
    print(f"{HELD_OUT} texts that were held out: the share of the 10 nearest that are of the same module")
    for row in report.rows():
        print(f"  {row['method']:20} {row['P@10']:.3f} with {row['bytes/item']:g} bytes a text")

    with connect(index) as searcher:
        for name, matches in zip(LIKE, searcher.search(items=LIKE, k=5), strict=True):
            print(f"\nlike {name}: {', '.join(str(match.id) for match in matches)}")
        for question, matches in zip(QUESTIONS, searcher.search(texts=QUESTIONS, k=5, rescore=True), strict=True):
            print(f"\n{question}? {', '.join(str(match.id) for match in matches)}")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(Path(sys.argv[1]))
