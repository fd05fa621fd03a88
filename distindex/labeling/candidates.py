"""Candidate pairs: of all pairs of rows, N^2 / 2 of them, those that a choice is made among.

Unlabeled rows, drawn at random, each get partners among rows drawn at random: those whose similarity the model's loss
leaves open most, those with the nearest outputs, and any. They are made in blocks that know nothing of one
another, each with draws of its own: the candidates do not depend on who makes which block, nor in which order.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from distindex.label_config import CandidatesConfig
from distindex.labeling.kernels import Pairs
from distindex.labeling.pair_loss import FloatArray
from distindex.labeling.pool import Pool

_BLOCK_ROWS = 256
_ANCHORS, _PARTNERS = 1, 2
"""Streams of draws."""


def block_count(pool: Pool, config: CandidatesConfig) -> int:
    """Blocks that the candidates are made in."""
    anchors = min(len(pool.unlabeled), -(-config.pairs // config.each))
    return -(-anchors // _BLOCK_ROWS)


def candidate_block(
    pool: Pool, config: CandidatesConfig, seed: int, block: int
) -> tuple[npt.NDArray[np.int64], FloatArray]:
    """One block of candidates: keys `first * N + second`, and what the loss says at worst of each; some stand twice.

    Args:
        pool: the rows.
        config: how many of which kind.
        seed: of the draws.
        block: its number, below `block_count`.
    """
    rows, anchors = len(pool), min(len(pool.unlabeled), -(-config.pairs // config.each))
    order = np.random.default_rng([seed, _ANCHORS]).permutation(pool.unlabeled)[:anchors]
    anchor_A = order[block * _BLOCK_ROWS : (block + 1) * _BLOCK_ROWS]
    random = np.random.default_rng([seed, _PARTNERS, block])
    partner_M = random.choice(rows, min(config.partners, rows), replace=False)
    inner_AM = pool.output_NK[anchor_A] @ pool.output_NK[partner_M].T
    square_A1, square_M = pool.square_N[anchor_A][:, None], pool.square_N[partner_M]
    loss_AM = pool.loss.worst_case(inner_AM, square_A1, square_M)
    distance_AM = square_A1 + square_M - 2 * inner_AM
    # A row is no partner of its own.
    distance_AM[anchor_A[:, None] == partner_M] = np.inf
    chosen = [
        _smallest(np.where(np.isinf(distance_AM), np.inf, loss_AM), config.uncertain),
        _smallest(distance_AM, config.nearest),
        random.integers(0, len(partner_M), (len(anchor_A), config.random)),
    ]
    at_AE = np.concatenate(chosen, axis=1)
    a_AE, b_AE = np.broadcast_to(anchor_A[:, None], at_AE.shape), partner_M[at_AE]
    loss_AE = np.take_along_axis(loss_AM, at_AE, axis=1)
    differ_AE = a_AE != b_AE
    key_P = (np.minimum(a_AE, b_AE) * rows + np.maximum(a_AE, b_AE))[differ_AE]
    return key_P.astype(np.int64), loss_AE[differ_AE].astype(np.float32)


def join_blocks(
    rows: int, blocks: Sequence[tuple[npt.NDArray[np.int64], FloatArray]]
) -> tuple[Pairs, npt.NDArray[np.float32]]:
    """The candidates of all blocks, each once, ascending, and what the loss says at worst of each.

    Args:
        rows: rows of the pool.
        blocks: what `candidate_block` gave, in any order.
    """
    key_P = np.concatenate([key for key, _ in blocks]) if blocks else np.zeros(0, np.int64)
    loss_P = np.concatenate([loss for _, loss in blocks]) if blocks else np.zeros(0, np.float32)
    # By the loss too: the same pair from two blocks may differ in the last digit.
    order_P = np.lexsort((loss_P, key_P))
    key_P, at_P = np.unique(key_P[order_P], return_index=True)
    pairs = Pairs((key_P // rows).astype(np.int32), (key_P % rows).astype(np.int32))
    return pairs, loss_P[order_P][at_P]


def _smallest(value_AM: FloatArray, count: int) -> npt.NDArray[np.int64]:
    """Where the smallest values of each row stand, at most `count`."""
    if count >= value_AM.shape[1]:
        return np.broadcast_to(np.arange(value_AM.shape[1]), value_AM.shape)
    return (
        np.argpartition(value_AM, count - 1, axis=1)[:, :count] if count else np.zeros((len(value_AM), 0), np.int64)
    )
