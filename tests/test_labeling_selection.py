"""What to label next: the terms against the paper's formulas, the optimisers against all subsets, the strategies."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any, get_args

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest
import scipy.linalg
from hypothesis import given, settings
from hypothesis import strategies as st

from distindex.corpus.labels import Labels, read_labels
from distindex.errors import InputError
from distindex.label_config import CandidatesConfig, SelectionConfig, Strategy
from distindex.labeling import Pool, in_pairs, select
from distindex.labeling.acquisition import acquisition_terms, objective
from distindex.labeling.candidates import block_count, candidate_block, join_blocks
from distindex.labeling.kernels import PairKernel, Pairs, ProductKernel, make_kernel
from distindex.labeling.optimization import Choice, greedy, relaxed, weigh
from distindex.labeling.pair_loss import PairLoss
from distindex.labeling.strategies import make_candidates
from distindex.method_config import MethodConfig

BITS = 8
KERNELS = ["sym-linear", "sym-rbf", "align-max"]
STRATEGIES = [strategy for strategy in get_args(Strategy) if strategy != "auto"]


def make_pool(rows: int, labeled: int, seed: int = 0, method: str = "csb-vae", multi: bool = False) -> Pool:
    """Rows in four clusters by label; the first `labeled` of a permutation are labeled."""
    random = np.random.default_rng(seed)
    label_N = random.integers(0, 4, rows)
    logit_NK = random.normal(size=(4, BITS))[label_N] * 2 + random.normal(size=(rows, BITS))
    names: list[Any] = [["abcd"[n], "abcd"[(n + 1) % 4]] if multi else "abcd"[n] for n in label_N]
    truth = read_labels(pa.array(names))
    keep_N = np.zeros(rows, bool)
    keep_N[random.permutation(rows)[:labeled]] = True
    loss = PairLoss(MethodConfig(name=method), BITS)  # type: ignore[arg-type]
    return Pool(logit_NK.astype(np.float32), truth.hide(keep_N), loss, truth)


def all_pairs(rows: int) -> Pairs:
    first, second = np.triu_indices(rows, 1)
    return Pairs(first.astype(np.int32), second.astype(np.int32))


def gram(name: str, row_ND: npt.NDArray[Any], pairs: Pairs) -> npt.NDArray[np.float64]:
    """K of all pairs by the definition, pair by pair."""
    k = row_ND.astype(np.float64) @ row_ND.astype(np.float64).T
    found = np.empty((len(pairs), len(pairs)))
    members = list(zip(pairs.first_P, pairs.second_P, strict=True))
    for (i, (a, b)), (j, (c, d)) in itertools.product(enumerate(members), repeat=2):
        if name == "align-max":
            found[i, j] = max(k[a, c] + k[b, d], k[a, d] + k[b, c])
        else:
            found[i, j] = (k[a, c] * k[b, d] + k[a, d] * k[b, c]) / 2
    return found


# Terms


@pytest.mark.parametrize("name", KERNELS)
def test_the_kernel_is_its_definition(name: str) -> None:
    pool = make_pool(13, 0)
    pairs, kernel = all_pairs(13), make_kernel(name, pool.code_NK, 0)
    if name != "sym-rbf":
        np.testing.assert_allclose(kernel.row_ND, pool.code_NK / np.sqrt(BITS), rtol=1e-6)
    expected = gram(name, kernel.row_ND, pairs)
    np.testing.assert_allclose(kernel.diagonal(pairs), expected.diagonal(), rtol=1e-5)
    for i in (0, 17, 77):
        column = kernel.column(int(pairs.first_P[i]), int(pairs.second_P[i]), pairs)
        np.testing.assert_allclose(column, expected[i], rtol=1e-4, atol=1e-6)
    rows = np.array([1, 4, 5, 9, 12])
    inside = np.isin(pairs.first_P, rows) & np.isin(pairs.second_P, rows)
    found = kernel.sums([(2.0, np.arange(13)), (-3.0, rows)], pairs)
    np.testing.assert_allclose(found, 2 * expected.sum(0) - 3 * expected[inside].sum(0), rtol=1e-4, atol=1e-4)
    swapped = Pairs(pairs.second_P, pairs.first_P)
    np.testing.assert_allclose(kernel.column(3, 8, swapped), kernel.column(8, 3, pairs), rtol=1e-5, atol=1e-6)
    if isinstance(kernel, ProductKernel):
        alpha_P = np.random.default_rng(1).random(len(pairs)) * (np.arange(len(pairs)) % 3 == 0)
        np.testing.assert_allclose(kernel.mixture(alpha_P, pairs), expected @ alpha_P, rtol=1e-4, atol=1e-5)


def test_random_features_come_near_the_gaussian_kernel() -> None:
    pool = make_pool(60, 0)
    kernel = make_kernel("sym-rbf", pool.code_NK, 0)
    square_NN = ((pool.code_NK[:, None] - pool.code_NK[None]) ** 2).sum(2)
    width = np.median(square_NN[np.triu_indices(60, 1)]) / 4
    error_NN = kernel.row_ND @ kernel.row_ND.T - np.exp(-square_NN / (2 * width))
    assert np.abs(error_NN).mean() < 0.08


def test_align_max_estimates_large_sums() -> None:
    pool = make_pool(200, 0)
    pairs = all_pairs(200)
    kernel = make_kernel("align-max", pool.code_NK, 0)
    few = Pairs(pairs.first_P[::997], pairs.second_P[::997])
    k = kernel.row_ND @ kernel.row_ND.T
    a, b, c, d = few.first_P[:, None], few.second_P[:, None], pairs.first_P, pairs.second_P
    exact = np.maximum(k[a, c] + k[b, d], k[a, d] + k[b, c]).sum(1)
    found = kernel.sums([(1.0, np.arange(200))], few)
    assert np.abs(found - exact).max() < 0.1 * np.abs(exact).max()


def worst_case(method: str, pool: Pool, a: int, b: int) -> float:
    """max over both similarities of the method's pair loss, from its formula."""
    u, v = (pool.logit_NK[row].astype(np.float64) for row in (a, b))
    margin = PairLoss(MethodConfig(name=method), BITS).method.weights().margin * BITS  # type: ignore[arg-type]
    if method in ("dpsh", "pts3h", "vdsh-s"):
        theta = 0.5 * (u @ v if method == "dpsh" else np.tanh(u) @ np.tanh(v))
        return max(np.log1p(np.exp(theta)) - s * theta for s in (0, 1))
    if method == "dsh":
        distance = ((u - v) ** 2).sum()
        return max(0.5 * s * distance + 0.5 * (1 - s) * max(margin - distance, 0) for s in (0, 1))
    distance = ((1 / (1 + np.exp(-u)) - 1 / (1 + np.exp(-v))) ** 2).sum()
    if method == "ssdh":
        far = 2.5 + 0.5 * (BITS - 12) / 36
        return max(distance, max(far - np.sqrt(distance), 0) ** 2) / BITS
    return max((s * distance + (1 - s) * max(margin - distance, 0)) / BITS for s in (0, 1))


@pytest.mark.parametrize("method", ["csb-vae", "ssb-vae", "phs-gs-masked", "ssdh", "dsh", "dpsh", "pts3h", "vdsh-s"])
def test_candidates_carry_the_host_methods_worst_case(method: str) -> None:
    pool = make_pool(40, 10, method=method)
    pairs, loss_P = make_candidates(pool, SelectionConfig(candidates=CandidatesConfig(partners=40, pairs=10_000)))
    assert len(pairs) > 100
    expected = [worst_case(method, pool, a, b) for a, b in zip(pairs.first_P, pairs.second_P, strict=True)]
    np.testing.assert_allclose(loss_P, expected, rtol=1e-3, atol=1e-5)


def test_the_margin_of_ssdh_is_that_of_its_training() -> None:
    from distindex.hashing.ssdh import far_margin

    for bits in (8, 16, 48, 64):
        loss = PairLoss(MethodConfig(name="ssdh"), bits)
        zero = np.zeros(1, np.float32)
        assert loss.worst_case(zero, zero, zero)[0] == pytest.approx(far_margin(bits) ** 2 / bits)


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("labeled", [0, 5])
def test_the_terms_are_the_papers_formulas(name: str, labeled: int) -> None:
    rows, queried = 12, 3
    pool = make_pool(rows, labeled)
    every, kernel = all_pairs(rows), make_kernel(name, pool.code_NK, 0)
    K = gram(name, kernel.row_ND, every)
    is_labeled = pool.labeled_N[every.first_P] & pool.labeled_N[every.second_P]
    L, U = np.flatnonzero(is_labeled), np.flatnonzero(~is_labeled)
    n, known, u = len(every), labeled / 2, len(U)
    weight = known / len(L) if labeled else 0.0
    J = np.array([worst_case("csb-vae", pool, a, b) for a, b in zip(every.first_P, every.second_P, strict=True)])
    candidates = Pairs(every.first_P[U], every.second_P[U])
    found = acquisition_terms(pool, candidates, J[U].astype(np.float32), kernel, queried)
    for chosen in ([0, 1, 2], [3, 20, 40], [5, 6, u - 1]):
        alpha = np.zeros(u)
        alpha[chosen] = 1
        s1 = J[U] @ alpha / (known + queried)
        s2 = -(known + queried) / n * K[np.ix_(U, U)].sum(0) @ alpha
        factor = weight - (known + queried) / n
        s3 = 0.5 * alpha @ K[np.ix_(U, U)] @ alpha + factor * K[np.ix_(L, U)].sum(0) @ alpha
        pairwise = sum(K[U[i], U[j]] for i, j in itertools.combinations(chosen, 2))
        assert found.uncertainty_P[chosen].sum() == pytest.approx(s1, rel=1e-5)
        assert found.representativeness_P[chosen].sum() == pytest.approx(s2, rel=1e-4, abs=1e-5)
        mine = found.labeled_P[chosen].sum() + found.own_P[chosen].sum() / 2 + pairwise
        assert mine == pytest.approx(s3, rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("name", ["sym-linear", "sym-rbf"])
def test_representativeness_and_diversity_are_the_discrepancy(name: str) -> None:
    """s2 + s3 and (l+q)^2/2 MMD^2(L + Q, all pairs) differ by the same number for every Q; L counts as l pairs."""
    rows, labeled, queried = 11, 4, 4
    pool = make_pool(rows, labeled)
    every, kernel = all_pairs(rows), make_kernel(name, pool.code_NK, 0)
    K = gram(name, kernel.row_ND, every)
    is_labeled = pool.labeled_N[every.first_P] & pool.labeled_N[every.second_P]
    L, U = np.flatnonzero(is_labeled), np.flatnonzero(~is_labeled)
    candidates = Pairs(every.first_P[U], every.second_P[U])
    terms = acquisition_terms(pool, candidates, np.zeros(len(U), np.float32), kernel, queried)
    random, differences = np.random.default_rng(0), []
    for _ in range(20):
        chosen = random.permutation(len(U))[:queried]
        share = np.zeros(len(every))
        share[L] = labeled / 2 / len(L)
        share[U[chosen]] = 1
        size = share.sum()
        difference = share / size - 1 / len(every)
        mmd = difference @ K @ difference
        pairwise = sum(K[U[i], U[j]] for i, j in itertools.combinations(chosen, 2))
        own = terms.representativeness_P[chosen].sum() + terms.labeled_P[chosen].sum()
        differences.append(size**2 / 2 * mmd - own - terms.own_P[chosen].sum() / 2 - pairwise)
        assert size == pytest.approx(labeled / 2 + queried)
    assert np.ptp(differences) < 1e-4 * max(1, np.abs(differences).max())


# Optimisation


def disjoint(pool: Pool, name: str, seed: int) -> tuple[Any, PairKernel, Pairs, npt.NDArray[Any]]:
    """A tiny problem whose pairs share no row, so that any two of them cost four rows."""
    config = SelectionConfig(kernel=name, uncertainty=0.5)  # type: ignore[arg-type]
    order = np.random.default_rng(seed).permutation(pool.unlabeled)[:20].reshape(-1, 2)
    pairs = Pairs(order.min(1).astype(np.int32), order.max(1).astype(np.int32))
    kernel = make_kernel(name, pool.code_NK, 0)
    loss_P = np.random.default_rng(seed).random(10).astype(np.float32)
    wanted = objective(acquisition_terms(pool, pairs, loss_P, kernel, 3), config)
    return wanted, kernel, pairs, gram(name, kernel.row_ND, pairs)


def value(wanted: Any, K: npt.NDArray[Any], chosen: Any) -> float:
    index = np.array(chosen)
    return float(wanted.linear_P[index].sum() + wanted.curvature / 2 * K[np.ix_(index, index)].sum())


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("seed", range(4))
def test_greedy_and_relaxed_against_all_subsets(name: str, seed: int) -> None:
    pool = make_pool(30, 6, seed)
    wanted, kernel, pairs, K = disjoint(pool, name, seed)
    subsets = sorted(value(wanted, K, chosen) for chosen in itertools.combinations(range(10), 3))
    choice = Choice(pool.labeled_N, 6)
    chosen = greedy(wanted, kernel, pairs, choice)
    assert value(wanted, K, chosen[:1]) == pytest.approx(min(value(wanted, K, [i]) for i in range(10)), abs=1e-5)
    for step in (1, 2):
        rest = [value(wanted, K, [*chosen[:step], i]) for i in range(10) if i not in chosen[:step]]
        assert value(wanted, K, chosen[: step + 1]) == pytest.approx(min(rest), abs=1e-4), "the best one to add"
    assert value(wanted, K, chosen) <= subsets[len(subsets) // 10] + 1e-6, "among the best tenth"
    assert sorted(choice.rows) == sorted(np.concatenate([pairs.first_P[chosen], pairs.second_P[chosen]]))
    if isinstance(kernel, ProductKernel):
        alpha_P, gradient_P, gap = weigh(wanted, kernel, pairs, 3)
        assert (alpha_P.min() >= 0, alpha_P.max() <= 1 + 1e-9, alpha_P.sum()) == (True, True, pytest.approx(3))
        lowest = float(wanted.linear_P @ alpha_P + wanted.curvature / 2 * alpha_P @ K @ alpha_P)
        np.testing.assert_allclose(gradient_P, wanted.linear_P + wanted.curvature * K @ alpha_P, atol=1e-4)
        assert lowest - gap - 1e-4 <= subsets[0], "no subset is below the relaxed minimum"
        rounded = relaxed(wanted, kernel, pairs, Choice(pool.labeled_N, 6), 3)
        assert value(wanted, K, rounded) <= subsets[len(subsets) // 10] + 1e-6


# Candidates and strategies


@settings(deadline=None, max_examples=25)
@given(
    rows=st.integers(2, 60),
    labeled=st.integers(0, 60),
    pairs=st.integers(1, 3000),
    partners=st.integers(5, 80),
    nearest=st.integers(0, 2),
    uncertain=st.integers(0, 2),
    seed=st.integers(0, 5),
)
def test_candidates_are_open_pairs(
    rows: int, labeled: int, pairs: int, partners: int, nearest: int, uncertain: int, seed: int
) -> None:
    pool = make_pool(rows, min(labeled, rows), seed)
    config = CandidatesConfig(pairs=pairs, partners=partners, nearest=nearest, uncertain=uncertain, random=1)
    blocks = [candidate_block(pool, config, seed, block) for block in range(block_count(pool, config))]
    found, loss_P = join_blocks(rows, blocks)
    again, _ = join_blocks(rows, blocks[::-1])
    np.testing.assert_array_equal(found.first_P, again.first_P)
    assert len(found) == len(loss_P) == len(set(zip(found.first_P, found.second_P, strict=True)))
    assert (found.first_P < found.second_P).all()
    assert not (pool.labeled_N[found.first_P] & pool.labeled_N[found.second_P]).any(), "their similarity is known"


@settings(deadline=None, max_examples=40)
@given(
    strategy=st.sampled_from(STRATEGIES),
    kernel=st.sampled_from(KERNELS),
    optimizer=st.sampled_from(["greedy", "relaxed"]),
    labeled=st.integers(8, 60),
    budget=st.integers(0, 70),
    multi=st.booleans(),
    seed=st.integers(0, 3),
)
def test_every_strategy_spends_its_budget_once(
    strategy: Any, kernel: Any, optimizer: Any, labeled: int, budget: int, multi: bool, seed: int
) -> None:
    if optimizer == "relaxed" and kernel == "align-max":
        return
    pool = make_pool(60, labeled, seed, multi=multi)
    config = SelectionConfig(strategy, kernel, optimizer, seed=seed, candidates=CandidatesConfig(pairs=300))
    rows, pair_Q2 = select(pool, config, budget)
    assert len(rows) == len(set(rows.tolist())) == min(budget, 60 - labeled)
    assert not pool.labeled_N[rows].any()
    assert len(pair_Q2) == 0 or strategy == "dh-aps"
    chosen: set[int] = set()
    for first, second in pair_Q2.tolist():
        new = {row for row in (first, second) if not pool.labeled_N[row]} - chosen
        assert first != second
        assert new, "a pair brings a row that is asked about"
        chosen |= new
    assert chosen <= set(rows.tolist())
    fresh = make_pool(60, labeled, seed, multi=multi)
    np.testing.assert_array_equal(select(fresh, config, budget).rows, rows)


def test_uncertain_rows_lie_between_the_classes() -> None:
    random = np.random.default_rng(0)
    side_N = np.repeat([-1.0, 1.0, 0.0], [40, 40, 10])
    logit_NK = (side_N[:, None] * 3 + random.normal(size=(90, BITS)) * 0.3).astype(np.float32)
    truth = read_labels(pa.array(["a"] * 40 + ["b"] * 40 + ["a"] * 10))
    keep_N = np.zeros(90, bool)
    keep_N[[0, 1, 2, 40, 41, 42]] = True
    pool = Pool(logit_NK, truth.hide(keep_N), PairLoss(MethodConfig(name="dpsh"), BITS))
    for strategy in ("entropy", "margin"):
        assert set(select(pool, SelectionConfig(strategy), 10).rows) == set(range(80, 90))  # type: ignore[arg-type]
    assert len(set(select(pool, SelectionConfig("badge"), 5).rows) & set(range(80, 90))) >= 4, (
        "gradients are largest there"
    )


def test_k_center_is_farthest_first() -> None:
    pool = make_pool(50, 5, seed=3)
    rows = select(pool, SelectionConfig("k-center"), 8).rows
    reached = list(pool.labeled)
    distance_NN = ((pool.code_NK[:, None] - pool.code_NK[None]) ** 2).sum(2)
    for row in rows:
        nearest_N = distance_NN[:, reached].min(1)
        assert nearest_N[row] == pytest.approx(nearest_N.max(), rel=1e-4)
        reached.append(row)


def test_typical_rows_are_the_middles_of_clusters_without_a_label() -> None:
    random = np.random.default_rng(0)
    centre_GK = scipy.linalg.hadamard(BITS)[:6] * 2
    group_N = np.repeat(np.arange(6), [100, 90, 80, 70, 60, 50])
    logit_NK = (centre_GK[group_N] + random.normal(size=(450, BITS)) * 0.4).astype(np.float32)
    keep_N = np.zeros(450, bool)
    keep_N[[0, 449]] = True
    truth = read_labels(pa.array(group_N))
    pool = Pool(logit_NK, truth.hide(keep_N), PairLoss(MethodConfig(), BITS))
    rows = select(pool, SelectionConfig("typical"), 4).rows
    assert group_N[rows].tolist() == [1, 2, 3, 4], "the largest first"
    for row in rows:
        of_group = pool.code_NK[group_N == group_N[row]]
        far_M = np.linalg.norm(of_group - of_group.mean(0), axis=1)
        assert np.linalg.norm(pool.code_NK[row] - of_group.mean(0)) < np.quantile(far_M, 0.25)


def test_balanced_random_balances() -> None:
    pool = make_pool(200, 0)
    rows = select(pool, SelectionConfig("balanced-random"), 40).rows
    assert pool.truth is not None
    assert np.bincount(pool.truth.take(rows).index).tolist() == [10, 10, 10, 10]
    blind = dataclasses.replace(pool, truth=None)
    with pytest.raises(InputError, match="looks the labels up"):
        select(blind, SelectionConfig("balanced-random"), 4)


def test_pair_terms_choose_what_is_missing() -> None:
    """Of four groups two are labeled: matching all pairs means to ask about the others, alone or beside these two."""
    random = np.random.default_rng(0)
    group_N = np.repeat(np.arange(4), 50)
    centre = np.array([[1, 1, 1, 1, -1, -1, -1, -1], [-1] * 4 + [1] * 4, [1, -1] * 4, [-1, 1] * 4]) * 3.0
    logit_NK = (centre[group_N] + random.normal(size=(200, BITS)) * 0.2).astype(np.float32)
    truth = read_labels(pa.array(group_N))
    keep_N = (group_N < 2) & (np.arange(200) % 5 == 0)
    pool = Pool(logit_NK, truth.hide(keep_N), PairLoss(MethodConfig(), BITS))
    for optimizer, least in (("greedy", 0.6), ("relaxed", 0.8)):
        few = CandidatesConfig(pairs=4000)
        config = SelectionConfig("dh-aps", "sym-rbf", optimizer, uncertainty=0.0, candidates=few)  # type: ignore[arg-type]
        assert (group_N[select(pool, config, 12).rows] >= 2).mean() > least


def test_what_is_missing_is_not_all_of_one_kind() -> None:
    """A hundred labels lack three groups of six: rows of each are chosen, not those of the one that lacks most."""
    random = np.random.default_rng(0)
    group_N = np.repeat(np.arange(6), 200)
    logit_NK = (random.normal(size=(6, BITS)) * 3)[group_N] + random.normal(size=(1200, BITS))
    keep_N = np.zeros(1200, bool)
    for group, count in enumerate([30, 30, 25, 10, 5, 0]):
        keep_N[group * 200 : group * 200 + count] = True
    truth = read_labels(pa.array(group_N))
    pool = Pool(logit_NK.astype(np.float32), truth.hide(keep_N), PairLoss(MethodConfig(), BITS))
    for kernel in ("sym-linear", "sym-rbf"):
        config = SelectionConfig("dh-aps", kernel, uncertainty=0.0, candidates=CandidatesConfig(pairs=20_000))  # type: ignore[arg-type]
        count_G = np.bincount(group_N[select(pool, config, 100).rows], minlength=6)
        assert count_G[3:].sum() > count_G[:3].sum(), count_G
        assert count_G.max() <= 50, count_G


def test_auto_depends_on_what_is_asked_about() -> None:
    assert SelectionConfig().asked_about("pairs") == SelectionConfig("dh-aps")
    assert SelectionConfig("margin").asked_about("pairs") == SelectionConfig("margin")
    pool = make_pool(60, 10)
    rows = select(pool, SelectionConfig(), 7).rows
    np.testing.assert_array_equal(rows, select(pool, SelectionConfig("typical-badge"), 7).rows)
    np.testing.assert_array_equal(rows[::2], select(pool, SelectionConfig("typical"), 7).rows[:4])
    unlabeled = make_pool(60, 0)
    expected = select(unlabeled, SelectionConfig("typical"), 7).rows
    np.testing.assert_array_equal(select(unlabeled, SelectionConfig(), 7).rows, expected)


def test_entropy_needs_two_labels() -> None:
    pool = make_pool(20, 0)
    with pytest.raises(InputError, match="begin with random"):
        select(pool, SelectionConfig("entropy"), 4)
    nothing = dataclasses.replace(pool, labels=Labels(("a",), np.zeros(21, np.int64), np.zeros(0, np.int32)))
    assert len(select(nothing, SelectionConfig("dh-aps"), 4).rows) == 4


def test_a_relaxation_needs_a_positive_kernel() -> None:
    with pytest.raises(InputError, match="align-max is not"):
        SelectionConfig(kernel="align-max", optimizer="relaxed")


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("budget", [1, 6, 7])
def test_pairs_hold_every_chosen_row_and_none_that_was_asked_about(strategy: Any, budget: int) -> None:
    pool = make_pool(60, 12)
    paired_N = np.zeros(60, bool)
    paired_N[pool.unlabeled[:20]] = True
    pool = dataclasses.replace(pool, paired_N=paired_N)
    selected = select(pool, SelectionConfig(strategy, candidates=CandidatesConfig(pairs=300)), budget)
    found = in_pairs(pool, selected)
    assert len(set(found.rows)) == budget
    assert not (paired_N | pool.labels.labeled())[found.rows].any(), "the budget counts rows that are new"
    assert set(found.rows) <= set(found.pair_Q2.ravel())
    assert (found.pair_Q2[:, 0] != found.pair_Q2[:, 1]).all()
    np.testing.assert_array_equal(found.pair_Q2[: len(selected.pair_Q2)], selected.pair_Q2)
    more_Q2 = found.pair_Q2[len(selected.pair_Q2) :]
    assert len(more_Q2) == -(-len(set(found.rows) - set(selected.pair_Q2.ravel())) // 2)
