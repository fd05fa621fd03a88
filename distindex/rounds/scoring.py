"""The rows of a corpus as a hasher sees them, and the candidates of a choice, made by Ray tasks."""

from __future__ import annotations

import dataclasses

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import ray

from distindex.config import TrainConfig
from distindex.corpus.dataset import Corpus
from distindex.corpus.features import ImageFeatures
from distindex.corpus.ids import as_ids
from distindex.corpus.labels import Labels, label_lists, read_labels
from distindex.corpus.pieces import Piece, cut_corpus, good_rows
from distindex.corpus.rows import RowCheck
from distindex.errors import InputError
from distindex.hashing import Hasher
from distindex.label_config import SelectionConfig
from distindex.labeling import Pool, Selected, select
from distindex.labeling.candidates import block_count, candidate_block, join_blocks
from distindex.runtime import cluster_cpus, fetch

_PIECE_BYTES = 64 << 20
_TASKS_PER_CPU = 4


@dataclasses.dataclass(frozen=True)
class SeenCorpus:
    """The good rows of a corpus.

    Attributes:
        ids: their ids.
        labels: their own labels, whatever training may read of them.
        logit_NK: their logits; zeros without a hasher.
    """

    ids: pa.ChunkedArray
    labels: Labels
    logit_NK: npt.NDArray[np.float32]


def see(config: TrainConfig, hasher_uri: str | None) -> SeenCorpus:
    """Read a corpus and encode it.

    Raises:
        InputError: the corpus cannot be read, or does not fit the hasher.
    """
    corpus = Corpus.open(config.corpus)
    kind = corpus.feature_kind if config.features.kind == "auto" else config.features.kind
    check = ImageFeatures(config.features.image) if kind == "image" else corpus.row_check()
    task = ray.remote(num_cpus=1)(_see_piece)
    pieces = cut_corpus(corpus, _PIECE_BYTES)
    parts = fetch([task.remote(corpus, piece, check, hasher_uri, config.bits) for piece in pieces])
    ids, labels, logits = zip(*parts, strict=True)
    return SeenCorpus(
        pa.chunked_array([chunk for part in ids for chunk in part], corpus.id_type),
        read_labels(pa.chunked_array([chunk for part in labels for chunk in part], pa.list_(pa.string()))),
        np.concatenate([block for part in logits for block in part]),
    )


def choose(pool: Pool, config: SelectionConfig, budget: int) -> Selected:
    """As `select`, the candidates made by Ray tasks; the same whatever their number.

    Raises:
        InputError: as `select`.
    """
    if config.strategy != "dh-aps" or not len(pool):
        return select(pool, config, budget)
    # What all blocks need is made once.
    _ = pool.output_NK, pool.square_N, pool.unlabeled
    shared, blocks = ray.put(pool), block_count(pool, config.candidates)
    groups = np.array_split(np.arange(blocks), max(1, min(blocks, _TASKS_PER_CPU * cluster_cpus())))
    task = ray.remote(num_cpus=1)(_candidate_blocks)
    found = fetch([task.remote(shared, config, group.tolist()) for group in groups])
    return select(pool, config, budget, join_blocks(len(pool), [block for part in found for block in part]))


def _see_piece(
    corpus: Corpus, piece: Piece, check: RowCheck, hasher_uri: str | None, bits: int
) -> tuple[list[pa.Array], list[pa.Array], list[npt.NDArray[np.float32]]]:
    config = corpus.config
    hasher = Hasher.load(hasher_uri, config.storage_options) if hasher_uri else None
    if hasher is not None and hasher.bits != bits:
        raise InputError(f"{hasher_uri}: a hasher of {hasher.bits} bits; bits is {bits}")
    label = config.label_column
    columns = [config.id_column, config.feature_column, *([label] if label else [])]
    ids: list[pa.Array] = []
    labels: list[pa.Array] = []
    logits = [np.zeros((0, bits), np.float32)]
    for rows, _ in good_rows(corpus, piece, columns, check):
        ids += pa.chunked_array(as_ids(rows[config.id_column], config.uri)).chunks
        labels.append(label_lists(rows[label] if label else pa.nulls(rows.num_rows, pa.string())))
        encoded = hasher.logits_of(rows, checked=True) if hasher else np.zeros((rows.num_rows, bits), np.float32)
        logits.append(encoded)
    return ids, labels, logits


def _candidate_blocks(
    pool: Pool, config: SelectionConfig, blocks: list[int]
) -> list[tuple[npt.NDArray[np.int64], npt.NDArray[np.floating]]]:
    return [candidate_block(pool, config.candidates, config.seed, block) for block in blocks]
