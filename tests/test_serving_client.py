"""The client over the HTTP API of an index in this process, and over the index itself."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pyarrow as pa
import pytest

from distindex.codes import pack
from distindex.errors import InputError, NotFoundError, UnavailableError
from distindex.index.index import Index
from distindex.index.matches import Matches
from distindex.serving.client import HttpSearcher, LocalSearcher, connect
from distindex.serving.items import UnknownItemError
from distindex.serving.request import RequestError, make_request
from tests.serving_backend import ARROW, BITS, CODE, ROWS, AsgiClient, send, small_index, stream


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Index:
    return small_index(tmp_path_factory.mktemp("index"))


@pytest.fixture
def served(index: Index, monkeypatch: pytest.MonkeyPatch) -> tuple[HttpSearcher, AsgiClient]:
    searcher, transport = HttpSearcher("http://test"), AsgiClient(index)
    monkeypatch.setattr(searcher._transport, "_client", httpx.Client(transport=transport))
    return searcher, transport


def test_the_client_splits_what_is_too_much_for_one_request(
    index: Index, served: tuple[HttpSearcher, AsgiClient]
) -> None:
    searcher, transport = served
    queries = np.random.default_rng(2).integers(0, 256, (50, BITS // 8), np.uint8)
    found = searcher.search(queries, k=60, columns=["title"])
    assert transport.requests > 10
    assert found.to_table().equals(index.search(queries, 60, columns=["title"]).to_table())


def test_rescored_answers_are_those_of_the_index_everywhere(
    index: Index, served: tuple[HttpSearcher, AsgiClient]
) -> None:
    searcher, transport = served
    logit_QK = np.random.default_rng(4).standard_normal((20, BITS)).astype(np.float32)
    expected = index.search(k=6, logits=logit_QK, candidates=30, columns=["raw", "title"])
    found = searcher.search(logits=logit_QK, k=6, columns=["raw", "title"], rescore=True, candidates=30)
    assert found.to_table().equals(expected.to_table())
    assert transport.requests > 2
    body = {"logits": logit_QK[:5].tolist(), "k": 6, "rescore": True, "candidates": 30, "columns": ["title"]}
    response = send(index, "POST", "/v1/search", json=body)
    wanted = [[(m.id, m.score, m.distance, m.code) for m in answers] for answers in expected][:5]
    results = response.json()["results"]
    assert [[(a["id"], a["score"], a["distance"], a["code"]) for a in answers] for answers in results] == wanted
    # Without rescore the logits stand for their signs, and nothing has a score.
    plain = searcher.search(logits=logit_QK, k=6)
    assert plain.to_table().equals(index.search(pack(logit_QK > 0), 6).to_table())
    assert "score" not in send(index, "POST", "/v1/search", json={"codes": CODE}).json()["results"][0][0]


def test_filtered_answers_are_those_of_the_index_everywhere(
    index: Index, served: tuple[HttpSearcher, AsgiClient]
) -> None:
    code_QC = np.random.default_rng(3).integers(0, 256, (12, BITS // 8), np.uint8)
    text = 'score >= 20 and not (title in ["title 44", "title 46"]) and when < "2026-01-03"'
    passing = {(1 << 60) + row for row in range(40, ROWS, 2) if row not in (44, 46)}
    found = served[0].search(code_QC, k=7, columns=["title"], filter=text)
    assert list(found) == list(index.search(code_QC, 7, columns=["title"], filter=text))
    assert len(found.id_M) == 12 * 7
    assert set(found.id_M.to_pylist()) <= passing
    everything = send(index, "POST", "/v1/search", json={"codes": [CODE], "radius": 64, "limit": 99, "filter": text})
    assert {match["id"] for match in everything.json()["results"][0]} <= passing


def test_the_client_splits_by_candidates_too(index: Index, served: tuple[HttpSearcher, AsgiClient]) -> None:
    searcher, transport = served
    logit_QK = np.random.default_rng(4).standard_normal((9, BITS)).astype(np.float32)
    found = searcher.search(logits=logit_QK, k=3, rescore=True, candidates=2500)
    assert transport.requests >= 5
    assert found.to_table().equals(index.search(k=3, logits=logit_QK).to_table())


def test_the_client_tries_again_after_connection_errors(
    served: tuple[HttpSearcher, AsgiClient], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.sleep", lambda _: None)
    searcher, transport = served
    transport.failures = 3
    assert len(searcher.search(np.zeros((1, 8), np.uint8), k=3).id_M) == 3
    transport.failures = 100
    with pytest.raises(UnavailableError, match="distindex serve"):
        searcher.info()


def test_the_client_raises_what_the_service_says(served: tuple[HttpSearcher, AsgiClient]) -> None:
    searcher, _ = served
    with pytest.raises(RequestError, match="no column") as raised:
        searcher.search(CODE, columns=["nothing"])
    assert raised.value.field == "columns[0]"
    with pytest.raises(RequestError, match="32 bits"):
        searcher.search(np.zeros((1, 4), np.uint8))
    with pytest.raises(RequestError, match="more than the 100"):
        searcher.search(CODE, k=101)


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        ({}, None),
        ({"codes": np.zeros((2, 8), np.int32)}, "codes"),
        ({"codes": [3]}, "codes[0]"),
        ({"vectors": [[1, 2], [3]]}, "vectors[1]"),
        ({"vectors": np.full((2, 3), np.nan)}, "vectors[0][0]"),
        ({"vectors": np.zeros((1, 1, 1))}, "vectors"),
        ({"vectors": "abc"}, "vectors"),
        ({"texts": [1]}, "texts[0]"),
        ({"texts": "a", "k": 1.5}, "k"),
        ({"texts": "a", "k": True}, "k"),
        ({"texts": "a", "radius": 1, "k": 1}, "k"),
        ({"texts": "a", "limit": 1}, "limit"),
        ({"codes": "00", "rescore": True}, "rescore"),
        ({"texts": "a", "rescore": True, "radius": 1}, "rescore"),
        ({"texts": "a", "candidates": 100}, "candidates"),
        ({"texts": "a", "rescore": True, "k": 5, "candidates": 4}, "candidates"),
        ({"logits": [[1.0], [float("inf")]]}, "logits[1][0]"),
        ({"logits": [1.0], "texts": "a"}, "logits"),
    ],
)
def test_requests_are_checked_before_they_are_sent(arguments: dict[str, Any], field: str | None) -> None:
    with pytest.raises(RequestError) as raised:
        make_request(**arguments)
    assert raised.value.field == field


def test_connect_tells_addresses_from_paths(index: Index, tmp_path: Path) -> None:
    with connect("http://127.0.0.1:9") as searcher:
        assert isinstance(searcher, HttpSearcher)
    with pytest.raises(InputError, match="no index here"):
        connect(str(tmp_path))
    with pytest.raises(InputError, match="leave them out"):
        connect("http://127.0.0.1:9", hasher="x")


def test_a_local_search_without_hasher_says_so(tmp_path: Path) -> None:
    Index.create(str(tmp_path), np.zeros((1, 8), np.uint8), [7])
    with connect(str(tmp_path)) as searcher:
        assert isinstance(searcher, LocalSearcher)
        assert [match.id for match in searcher.search("00" * 8)[0]] == [7]
        with pytest.raises(RequestError, match="names no hasher"):
            searcher.search(vectors=[1.0])


def test_the_client_imports_neither_ray_nor_torch_nor_faiss() -> None:
    program = (
        "import sys, distindex.serving.client as c\n"
        "c.connect('http://127.0.0.1:9').close()\n"
        "print([m for m in ('ray', 'torch', 'faiss', 'sklearn') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_items_find_their_neighbors_and_not_themselves(
    index: Index, served: tuple[HttpSearcher, AsgiClient], tmp_path: Path
) -> None:
    every = index.search(np.zeros((1, 8), np.uint8), ROWS)
    code_of = {match.id: match.code for match in every[0]}
    asked = [(1 << 60) + row for row in (0, 7, 7, 250, ROWS - 1)]

    def expected(item: int, within: int) -> list[tuple[int, int]]:
        own = int(code_of[item], 16)
        others = [
            ((own ^ int(code, 16)).bit_count(), code, id)
            for id, code in code_of.items()
            if id != item  # type: ignore[operator]
        ]
        return [(distance, id) for distance, _, id in sorted(others)][:within]  # type: ignore[misc]

    def pairs(found: Matches) -> list[list[tuple[int, int]]]:
        return [[(match.distance, match.id) for match in answers] for answers in found]  # type: ignore[misc]

    # About 12 rows a code: the item is in front of the cut, on it or behind it.
    for k in (1, 5, 12, 40):
        found = served[0].search(items=asked, k=k, columns=["title"])
        assert pairs(found) == [expected(item, k) for item in asked]
        assert found.payload is not None
        assert found.payload["title"].to_pylist() == [f"title {id - (1 << 60)}" for id in found.id_M.to_pylist()]
    everything = [expected(item, ROWS) for item in asked]
    within = [[pair for pair in answers if pair[0] <= 20] for answers in everything]
    assert pairs(served[0].search(items=asked, radius=20)) == within
    assert pairs(served[0].search(items=asked, radius=20, limit=9)) == [answers[:9] for answers in within]
    few = served[0].search(items=asked, k=5, filter="score < 3")
    assert pairs(few) == [
        [pair for pair in answers if pair[1] - (1 << 60) in (0, 2, 4)][:5] for answers in everything
    ]
    # JavaScript has no integers of 64 bits.
    body = {"items": str(asked[1]), "k": 5}
    got = send(index, "POST", "/v1/search", json=body).json()["results"]
    assert [[(a["distance"], a["id"]) for a in answers] for answers in got] == [expected(asked[1], 5)]
    data = stream(pa.table({"items": pa.array(asked)}), k=5)
    arrow = send(index, "POST", "/v1/search", content=data, headers=ARROW).json()["results"]
    assert [[(a["distance"], a["id"]) for a in answers] for answers in arrow] == [expected(i, 5) for i in asked]
    with pytest.raises(UnknownItemError, match="no row has the id 5") as caught:
        served[0].search(items=[asked[0], 5])
    assert caught.value.field == "items[1]"
    names = str(tmp_path / "names")
    Index.create(names, np.eye(3, 8, dtype=np.uint8), ["a", "b", "c"]).close()
    with LocalSearcher(names) as local:
        assert local.search(items="b").id_M.to_pylist() == ["c", "a"]
        assert local.search(items=[]).id_M.to_pylist() == []
        with pytest.raises(NotFoundError, match="no row has the id 'd'"):
            local.search(items=["a", "d"])
        with pytest.raises(RequestError, match="are texts"):
            local.search(items=5)


def test_an_item_is_shown_with_its_code_and_payload(
    index: Index, served: tuple[HttpSearcher, AsgiClient], tmp_path: Path
) -> None:
    key = (1 << 60) + 7
    (expected,) = index.lookup([key], index.columns)[0]
    shown = send(index, "GET", f"/v1/items/{key}").json()
    assert (shown["id"], shown["code"], shown["version"]) == (key, expected.code, 1)
    assert shown["payload"] == {"title": "title 7", "score": None, "when": "2026-01-02T03:04:05", "raw": "/wA="}
    assert str(served[0].item(key)) == str(expected)
    names = str(tmp_path / "names")
    Index.create(names, np.zeros((2, 8), np.uint8), ["a/b", "c d"]).close()
    with LocalSearcher(names) as local:
        assert local.item("a/b").id == "a/b"
        with pytest.raises(NotFoundError, match="no row has the id 'd'"):
            local.item("d")
        with pytest.raises(NotFoundError):
            local.item(5)
    for unknown in ("5", "1.5", "one", "9" * 30, "-", "%00"):
        response = send(index, "GET", f"/v1/items/{unknown}")
        assert (response.status_code, response.json()["error"]["code"]) == (404, "not_found"), unknown
    with pytest.raises(NotFoundError, match="no row has the id"):
        served[0].item(5)
    assert send(index, "GET", f"/v1/items/{key}", lost=True).status_code == 503
