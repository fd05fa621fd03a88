"""From the published files to the corpus and the queries of each data set, written once into a cache directory."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from distindex.config import FeaturesConfig
from distindex.errors import InputError
from distindex.settings import fingerprint
from distindex.storage import Storage, sha256_of

SPLIT_SEED = 20
QUERY_SHARE = 0.1
MOST_QUERIES, SAMPLED_QUERIES = 2_280, 2_000
"""A test set of more rows than the former is represented by a random sample of the latter."""
Queries = Literal["test", "held-out", "held-out blocks"]
"""Where queries come from: the test set, or training rows held out, by which settings may be chosen.

Blocks are rows that stand together. Where a file was collected by search phrases, as web_snippets was, rows held out
one by one have words in common with those that stay, and test rows have not.
"""
MOST_HELD_OUT = 1_500
BLOCK_ROWS = 60


@dataclasses.dataclass(frozen=True)
class Dataset:
    """How one data set is read.

    Attributes:
        kind: kind of its features: text, dense or image.
        feature_column: the column that hashers read.
        label_column: one label, or a list of labels.
        prepare: makes `(train, queries)` of what `read` gives; raises the recipe number where it changes.
        recipe: number of the preparation; results of another one are not mixed with these.
    """

    kind: str
    feature_column: str
    label_column: str
    prepare: Callable[[Path], tuple[pa.Table, pa.Table]]
    recipe: int = 1

    @property
    def supported(self) -> bool:
        """Whether this release has features of this kind."""
        return self.kind in typing.get_args(typing.get_type_hints(FeaturesConfig)["kind"])

    def identity(self, queries: Queries) -> dict[str, object]:
        """What results depend on besides the published files."""
        return {
            "columns": [self.feature_column, self.label_column],
            "recipe": self.recipe,
            "split": [SPLIT_SEED, QUERY_SHARE],
            "queries": [MOST_QUERIES, SAMPLED_QUERIES],
            **({"held out": MOST_HELD_OUT} if queries != "test" else {}),
            **({"block": BLOCK_ROWS} if queries == "held-out blocks" else {}),
        }


def prepared(name: str, data: Path, work: Path, queries: Queries = "test") -> Path:
    """The directory with `train.parquet` and `queries.parquet` of a data set, made if it is not there yet.

    Rows keep their published order, which the label masks refer to.

    Args:
        name: one of `DATASETS`.
        data: directory of the published data sets, one directory each.
        work: the cache directory.
        queries: where they come from; held out, they are not in `train.parquet`, and test rows are in neither.

    Raises:
        InputError: the data set is not in `data`.
    """
    dataset = DATASETS[name]
    sources = sorted((data / name).glob("*.parquet"))
    if not sources:
        raise InputError(f"{data / name}: the data set {name} is not here; name the directory above it with --data")
    published = {source.name: _sha256(source) for source in sources}
    directory = work / f"{name}-{fingerprint(dataset.identity(queries), published)}"
    storage = Storage(str(directory))
    if not storage.exists("prepared.json"):
        train, test = dataset.prepare(data / name)
        if queries == "test":
            asked = _sampled(test)
        else:
            train, asked = _held_out(train, BLOCK_ROWS if queries == "held-out blocks" else 1)
        for part, table in (("train", train), ("queries", asked)):
            with storage.open_output(f"{part}.parquet") as stream:
                pq.write_table(table, stream, compression="zstd")
        storage.write_json("prepared.json", {"dataset": name, **dataset.identity(queries), "published": published})
    return directory


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return sha256_of(stream)


def _sampled(queries: pa.Table) -> pa.Table:
    if queries.num_rows <= MOST_QUERIES:
        return queries
    chosen = np.random.default_rng(SPLIT_SEED).permutation(queries.num_rows)[:SAMPLED_QUERIES]
    return queries.take(np.sort(chosen))


def _held_out(train: pa.Table, block: int) -> tuple[pa.Table, pa.Table]:
    """A tenth of the training rows as queries, drawn at random in blocks of so many, and the others."""
    order = np.random.default_rng(SPLIT_SEED).permutation(-(-train.num_rows // block))
    queries = min(round(QUERY_SHARE * train.num_rows), MOST_HELD_OUT)
    held_N = np.isin(np.arange(train.num_rows) // block, order[: round(queries / block)])
    return train.filter(pa.array(~held_N)), train.filter(pa.array(held_N))


def _columns(*names: str) -> Callable[[Path], tuple[pa.Table, pa.Table]]:
    """The published split, with these columns."""

    def prepare(directory: Path) -> tuple[pa.Table, pa.Table]:
        paths = (directory / f"{part}.parquet" for part in ("train", "test"))
        train, test = (pq.read_table(path, columns=list(names)) for path in paths)
        return train, test

    return prepare


def _split(*names: str) -> Callable[[Path], tuple[pa.Table, pa.Table]]:
    """A tenth of the only file as queries, drawn at random; data sets of the same rows get the same split."""

    def prepare(directory: Path) -> tuple[pa.Table, pa.Table]:
        table = pq.read_table(directory / "train.parquet", columns=list(names))
        order = np.random.default_rng(SPLIT_SEED).permutation(table.num_rows)
        queries = round(QUERY_SHARE * table.num_rows)
        return table.take(np.sort(order[queries:])), table.take(np.sort(order[:queries]))

    return prepare


def _newsgroups(directory: Path) -> tuple[pa.Table, pa.Table]:
    """Messages without headers, footers and quotes, as scikit-learn removes them.

    Some are empty then; they stay, as they do there.
    """
    from sklearn.datasets._twenty_newsgroups import (
        strip_newsgroup_footer,
        strip_newsgroup_header,
        strip_newsgroup_quoting,
    )

    def stripped(table: pa.Table) -> pa.Table:
        texts = [
            strip_newsgroup_quoting(strip_newsgroup_footer(strip_newsgroup_header(text)))
            for text in table["text"].to_pylist()
        ]
        return table.set_column(table.schema.get_field_index("text"), "text", pa.array(texts))

    train, test = _columns("id", "text", "label")(directory)
    return stripped(train), stripped(test)


DATASETS = {
    "web_snippets": Dataset("text", "text", "label", _columns("id", "text", "label")),
    "20newsgroups": Dataset("text", "text", "label", _newsgroups),
    # Lists of tokens are texts to the features: they count as they are.
    "tmc2007_500": Dataset("text", "tokens", "labels", _columns("id", "tokens", "labels")),
    "reuters21578_modapte90": Dataset("text", "text", "labels", _columns("id", "text", "labels")),
    "stackoverflow_short": Dataset("text", "text", "label", _split("id", "text", "label")),
    "web_snippets_minilm": Dataset("dense", "embedding", "label", _columns("id", "embedding", "label")),
    "stackoverflow_short_minilm": Dataset("dense", "embedding", "label", _split("id", "embedding", "label")),
    "fashion_mnist": Dataset("image", "image", "label", _columns("id", "image", "label")),
    "cifar10_jpeg": Dataset("image", "image", "label", _columns("id", "image", "label")),
}
