"""Asymmetric search equals its definition in numpy, for any sharding, and refuses what it cannot mean."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from distindex import codes
from distindex.errors import InputError
from distindex.index import index as index_module
from distindex.index.candidates import can_be_answers, default_candidates, merge_nominees
from distindex.index.index import Index
from distindex.index.matches import Matches, merge
from tests import oracle
from tests.test_index_search import shuffled_ids, tied_codes

Create = Callable[..., Index]
Logits = npt.NDArray[np.float32]


@pytest.fixture
def create(tmp_path_factory: pytest.TempPathFactory) -> Create:
    """Creates an index in a directory of its own."""
    return lambda *args, **options: Index.create(str(tmp_path_factory.mktemp("index")), *args, **options)


def some_logits(queries: int, bits: int, seed: int, coarse: bool = False) -> Logits:
    """Normal logits, or (coarse) multiples of 1/2 up to 3/2, with zeros and many equal scores."""
    logit_QK = np.random.default_rng(seed).standard_normal((queries, bits))
    return (np.clip(np.round(2 * logit_QK), -3, 3) / 2 if coarse else logit_QK).astype(np.float32)


def answers(matches: Matches) -> list[list[tuple[float, int, str, int | str]]]:
    assert matches.score_M is not None
    return [[(match.score or 0.0, match.distance, match.code, match.id) for match in found] for found in matches]


@pytest.mark.parametrize("shards", [1, 2, 5])
@pytest.mark.parametrize("coarse", [False, True])
@pytest.mark.parametrize("bits", [16, 24, 64])
def test_answers_equal_the_definition_for_any_number_of_shards(
    create: Create, shards: int, coarse: bool, bits: int
) -> None:
    code_NC, id_N = tied_codes(3000, bits, 700, seed=bits), shuffled_ids(3000)
    logit_QK = some_logits(9, bits, seed=3, coarse=coarse)
    # Queries whose own code is there, and one whose logits are all zero.
    logit_QK[:4] = np.abs(logit_QK[:4]) * (2.0 * codes.unpack(code_NC[:4]) - 1)
    logit_QK[8] = 0
    index = create(code_NC, id_N, shards=shards)
    assert len(index.positions) == shards
    for k, candidates in [(1, 1), (1, 40), (7, 7), (10, 100), (10, 699), (100, 650), (3000, 5000)]:
        expected = oracle.asymmetric_search(logit_QK, code_NC, id_N.tolist(), k=k, candidates=candidates)
        assert answers(index.search(k=k, logits=logit_QK, candidates=candidates)) == expected


@pytest.mark.parametrize("shards", [1, 3])
def test_with_every_code_a_candidate_it_is_the_brute_force_ranking(create: Create, shards: int) -> None:
    code_NC = np.random.default_rng(0).integers(0, 256, (2000, 8), dtype=np.uint8)
    ids = [f"item {number}" for number in shuffled_ids(2000)]
    logit_QK = some_logits(5, 64, seed=1)
    index = create(code_NC, ids, shards=shards)
    found = index.search(k=50, logits=logit_QK, candidates=2000)
    # logits times codes of -1 and 1 is the score up to a constant of the query.
    inner_QN = logit_QK.astype(np.float64) @ (2.0 * codes.unpack(code_NC) - 1).T
    for query, matches in enumerate(found):
        order = np.argsort(-inner_QN[query], kind="stable")[:50]
        assert [match.id for match in matches] == [ids[row] for row in order]
        expected = (np.abs(logit_QK[query]).sum() - inner_QN[query][order]) / 2
        assert [match.score for match in matches] == pytest.approx(expected.tolist(), rel=1e-5, abs=1e-5)


def test_equal_magnitudes_give_the_symmetric_order(create: Create) -> None:
    code_NC, id_N = tied_codes(1500, 32, 300), shuffled_ids(1500)
    index = create(code_NC, id_N, shards=2)
    query_QC = code_NC[:6]
    found = index.search(query_QC, 400, logits=2.0 * codes.unpack(query_QC) - 1)
    plain = index.search(query_QC, 400)
    assert found.id_M.equals(plain.id_M)
    np.testing.assert_array_equal(found.score_M, plain.distance_M)
    assert plain.score_M is None


def test_a_code_of_many_rows_does_not_use_up_the_candidates(create: Create) -> None:
    code_NC = np.zeros((5001, 2), np.uint8)
    code_NC[:5000, 0] = 1
    code_NC[5000, 0] = 6
    logit_QK = np.full((1, 16), -0.01, np.float32)
    logit_QK[0, 0] = -1
    # The single row differs in two bits of little weight, the many in one that weighs more.
    found = create(code_NC, np.arange(5001)).search(k=3, logits=logit_QK, candidates=3)
    assert [match.id for match in found[0]] == [5000, 0, 1]


def test_defaults_payload_and_single_queries(create: Create) -> None:
    code_NC, id_N = tied_codes(4000, 64, 3000), shuffled_ids(4000)
    payload = pa.table({"score": id_N * 2, "name": [f"n{item}" for item in id_N]})
    index = create(code_NC, id_N, payload, shards=2)
    logit_K = some_logits(1, 64, seed=5)[0]
    found = index.search(logits=logit_K, columns=["score", "name"])
    assert default_candidates(10) == 1000
    assert default_candidates(500) == 5000
    expected = oracle.asymmetric_search(logit_K[None], code_NC, id_N.tolist(), k=10, candidates=1000)
    assert answers(found) == expected
    expected_ids = [row[3] for row in expected[0]]
    assert [match.payload["score"] // 2 for match in found[0]] == expected_ids
    assert [match.payload["name"] for match in found[0]] == [f"n{item}" for item in expected_ids]
    again = Matches.from_table(found.to_table())
    assert answers(again) == expected
    assert again.to_table().equals(found.to_table(), check_metadata=True)
    assert again.payload is not None
    assert again.payload.column_names == ["score", "name"]
    assert len(index.search(logits=np.empty((0, 64), np.float32))) == 0


def test_blocks_of_queries_give_the_same_answers(create: Create, monkeypatch: pytest.MonkeyPatch) -> None:
    code_NC, id_N = tied_codes(2000, 64, 1500), shuffled_ids(2000)
    logit_QK = some_logits(50, 64, seed=6)
    index = create(code_NC, id_N, shards=2)
    expected = index.search(k=5, logits=logit_QK, candidates=100).to_table()
    monkeypatch.setattr(index_module, "_CANDIDATES_AT_ONCE", 700)
    assert index.search(k=5, logits=logit_QK, candidates=100).to_table().equals(expected, check_metadata=True)


@pytest.mark.parametrize("shards", [1, 4])
def test_no_rows_and_one_row(create: Create, shards: int) -> None:
    logit_QK = some_logits(3, 16, seed=7)
    empty = create(np.zeros((0, 2), np.uint8), pa.array([], pa.string()), shards=shards)
    assert [len(found) for found in empty.search(logits=logit_QK)] == [0, 0, 0]
    one = create(np.array([[1, 2]], np.uint8), ["only"], shards=shards)
    assert [[match.id for match in found] for found in one.search(logits=logit_QK)] == [["only"]] * 3


def test_shards_opened_apart_give_the_answers_of_the_whole(create: Create, tmp_path: Path) -> None:
    code_NC, id_N = tied_codes(3000, 64, 2500), shuffled_ids(3000)
    index = Index.create(str(tmp_path), code_NC, id_N, pa.table({"row": np.arange(3000)}), shards=4)
    logit_QK = some_logits(8, 64, seed=8)
    apart = [Index.open(str(tmp_path), shards=[position]) for position in range(4)]
    parts = [part for one in apart for part in one.nominate(logit_QK, 6, 300, ["row"])]
    assert all(len(part.matches.id_M) < 8 * 300 for part in parts), "what cannot be an answer is not sent"
    found = merge_nominees(parts, 6, 300)
    assert found.to_table().equals(index.search(k=6, logits=logit_QK, candidates=300, columns=["row"]).to_table())


@given(data=st.data(), candidates=st.integers(1, 60), k=st.integers(1, 9))
@settings(max_examples=200, deadline=None)
def test_what_is_dropped_is_in_no_prefix_among_the_best(data: st.DataObject, candidates: int, k: int) -> None:
    score_A = np.array(data.draw(st.lists(st.integers(0, 6), min_size=candidates, max_size=candidates)), np.float32)
    keep_A = can_be_answers(score_A[None], k)[0]
    for end in range(1, candidates + 1):
        best = np.argsort(score_A[:end], kind="stable")[:k]
        assert keep_A[best].all()


@given(
    bits=st.sampled_from([8, 32, 72]),
    rows=st.integers(1, 60),
    shards=st.integers(1, 4),
    k=st.integers(1, 12),
    more=st.integers(0, 20),
    seed=st.integers(0, 1 << 20),
)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_small_index(create: Create, bits: int, rows: int, shards: int, k: int, more: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    pool = random.integers(0, 256, (max(1, rows // 2), bits // 8), dtype=np.uint8)
    code_NC = pool[random.integers(0, len(pool), rows)]
    ids = [f"{number:x}é" for number in random.permutation(rows)]
    logit_QK = some_logits(3, bits, seed, coarse=True)
    index = create(code_NC, ids, shards=shards)
    expected = oracle.asymmetric_search(logit_QK, code_NC, ids, k=k, candidates=k + more)
    assert answers(index.search(k=k, logits=logit_QK, candidates=k + more)) == expected


def bad(**change: Any) -> dict[str, Any]:
    return {"logits": np.ones((2, 16), np.float32), **change}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (bad(logits=np.ones((2, 8))), "8 numbers a query"),
        (bad(logits=np.ones((2, 2, 16))), "shape"),
        (bad(logits=[["a"] * 16]), "expected rows of 16 numbers"),
        (bad(logits=np.array([[0.0] * 16, [np.nan] * 16])), r"logits\[1\].*finite"),
        (bad(logits=np.array([[np.inf] * 16])), r"logits\[0\].*finite"),
        (bad(logits=np.full((1, 16), 1e38)), "sum"),
        (bad(logits=np.full((1, 16), 1e300)), "finite"),
        (bad(radius=3), "radius"),
        (bad(limit=3), "limit"),
        (bad(k=0), "k: 0"),
        (bad(k=10, candidates=9), "candidates: 9 must be a whole number of at least 10"),
        (bad(candidates=10.5), "candidates"),
        (bad(columns=["nothing"]), "no payload column"),
        (bad(code_QC=np.zeros((2, 2), np.uint8)), "not the signs"),
        (bad(code_QC=np.full((1, 2), 255, np.uint8)), "not the signs"),
        ({"code_QC": np.zeros((1, 2), np.uint8), "candidates": 5}, "candidates go with logits"),
        ({}, "give codes or logits"),
    ],
)
def test_bad_input_is_refused(create: Create, arguments: dict[str, Any], message: str) -> None:
    index = create(np.zeros((3, 2), np.uint8), [1, 2, 3])
    with pytest.raises(InputError, match=message):
        index.search(**arguments)


def test_answers_with_and_without_scores_are_not_merged(create: Create) -> None:
    index = create(np.zeros((3, 2), np.uint8), [1, 2, 3])
    rescored, plain = index.search(logits=np.ones(16, np.float32)), index.search(np.full((1, 2), 255, np.uint8))
    with pytest.raises(InputError, match="scores True and False"):
        merge([rescored, plain], 3)


@pytest.mark.parametrize("bits", [8, 64, 136])
def test_scores_are_rounded_sums_whatever_stands_beside_them(bits: int) -> None:
    random = np.random.default_rng(bits)
    logit_QK = (random.standard_normal((7, bits)) * 10.0 ** random.integers(-3, 3, (7, bits))).astype(np.float32)
    code_NC = random.integers(0, 256, (500, bits // 8), dtype=np.uint8)
    differing_QNC = codes.pack(logit_QK > 0)[:, None] ^ code_NC
    score_QN = codes.asymmetric(codes.byte_weights(logit_QK), differing_QNC)
    np.testing.assert_allclose(score_QN, oracle.asymmetric_scores(logit_QK, code_NC), rtol=1.2e-7)
    for query in range(7):
        weights = codes.byte_weights(logit_QK[query : query + 1])
        alone_N = codes.asymmetric(weights, differing_QNC[query : query + 1, 100:333])[0]
        np.testing.assert_array_equal(alone_N, score_QN[query, 100:333])
