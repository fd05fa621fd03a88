"""Every kind of search structure, and every way that flat takes, against a scan in numpy."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distindex.errors import DamagedError, FormatError, InputError
from distindex.index import exact, flat
from distindex.index.choose import choose
from distindex.index.flat import Flat
from distindex.index.index import Index
from distindex.index.kinds import CAPABILITIES
from distindex.index.probe import flips
from distindex.index.scan import Strips, words_of
from distindex.index.structure import Neighbors, set_search_threads
from tests import oracle

Codes = npt.NDArray[np.uint8]
APPROXIMATE = [kind for kind, can in CAPABILITIES.items() if not can.exact]


@pytest.fixture
def small_shards_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take the fast ways for few codes, which are left to faiss otherwise."""
    monkeypatch.setattr(flat, "_SMALL", 1)
    monkeypatch.setattr(exact, "_MULTI_INDEX_CODES", 1)
    monkeypatch.setattr(exact, "_CODES_A_NEIGHBOR", dict.fromkeys(exact._CODES_A_NEIGHBOR, 4))


def clustered(rows: int, bits: int, seed: int, share: float = 0.04) -> Codes:
    """Distinct codes in byte order, around 20 centres."""
    random = np.random.default_rng(seed)
    centre = random.integers(0, 256, (20, bits // 8), dtype=np.uint8)
    flipped = np.packbits(random.random((rows, bits)) < share, axis=1)
    return np.unique(centre[random.integers(0, 20, rows)] ^ flipped, axis=0)


def uniform(rows: int, bits: int, seed: int) -> Codes:
    return np.unique(np.random.default_rng(seed).integers(0, 256, (rows, bits // 8), dtype=np.uint8), axis=0)


def queries_for(code_UC: Codes, seed: int) -> Codes:
    """Codes of the index, codes beside them, and codes from anywhere."""
    random = np.random.default_rng(seed)
    near = code_UC[random.integers(0, len(code_UC), 6)] ^ np.packbits(
        random.random((6, code_UC.shape[1] * 8)) < 0.05, axis=1
    )
    anywhere = random.integers(0, 256, (4, code_UC.shape[1]), dtype=np.uint8)
    return np.concatenate([code_UC[random.integers(0, len(code_UC), 6)], near, anywhere])


def check(found: Neighbors, distance_QU: npt.NDArray[np.int64], *, k: int | None = None, radius: int = -1) -> None:
    for query, distance_U in enumerate(distance_QU):
        order_U = np.argsort(distance_U, kind="stable")
        expected = order_U[:k] if k is not None else order_U[distance_U[order_U] <= radius]
        part = slice(found.offset_Q1[query], found.offset_Q1[query + 1])
        assert found.position_M[part].tolist() == expected.tolist()
        assert found.distance_M[part].tolist() == distance_U[expected].tolist()


def prepared(code_UC: Codes, way: str) -> Flat:
    structure = Flat.build(code_UC)
    structure.prepare()
    assert structure.way == way
    return structure


@pytest.mark.usefixtures("small_shards_too")
@pytest.mark.parametrize(
    ("bits", "way"),
    [(8, "direct"), (16, "direct"), (24, "direct"), (32, "multi-index"), (40, "multi-index"), (64, "multi-index"),
     (96, "scan"), (128, "scan"), (160, "scan"), (256, "scan"), (264, "faiss"), (512, "faiss")],
)  # fmt: skip
def test_every_way_equals_a_scan_in_numpy(bits: int, way: str) -> None:
    code_UC = clustered(3000, bits, bits)
    query_QC = queries_for(code_UC, 1)
    structure = prepared(code_UC, way)
    distance_QU = oracle.distances(query_QC, code_UC)
    for k in (1, 10, 100, 500, len(code_UC), 10_000):
        check(structure.knn(query_QC, k), distance_QU, k=k)
    for radius in (0, 1, 2, 5, bits // 4, bits, 3 * bits):
        check(structure.within(query_QC, radius), distance_QU, radius=radius)
    one_by_one = [structure.knn(query_QC[query : query + 1], 20).position_M for query in range(len(query_QC))]
    assert np.concatenate(one_by_one).tolist() == structure.knn(query_QC, 20).position_M.tolist()


@pytest.mark.usefixtures("small_shards_too")
@pytest.mark.parametrize("bits", [32, 64, 128])
def test_uniform_codes_equal_a_scan_in_numpy(bits: int) -> None:
    code_UC = uniform(20_000, bits, 3)
    query_QC = queries_for(code_UC, 1)
    structure = prepared(code_UC, "scan")
    distance_QU = oracle.distances(query_QC, code_UC)
    for k in (1, 64, 300, 2000):
        check(structure.knn(query_QC, k), distance_QU, k=k)
    for radius in (bits // 8, bits // 3):
        check(structure.within(query_QC, radius), distance_QU, radius=radius)


@pytest.mark.usefixtures("small_shards_too")
def test_a_guess_that_was_too_low_is_found_out() -> None:
    code_UC = np.zeros((8000, 8), np.uint8)
    number_U = np.arange(8000)
    code_UC[:, 0], code_UC[:, 1] = number_U >> 8, number_U & 255
    # Those codes are near the query that are in the sample: it believes that all are.
    numbered = words_of(number_U.astype(np.uint64)[:, None].view(np.uint8))
    sampled = np.isin(number_U, Strips.of(numbered).sample_SWI)
    assert 100 < sampled.sum() < 256
    code_UC[~sampled, 4:] = 255
    query_QC = np.zeros((5, 8), np.uint8)
    structure = Flat.build(code_UC)
    structure.prepare()
    searcher = structure._exact
    assert searcher is not None
    missed: list[int] = []
    scan = searcher._scan.knn
    searcher._scan = dataclasses.replace(searcher._scan, knn=lambda *given: missed.append(scan(*given)))
    for k in (256, 400, 1000):
        check(structure.knn(query_QC, k), oracle.distances(query_QC, code_UC), k=k)
    assert missed == [5, 0] * 3


@pytest.mark.usefixtures("small_shards_too")
@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 300),
    size=st.sampled_from([1, 2, 3, 4, 5, 8, 12]),
    bits_used=st.integers(1, 96),
    k=st.integers(1, 350),
    radius=st.integers(0, 100),
    seed=st.integers(0, 2**32 - 1),
)
def test_what_leaves_distances_alone_leaves_the_answers_alone(
    rows: int, size: int, bits_used: int, k: int, radius: int, seed: int
) -> None:
    random = np.random.default_rng(seed)
    bit_NK = np.zeros((rows, size * 8), bool)
    bit_NK[:, : min(bits_used, size * 8)] = random.random((rows, min(bits_used, size * 8))) < 0.3
    code_UC = np.unique(np.packbits(bit_NK, axis=1), axis=0)
    query_QC = queries_for(code_UC, seed)
    bit_K = random.permutation(size * 8)
    mask_C = random.integers(0, 256, size, dtype=np.uint8)
    for change in (
        lambda codes: codes,
        lambda codes: codes ^ mask_C,
        lambda codes: np.packbits(np.unpackbits(codes, axis=1)[:, bit_K], axis=1),
    ):
        changed_UC, changed_QC = np.unique(change(code_UC), axis=0), change(query_QC)
        structure = Flat.build(changed_UC)
        structure.prepare()
        distance_QU = oracle.distances(changed_QC, changed_UC)
        assert np.array_equal(np.sort(distance_QU), np.sort(oracle.distances(query_QC, code_UC)))
        check(structure.knn(changed_QC, k), distance_QU, k=k)
        check(structure.within(changed_QC, radius), distance_QU, radius=radius)


@pytest.mark.usefixtures("small_shards_too")
def test_threads_share_the_queries() -> None:
    code_UC = clustered(3000, 64, 5)
    query_QC = np.concatenate([queries_for(code_UC, seed) for seed in range(5)])
    structure = prepared(code_UC, "multi-index")
    distance_QU = oracle.distances(query_QC, code_UC)
    try:
        for threads in (1, 2, 3):
            set_search_threads(threads)
            check(structure.knn(query_QC, 30), distance_QU, k=30)
            check(structure.within(query_QC, 9), distance_QU, radius=9)
    finally:
        set_search_threads(1)


def test_nothing_is_compiled_again_in_the_next_process() -> None:
    program = (
        "import numpy as np\n"
        "from distindex.index.probe import _direct, _multi\n"
        "from distindex.index.scan import scan_of\n"
        "made = [*vars(scan_of(1, np.uint64)).values(), _multi(1, np.uint64), _direct()]\n"
        "stats = [getattr(one, 'func', one).stats for one in made]\n"
        "print(sum(len(one.cache_misses) for one in stats), sum(len(one.cache_hits) for one in stats))\n"
    )
    ran = [subprocess.run([sys.executable, "-c", program], capture_output=True, text=True) for _ in range(2)]
    assert (ran[1].stdout, ran[1].stderr) == ("0 5\n", "")


def test_masks_are_all_of_each_number_of_ones_once() -> None:
    mask_X, level_R1 = flips(9, 4)
    assert level_R1.tolist() == [0, 1, 10, 46, 130, 256]
    assert np.diff(np.bitwise_count(mask_X).astype(int)).min() >= 0
    assert len(np.unique(mask_X)) == len(mask_X)


@pytest.mark.parametrize("kind", APPROXIMATE)
@pytest.mark.parametrize("bits", [16, 64, 136])
def test_an_approximate_kind_finds_what_it_promises_in_the_order_of_answers(
    tmp_path: Path, kind: str, bits: int
) -> None:
    code_UC = clustered(3000, bits, bits, 0.08)
    code_NC = code_UC[np.random.default_rng(0).integers(0, len(code_UC), 4000)]
    index = Index.create(str(tmp_path), code_NC, np.arange(4000), shards=2, kind=kind, recall=0.9)
    assert index.kind == kind
    recall = index.manifest.parameters["recall"]
    assert recall["reached"] >= recall["target"] == 0.9
    query_QC = queries_for(code_UC, 7)
    found = index.search(query_QC, 10)
    ranking = oracle.search(query_QC, code_NC, list(range(4000)))
    near = 0
    for answers, expected in zip(found, ranking, strict=True):
        place_of = {row: place for place, row in enumerate(expected)}
        places = [place_of[(answer.distance, answer.code, answer.id)] for answer in answers]
        assert places == sorted(set(places)), "a part of the exact ranking, in its order"
        near += sum(answer.distance <= expected[9][0] for answer in answers)
    assert near / (10 * len(query_QC)) >= 0.7
    again = Index.open(str(tmp_path)).search(query_QC, 10)
    assert [list(a) for a in again] == [list(a) for a in found]
    many = index.search(query_QC, 10_000)
    assert max(len(answers) for answers in many) <= 4000
    if not CAPABILITIES[kind].radius:
        with pytest.raises(InputError, match=f"radius: an index of kind {kind} cannot"):
            index.search(query_QC, radius=3)
        return
    for answers, expected in zip(index.search(query_QC, radius=3), ranking, strict=True):
        rows = {(answer.distance, answer.code, answer.id) for answer in answers}
        assert rows <= {row for row in expected if row[0] <= 3}


@pytest.mark.parametrize("kind", ["flat", *APPROXIMATE])
@pytest.mark.parametrize("rows", [0, 1, 2, 40])
def test_few_rows(tmp_path: Path, kind: str, rows: int) -> None:
    code_NC = np.full((rows, 4), 7, np.uint8) if rows < 40 else uniform(40, 32, 0)
    index = Index.create(str(tmp_path), code_NC, np.arange(rows), kind=kind)
    found = index.search(code_NC[:1] if rows else np.zeros((1, 4), np.uint8), 50)
    assert len(found[0]) <= rows
    if rows:
        assert found[0][0].distance == 0
    if 0 < rows < 40:
        assert [answer.id for answer in found[0]] == list(range(rows))


@pytest.mark.parametrize("kind", APPROXIMATE)
def test_the_same_rows_give_the_same_bytes(tmp_path: Path, kind: str) -> None:
    code_NC, order = clustered(2000, 64, 1), np.random.default_rng(0)
    shuffled = order.permutation(len(code_NC))
    one = Index.create(str(tmp_path / "one"), code_NC, np.arange(len(code_NC)), kind=kind, recall=0.8)
    two = Index.create(str(tmp_path / "two"), code_NC[shuffled], shuffled, kind=kind, recall=0.8)
    assert one.manifest.shards == two.manifest.shards


def test_a_bucket_that_holds_a_power_of_two_of_codes_survives_storage(tmp_path: Path) -> None:
    code_NC = np.unique(uniform(300, 64, 0), axis=0)[:256]
    code_NC[:, :6] = 7
    code_NC = np.unique(code_NC, axis=0)
    code_NC = code_NC[: 1 << (len(code_NC).bit_length() - 1)]
    index = Index.create(str(tmp_path), code_NC, np.arange(len(code_NC)), kind="multihash")
    assert len(index.search(code_NC[:1], len(code_NC))[0]) == len(code_NC)


def test_rescoring_is_exact_with_every_kind(tmp_path: Path) -> None:
    code_NC = clustered(1000, 32, 1)
    logits = np.random.default_rng(0).standard_normal((5, 32)).astype(np.float32)
    expected = Index.create(str(tmp_path / "flat"), code_NC, np.arange(len(code_NC))).search(logits=logits, k=5)
    ivf = Index.create(str(tmp_path / "ivf"), code_NC, np.arange(len(code_NC)), kind="ivf", recall=0.5)
    assert [list(found) for found in ivf.search(logits=logits, k=5)] == [list(found) for found in expected]


def test_what_a_kind_cannot_do_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    code_NC, ids = uniform(3000, 64, 0), np.arange(3000)
    cases: list[tuple[dict[str, Any], str]] = [
        ({"kind": "tree"}, "kind: 'tree' is not known; it can be flat, ivf"),
        ({"kind": "ivf", "recall": 1.0}, "recall: ivf cannot promise 1"),
        ({"kind": "ivf", "recall": 0.0}, r"recall: 0.0 must lie in \(0, 1\]"),
        ({"kind": "hash", "recall": 0.999}, "recall: hash reaches 0.* on these codes at most"),
    ]
    if not hasattr(faiss, "GpuIndexBinaryFlat") or not faiss.get_num_gpus():
        cases.append(({"kind": "gpu-flat"}, "kind: gpu-flat needs"))
    for options, message in cases:
        with pytest.raises(InputError, match=message):
            Index.create(str(tmp_path), code_NC, ids, **options)
        assert not list(tmp_path.iterdir())


def test_a_structure_of_another_shard_is_refused(tmp_path: Path) -> None:
    for name, bits in (("one", 64), ("two", 32)):
        Index.create(str(tmp_path / name), uniform(2000, bits, 0), np.arange(2000), kind="ivf", recall=0.5)
    one, two = (next((tmp_path / name / "shards").iterdir()) / "structure.faiss" for name in ("one", "two"))
    one.write_bytes(two.read_bytes())
    with pytest.raises(DamagedError, match=r"structure\.faiss: does not match its recorded sha256"):
        Index.open(str(tmp_path / "one"))


def test_a_kind_of_a_later_release_is_refused(tmp_path: Path) -> None:
    Index.create(str(tmp_path), uniform(100, 64, 0), np.arange(100))
    path = tmp_path / "versions" / "00000001.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"kind": "tree"}))
    with pytest.raises(FormatError, match="index kind 'tree' is not known; this release knows flat, ivf"):
        Index.open(str(tmp_path))


def test_the_choice_says_why() -> None:
    code_UC = clustered(6000, 64, 0)
    assert choose(code_UC, 10**9, 1.0).kind == "flat"
    few = choose(code_UC, 5000, 0.9)
    assert (few.kind, "few enough" in few.reason) == ("flat", True)
    tried = choose(code_UC, 10**9, 0.9)
    assert tried.kind in ("flat", "ivf")
    assert "us a query" in tried.reason
    assert "1,000,000,000 codes a shard" in tried.reason
