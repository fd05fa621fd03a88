"""What the training loop reads of a corpus, in memory or streamed, and the choices that both ways make alike."""

from __future__ import annotations

import abc
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import scipy.sparse
import torch

from distindex.config import TrainConfig
from distindex.corpus.dataset import Corpus
from distindex.corpus.features import Features, Matrix
from distindex.corpus.labels import Labels, label_mask, read_labels
from distindex.corpus.pair_answers import NO_ANSWERS, PairAnswers, RowPairs, close
from distindex.corpus.rows import FeatureKind
from distindex.errors import InputError
from distindex.hashing import noise
from distindex.hashing.batch import Batch
from distindex.hashing.methods import check_input, needs_labels, reads_pairs
from distindex.training.lanes import DrawnPairs, pairs_of_batch

# The stream of noise that neighbours are drawn by; the methods' streams have other numbers.
_NEIGHBOR = 500
_MOST_QUERIES, _MOST_DATABASE = 2_000, 50_000
# A pair, and two other rows.
_SMALLEST_PAIRED = 4


class Judged(NamedTuple):
    """The rows that validation looks at, by number: some of all for the balance of the bits, queries, database."""

    sample: npt.NDArray[np.int64]
    queries: npt.NDArray[np.int64]
    database: npt.NDArray[np.int64]


class TrainingData(abc.ABC):
    """What the training loop reads of a corpus, in memory or streamed; rows are numbered as they stand in it.

    Attributes:
        features: the fitted recipe.
        known: the labels that the mask leaves, held-out rows included; only validation reads them.
        validation_rows: rows held out, all of them labeled.
        fingerprint: of the corpus' files, and of the label store.
        rejected: rows left out because they are bad.
        answered: what is known of pairs of rows besides the labels.
    """

    features: Features
    known: Labels
    validation_rows: npt.NDArray[np.int64]
    fingerprint: str
    rejected: int
    answered: PairAnswers

    @property
    @abc.abstractmethod
    def rows(self) -> int:
        """Rows of the corpus, without the bad ones."""

    @property
    @abc.abstractmethod
    def labeled(self) -> npt.NDArray[np.int64]:
        """The rows that have a label which the loss may read, ascending."""

    @property
    def sparse(self) -> bool:
        return self.features.kind == "text"

    def others_of_batch(self, config: TrainConfig) -> int:
        """Rows of a global batch that no answered pair brings."""
        settings = config.optimization
        drawn = pairs_of_batch(settings.batch_size, settings.pair_fraction) if len(self.answered) else 0
        return settings.batch_size - 2 * drawn

    def drawn_pairs(self, config: TrainConfig, epoch: int, step: int, others: int) -> DrawnPairs:
        """The answered pairs of a global batch with so many other rows."""
        settings = config.optimization
        if not len(self.answered):
            return DrawnPairs(others, self.answered.row_P2, self.answered.similar_P)
        usual = pairs_of_batch(settings.batch_size, settings.pair_fraction)
        # A short batch keeps the share.
        count = max(1, min(usual, round(usual * others / self.others_of_batch(config))))
        return DrawnPairs.of(self.answered, settings.seed, epoch, step * usual, count, others)

    @abc.abstractmethod
    def x_of(self, rows: npt.NDArray[np.int64]) -> Matrix:
        """The encoder's input of rows that validation looks at."""

    @abc.abstractmethod
    def labels_of(self, rows: npt.NDArray[np.int64]) -> Labels:
        """The known labels of labeled rows."""

    @abc.abstractmethod
    def steps(self, config: TrainConfig) -> int:
        """Global batches of an epoch."""

    @abc.abstractmethod
    def batches(self, config: TrainConfig, epoch: int, first: int, rank: int, workers: int) -> Iterator[Batch]:
        """A worker's shares of an epoch's global batches, from the batch `first` on."""


def judged_rows(rows: int, labeled: npt.NDArray[np.int64], validation_rows: npt.NDArray[np.int64]) -> Judged:
    """The rows that validation looks at, the same after every epoch."""
    random = np.random.default_rng(0)
    return Judged(
        np.linspace(0, rows - 1, min(rows, _MOST_QUERIES)).astype(np.int64),
        # Of their number: numpy cannot permute an empty array that lies in Ray's object store.
        validation_rows[random.permutation(len(validation_rows))[:_MOST_QUERIES]],
        np.sort(labeled[random.permutation(len(labeled))[:_MOST_DATABASE]]),
    )


def kind_of(config: TrainConfig, corpus: Corpus) -> FeatureKind:
    """What the feature column is taken for.

    Raises:
        InputError: the method does not take it.
    """
    kind = corpus.feature_kind if config.features.kind == "auto" else config.features.kind
    check_input(config.method, kind)
    return kind


def columns_of(config: TrainConfig) -> list[str]:
    """The columns that training reads."""
    label = config.corpus.label_column
    return [config.corpus.id_column, config.corpus.feature_column, *([label] if label else [])]


def check_likelihood(config: TrainConfig, x_NV: Matrix) -> None:
    """Refuse vectors that the likelihood is not defined for.

    Raises:
        InputError: bernoulli, and a number outside of [0, 1].
    """
    if config.method.likelihood == "bernoulli" and not ((x_NV >= 0) & (x_NV <= 1)).all():  # type: ignore[operator]
        raise InputError(
            "method.likelihood: bernoulli needs numbers within [0, 1]; "
            "set features.dense.scale to none if they are, or take gaussian"
        )


def known_labels(
    config: TrainConfig,
    rows: int,
    label: pa.ChunkedArray | pa.Array | None,
    listed_N: npt.NDArray[np.bool_] | None,
    given_N: npt.NDArray[np.bool_] | None,
    pairs: RowPairs,
) -> tuple[Labels, PairAnswers]:
    """The labels of the rows that the label mask leaves, with those that follow from answers about pairs.

    What remains of these answers comes with them where the method learns from it.

    Args:
        config: the run's.
        rows: rows of the corpus.
        label: their label column, that of `labels.store` laid over it.
        listed_N: which rows `labels.ids` names; without it `labels.fraction` counts.
        given_N: which rows have a label of `labels.store`; None without.
        pairs: the pairs of `labels.store`.

    Raises:
        InputError: no label is left, and nothing to learn from in its place.
    """
    if label is None:
        return Labels((), np.zeros(rows + 1, np.int64), np.zeros(0, np.int32), multi=False), NO_ANSWERS
    labels = read_labels(label)
    keep_N = label_mask(rows, config.labels.fraction, config.labels.seed) if listed_N is None else listed_N
    known, answered = close(labels.hide(keep_N if given_N is None else keep_N | given_N), pairs)
    if not reads_pairs(config.method.name):
        answered = answered.left_unused()
    if not known.labeled().any() and (not len(answered) or needs_labels(config.method.name)):
        column = config.corpus.label_column
        where, setting = (f'column "{column}"', "corpus.label_column") if column else ("labels.store", "labels.store")
        raise InputError(
            f"{config.corpus.uri}: no row has a label in {where} that may be used "
            f"({labels.labeled().sum()} before the mask)"
            + (
                f"; {config.method.name} needs some"
                if needs_labels(config.method.name)
                else f"; leave out {setting} to train without labels"
            )
        )
    if len(answered) and config.optimization.batch_size < _SMALLEST_PAIRED:
        raise InputError(
            f"optimization.batch_size: {config.optimization.batch_size} is too small for answered pairs among other "
            f"rows; take at least {_SMALLEST_PAIRED}"
        )
    return known, answered


def split_validation(config: TrainConfig, known: Labels) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    """The rows held out, and which rows are not.

    Raises:
        InputError: too few labeled rows are left to train on these alone.
    """
    labeled = np.flatnonzero(known.labeled())
    count = round(config.validation.fraction * len(labeled))
    chosen = np.sort(np.random.default_rng([config.labels.seed, 1]).permutation(labeled)[:count])
    kept_N = np.ones(len(known), bool)
    kept_N[chosen] = False
    if config.optimization.labeled_fraction == 1 and (known.labeled() & kept_N).sum() < 2:
        raise InputError("optimization.labeled_fraction: 1 leaves fewer than two rows to train on; take less")
    return chosen, kept_N


def draw_neighbors(neighbor_BJ: npt.NDArray[np.int32], start: int, key: int) -> npt.NDArray[np.int32]:
    """One neighbour of each row; the first row has the place `start` in the global batch."""
    row_B = torch.arange(start, start + len(neighbor_BJ))
    drawn_B = noise.uniform(noise.key_of(key, _NEIGHBOR), row_B, 1)[:, 0].numpy()
    column_B = (drawn_B * neighbor_BJ.shape[1]).astype(np.int64)
    return neighbor_BJ[np.arange(len(neighbor_BJ)), column_B]


def mix(own_BV: Matrix, near_BV: Matrix, share: float) -> npt.NDArray[np.float32] | scipy.sparse.csr_matrix:
    """What the decoder reconstructs: the row and a neighbour of it, which has this share."""
    mixed_BV: Any = own_BV * np.float32(1 - share) + near_BV * np.float32(share)
    return mixed_BV
