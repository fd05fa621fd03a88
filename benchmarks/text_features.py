"""Rows per second of turning texts into a hasher's input, against scikit-learn with the same vocabulary.

The baseline is what one writes first: CountVectorizer for the words, one more with analyzer char_wb where runs of
characters are asked for. Both give counts; the weights, which are a small part of it, are left out of both. Rounds
alternate in one process with one thread; the median counts.

    python -m benchmarks.text_features [--quick] [--data DIRECTORY]
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from sklearn.feature_extraction.text import CountVectorizer

from benchmarks.encode import texts
from benchmarks.reporting import Benchmark
from distindex.config import TextConfig
from distindex.corpus.text import TermCounts
from distindex.corpus.words import WordCounter

CORPORA = {
    "web_snippets": ("web_snippets", 10_060),
    "20newsgroups": ("20newsgroups", 11_314),
    "generated, 100 words": (None, 20_000),
}
LENGTH = 4


def corpus(name: str, data: Path, quick: bool) -> pa.ChunkedArray | None:
    """The texts of a corpus; None where it is not there."""
    directory, rows = CORPORA[name]
    rows = min(rows, 2_000) if quick else rows
    if directory is None:
        return pa.chunked_array([texts(np.random.default_rng(0), rows)])
    path = data / directory / "train.parquet"
    return pq.read_table(path, columns=["text"]).column("text").slice(0, rows) if path.exists() else None


def scikit_learn(words: list[str], grams: list[str]) -> Callable[[pa.ChunkedArray], list[Any]]:
    """The baseline for this vocabulary."""
    makers = [CountVectorizer(vocabulary=words, token_pattern=r"(?u)\b[^\W\d]\w+\b")]
    if grams:
        makers.append(CountVectorizer(vocabulary=grams, analyzer="char_wb", ngram_range=(LENGTH, LENGTH)))
    return lambda column: [maker.transform(column.to_pylist()) for maker in makers]


def main() -> int:
    benchmark = Benchmark("text_features", "Rows per second of turning texts into counts of words")
    shared = Path(__file__).resolve().parents[2] / "shared" / "data"
    benchmark.parser.add_argument("--data", type=Path, default=shared, help="directory of the published data sets")
    options = benchmark.parse()
    rows: list[dict[str, Any]] = []
    for name in CORPORA:
        column = corpus(name, options.data, options.quick)
        if column is None:
            print(f"skipped: {name} is not in {options.data}")
            continue
        for length in (0, LENGTH):
            config = TextConfig(character_ngrams=length, maximum_document_fraction=1.0)
            counts = TermCounts(config)
            counts.add(column)
            found = counts.vocabulary()
            words, grams = found.terms[: found.words], found.terms[found.words :]
            ways = {"scikit-learn": scikit_learn(words, grams), "distindex": WordCounter(words, grams, config).count}
            taken: dict[str, list[float]] = {way: [] for way in ways}
            for round_number in range(3 if options.quick else 8):
                for way, count in ways.items():
                    began = time.process_time()
                    count(column)
                    # The first round compiles and is not counted.
                    if round_number:
                        taken[way].append(time.process_time() - began)
            speed = {way: len(column) / statistics.median(seconds) for way, seconds in taken.items()}
            rows.append(
                {
                    "corpus": name,
                    "rows": len(column),
                    "features": f"words, runs of {length} characters" if length else "words",
                    **{f"{way}, rows/s": round(value) for way, value in speed.items()},
                    "ratio": speed["distindex"] / speed["scikit-learn"],
                }
            )
    figures = {f"{row['corpus']}: {row['features']}": round(row["ratio"], 2) for row in rows}
    baselines = {f"{row['corpus']}: {row['features']}": row["scikit-learn, rows/s"] for row in rows}
    notes = [
        "one thread, CPU seconds; vocabularies of at most 10,000 words and 10,000 runs of characters",
        "both give the same counts of words; scikit-learn's runs are of stop words and numbers too",
    ]
    benchmark.report(rows, figures, baselines, notes)
    return 0


if __name__ == "__main__":
    sys.exit(main())
