"""The rows to label next, by DH-APS and what it is compared with; one function each, all of one signature."""

from __future__ import annotations

import heapq
import warnings
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from threadpoolctl import threadpool_limits

from distindex.errors import InputError
from distindex.label_config import SelectionConfig
from distindex.labeling.acquisition import acquisition_terms, objective
from distindex.labeling.candidates import block_count, candidate_block, join_blocks
from distindex.labeling.kernels import Pairs, ProductKernel, make_kernel
from distindex.labeling.optimization import Choice, greedy, relaxed
from distindex.labeling.pair_loss import FloatArray
from distindex.labeling.pool import FEWEST_LABELS, Pool

RowArray = npt.NDArray[np.int64]
Candidates = tuple[Pairs, FloatArray]
_DISTANCE_BLOCK = 4096
_MOST_CLUSTERS, _NEIGHBORS = 500, 20


class Selected(NamedTuple):
    """What to label next.

    Attributes:
        rows: in the order of their choice.
        pair_Q2: the pairs of rows that they were chosen for, where the strategy chooses pairs; one row of a pair may
            have a label already.
    """

    rows: RowArray
    pair_Q2: RowArray


def select(pool: Pool, config: SelectionConfig, budget: int, candidates: Candidates | None = None) -> Selected:
    """The rows to label next; all that are left if these are fewer than `budget`.

    The same for the same pool and config, on any number of workers.

    Args:
        pool: the rows.
        config: the strategy and its settings.
        budget: how many.
        candidates: what `join_blocks` gave, where others have made the blocks; dh-aps makes them here by default.

    Raises:
        InputError: the strategy needs labels, or the truth, and there is none.
    """
    config = config.asked_about("items")
    budget = min(budget, len(pool.unlabeled))
    random = np.random.default_rng([config.seed, len(pool.labeled)])
    if config.strategy == "dh-aps":
        return dh_aps(pool, config, budget, candidates or make_candidates(pool, config), random)
    return Selected(BASELINES[config.strategy](pool, budget, random), np.zeros((0, 2), np.int64))


def in_pairs(pool: Pool, selected: Selected) -> Selected:
    """The same rows, every one of them in a pair: those that no pair was chosen for are paired in their order.

    A last one without a partner is paired with the first row chosen, or, where it is the only one, with any that is
    known.
    """
    rest = selected.rows[~np.isin(selected.rows, selected.pair_Q2)]
    if len(rest) % 2:
        others = selected.rows if len(selected.rows) > 1 else np.setdiff1d(np.arange(len(pool)), selected.rows)
        rest = np.append(rest, others[others != rest[-1]][:1])
    more_Q2 = rest[: len(rest) // 2 * 2].reshape(-1, 2)
    return Selected(selected.rows, np.concatenate([selected.pair_Q2, more_Q2]))


def make_candidates(pool: Pool, config: SelectionConfig) -> Candidates:
    """The candidates of dh-aps, made in this process."""
    blocks = range(block_count(pool, config.candidates))
    return join_blocks(len(pool), [candidate_block(pool, config.candidates, config.seed, block) for block in blocks])


def dh_aps(
    pool: Pool, config: SelectionConfig, budget: int, candidates: Candidates, random: np.random.Generator
) -> Selected:
    """The rows of the pairs that `acquisition` wants; rows at random where the candidates run out."""
    pairs, loss_P = candidates
    choice = Choice(pool.labeled_N, budget)
    queried = -(-budget // 2)
    chosen = np.zeros(0, np.int64)
    if len(pairs):
        kernel = make_kernel(config.kernel, pool.code_NK, config.seed)
        wanted = objective(acquisition_terms(pool, pairs, loss_P, kernel, queried), config)
        if config.optimizer == "greedy":
            chosen = greedy(wanted, kernel, pairs, choice)
        else:
            assert isinstance(kernel, ProductKernel), "the config refuses others"
            chosen = relaxed(wanted, kernel, pairs, choice, queried)
    rest = np.setdiff1d(pool.unlabeled, choice.rows)
    rows = np.concatenate([np.array(choice.rows, np.int64), random.permutation(rest)[: choice.left]])
    return Selected(rows, np.stack([pairs.first_P[chosen], pairs.second_P[chosen]], axis=1).astype(np.int64))


def uniform(pool: Pool, budget: int, random: np.random.Generator) -> RowArray:
    """Any rows."""
    return random.permutation(pool.unlabeled)[:budget]


def balanced(pool: Pool, budget: int, random: np.random.Generator) -> RowArray:
    """Rows of the label that the fewest labeled rows have, in turn: what nobody can do who does not know the labels.

    A row with several labels counts for the first of them that is rarest.

    Raises:
        InputError: the labels are not known beforehand.
    """
    if pool.truth is None:
        raise InputError(
            "strategy: balanced-random looks the labels up before it asks for them, and here nobody knows them; "
            "take another, or the simulated oracle"
        )
    truth = pool.truth
    order = uniform(pool, len(pool.unlabeled), random)
    order = order[truth.labeled()[order]]
    member_RL = truth.take(order).matrix().tocsc()
    waiting = [
        member_RL.indices[member_RL.indptr[label] : member_RL.indptr[label + 1]] for label in range(len(truth.names))
    ]
    count_L = np.bincount(truth.take(pool.labeled).index, minlength=len(truth.names)).astype(np.int64)
    at_L, chosen, taken_R = np.zeros(len(truth.names), np.int64), [], np.zeros(len(order), bool)
    left = [len(rows) for rows in waiting]
    while len(chosen) < min(budget, len(order)):
        label = min((n for n in range(len(waiting)) if at_L[n] < left[n]), key=lambda n: count_L[n])
        place = waiting[label][at_L[label]]
        at_L[label] += 1
        if not taken_R[place]:
            taken_R[place] = True
            chosen.append(order[place])
            count_L[truth.take([order[place]]).index] += 1
    return np.array(chosen, np.int64)


def entropy(pool: Pool, budget: int, random: np.random.Generator) -> RowArray:
    """The rows whose predicted labels have the highest entropy, with several labels a row the sum of theirs."""
    p_RL = np.clip(pool.probability_NL[pool.unlabeled], 1e-7, 1 - 1e-7).astype(np.float64)
    entropy_R = -(p_RL * np.log(p_RL)).sum(1)
    if pool.labels.multi:
        entropy_R -= ((1 - p_RL) * np.log(1 - p_RL)).sum(1)
    return _largest(pool, entropy_R, budget)


def margin(pool: Pool, budget: int, random: np.random.Generator) -> RowArray:
    """The rows whose two likeliest labels are nearest to each other; with several labels a row, a label to 1/2."""
    p_RL = pool.probability_NL[pool.unlabeled]
    if pool.labels.multi or p_RL.shape[1] < 2:
        return _largest(pool, -np.abs(p_RL - 0.5).min(1), budget)
    best_R2 = np.partition(p_RL, p_RL.shape[1] - 2, axis=1)[:, -2:]
    return _largest(pool, best_R2[:, 0] - best_R2[:, 1], budget)


def k_center(pool: Pool, budget: int, random: np.random.Generator) -> RowArray:
    """Greedy k-center on the relaxed codes: the row farthest from all that are labeled or chosen, again and again.

    Source: Sener and Savarese, Active Learning for Convolutional Neural Networks: A Core-Set Approach, ICLR 2018.
    """
    code_NK = pool.code_NK
    square_N = np.einsum("nk,nk->n", code_NK, code_NK)
    distance_N = np.full(len(pool), np.inf, np.float32)
    for start in range(0, len(pool.labeled), _DISTANCE_BLOCK):
        part = pool.labeled[start : start + _DISTANCE_BLOCK]
        for first in range(0, len(pool), _DISTANCE_BLOCK):
            rows = slice(first, first + _DISTANCE_BLOCK)
            nearest_R = (square_N[part] - 2 * code_NK[rows] @ code_NK[part].T).min(1)
            distance_N[rows] = np.minimum(distance_N[rows], square_N[rows] + nearest_R)
    distance_N[pool.labeled] = -np.inf
    chosen: list[int] = []
    while len(chosen) < budget:
        empty = not len(pool.labeled) and not chosen
        row = int(random.choice(pool.unlabeled)) if empty else int(distance_N.argmax())
        chosen.append(row)
        distance_N = np.minimum(distance_N, square_N + square_N[row] - 2 * code_NK @ code_NK[row])
        distance_N[row] = -np.inf
    return np.array(chosen, np.int64)


def badge(pool: Pool, budget: int, random: np.random.Generator) -> RowArray:
    """k-means++ on the gradients of the classifier's loss at the labels that it predicts.

    A row's gradient is the outer product of (p - its predicted labels) and its relaxed code: the distance of two
    follows from inner products of the factors, so the products themselves, L K numbers a row, are not made.
    Source: Ash, Zhang, Krishnamurthy, Langford, Agarwal, Deep Batch Active Learning by Diverse, Uncertain Gradient
    Lower Bounds, ICLR 2020; BADGE-like, as the classifier stands beside the network.
    """
    p_RL = pool.probability_NL[pool.unlabeled].astype(np.float64)
    predicted_RL = p_RL > 0.5 if pool.labels.multi else p_RL == p_RL.max(1, keepdims=True)
    error_RL, code_RK = p_RL - predicted_RL, pool.code_NK[pool.unlabeled].astype(np.float64)
    square_R = (error_RL**2).sum(1) * (code_RK**2).sum(1)
    chosen = [int(square_R.argmax())] if budget else []
    distance_R = np.full(len(square_R), np.inf)
    while len(chosen) < budget:
        last = chosen[-1]
        inner_R = (error_RL @ error_RL[last]) * (code_RK @ code_RK[last])
        distance_R = np.minimum(distance_R, np.maximum(square_R + square_R[last] - 2 * inner_R, 0))
        distance_R[last] = 0
        total = float(distance_R.sum())
        if total > 0:
            chosen.append(int(random.choice(len(distance_R), p=distance_R / total)))
        else:
            # All that is left has the gradients of what was chosen.
            rest = np.setdiff1d(np.arange(len(distance_R)), chosen)
            chosen += random.permutation(rest)[: budget - len(chosen)].tolist()
    return pool.unlabeled[chosen]


def typical(pool: Pool, budget: int, random: np.random.Generator) -> RowArray:
    """The most typical rows of clusters of the relaxed codes: each time of the one with fewest labels.

    As many clusters as there will be labels, at most 500; of those with equally few the largest comes first. A row is
    typical whose 20 nearest rows of its cluster are near.
    Source: TypiClust, Hacohen, Dekel, Weinshall, Active Learning on a Budget: Opposite Strategies Suit High and Low
    Budgets, ICML 2022; on codes that the labels so far have shaped, where it takes self-supervised features.
    """
    # Here, since importing scikit-learn takes as long as torch.
    from sklearn.cluster import MiniBatchKMeans
    from sklearn.exceptions import ConvergenceWarning

    if not budget:
        return np.zeros(0, np.int64)
    code_NK = np.ascontiguousarray(pool.code_NK, np.float32)
    clusters = min(len(pool.labeled) + budget, _MOST_CLUSTERS, len(pool))
    seed = int(random.integers(1 << 31))
    # One thread: several add up in the order in which they end, and the choice is to be the same each time.
    with threadpool_limits(1), warnings.catch_warnings():
        # Rows of one code are one cluster, and there may be fewer codes than clusters.
        warnings.simplefilter("ignore", ConvergenceWarning)
        cluster_N = MiniBatchKMeans(clusters, batch_size=4096, n_init=1, random_state=seed).fit_predict(code_NK)  # type: ignore[arg-type]
    end_C = np.cumsum(np.bincount(cluster_N, minlength=clusters))
    rows_C = np.split(np.argsort(cluster_N, kind="stable"), end_C[:-1])
    turn: list[tuple[int, int, int, Iterator[int]]] = []
    for cluster, row_M in enumerate(rows_C):
        order_M = row_M[np.argsort(_spread(code_NK[row_M]), kind="stable")]
        waiting = iter(order_M[~pool.labeled_N[order_M]].tolist())
        turn.append((int(pool.labeled_N[row_M].sum()), -len(row_M), cluster, waiting))
    heapq.heapify(turn)
    chosen: list[int] = []
    while len(chosen) < budget:
        labeled, size, cluster, waiting = heapq.heappop(turn)
        row = next(waiting, None)
        if row is not None:
            chosen.append(row)
            heapq.heappush(turn, (labeled + 1, size, cluster, waiting))
    return np.array(chosen, np.int64)


def typical_badge(pool: Pool, budget: int, random: np.random.Generator) -> RowArray:
    """Half of the rows by `typical`, and as many others by `badge`, in turn; all by `typical` without two labels.

    What is typical teaches most while labels are few, and what the classifier is unsure of when they are many.
    """
    chosen = typical(pool, budget, random)
    if len(np.unique(pool.labels.index)) < FEWEST_LABELS:
        return chosen
    chosen = chosen[: -(-budget // 2)]
    others = badge(pool, budget, random)
    others = others[~np.isin(others, chosen)][: budget - len(chosen)]
    both = np.empty(budget, np.int64)
    both[::2], both[1::2] = chosen, others
    return both


def _spread(code_MK: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Mean distance of each row to its nearest ones, itself among them."""
    if not len(code_MK):
        return np.zeros(0, np.float32)
    # Here, since importing scikit-learn takes as long as torch.
    from sklearn.neighbors import NearestNeighbors

    near = NearestNeighbors(n_neighbors=min(_NEIGHBORS + 1, len(code_MK)), algorithm="brute").fit(code_MK)
    return near.kneighbors(code_MK)[0].mean(1)


Choose = Callable[[Pool, int, np.random.Generator], RowArray]
BASELINES: dict[str, Choose] = {
    "random": uniform,
    "balanced-random": balanced,
    "entropy": entropy,
    "margin": margin,
    "k-center": k_center,
    "badge": badge,
    "typical": typical,
    "typical-badge": typical_badge,
}


def _largest(pool: Pool, value_R: npt.NDArray[np.floating], budget: int) -> RowArray:
    """The unlabeled rows with the largest values; of equal ones the first."""
    return pool.unlabeled[np.argsort(-value_R, kind="stable")[:budget]]
