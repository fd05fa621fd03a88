"""Every search equals the brute-force oracle, in the order (distance, code bytes, id)."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from distindex.errors import InputError
from distindex.index.index import Index
from distindex.index.matches import Matches, merge
from distindex.index.structure import padded_bits, set_search_threads
from tests import oracle

Codes = npt.NDArray[np.uint8]
Create = Callable[..., Index]


@pytest.fixture
def create(tmp_path_factory: pytest.TempPathFactory) -> Create:
    """Creates an index in a directory of its own."""
    return lambda *args, **options: Index.create(str(tmp_path_factory.mktemp("index")), *args, **options)


def answers(matches: Matches) -> list[list[oracle.Answer]]:
    return [[(match.distance, match.code, match.id) for match in found] for found in matches]


def tied_codes(rows: int, bits: int, distinct: int, seed: int = 0) -> Codes:
    """Codes of which most stand many times, as learned codes do: half of the rows share 5 codes."""
    random = np.random.default_rng(seed)
    pool = random.integers(0, 256, (distinct, bits // 8), dtype=np.uint8)
    chosen = np.where(random.random(rows) < 0.5, random.integers(0, min(5, distinct), rows), 0)
    chosen = np.where(chosen == 0, random.integers(0, distinct, rows), chosen)
    return pool[chosen]


def shuffled_ids(rows: int, seed: int = 1) -> npt.NDArray[np.int64]:
    random = np.random.default_rng(seed)
    return random.permutation(rows).astype(np.int64) * 7 - 3 * rows


@pytest.fixture(scope="module")
def many() -> dict[str, Any]:
    """20,000 rows with many ties, 24 queries (half of them rows), and what the oracle says."""
    code_NC, id_N = tied_codes(20_000, 64, 900), shuffled_ids(20_000)
    random = np.random.default_rng(2)
    query_QC = np.concatenate([code_NC[:12], random.integers(0, 256, (12, 8), dtype=np.uint8)])
    ids = id_N.tolist()
    return {
        "codes": code_NC,
        "ids": id_N,
        "queries": query_QC,
        "nearest": oracle.search(query_QC, code_NC, ids, k=3000),
        "within": oracle.search(query_QC, code_NC, ids, radius=22),
    }


@pytest.mark.parametrize("shards", [1, 2, 3, 7])
def test_many_ties_equal_the_oracle_for_any_number_of_shards(
    create: Create, many: dict[str, Any], shards: int
) -> None:
    index = create(many["codes"], many["ids"], shards=shards)
    assert len(index.positions) == shards
    assert index.rows == 20_000
    assert index.distinct == len(np.unique(many["codes"], axis=0))
    for k in (1, 10, 100, 3000):
        expected = [found[:k] for found in many["nearest"]]
        assert answers(index.search(many["queries"], k)) == expected
    assert answers(index.search(many["queries"], radius=22)) == many["within"]
    limited = [found[:50] for found in many["within"]]
    assert answers(index.search(many["queries"], radius=22, limit=50)) == limited


@pytest.mark.parametrize("bits", [8, 16, 24, 32, 40, 48, 56, 64, 72, 96, 128, 160, 192, 256, 328, 512, 1024])
def test_every_code_length_equals_the_oracle(create: Create, bits: int) -> None:
    code_NC, id_N = tied_codes(400, bits, 120, seed=bits), shuffled_ids(400)
    query_QC = np.concatenate([code_NC[:4], tied_codes(4, bits, 4, seed=99)])
    index = create(code_NC, id_N, shards=2)
    assert index.bits == bits
    for k in (1, 7, 400, 10_000):
        expected = oracle.search(query_QC, code_NC, id_N.tolist(), k=k)
        assert answers(index.search(query_QC, k)) == expected
    for radius in (0, 1, bits // 2, bits, 5 * bits):
        expected = oracle.search(query_QC, code_NC, id_N.tolist(), radius=radius)
        assert answers(index.search(query_QC, radius=radius)) == expected


def test_codes_of_lengths_that_faiss_is_slow_at_are_padded() -> None:
    lengths = {8: 32, 16: 32, 24: 32, 40: 64, 72: 128, 160: 160, 192: 256, 264: 512, 520: 576, 1024: 1024}
    assert {bits: padded_bits(bits) for bits in lengths} == lengths


@pytest.mark.parametrize("radius", [0, 1, 3, 17, 64])
def test_the_radius_is_inclusive_at_exact_distances(create: Create, radius: int) -> None:
    bits = 64
    query_C = np.random.default_rng(0).integers(0, 256, bits // 8, dtype=np.uint8)
    flips = sorted({0, 1, max(radius - 1, 0), radius, min(radius + 1, bits), bits})
    bit_NK = np.repeat(np.unpackbits(query_C)[None], len(flips), axis=0)
    for row, flipped in enumerate(flips):
        bit_NK[row, np.random.default_rng(row).permutation(bits)[:flipped]] ^= 1
    index = create(np.packbits(bit_NK, axis=1), flips)
    found = index.search(query_C, radius=radius)[0]
    assert [(match.distance, match.id) for match in found] == [(f, f) for f in flips if f <= radius]
    assert [match.distance for match in index.search(query_C, k=len(flips))[0]] == flips


def test_all_codes_equal(create: Create) -> None:
    code_NC = np.full((500, 4), 7, np.uint8)
    index = create(code_NC, np.arange(500)[::-1], shards=3)
    assert index.distinct == 1
    assert len(index.positions) == 1
    assert [match.id for match in index.search(code_NC[:1], 100)[0]] == list(range(100))
    assert [match.id for match in index.search(code_NC[:1], 10_000)[0]] == list(range(500))
    assert [match.id for match in index.search(code_NC[:1], radius=0, limit=3)[0]] == [0, 1, 2]
    assert index.search(code_NC[:1] ^ 1, radius=3)[0] == []


def test_one_row(create: Create) -> None:
    index = create(np.array([[1, 2]], np.uint8), ["only"])
    matches = index.search(np.array([[1, 3], [255, 255]], np.uint8), 5)
    assert answers(matches) == [[(1, "0102", "only")], [(14, "0102", "only")]]


@pytest.mark.parametrize("shards", [1, 4])
def test_no_rows(create: Create, shards: int) -> None:
    payload = pa.table({"text": pa.array([], pa.string())})
    index = create(np.zeros((0, 8), np.uint8), pa.array([], pa.string()), payload, shards=shards)
    assert (index.rows, index.distinct) == (0, 0)
    query_QC = np.zeros((3, 8), np.uint8)
    for matches in (index.search(query_QC, 5, columns=["text"]), index.search(query_QC, radius=64)):
        assert answers(matches) == [[], [], []]
        assert matches.id_M.type == pa.string()
        assert matches.code_MC.shape == (0, 8)


def test_no_queries(create: Create) -> None:
    index = create(tied_codes(50, 16, 10), np.arange(50), shards=2)
    for matches in (index.search(np.zeros((0, 2), np.uint8), 5), index.search(np.zeros((0, 2), np.uint8), radius=3)):
        assert len(matches) == 0
        assert answers(matches) == []


def test_k_beyond_the_counting_mode_of_faiss(create: Create, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("distindex.index.flat._COUNTER_BYTES", 10_000)
    code_NC, id_N = tied_codes(600, 24, 300), shuffled_ids(600)
    index = create(code_NC, id_N)
    for k in (3, 5, 299, 600):
        expected = oracle.search(code_NC[:20], code_NC, id_N.tolist(), k=k)
        assert answers(index.search(code_NC[:20], k)) == expected


def test_answers_do_not_depend_on_threads_or_batches(create: Create, many: dict[str, Any]) -> None:
    index = create(many["codes"], many["ids"], shards=2)
    try:
        for threads in (1, 2):
            set_search_threads(threads)
            assert answers(index.search(many["queries"], 100)) == [found[:100] for found in many["nearest"]]
    finally:
        set_search_threads(1)
    one_by_one = [answers(index.search(query_C, 100))[0] for query_C in many["queries"]]
    assert one_by_one == [found[:100] for found in many["nearest"]]


def test_searches_at_the_same_time_do_not_disturb_each_other(create: Create, many: dict[str, Any]) -> None:
    index = create(many["codes"], many["ids"], shards=2)

    def search(number: int) -> bool:
        k = (1, 10, 100, 3000)[number % 4]
        return answers(index.search(many["queries"], k)) == [found[:k] for found in many["nearest"]]

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(search, range(12))) == [True] * 12


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.integers(1, 120),
    size=st.integers(1, 10),
    distinct=st.integers(1, 40),
    shards=st.integers(1, 5),
    k=st.integers(1, 150),
    radius=st.integers(0, 80),
    seed=st.integers(0, 2**32 - 1),
)
def test_what_leaves_distances_alone_leaves_the_answers_alone(
    create: Create, rows: int, size: int, distinct: int, shards: int, k: int, radius: int, seed: int
) -> None:
    random = np.random.default_rng(seed)
    code_NC = random.integers(0, 256, (distinct, size), dtype=np.uint8)[random.integers(0, distinct, rows)]
    query_QC = np.concatenate([code_NC[:2], random.integers(0, 256, (2, size), dtype=np.uint8)])
    id_N = random.permutation(rows)
    index = create(code_NC, id_N, shards=shards)
    nearest, within = index.search(query_QC, k), index.search(query_QC, radius=radius)
    assert answers(nearest) == oracle.search(query_QC, code_NC, id_N.tolist(), k=k)
    assert answers(within) == oracle.search(query_QC, code_NC, id_N.tolist(), radius=radius)

    order = random.permutation(rows)
    permuted = create(code_NC[order], id_N[order], shards=shards)
    assert permuted.manifest.shards == index.manifest.shards
    assert answers(permuted.search(query_QC, k)) == answers(nearest)

    mask_C = random.integers(0, 256, size, dtype=np.uint8)
    bit_K = random.permutation(size * 8)

    def permute_bits(codes: Codes) -> Codes:
        return np.packbits(np.unpackbits(codes, axis=1)[:, bit_K], axis=1)

    for change in (lambda codes: codes ^ mask_C, permute_bits):
        changed = create(change(code_NC), id_N, shards=shards)
        # Ties are ordered by code, which changes, so whole buckets are compared: all rows, as distances by id.
        for before, after in zip(index.search(query_QC, rows), changed.search(change(query_QC), rows), strict=True):
            assert {m.id: m.distance for m in before} == {m.id: m.distance for m in after}
        for before, after in zip(within, changed.search(change(query_QC), radius=radius), strict=True):
            assert {m.id: m.distance for m in before} == {m.id: m.distance for m in after}


def test_string_ids_come_back_as_they_are_in_the_order_of_their_text(create: Create) -> None:
    ids = ["b", "a", "ä", "A", "10", "9", "", "日本", "😀", "z" * 300]
    code_NC = np.zeros((len(ids), 3), np.uint8)
    index = create(code_NC, ids, shards=2)
    assert index.manifest.id_type == "string"
    assert [match.id for match in index.search(code_NC[:1], 100)[0]] == sorted(ids)


def test_ids_at_the_ends_of_int64(create: Create) -> None:
    ids = [2**63 - 1, -(2**63), 2**53 + 1, 0]
    index = create(np.zeros((4, 1), np.uint8), ids)
    assert [match.id for match in index.search(np.zeros(1, np.uint8), 4)[0]] == sorted(ids)


def test_payload_belongs_to_its_row(create: Create) -> None:
    rows = 300
    code_NC, id_N = tied_codes(rows, 16, 20), shuffled_ids(rows)
    payload = pa.table(
        {
            "text": pa.array([None if i % 7 == 0 else f"text of {i}" for i in id_N.tolist()]).dictionary_encode(),
            "tags": pa.array([[str(i)] * (i % 3) for i in id_N.tolist()], pa.list_(pa.string())),
            "distance": pa.array(id_N * 2.5),
        }
    )
    index = create(code_NC, id_N, payload, shards=3)
    assert index.columns == ("text", "tags", "distance")
    found = index.search(code_NC[:5], 40, columns=["distance", "text", "tags"])
    assert found.payload is not None
    assert found.payload.column_names == ["distance", "text", "tags"]
    assert sum(len(matches) for matches in found) == 200
    for matches in found:
        for match in matches:
            assert isinstance(match.id, int)
            text = None if match.id % 7 == 0 else f"text of {match.id}"
            tags = [str(match.id)] * (match.id % 3)
            assert match.payload == {"distance": match.id * 2.5, "text": text, "tags": tags}
    assert index.search(code_NC[:5], 40).payload is None
    assert index.search(code_NC[:1], 1)[0][0].payload == {}


def test_matches_survive_a_table(create: Create) -> None:
    payload = pa.table({"query": [f"q{row}" for row in range(60)]})
    index = create(tied_codes(60, 24, 9), [str(row) for row in range(60)], payload, shards=2)
    far = np.full((1, 3), 255, np.uint8)
    query_QC = np.concatenate([far, tied_codes(60, 24, 9)[:3], far])
    for matches in (
        index.search(query_QC, 7, columns=["query"]),
        index.search(query_QC, radius=2),
        index.search(query_QC[:0], 7),
    ):
        marked = Matches(
            matches.offset_Q1, matches.distance_M, matches.code_MC, matches.id_M, matches.payload, 12, (1, 4)
        )
        table = marked.to_table()
        assert table.column_names[:4] == ["query", "id", "distance", "code"]
        back = Matches.from_table(table)
        assert answers(back) == answers(matches)
        assert list(back) == list(marked)
        assert (back.version, back.missing_shards) == (12, (1, 4))
        assert back.id_M.type == matches.id_M.type
    with pytest.raises(InputError, match="does not hold matches"):
        Matches.from_table(pa.table({"query": [1]}))


def test_shards_opened_apart_merge_to_the_whole(tmp_path: Path, many: dict[str, Any]) -> None:
    payload = pa.table({"twice": many["ids"] * 2})
    whole = Index.create(str(tmp_path), many["codes"], many["ids"], payload, shards=3)
    parts = [Index.open(str(tmp_path), shards=[position]) for position in (2, 0, 1)]
    assert [part.positions for part in parts] == [(2,), (0,), (1,)]
    searches: list[dict[str, Any]] = [{"k": 100}, {"radius": 22}, {"radius": 22, "limit": 50}]
    for options in searches:
        found = [part.search(many["queries"], columns=["twice"], **options) for part in parts]
        together = merge(found, options.get("k", options.get("limit")))
        assert list(together) == list(whole.search(many["queries"], columns=["twice"], **options))


@pytest.mark.parametrize("text_ids", [False, True])
def test_parts_that_share_codes_merge_in_the_order_of_ids(create: Create, text_ids: bool) -> None:
    code_NC = tied_codes(900, 32, 40)
    ids = [f"{number:d}é" if text_ids else number for number in shuffled_ids(900).tolist()]
    of_row = np.random.default_rng(4).integers(0, 3, 900)
    parts = [
        create(code_NC[of_row == part], [ids[row] for row in np.flatnonzero(of_row == part)]) for part in range(3)
    ]
    for k in (5, 200):
        found = merge([part.search(code_NC[:20], k) for part in parts], k)
        assert answers(found) == oracle.search(code_NC[:20], code_NC, ids, k=k)


def test_matches_and_manifests_need_no_faiss() -> None:
    script = "import sys, distindex.index.matches, distindex.index.manifest; print('faiss' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_merging_refuses_what_does_not_belong_together(create: Create) -> None:
    code_NC = tied_codes(60, 16, 9)
    index, other = create(code_NC, np.arange(60)), create(code_NC, [str(row) for row in range(60)])
    with pytest.raises(InputError, match="there are none"):
        merge([], 3)
    with pytest.raises(InputError, match="queries"):
        merge([index.search(code_NC[:2]), index.search(code_NC[:3])], 3)
    with pytest.raises(InputError, match="id type"):
        merge([index.search(code_NC[:2]), other.search(code_NC[:2])], 3)


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((np.zeros((2, 3), np.uint8),), {}, "queries: codes of 24 bits, but 16 bits"),
        ((np.zeros((2, 2), np.int64),), {}, "queries: expected uint8"),
        ((np.zeros((1, 1, 2), np.uint8),), {}, "queries: expected uint8"),
        ((np.zeros((1, 2), np.uint8), 0), {}, "k: 0 must be"),
        ((np.zeros((1, 2), np.uint8), 2.5), {}, "k: 2.5 is not"),
        ((np.zeros((1, 2), np.uint8), True), {}, "k: True must be"),
        ((np.zeros((1, 2), np.uint8), 3), {"radius": 3}, "k or radius, not both"),
        ((np.zeros((1, 2), np.uint8),), {"radius": -1}, "radius: -1 must be"),
        ((np.zeros((1, 2), np.uint8),), {"radius": 1, "limit": 0}, "limit: 0 must be"),
        ((np.zeros((1, 2), np.uint8), 3), {"limit": 5}, "limit goes with radius"),
        ((np.zeros((1, 2), np.uint8),), {"columns": ["text", "nope"]}, "no payload column 'nope'; it has text"),
    ],
)
def test_bad_searches_are_refused(
    create: Create, arguments: tuple[Any, ...], options: dict[str, Any], message: str
) -> None:
    index = create(tied_codes(20, 16, 9), np.arange(20), pa.table({"text": ["x"] * 20}))
    with pytest.raises(InputError, match=message):
        index.search(*arguments, **options)


def test_a_closed_index_is_not_searched(create: Create) -> None:
    with create(tied_codes(20, 16, 9), np.arange(20)) as index:
        assert len(index.search(np.zeros(2, np.uint8), 4)[0]) == 4
    with pytest.raises(InputError, match="closed"):
        index.search(np.zeros(2, np.uint8))


@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(0, 300),
    distinct=st.integers(1, 200),
    shards=st.integers(1, 3),
    texts=st.booleans(),
    seed=st.integers(0, 99),
)
def test_a_row_is_found_by_its_id_with_its_code_and_payload(
    tmp_path_factory: pytest.TempPathFactory, rows: int, distinct: int, shards: int, texts: bool, seed: int
) -> None:
    code_NC = tied_codes(rows, 32, distinct, seed)
    ids: list[Any] = [f"ä{number}" if texts else int(number) for number in shuffled_ids(rows, seed)]
    payload = pa.table({"row": np.arange(rows)})
    id_N = pa.array(ids, pa.string() if texts else pa.int64())
    uri = str(tmp_path_factory.mktemp("index"))
    with Index.create(uri, code_NC, id_N, payload, shards=shards) as index:
        unknown = "nobody" if texts else 10**12
        asked = [*np.random.default_rng(seed).permutation(rows)[:20].tolist(), None, 0 if rows else None]
        found = index.lookup([unknown if row is None else ids[row] for row in asked], columns=["row"])
        assert [[(match.id, match.code, match.payload["row"], match.distance) for match in one] for one in found] == [
            [] if row is None else [(ids[row], code_NC[row].tobytes().hex(), row, 0)] for row in asked
        ]
        assert len(index.lookup([])) == 0
        with pytest.raises(InputError, match="ids of this index are of type"):
            index.lookup([5 if texts else "a"])
