"""The corpus in memory: read once, in a Ray task, and shared by the workers of a node through the object store."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import scipy.sparse
import torch

from distindex.config import TrainConfig
from distindex.corpus.dataset import Corpus, split_bad_rows
from distindex.corpus.features import Features, ImageFeatures, Matrix, fit_features
from distindex.corpus.ids import as_ids, check_ids
from distindex.corpus.label_store import check_given, read_given_labels
from distindex.corpus.labels import Labels, labeled_ids_mask
from distindex.corpus.pair_answers import NO_ANSWERS, NO_PAIRS, PairAnswers
from distindex.errors import InputError
from distindex.hashing import noise
from distindex.hashing.batch import Batch, rows_of
from distindex.hashing.distributed import share_of
from distindex.hashing.neighbors import nearest_rows
from distindex.settings import fingerprint
from distindex.training.lanes import batch_bounds, epoch_steps, labeled_of_batch, spread
from distindex.training.source import (
    TrainingData,
    check_likelihood,
    columns_of,
    draw_neighbors,
    kind_of,
    known_labels,
    mix,
    split_validation,
)


@dataclasses.dataclass
class TrainingSet(TrainingData):
    """The corpus in memory.

    Attributes:
        features: the fitted recipe.
        x_NV: the encoder's input, dense or CSR; of images the pixels, uint8.
        target_NV: what the decoder reconstructs.
        label_NC: the labels that the loss may read, one-hot or multi-hot, CSR; rows that are unlabeled, hidden
            by the mask or held out for validation are empty.
        known: the labels that the mask leaves, held-out rows included.
        validation_rows: rows held out.
        fingerprint: of the corpus' files, and of the label store.
        rejected: rows left out because they are bad.
        answered: what is known of pairs of rows besides the labels.
        neighbor_NJ: nearest rows of each row, one of which the decoder reconstructs too; None without.
        neighbor_share: share of that one in what is reconstructed.
    """

    features: Features
    x_NV: np.ndarray | scipy.sparse.csr_matrix
    target_NV: np.ndarray | scipy.sparse.csr_matrix
    label_NC: scipy.sparse.csr_matrix
    known: Labels
    validation_rows: npt.NDArray[np.int64]
    fingerprint: str
    rejected: int
    answered: PairAnswers = NO_ANSWERS
    neighbor_NJ: npt.NDArray[np.int32] | None = None
    neighbor_share: float = 0.0

    @property
    def rows(self) -> int:
        return int(self.x_NV.shape[0])  # type: ignore[index]

    @property
    def labeled(self) -> npt.NDArray[np.int64]:
        return np.flatnonzero(np.diff(self.label_NC.indptr) > 0)

    def x_of(self, rows: npt.NDArray[np.int64]) -> Matrix:
        return self.x_NV[rows]  # type: ignore[index]

    def labels_of(self, rows: npt.NDArray[np.int64]) -> Labels:
        return self.known.take(rows)

    def steps(self, config: TrainConfig) -> int:
        fraction = config.optimization.labeled_fraction
        return len(epoch_steps(self.rows, len(self.labeled), self.others_of_batch(config), fraction))

    def batches(self, config: TrainConfig, epoch: int, first: int, rank: int, workers: int) -> Iterator[Batch]:
        for step, (key, row_G) in enumerate(self._global_batches(config, epoch)):
            if step >= first:
                drawn = self.drawn_pairs(config, epoch, step, len(row_G))
                row_G = spread(row_G, drawn.row_P2.ravel(), drawn.place_D)
                batch = self.batch(row_G, *share_of(rank, workers, len(row_G)), key)
                yield dataclasses.replace(batch, answered=drawn.answered())

    def _global_batches(self, config: TrainConfig, epoch: int) -> Iterator[tuple[int, npt.NDArray[np.int64]]]:
        settings = config.optimization
        labeled_N = np.zeros(self.rows, bool)
        labeled_N[self.labeled] = True
        return global_batches(
            self.rows,
            self.others_of_batch(config),
            settings.seed,
            epoch,
            labeled_N,
            settings.labeled_fraction,
        )

    def batch(self, row_G: npt.NDArray[np.int64], start: int, stop: int, key: int) -> Batch:
        """Rows `start` to `stop` of the global batch `row_G`."""
        mine = row_G[start:stop]
        x_BV = rows_of(self.x_NV[mine])  # type: ignore[index]
        return Batch(
            x_BV=x_BV,
            target_BV=(
                x_BV
                if self.target_NV is self.x_NV and self.neighbor_NJ is None
                else rows_of(self._target(mine, start, key))
            ),
            label_BC=torch.from_numpy(self.label_NC[mine].toarray()),
            row_B=torch.arange(start, stop),
            global_rows=len(row_G),
            key=key,
        )

    def _target(
        self, mine: npt.NDArray[np.int64], start: int, key: int
    ) -> npt.NDArray[np.float32] | scipy.sparse.csr_matrix:
        own_BV = self.target_NV[mine]  # type: ignore[index]
        if self.neighbor_NJ is None:
            return own_BV
        near_B = draw_neighbors(self.neighbor_NJ[mine], start, key)
        return mix(own_BV, self.target_NV[near_B], self.neighbor_share)  # type: ignore[index]


def read_training_set(config: TrainConfig, corpus: Corpus | None = None) -> TrainingSet:
    """Read and check the corpus, fit the features, choose the labels that training may see.

    Args:
        config: the run's.
        corpus: its corpus, where it is open already.

    Raises:
        InputError: anything wrong with the corpus or its labels, in one line.
    """
    corpus = corpus or Corpus.open(config.corpus)
    kind = kind_of(config, corpus)
    columns = columns_of(config)
    check = ImageFeatures(config.features.image) if kind == "image" else corpus.row_check()
    good, rejected = [], 0
    for batch in corpus.batches(columns):
        rows, bad = split_bad_rows(batch, check, config.corpus)
        good.append(rows)
        rejected += bad.num_rows
    table = pa.concat_tables(good, promote_options="permissive")
    if not table.num_rows:
        raise InputError(f"{config.corpus.uri}: no usable row; all {rejected} rows are bad")
    check_ids(table[config.corpus.id_column], config.corpus.uri)
    column = table[config.corpus.feature_column]
    features = fit_features(config.features, kind, [column])
    x_NV = features.transform(column)
    if kind == "dense":
        check_likelihood(config, x_NV)
    ids, options = as_ids(table[config.corpus.id_column], config.corpus.uri), config.corpus.storage_options
    label = table[config.corpus.label_column] if config.corpus.label_column else None
    listed_N, given_N, pairs, data_fingerprint = None, None, NO_PAIRS, corpus.fingerprint
    if config.labels.ids is not None and label is not None:
        listed_N = labeled_ids_mask(ids, config.labels.ids, options)
    if config.labels.store is not None:
        given = read_given_labels(config.labels.store, ids.type, options)
        label, given_N = given.over(ids, label)
        place_N = given.places_of(ids)
        pairs = given.row_pairs(np.flatnonzero(place_N >= 0), place_N[place_N >= 0])
        check_given(given, given_N, pairs, config.labels.store)
        data_fingerprint = fingerprint(corpus.fingerprint, given.fingerprint)
    known, answered = known_labels(config, table.num_rows, label, listed_N, given_N, pairs)
    validation_rows, kept = split_validation(config, known)
    return TrainingSet(
        features=features,
        x_NV=x_NV,
        target_NV=features.target(x_NV),
        label_NC=scipy.sparse.csr_matrix(known.hide(kept).matrix(), dtype=np.float32),
        known=known,
        validation_rows=validation_rows,
        fingerprint=data_fingerprint,
        rejected=rejected,
        answered=answered,
        **neighbors_of(config, features, x_NV),
    )


def neighbors_of(
    config: TrainConfig, features: Features, x_NV: np.ndarray | scipy.sparse.csr_matrix
) -> dict[str, Any]:
    """`neighbor_NJ` and `neighbor_share` of a training set with these features."""
    weights = config.method.weights(images=isinstance(features, ImageFeatures))
    share, rows = weights.neighbor_share, int(x_NV.shape[0])  # type: ignore[index]
    if not share or rows < 2:
        return {"neighbor_NJ": None, "neighbor_share": 0.0}
    found = nearest_rows(features.network_input(x_NV), config.method.neighbors, config.optimization.seed)
    return {"neighbor_NJ": found, "neighbor_share": share}


def global_batches(
    rows: int,
    batch_size: int,
    seed: int,
    epoch: int,
    labeled_N: npt.NDArray[np.bool_] | None = None,
    labeled_fraction: float = 0.0,
) -> Iterator[tuple[int, npt.NDArray[np.int64]]]:
    """The global batches of one epoch and their noise keys: the same for any number of workers.

    Every row stands in exactly one batch. The last batch is short; one row alone has no batch statistics
    and joins the batch before it.

    With a `labeled_fraction` each batch has that share of labeled rows, at least one of each kind: the unlabeled
    rows stand in exactly one batch, and beside them runs one permutation of the labeled rows after the other.
    1 takes the labeled rows only, each in one batch.
    """
    random = np.random.default_rng([seed, epoch])
    if labeled_fraction == 0 or labeled_N is None or labeled_N.all() or not labeled_N.any():
        batches = _cut(random.permutation(rows), batch_size)
    elif labeled_fraction == 1:
        batches = _cut(random.permutation(np.flatnonzero(labeled_N)), batch_size)
    else:
        batches = _two_streams(labeled_N, batch_size, labeled_fraction, random)
    for step, row_G in enumerate(batches):
        yield noise.key_of(seed, epoch, step), row_G


def _cut(order: npt.NDArray[np.int64], size: int) -> Iterator[npt.NDArray[np.int64]]:
    bound_S1 = batch_bounds(len(order), size)
    for start, stop in itertools.pairwise(bound_S1):
        yield order[start:stop]


def _two_streams(
    labeled_N: npt.NDArray[np.bool_], batch_size: int, labeled_fraction: float, random: np.random.Generator
) -> Iterator[npt.NDArray[np.int64]]:
    labeled, unlabeled = np.flatnonzero(labeled_N), random.permutation(np.flatnonzero(~labeled_N))
    mine = labeled_of_batch(batch_size, labeled_fraction)
    waiting = np.zeros(0, np.int64)
    for start in range(0, len(unlabeled), batch_size - mine):
        others = unlabeled[start : start + batch_size - mine]
        # A short batch keeps the share.
        wanted = max(1, round(mine * len(others) / (batch_size - mine)))
        while len(waiting) < wanted:
            waiting = np.concatenate([waiting, random.permutation(labeled)])
        # Shuffled, so that no worker holds all the labeled rows.
        yield random.permutation(np.concatenate([waiting[:wanted], others]))
        waiting = waiting[wanted:]
