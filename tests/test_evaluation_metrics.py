"""Metrics against brute force: every order of the ties listed, or sampled, and judged one by one."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score

from distindex.codes import pack, unpack
from distindex.errors import InputError
from distindex.evaluation import Cutoffs, code_statistics, evaluate_codes, evaluate_logits, evaluate_scores
from distindex.evaluation import metrics as metrics_module
from distindex.evaluation import statistics as statistics_module
from distindex.evaluation.metrics import Similar

Bits = np.ndarray
Judgement = tuple[float, float, float]


def judge(relevant_in_order: list[bool], k: int) -> Judgement:
    """Precision, recall and average precision of one query's list, straight from the definitions."""
    top = relevant_in_order[:k]
    at_hits = [sum(top[: place + 1]) / (place + 1) for place, hit in enumerate(top) if hit]
    recall = sum(top) / sum(relevant_in_order) if any(relevant_in_order) else 0.0
    return sum(top) / len(top), recall, sum(at_hits) / len(at_hits) if at_hits else 0.0


def orders(distances: list[int]) -> Iterator[list[int]]:
    """Every order of the rows that is sorted by distance."""
    buckets = [[row for row, d in enumerate(distances) if d == value] for value in sorted(set(distances))]
    for choice in itertools.product(*(itertools.permutations(bucket) for bucket in buckets)):
        yield [row for bucket in choice for row in bucket]


def mean_over_orders(distances: list[int], relevant: list[bool], k: int) -> Judgement:
    judged = [judge([relevant[row] for row in order], k) for order in orders(distances)]
    return tuple(np.mean(judged, axis=0))  # type: ignore[return-value]


def distances_between(query_K: Bits, database_NK: Bits) -> list[int]:
    return (query_K != database_NK).sum(axis=1).tolist()


def relevance(similar_QN: np.ndarray) -> Similar:
    return lambda start, stop: similar_QN[start:stop]


def at(cutoffs: Cutoffs, k: int) -> Judgement:
    return cutoffs.precision[k], cutoffs.recall[k], cutoffs.mean_average_precision[k]


@st.composite
def retrieval_tasks(draw: st.DrawFn) -> tuple[Bits, Bits, np.ndarray]:
    queries, rows = draw(st.integers(1, 3)), draw(st.integers(1, 6))
    # Few of the 8 bits vary, so that ties are the rule.
    varying = draw(st.integers(0, 3))
    bits = st.lists(st.integers(0, 1), min_size=varying, max_size=varying)
    query_QK, database_NK = np.zeros((queries, 8), int), np.zeros((rows, 8), int)
    for array in (query_QK, database_NK):
        for row in array:
            row[:varying] = draw(bits)
    similar = draw(st.lists(st.booleans(), min_size=queries * rows, max_size=queries * rows))
    return query_QK, database_NK, np.array(similar).reshape(queries, rows)


@settings(max_examples=150, deadline=None)
@given(task=retrieval_tasks())
def test_each_metric_is_its_mean_over_all_orders_of_the_ties(task: tuple[Bits, Bits, np.ndarray]) -> None:
    query_QK, database_NK, similar_QN = task
    ks = range(1, len(database_NK) + 3)
    found = evaluate_codes(pack(query_QK), pack(database_NK), relevance(similar_QN), ks)
    for k in ks:
        judged = [
            mean_over_orders(distances_between(query, database_NK), similar.tolist(), k)
            for query, similar in zip(query_QK, similar_QN, strict=True)
        ]
        assert at(found, k) == pytest.approx(np.mean(judged, axis=0), abs=1e-12)


def test_each_metric_is_near_its_mean_over_sampled_orders() -> None:
    random = np.random.default_rng(3)
    query_QK, database_NK = random.integers(0, 2, (4, 8)), random.integers(0, 2, (300, 8))
    similar_QN = random.random((4, 300)) < [[0.05], [0.3], [0.7], [0.95]]
    ks = (1, 7, 40, 150, 299, 300)
    found = evaluate_codes(pack(query_QK), pack(database_NK), relevance(similar_QN), ks)
    samples = 3000
    judged = np.zeros((samples, len(ks), 3))
    for query, similar in zip(query_QK, similar_QN, strict=True):
        distances = np.array(distances_between(query, database_NK))
        key = distances + random.random((samples, 300))
        hit = similar[np.argsort(key, axis=1)]
        hits = hit.cumsum(axis=1)
        sums = (hits / np.arange(1, 301) * hit).cumsum(axis=1)
        for place, k in enumerate(ks):
            judged[:, place, 0] += hits[:, k - 1] / k / 4
            judged[:, place, 1] += hits[:, k - 1] / similar.sum() / 4
            judged[:, place, 2] += sums[:, k - 1] / np.maximum(hits[:, k - 1], 1) / 4
    error = judged.std(axis=0) / np.sqrt(samples)
    for place, k in enumerate(ks):
        off = np.abs(np.array(at(found, k)) - judged[:, place].mean(axis=0))
        assert (off <= 5 * error[place] + 1e-12).all(), (k, off, error[place])


def test_many_rows_in_one_bucket_stay_exact() -> None:
    """20,000 equal codes: the average precision at N has a closed form of its own."""
    rows, relevant = 20_000, 5_000
    similar_QN = np.zeros((1, rows), bool)
    similar_QN[0, :relevant] = True
    codes = np.zeros((rows, 2), np.uint8)
    found = evaluate_codes(codes[:1], codes, relevance(similar_QN), (100, rows), reference=False)
    place = np.arange(1, rows + 1)
    expected = np.mean((1 + (place - 1) * (relevant - 1) / (rows - 1)) / place)
    assert found.mean_average_precision[rows] == pytest.approx(expected, rel=1e-12)
    assert found.precision[100] == pytest.approx(relevant / rows)
    assert found.recall[100] == pytest.approx(100 / rows)


def untied_task() -> tuple[Bits, Bits, np.ndarray]:
    """Each query's distances are 0..16 in some order."""
    database_NK = np.tril(np.ones((17, 16), int), -1)[np.random.default_rng(1).permutation(17)]
    query_QK = np.array([np.zeros(16, int), np.ones(16, int)])
    return query_QK, database_NK, np.random.default_rng(2).random((2, 17)) < 0.4


def test_without_ties_the_expectation_is_the_reference_and_the_scores_order() -> None:
    query_QK, database_NK, similar_QN = untied_task()
    ks = (1, 3, 8, 17, 50)
    found = evaluate_codes(pack(query_QK), pack(database_NK), relevance(similar_QN), ks)
    assert found.reference is not None
    nearness_QN = -(query_QK[:, None] != database_NK[None]).sum(axis=2).astype(np.float32)
    scored = evaluate_scores(
        lambda start, stop: nearness_QN[start:stop], 2, 17, relevance(similar_QN), ks, score_range=(-16, 0)
    )
    for k in ks:
        judged = [
            mean_over_orders(distances_between(query, database_NK), similar.tolist(), k)
            for query, similar in zip(query_QK, similar_QN, strict=True)
        ]
        assert at(found, k) == pytest.approx(np.mean(judged, axis=0))
        assert at(found.reference, k) == pytest.approx(at(found, k))
        assert at(scored, k) == pytest.approx(at(found, k))


def test_average_precision_of_the_whole_ranking_is_that_of_scikit_learn() -> None:
    query_QK, database_NK, similar_QN = untied_task()
    found = evaluate_codes(pack(query_QK), pack(database_NK), relevance(similar_QN), (17,))
    expected = [
        average_precision_score(similar, -np.array(distances_between(query, database_NK)))
        for query, similar in zip(query_QK, similar_QN, strict=True)
    ]
    assert found.mean_average_precision[17] == pytest.approx(np.mean(expected))


def test_reference_order_is_argsort_of_int8_distances() -> None:
    random = np.random.default_rng(5)
    query_QK, database_NK = random.integers(0, 2, (6, 16)), random.integers(0, 2, (900, 16))
    similar_QN = random.random((6, 900)) < 0.2
    found = evaluate_codes(pack(query_QK), pack(database_NK), relevance(similar_QN), (10, 100))
    assert found.reference is not None
    for k in (10, 100):
        judged = []
        for query, similar in zip(query_QK, similar_QN, strict=True):
            order = np.argsort(np.array(distances_between(query, database_NK), np.int8))
            judged.append(judge(similar[order].tolist(), k))
        assert at(found.reference, k) == pytest.approx(np.mean(judged, axis=0))


def test_codes_longer_than_int8_keep_their_order() -> None:
    code_NC = pack(np.tril(np.ones((257, 256), int), -1))
    similar_QN = np.arange(257)[None, :] < 100
    found = evaluate_codes(code_NC[:1], code_NC, relevance(similar_QN), (100, 200))
    assert found.reference is not None
    assert found.precision == found.reference.precision == {100: 1.0, 200: 0.5}


@pytest.mark.parametrize("pairs", [1, 50, 1 << 22])
def test_answers_do_not_depend_on_the_blocks(pairs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(7)
    query_QC = random.integers(0, 256, (9, 3), np.uint8)
    database_NC = random.integers(0, 256, (40, 3), np.uint8)
    similar_QN = random.random((9, 40)) < 0.3
    whole = evaluate_codes(query_QC, database_NC, relevance(similar_QN), (5, 20))
    statistics = code_statistics(database_NC)
    monkeypatch.setattr(metrics_module, "_PAIRS", pairs)
    monkeypatch.setattr(statistics_module, "_BITS", pairs)
    parts = evaluate_codes(query_QC, database_NC, relevance(similar_QN), (5, 20))
    assert parts.to_json()["curve"] == whole.to_json()["curve"]
    assert at(parts, 20) == pytest.approx(at(whole, 20))
    assert code_statistics(database_NC).to_json() == statistics.to_json()


def test_radius_and_curve_against_brute_force() -> None:
    random = np.random.default_rng(11)
    query_QK, database_NK = random.integers(0, 2, (12, 8)), random.integers(0, 2, (30, 8))
    similar_QN = random.random((12, 30)) < 0.4
    distance_QN = np.array([distances_between(query, database_NK) for query in query_QK])
    for radius in (0, 1, 2, 8, 99):
        found = evaluate_codes(
            pack(query_QK), pack(database_NK), relevance(similar_QN), (5,), radius, reference=False
        )
        inside = [similar_QN[q][distance_QN[q] <= radius] for q in range(12)]
        expected = np.mean([part.mean() if len(part) else 0.0 for part in inside])
        assert found.precision_at_radius == pytest.approx(expected)
        assert found.reference is None
    for threshold, recall, precision in zip(
        found.curve.threshold, found.curve.recall, found.curve.precision, strict=True
    ):
        inside_QN = distance_QN <= threshold
        assert precision == pytest.approx(similar_QN[inside_QN].mean())
        assert recall == pytest.approx(similar_QN[inside_QN].sum() / similar_QN.sum())
    assert found.curve.recall[-1] == 1.0


def test_queries_without_relevant_rows_count_zero_and_are_counted() -> None:
    codes = pack(np.eye(8, dtype=int))
    similar_QN = np.eye(8, dtype=bool)
    similar_QN[:2] = False
    found = evaluate_codes(codes, codes, relevance(similar_QN), (1, 100))
    assert found.queries_without_relevant == 2
    assert at(found, 1) == (0.75, 0.75, 0.75)
    assert at(found, 100) == pytest.approx((0.75 / 8, 0.75, 0.75))


def test_nothing_relevant_at_all_is_zero_everywhere() -> None:
    codes = np.zeros((5, 1), np.uint8)
    found = evaluate_codes(codes, codes, relevance(np.zeros((5, 5), bool)), (1, 3, 9))
    assert found.reference is not None
    for k in (1, 3, 9):
        assert at(found, k) == at(found.reference, k) == (0.0, 0.0, 0.0)
    assert found.curve.recall == found.curve.precision == [0.0]


def test_items_with_several_labels_are_relevant_where_they_share_one() -> None:
    query_QL = np.array([[1, 1, 0], [0, 0, 1]], bool)
    database_NL = np.array([[0, 1, 0], [0, 1, 1], [1, 0, 0], [0, 0, 0]], bool)
    codes = np.zeros((4, 1), np.uint8)

    def similar(start: int, stop: int) -> np.ndarray:
        return query_QL[start:stop].astype(int) @ database_NL.T.astype(int) > 0

    found = evaluate_codes(codes[:2], codes, similar, (2,))
    assert found.precision[2] == pytest.approx((3 / 4 + 1 / 4) / 2)


@settings(max_examples=60, deadline=None)
@given(
    scores=st.lists(st.integers(0, 4), min_size=1, max_size=12),
    seed=st.integers(0, 1000),
    k=st.integers(1, 14),
)
def test_scores_are_ranked_as_by_a_stable_sort(scores: list[int], seed: int, k: int) -> None:
    score_QN = np.array([scores], np.float32)
    similar_QN = np.random.default_rng(seed).random(score_QN.shape) < 0.5
    found = evaluate_scores(lambda start, stop: score_QN, 1, len(scores), relevance(similar_QN), (k,))
    order = sorted(range(len(scores)), key=lambda row: -scores[row])
    assert at(found, k) == pytest.approx(judge([bool(similar_QN[0, row]) for row in order], k))


@settings(max_examples=60, deadline=None)
@given(rows=st.integers(1, 40), size=st.integers(1, 10), values=st.integers(1, 256), seed=st.integers(0, 1000))
def test_code_statistics_against_numpy(rows: int, size: int, values: int, seed: int) -> None:
    code_NC = np.random.default_rng(seed).integers(0, values, (rows, size), np.uint8)
    _, counts = np.unique(code_NC, axis=0, return_counts=True)
    found = code_statistics(code_NC)
    assert (found.rows, found.bits) == (rows, 8 * size)
    assert (found.distinct, found.largest_bucket) == (len(counts), counts.max())
    share = counts / rows
    assert found.bucket_entropy == pytest.approx(-(share * np.log2(share)).sum(), abs=1e-12)
    assert found.bit_balance_K == pytest.approx(unpack(code_NC).mean(axis=0))


CODES = np.zeros((3, 2), np.uint8)
ALL = relevance(np.ones((3, 3), bool))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"query_QC": CODES[:0]}, "no queries"),
        ({"database_NC": CODES[:0]}, "empty"),
        ({"query_QC": CODES[:, :1]}, "queries of 8 bits, but a database of 16 bits"),
        ({"query_QC": CODES.astype(int)}, "expected uint8 codes"),
        ({"database_NC": CODES[0]}, "expected uint8 codes"),
        ({"ks": ()}, "must be positive"),
        ({"ks": (10, 0)}, "must be positive"),
        ({"radius": -1}, "must not be negative"),
        ({"similar": relevance(np.ones((3, 2), bool))}, "relevance of shape"),
        ({"similar": relevance(np.ones((3, 3)))}, "expected booleans"),
    ],
)
def test_bad_input_is_refused(changed: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        evaluate_codes(**{"query_QC": CODES, "database_NC": CODES, "similar": ALL, **changed})


def test_bad_scores_are_refused() -> None:
    with pytest.raises(InputError, match="hold NaN"):
        evaluate_scores(lambda start, stop: np.full((3, 3), np.nan), 3, 3, ALL)
    with pytest.raises(InputError, match="scores of shape"):
        evaluate_scores(lambda start, stop: np.zeros((3, 2)), 3, 3, ALL)
    with pytest.raises(InputError, match="no codes"):
        code_statistics(CODES[:0])


# Asymmetric distance


@given(task=retrieval_tasks(), k=st.integers(1, 7), seed=st.integers(0, 99))
@settings(max_examples=80, deadline=None)
def test_asymmetric_figures_are_the_mean_over_all_orders_of_the_ties(
    task: tuple[Bits, Bits, np.ndarray], k: int, seed: int
) -> None:
    query_QK, database_NK, similar_QN = task
    # Magnitudes of which some are equal or zero, so that different codes tie too.
    magnitude_QK = np.random.default_rng(seed).integers(0, 3, query_QK.shape)
    logit_QK = (magnitude_QK * np.where(query_QK, 1, -1)).astype(np.float32)
    found = evaluate_logits(logit_QK, pack(database_NK), relevance(similar_QN), [k])
    judged = []
    for logit_K, similar_N in zip(logit_QK, similar_QN, strict=True):
        score_N = (np.abs(logit_K) * ((logit_K > 0) != database_NK)).sum(axis=1)
        judged.append(mean_over_orders(score_N.tolist(), similar_N.tolist(), min(k, len(database_NK))))
    assert at(found, k) == pytest.approx(tuple(np.mean(judged, axis=0)))


def test_logits_rank_as_their_inner_product_with_the_codes(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(3)
    logit_QK = random.standard_normal((40, 64)).astype(np.float32)
    database_NC = random.integers(0, 256, (300, 8), np.uint8)
    similar = relevance(random.random((40, 300)) < 0.2)
    sign_NK = 2.0 * unpack(database_NC) - 1
    inner_QN = logit_QK @ sign_NK.T / np.abs(logit_QK).sum(axis=1, keepdims=True)
    expected = evaluate_scores(lambda start, stop: inner_QN[start:stop], 40, 300, similar, [1, 10, 300])
    for pairs in (1 << 22, 5000):
        monkeypatch.setattr(metrics_module, "_PAIRS", pairs)
        found = evaluate_logits(logit_QK, database_NC, similar, [1, 10, 300])
        for k in (1, 10, 300):
            assert at(found, k) == pytest.approx(at(expected, k))
        # Points near the edge of a bin may fall on its other side.
        np.testing.assert_allclose(found.curve.recall[::40], expected.curve.recall[::40], atol=2e-3)
        assert (found.queries, found.rows, found.radius, found.reference) == (40, 300, None, None)


def test_equal_magnitudes_are_judged_as_codes_are() -> None:
    random = np.random.default_rng(4)
    query_QC, database_NC = random.integers(0, 4, (30, 1), np.uint8), random.integers(0, 64, (200, 1), np.uint8)
    similar = relevance(random.random((30, 200)) < 0.3)
    logit_QK = (2.0 * unpack(query_QC) - 1).astype(np.float32)
    found = evaluate_logits(logit_QK, database_NC, similar, [5, 50])
    expected = evaluate_codes(query_QC, database_NC, similar, [5, 50])
    for k in (5, 50):
        assert at(found, k) == pytest.approx(at(expected, k))


@pytest.mark.parametrize(
    ("logit_QK", "database_NC", "message"),
    [
        (np.ones((2, 8)), np.zeros((3, 2), np.uint8), "8 numbers a query"),
        (np.full((2, 16), np.nan), np.zeros((3, 2), np.uint8), "finite"),
        (np.ones((0, 16)), np.zeros((3, 2), np.uint8), "no queries"),
        (np.ones((2, 16)), np.zeros((0, 2), np.uint8), "empty"),
        (np.ones((2, 16)), np.zeros((3, 2)), "expected uint8"),
    ],
)
def test_logits_that_cannot_be_judged_are_refused(
    logit_QK: np.ndarray, database_NC: np.ndarray, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        evaluate_logits(logit_QK, database_NC, lambda start, stop: np.ones((2, 3), bool), [1])
