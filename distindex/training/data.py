"""From a corpus to what the training loop holds in memory: features, labels that may be read, the split.

The whole set is read once, in a Ray task, and shared by the workers of a node through the object store.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import scipy.sparse
import torch

from distindex.config import TrainConfig
from distindex.corpus.dataset import Corpus, split_bad_rows
from distindex.corpus.features import Features, ImageFeatures, fit_features
from distindex.corpus.ids import check_ids
from distindex.corpus.labels import Labels, label_mask, labeled_ids_mask, read_labels
from distindex.errors import InputError
from distindex.hashing import noise
from distindex.hashing.batch import Batch, rows_of
from distindex.hashing.methods import check_input, needs_labels
from distindex.hashing.neighbors import nearest_rows

# The stream of noise that neighbours are drawn by; the methods' streams have other numbers.
_NEIGHBOR = 500


@dataclasses.dataclass
class TrainingSet:
    """The corpus in memory.

    Attributes:
        features: the fitted recipe.
        x_NV: the encoder's input, dense or CSR; of images the pixels, uint8.
        target_NV: what the decoder reconstructs.
        label_NC: the labels that the loss may read, one-hot or multi-hot, CSR; rows that are unlabeled, hidden
            by the mask or held out for validation are empty.
        known: the labels that the mask leaves, held-out rows included; only validation reads them.
        validation_rows: rows held out, all of them labeled.
        fingerprint: of the corpus' files.
        rejected: rows left out because they are bad.
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
    neighbor_NJ: npt.NDArray[np.int32] | None = None
    neighbor_share: float = 0.0

    @property
    def rows(self) -> int:
        return int(self.x_NV.shape[0])  # type: ignore[index]

    @property
    def sparse(self) -> bool:
        return scipy.sparse.issparse(self.x_NV)

    @property
    def labeled_N(self) -> npt.NDArray[np.bool_]:
        """Which rows have a label that the loss may read."""
        return np.diff(self.label_NC.indptr) > 0

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
        row_B = torch.arange(start, start + len(mine))
        drawn_B = noise.uniform(noise.key_of(key, _NEIGHBOR), row_B, 1)[:, 0].numpy()
        column_B = (drawn_B * self.neighbor_NJ.shape[1]).astype(np.int64)
        near_BV = self.target_NV[self.neighbor_NJ[mine, column_B]]  # type: ignore[index]
        return own_BV * np.float32(1 - self.neighbor_share) + near_BV * np.float32(self.neighbor_share)


def read_training_set(config: TrainConfig) -> TrainingSet:
    """Read and check the corpus, fit the features, choose the labels that training may see.

    Raises:
        InputError: anything wrong with the corpus or its labels, in one line.
    """
    corpus = Corpus.open(config.corpus)
    kind = corpus.feature_kind if config.features.kind == "auto" else config.features.kind
    check_input(config.method, kind)
    columns = [config.corpus.id_column, config.corpus.feature_column]
    if config.corpus.label_column:
        columns.append(config.corpus.label_column)
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
    if config.method.likelihood == "bernoulli" and kind == "dense" and not ((x_NV >= 0) & (x_NV <= 1)).all():  # type: ignore[operator]
        raise InputError(
            "method.likelihood: bernoulli needs numbers within [0, 1]; "
            "set features.dense.scale to none if they are, or take gaussian"
        )
    known = _known_labels(config, table)
    validation_rows = _validation_rows(config, known)
    kept = np.ones(table.num_rows, bool)
    kept[validation_rows] = False
    if config.optimization.labeled_fraction == 1 and (known.labeled() & kept).sum() < 2:
        raise InputError("optimization.labeled_fraction: 1 leaves fewer than two rows to train on; take less")
    return TrainingSet(
        features=features,
        x_NV=x_NV,
        target_NV=features.target(x_NV),
        label_NC=scipy.sparse.csr_matrix(known.hide(kept).matrix(), dtype=np.float32),
        known=known,
        validation_rows=validation_rows,
        fingerprint=corpus.fingerprint,
        rejected=rejected,
        **neighbors_of(config, features, x_NV),
    )


def neighbors_of(
    config: TrainConfig, features: Features, x_NV: np.ndarray | scipy.sparse.csr_matrix
) -> dict[str, Any]:
    """`neighbor_NJ` and `neighbor_share` of a training set with these features."""
    share, rows = config.method.weights().neighbor_share, int(x_NV.shape[0])  # type: ignore[index]
    if not share or rows < 2:
        return {"neighbor_NJ": None, "neighbor_share": 0.0}
    found = nearest_rows(features.network_input(x_NV), config.method.neighbors, config.optimization.seed)
    return {"neighbor_NJ": found, "neighbor_share": share}


def _known_labels(config: TrainConfig, table: pa.Table) -> Labels:
    """The labels of the rows that the label mask leaves."""
    rows = table.num_rows
    if config.corpus.label_column is None:
        return Labels((), np.zeros(rows + 1, np.int64), np.zeros(0, np.int32), multi=False)
    labels = read_labels(table[config.corpus.label_column])
    if config.labels.ids is not None:
        keep = labeled_ids_mask(table[config.corpus.id_column], config.labels.ids, config.corpus.storage_options)
    else:
        keep = label_mask(rows, config.labels.fraction, config.labels.seed)
    known = labels.hide(keep)
    if not known.labeled().any():
        raise InputError(
            f'{config.corpus.uri}: no row has a label in column "{config.corpus.label_column}" that may be used '
            f"({labels.labeled().sum()} before the mask)"
            + (
                f"; {config.method.name} needs some"
                if needs_labels(config.method.name)
                else "; leave out corpus.label_column to train without labels"
            )
        )
    return known


def _validation_rows(config: TrainConfig, known: Labels) -> npt.NDArray[np.int64]:
    labeled = np.flatnonzero(known.labeled())
    count = round(config.validation.fraction * len(labeled))
    chosen = np.random.default_rng([config.labels.seed, 1]).permutation(labeled)[:count]
    return np.sort(chosen)


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
    rows = len(order)
    starts = list(range(0, rows, size))
    if len(starts) > 1 and rows - starts[-1] < 2:
        starts.pop()
    for step, start in enumerate(starts):
        yield order[start : starts[step + 1] if step + 1 < len(starts) else rows]


def _two_streams(
    labeled_N: npt.NDArray[np.bool_], batch_size: int, labeled_fraction: float, random: np.random.Generator
) -> Iterator[npt.NDArray[np.int64]]:
    labeled, unlabeled = np.flatnonzero(labeled_N), random.permutation(np.flatnonzero(~labeled_N))
    mine = min(batch_size - 1, max(1, round(labeled_fraction * batch_size)))
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


def share_of(rank: int, workers: int, rows: int) -> tuple[int, int]:
    """Which of the `rows` of a global batch belong to a worker; shares differ by one row at most."""
    return rank * rows // workers, (rank + 1) * rows // workers
