"""What must be known of a corpus before it can be streamed, found by Ray tasks that read it piece by piece.

One pass checks the rows, counts terms, moments or pixels, and brings the labels together; another brings the features
of the few rows that stay in memory.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import ray
import scipy.sparse

from distindex.config import TrainConfig
from distindex.corpus.dataset import Corpus
from distindex.corpus.features import DenseFeatures, Features, Fit, Matrix
from distindex.corpus.ids import as_ids, bucket_of, first_repeated
from distindex.corpus.label_store import GivenLabels, check_given, read_given_labels
from distindex.corpus.labels import check_listed, read_id_list
from distindex.corpus.pair_answers import NO_PAIRS, RowPairs
from distindex.corpus.pieces import NumberedRows, Piece, good_rows
from distindex.corpus.rows import ColumnCheck, FeatureKind
from distindex.errors import InputError
from distindex.runtime import cluster_cpus, fetch
from distindex.settings import fingerprint
from distindex.training.source import check_likelihood, columns_of

# About 400 MB of int64 ids in one task.
_IDS_PER_TASK = 50_000_000
_TASKS_PER_CPU = 4


@dataclasses.dataclass
class Scan:
    """What a pass over a corpus found.

    Attributes:
        features: the recipe, fitted to the good rows.
        good_P: int64, good rows of each piece.
        rejected: bad rows.
        label_N: the label column of the good rows, that of the label store laid over it; None without.
        listed_N: which good rows `labels.ids` names; None without such a list.
        given_N: which good rows have a label of the label store; None without one.
        pairs: the pairs of the label store.
        fingerprint: of the corpus' files, and of the label store.
    """

    features: Features
    good_P: npt.NDArray[np.int64]
    rejected: int
    label_N: pa.ChunkedArray | None
    listed_N: npt.NDArray[np.bool_] | None
    given_N: npt.NDArray[np.bool_] | None
    pairs: RowPairs
    fingerprint: str


@dataclasses.dataclass
class _Part:
    """What one task found."""

    fit: Fit
    good: list[int]
    rejected: int
    labels: list[pa.Array]
    listed: list[npt.NDArray[np.bool_]]
    known: pa.ChunkedArray | None
    given: list[npt.NDArray[np.bool_]]
    place: list[npt.NDArray[np.int64]]


def scan(config: TrainConfig, corpus: Corpus, kind: FeatureKind, pieces: Sequence[Piece]) -> Scan:
    """Check all rows, fit the features and bring the labels together; the memory of no task depends on the corpus.

    Raises:
        InputError: a row is bad and `on_bad_rows` is `fail`, all are, an id is there twice or listed and not there,
            or the features cannot be fitted.
    """
    listed = None
    if config.labels.ids is not None and config.corpus.label_column:
        listed = read_id_list(config.labels.ids, corpus.id_type, config.corpus.storage_options)
    given = None
    if config.labels.store is not None:
        given = read_given_labels(config.labels.store, corpus.id_type, config.corpus.storage_options)
    width = None if kind == "image" else corpus.width
    buckets = max(1, -(-corpus.rows // _IDS_PER_TASK))
    task = ray.remote(num_cpus=1, num_returns=buckets + 1)(_scan_pieces)
    found: list[Any] = [
        task.remote(config, corpus, kind, width, group, listed, given, buckets) for group in _groups(pieces)
    ]
    fit, good, labels, listed_N, known, rejected = Fit(config.features, kind), [], [], [], [], 0
    given_N: list[npt.NDArray[np.bool_]] = []
    place_N: list[npt.NDArray[np.int64]] = []
    for number, references in enumerate(found):
        try:
            part: _Part = fetch(references[0])
        except InputError:
            for later in found[number + 1 :]:
                ray.cancel(later[0])
            raise
        fit.merge(part.fit)
        good += part.good
        labels += part.labels
        listed_N += part.listed
        known += part.known.chunks if part.known is not None else []
        given_N += part.given
        place_N += part.place
        rejected += part.rejected
    if not sum(good):
        raise InputError(f"{config.corpus.uri}: no usable row; all {rejected} rows are bad")
    _check_unique(corpus, [references[1:] for references in found])
    if listed is not None:
        check_listed(listed, pa.chunked_array(known, listed.type), str(config.labels.ids))
    label, kept = config.corpus.label_column, corpus.fingerprint
    label_type, pairs = corpus.schema.field(label).type if label else None, NO_PAIRS
    if given is not None:
        label_type, kept = given.labels.type, fingerprint(corpus.fingerprint, given.fingerprint)
        every_N = np.concatenate(place_N)
        pairs = given.row_pairs(np.flatnonzero(every_N >= 0), every_N[every_N >= 0])
        check_given(given, np.concatenate(given_N), pairs, str(config.labels.store))
    return Scan(
        features=fit.features(),
        good_P=np.array(good, np.int64),
        rejected=rejected,
        label_N=pa.chunked_array(labels, label_type) if label_type is not None else None,
        listed_N=np.concatenate(listed_N) if listed is not None else None,
        given_N=np.concatenate(given_N) if given is not None else None,
        pairs=pairs,
        fingerprint=kept,
    )


def read_rows(numbered: NumberedRows, features: Features, rows: npt.NDArray[np.int64]) -> Matrix:
    """The encoder's input of some good rows, by number, ascending.

    Raises:
        InputError: a file has changed since its rows were counted.
    """
    cut_P1 = np.searchsorted(rows, numbered.first_P1)
    wanted = [piece for piece in range(len(numbered.pieces)) if cut_P1[piece] < cut_P1[piece + 1]]
    shared = ray.put((numbered, features))
    task = ray.remote(num_cpus=1)(_read_pieces)
    found = [
        task.remote(shared, [(piece, rows[cut_P1[piece] : cut_P1[piece + 1]]) for piece in group])
        for group in _groups(wanted)
    ]
    return stack([part for reference in found for part in fetch(reference)])


def stack(parts: Sequence[Matrix]) -> Matrix:
    """The rows of several matrices, one below the other."""
    if len(parts) == 1:
        return parts[0]
    if scipy.sparse.issparse(parts[0]):
        return scipy.sparse.csr_matrix(scipy.sparse.vstack(parts, format="csr"))  # type: ignore[arg-type]
    return np.concatenate(parts)  # type: ignore[arg-type]


def _groups(items: Sequence[Any]) -> list[list[Any]]:
    """Consecutive items for each task."""
    count = min(len(items), _TASKS_PER_CPU * cluster_cpus())
    return [list(items[number * len(items) // count : (number + 1) * len(items) // count]) for number in range(count)]


def _scan_pieces(
    config: TrainConfig,
    corpus: Corpus,
    kind: FeatureKind,
    width: int | None,
    pieces: Sequence[Piece],
    listed: pa.Array | None,
    given: GivenLabels | None,
    buckets: int,
) -> tuple[Any, ...]:
    """What the pieces hold, and their ids by bucket."""
    fit = Fit(config.features, kind)
    check = fit.images if kind == "image" else ColumnCheck(kind, width)
    part = _Part(fit, [], 0, [], [], None, [], [])
    id_name, label = config.corpus.id_column, config.corpus.label_column
    ids: list[pa.Array] = []
    for piece in pieces:
        good = 0
        for rows, bad in good_rows(corpus, piece, columns_of(config), check):
            column = rows[config.corpus.feature_column]
            if kind == "dense" and config.method.likelihood == "bernoulli":
                check_likelihood(config, _scaled(config, column, width or 0))
            fit.add(column)
            own_ids = pa.chunked_array(as_ids(rows[id_name], corpus.config.uri))
            ids += own_ids.chunks
            if given is not None:
                over, given_N = given.over(own_ids, rows[label] if label else None)
                part.labels.append(over)
                part.given.append(given_N)
                part.place.append(given.places_of(own_ids))
            else:
                part.labels += rows[label].chunks if label else []
            good += rows.num_rows
            part.rejected += bad
        part.good.append(good)
    every = pa.chunked_array(ids, corpus.id_type)
    if listed is not None:
        part.listed.append(pc.is_in(every, value_set=listed).to_numpy(zero_copy_only=False))  # type: ignore[attr-defined]
        part.known = every.filter(pa.array(part.listed[0]))
    bucket_N = bucket_of(every, buckets)
    return part, *(every.filter(pa.array(bucket_N == bucket)) for bucket in range(buckets))


def _scaled(config: TrainConfig, column: pa.ChunkedArray, width: int) -> Matrix:
    scale = config.features.dense.scale
    # Standardized numbers have the mean 0: some lie below it.
    return np.full(1, -1.0) if scale == "standardize" else DenseFeatures(width, scale).transform(column, checked=True)


def _check_unique(corpus: Corpus, buckets: Sequence[Sequence[Any]]) -> None:
    check = ray.remote(num_cpus=1)(first_repeated)
    for repeated in fetch([check.remote(*bucket) for bucket in zip(*buckets, strict=True)]):
        if repeated is not None:
            raise InputError(
                f"{corpus.config.uri}: id {repeated!r} is there more than once: "
                f"{', '.join(corpus.places_of(repeated))}; ids must be unique"
            )


def _read_pieces(
    shared: tuple[NumberedRows, Features], wanted: Sequence[tuple[int, npt.NDArray[np.int64]]]
) -> list[Matrix]:
    numbered, features = shared
    parts = []
    for piece, rows in wanted:
        for column, row_N in numbered.read(piece):
            low, high = np.searchsorted(rows, [row_N[0], row_N[-1] + 1]) if len(row_N) else (0, 0)
            if low < high:
                parts.append(features.transform(column.take(rows[low:high] - row_N[0]), checked=True))
    return parts
