"""A corpus larger than memory: its rows are streamed, and what is known of them by number stays in memory."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import ray
import scipy.sparse
import torch

from distindex.config import TrainConfig
from distindex.corpus.dataset import Corpus
from distindex.corpus.features import Features, Matrix
from distindex.corpus.labels import Labels
from distindex.corpus.pair_answers import PairAnswers
from distindex.corpus.pieces import NumberedRows, cut_corpus
from distindex.errors import InputError
from distindex.hashing import noise
from distindex.hashing.batch import Batch, rows_of
from distindex.hashing.distributed import share_of
from distindex.hashing.neighbors import anchor_rows
from distindex.training.lanes import EpochSteps, epoch_steps
from distindex.training.reader import Block, ReadAhead, Reader, is_in
from distindex.training.scan import read_rows, scan
from distindex.training.source import (
    TrainingData,
    draw_neighbors,
    judged_rows,
    kind_of,
    known_labels,
    mix,
    split_validation,
)

# Row groups below this are read together.
_PIECE_BYTES = 4 << 20
# Rows of a worker that are handed over at once.
_BLOCK_ROWS = 4096
# Fewer than in memory, since the rows look for their neighbours in every epoch anew.
_MOST_ANCHORS = 2_000


@dataclasses.dataclass(frozen=True)
class Streaming:
    """How a corpus is streamed; with the seed it decides what stands in each batch.

    Attributes:
        lanes: parts of the corpus that are read side by side.
        window: rows of a lane that are shuffled at once.
        row_bytes: what a row takes in memory, about.
        budget: bytes that rows may take in memory.
    """

    lanes: int
    window: int
    row_bytes: int
    budget: int


@dataclasses.dataclass
class StreamedSet(TrainingData):
    """A corpus whose rows are read as they are needed.

    Attributes:
        features: the fitted recipe.
        known: the labels that the mask leaves, of labeled rows only.
        validation_rows: rows held out.
        fingerprint: of the corpus' files, and of the label store.
        rejected: rows left out because they are bad.
        answered: what is known of pairs of rows besides the labels; these rows stay in memory.
        numbered: the good rows.
        streaming: how they are streamed.
        known_rows: the numbers of the rows of `known`, ascending.
        trained_rows: those of them that are not held out.
        label_TC: the labels of `trained_rows`, one-hot or multi-hot.
        held_rows: the numbers of the rows that stay in memory, ascending.
        held_HV: their features.
        anchors: rows among which neighbours are looked for; None without.
        neighbor_share: share of the neighbour in what the decoder reconstructs.
        reader: makes the batches; a process of its own after `read_ahead`.
    """

    features: Features
    known: Labels
    validation_rows: npt.NDArray[np.int64]
    fingerprint: str
    rejected: int
    answered: PairAnswers
    numbered: NumberedRows
    streaming: Streaming
    known_rows: npt.NDArray[np.int64]
    trained_rows: npt.NDArray[np.int64]
    label_TC: scipy.sparse.csr_matrix
    held_rows: npt.NDArray[np.int64]
    held_HV: Matrix
    anchors: npt.NDArray[np.int32] | None
    neighbor_share: float
    reader: ReadAhead | None = None

    @property
    def rows(self) -> int:
        return int(self.numbered.first_P1[-1])

    @property
    def labeled(self) -> npt.NDArray[np.int64]:
        return self.trained_rows

    def x_of(self, rows: npt.NDArray[np.integer]) -> Matrix:
        return self.held_HV[np.searchsorted(self.held_rows, rows)]  # type: ignore[index]

    def labels_of(self, rows: npt.NDArray[np.int64]) -> Labels:
        return self.known.take(np.searchsorted(self.known_rows, rows))

    def steps(self, config: TrainConfig) -> int:
        return len(self.epoch_steps(config))

    def epoch_steps(self, config: TrainConfig) -> EpochSteps:
        """The global batches of each epoch."""
        fraction = config.optimization.labeled_fraction
        return epoch_steps(self.rows, len(self.trained_rows), self.others_of_batch(config), fraction)

    def read_ahead(self, reference: ray.ObjectRef, config: TrainConfig, rank: int, workers: int) -> None:
        """Let another process make this worker's batches; `reference` is that of this set in Ray's object store."""
        self.reader = ReadAhead(reference, self.steps(config), config, rank, workers)

    def batches(self, config: TrainConfig, epoch: int, first: int, rank: int, workers: int) -> Iterator[Batch]:
        reader = self.reader or Reader(self, config, rank, workers)
        steps, settings = self.epoch_steps(config), config.optimization
        span = max(1, _BLOCK_ROWS * workers // settings.batch_size)
        near_AV = None if self.anchors is None else self.features.target(self.x_of(self.anchors))
        for begin in range(first, len(steps), span):
            end = min(begin + span, len(steps))
            block = reader.block(epoch, begin, end)
            for step in range(begin, end):
                drawn = self.drawn_pairs(config, epoch, step, steps[step].rows)
                key, rows = noise.key_of(settings.seed, epoch, step), drawn.rows
                batch = self._batch(block, step - begin, share_of(rank, workers, rows), rows, key, near_AV)
                yield dataclasses.replace(batch, answered=drawn.answered())

    def _batch(
        self, block: Block, number: int, share: tuple[int, int], rows: int, key: int, near_AV: Matrix | None
    ) -> Batch:
        mine = slice(int(block.offset_S1[number]), int(block.offset_S1[number + 1]))
        x_BV, row_B = block.x_NV[mine], block.row_N[mine]  # type: ignore[index]
        target_BV = self.features.target(x_BV)
        if near_AV is not None and block.near_NJ is not None:
            near_B = draw_neighbors(block.near_NJ[mine], share[0], key)
            target_BV = mix(target_BV, near_AV[near_B], self.neighbor_share)  # type: ignore[index]
        x = rows_of(x_BV)
        return Batch(
            x_BV=x,
            target_BV=x if target_BV is x_BV else rows_of(target_BV),
            label_BC=torch.from_numpy(self._labels(row_B)),
            row_B=torch.arange(*share),
            global_rows=rows,
            key=key,
        )

    def _labels(self, row_B: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        label_BC = np.zeros((len(row_B), self.label_TC.shape[1]), np.float32)  # type: ignore[index]
        if len(self.trained_rows):
            labeled_B = is_in(row_B, self.trained_rows)
            label_BC[labeled_B] = self.label_TC[np.searchsorted(self.trained_rows, row_B[labeled_B])].toarray()
        return label_BC


def read_streamed(config: TrainConfig, corpus: Corpus, streaming: Streaming) -> StreamedSet:
    """Read and check the corpus piece by piece, fit the features, choose the labels that training may see.

    Vocabulary, labels, held-out rows and neighbours' anchors are chosen as for a corpus in memory.

    Raises:
        InputError: anything wrong with the corpus or its labels; or more labeled rows must stay in memory, for
            `optimization.labeled_fraction`, than may.
    """
    kind = kind_of(config, corpus)
    pieces = cut_corpus(corpus, _PIECE_BYTES)
    found = scan(config, corpus, kind, pieces)
    numbered = NumberedRows(corpus, tuple(pieces), found.good_P, found.features)
    rows = int(numbered.first_P1[-1])
    known, answered = known_labels(config, rows, found.label_N, found.listed_N, found.given_N, found.pairs)
    validation_rows, kept_N = split_validation(config, known)
    known_rows = np.flatnonzero(known.labeled())
    trained = known_rows[kept_N[known_rows]]
    held = list(judged_rows(rows, trained, validation_rows))
    share, anchors = config.method.weights(images=kind == "image").neighbor_share, None
    if share and rows > 1:
        anchors = anchor_rows(rows, config.optimization.seed, _MOST_ANCHORS)
        held.append(anchors.astype(np.int64))
    if config.optimization.labeled_fraction:
        _check_fits(len(trained), streaming)
        held.append(trained)
    if len(answered):
        paired = np.unique(answered.row_P2)
        _check_pairs_fit(len(paired), streaming)
        held.append(paired)
    held_rows = np.unique(np.concatenate(held))
    return StreamedSet(
        features=found.features,
        known=known.take(known_rows),
        validation_rows=validation_rows,
        fingerprint=found.fingerprint,
        rejected=found.rejected,
        answered=answered,
        numbered=numbered,
        streaming=streaming,
        known_rows=known_rows,
        trained_rows=trained,
        label_TC=scipy.sparse.csr_matrix(known.take(trained).matrix(), dtype=np.float32),
        held_rows=held_rows,
        held_HV=read_rows(numbered, found.features, held_rows),
        anchors=anchors,
        neighbor_share=share if anchors is not None else 0.0,
    )


def _check_fits(labeled: int, streaming: Streaming) -> None:
    if labeled * streaming.row_bytes > streaming.budget:
        raise InputError(
            f"optimization.labeled_fraction: the {labeled:,} labeled rows must stay in memory and take about "
            f"{_allowed(labeled, streaming)}, or take labeled_fraction 0"
        )


def _check_pairs_fit(paired: int, streaming: Streaming) -> None:
    if paired * streaming.row_bytes > streaming.budget:
        raise InputError(
            f"labels.store: the {paired:,} rows of answered pairs must stay in memory and take about "
            f"{_allowed(paired, streaming)}"
        )


def _allowed(rows: int, streaming: Streaming) -> str:
    return (
        f"{rows * streaming.row_bytes / 2**30:.1f} GiB, more than memory_gib allows "
        f"({streaming.budget / 2**30:.1f} GiB); raise it"
    )
