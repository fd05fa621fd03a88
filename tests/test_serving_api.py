"""The HTTP API and the client over an index in this process: no Ray, the same code as in the service."""

from __future__ import annotations

import asyncio
import base64
import datetime
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from distindex.codes import pack, to_hex, unpack
from distindex.errors import BusyError, InputError, NotFoundError, UnavailableError
from distindex.index.index import Index
from distindex.index.matches import Matches
from distindex.serving import answer
from distindex.serving.activity import Done
from distindex.serving.api import make_api
from distindex.serving.application import Router
from distindex.serving.body import Limits
from distindex.serving.client import HttpSearcher, LocalSearcher, _failure, connect
from distindex.serving.inspection import describe
from distindex.serving.items import UnknownItemError
from distindex.serving.request import RequestError, make_request
from tests.serving_backend import IndexBackend

BITS = 64
ROWS = 500
LIMITS = Limits(max_queries=8, max_k=100, max_requests=4, max_answers=300, max_candidates=5000, max_body_bytes=20_000)


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Index:
    generator = np.random.default_rng(0)
    codes = generator.integers(0, 256, (40, BITS // 8), np.uint8)[generator.integers(0, 40, ROWS)]
    day = datetime.datetime(2026, 1, 2, 3, 4, 5)
    payload = pa.table(
        {
            "title": [f"title {row}" for row in range(ROWS)],
            "score": [float("nan") if row % 2 else row / 2 for row in range(ROWS)],
            "when": pa.array([day] * ROWS, pa.timestamp("us")),
            "raw": pa.array([b"\xff\x00"] * ROWS, pa.binary()),
        }
    )
    ids = pa.array((1 << 60) + np.arange(ROWS))
    return Index.create(str(tmp_path_factory.mktemp("index")), codes, ids, payload, shards=2)


def send(index: Index, method: str, path: str, lost: bool = False, **content: Any) -> httpx.Response:
    async def ask() -> httpx.Response:
        transport = httpx.ASGITransport(make_api(IndexBackend(index, LIMITS, lost=lost)))
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            return await client.request(method, path, **content)

    return asyncio.run(ask())


CODE = "00" * 8

BAD: list[tuple[Any, int, str | None]] = [
    ({}, 400, None),
    ({"codes": [CODE], "texts": ["a"]}, 400, "texts"),
    ({"codes": [CODE], "k": 0}, 400, "k"),
    ({"codes": [CODE], "k": "5"}, 400, "k"),
    ({"codes": [CODE], "k": 2.5}, 400, "k"),
    ({"codes": [CODE], "k": True}, 400, "k"),
    ({"codes": [CODE], "k": 101}, 400, "k"),
    ({"codes": [CODE], "k": 3, "radius": 3}, 400, "k"),
    ({"codes": [CODE], "radius": -1}, 400, "radius"),
    ({"codes": [CODE], "limit": 3}, 400, "limit"),
    ({"codes": [CODE], "radius": 3, "limit": 0}, 400, "limit"),
    ({"codes": [CODE], "radius": 3, "limit": 101}, 400, "limit"),
    ({"codes": [CODE], "columns": ["nothing"]}, 400, "columns[0]"),
    ({"codes": [CODE], "columns": "title"}, 400, "columns"),
    ({"codes": [CODE], "colour": "red"}, 400, "colour"),
    ({"codes": [CODE], "filter": "title == "}, 400, "filter"),
    ({"codes": [CODE], "filter": "nothing == 3"}, 400, "filter"),
    ({"codes": [CODE], "filter": 3}, 400, "filter"),
    ({"codes": [CODE, "zz" * 8]}, 400, "codes[1]"),
    ({"codes": [CODE, "00" * 7]}, 400, "codes[1]"),
    ({"codes": [CODE, 7]}, 400, "codes[1]"),
    ({"codes": {"a": 1}}, 400, "codes"),
    ({"codes": [CODE], "allow_partial": "yes"}, 400, "allow_partial"),
    ({"vectors": [[1.0, 2.0], [1.0]]}, 400, "vectors[1]"),
    ({"vectors": [[1.0, "x"]]}, 400, "vectors[0][1]"),
    ({"vectors": [[1.0, None]]}, 400, "vectors[0][1]"),
    ({"vectors": [[]]}, 400, "vectors[0]"),
    ({"vectors": "1,2"}, 400, "vectors"),
    ({"texts": ["a", None]}, 400, "texts[1]"),
    ({"texts": 5}, 400, "texts"),
    ([], 400, None),
    ({"codes": [CODE] * 9}, 413, "codes"),
    ({"codes": [CODE] * 8, "k": 50}, 413, "k"),
    ({"texts": "x" * 30_000}, 413, None),
    ({"codes": [CODE] * 8, "radius": 64}, 413, "radius"),
    ({"logits": [0.5] * 63}, 400, "logits"),
    ({"logits": [[0.5] * 64, [0.5] * 63]}, 400, "logits[1]"),
    ({"logits": [[0.5] * 64, [1e300] + [0.5] * 63]}, 400, "logits[1]"),
    ({"logits": [[0.5] * 64, [None] * 64]}, 400, "logits[1][0]"),
    ({"logits": [0.5] * 64, "codes": CODE}, 400, "logits"),
    ({"logits": [0.5] * 64, "rescore": True, "radius": 3}, 400, "rescore"),
    ({"logits": [0.5] * 64, "rescore": "yes"}, 400, "rescore"),
    ({"logits": [0.5] * 64, "rescore": True, "limit": 3}, 400, "limit"),
    ({"logits": [0.5] * 64, "rescore": True, "k": 5, "candidates": 4}, 400, "candidates"),
    ({"logits": [0.5] * 64, "rescore": True, "candidates": 0}, 400, "candidates"),
    ({"logits": [0.5] * 64, "rescore": True, "candidates": 5001}, 413, "candidates"),
    ({"logits": [[0.5] * 64] * 6, "rescore": True}, 413, "candidates"),
    ({"logits": [0.5] * 64, "candidates": 100}, 400, "candidates"),
    ({"codes": [CODE], "rescore": True}, 400, "rescore"),
    ({"items": [1 << 60], "rescore": True}, 400, "rescore"),
    ({"items": [1 << 60, 5]}, 404, "items[1]"),
    ({"items": ["1152921504606846976", "five"]}, 400, "items[1]"),
    ({"items": [1 << 60, "1152921504606846976"]}, 400, "items[1]"),
    ({"items": [1 << 63]}, 400, "items[0]"),
    ({"items": [True]}, 400, "items[0]"),
    ({"items": [1.5]}, 400, "items[0]"),
    ({"items": 1 << 60, "codes": CODE}, 400, "items"),
    ({"items": [1 << 60] * 9}, 413, "items"),
    ({"items": 1 << 60, "radius": 64}, 413, "radius"),
]


@pytest.mark.parametrize(("body", "status", "field"), BAD, ids=[json.dumps(body)[:60] for body, _, _ in BAD])
def test_a_bad_request_names_its_field(index: Index, body: Any, status: int, field: str | None) -> None:
    response = send(index, "POST", "/v1/search", json=body)
    assert response.status_code == status
    error = response.json()["error"]
    assert error["field"] == field
    assert error["message"]
    assert "\n" not in error["message"]


@pytest.mark.parametrize("text", ["", "{", '{"vectors": [[NaN]]}', '{"vectors": [[1e999]]}', "\xff"])
def test_a_body_that_is_not_json_of_finite_numbers_is_refused(index: Index, text: str) -> None:
    response = send(index, "POST", "/v1/search", content=text.encode("latin-1"))
    assert response.status_code == 400
    assert response.json()["error"]["code"] == "invalid_request"


def test_a_chunked_body_is_measured_too(index: Index) -> None:
    async def chunks() -> Any:
        for _ in range(100):
            yield b" " * 1000

    assert send(index, "POST", "/v1/search", content=chunks()).status_code == 413


def test_unknown_paths_and_methods_answer_in_the_same_form(index: Index) -> None:
    missing, method = send(index, "GET", "/v2/search"), send(index, "GET", "/v1/search")
    assert (missing.status_code, missing.json()["error"]["code"]) == (404, "not_found")
    assert (method.status_code, method.json()["error"]["code"]) == (405, "method_not_allowed")


def test_lost_shards_are_503_and_not_ready_but_live(index: Index) -> None:
    lost = send(index, "POST", "/v1/search", lost=True, json={"codes": CODE})
    assert (lost.status_code, lost.json()["error"]["code"]) == (503, "unavailable")
    assert "retry-after" in lost.headers
    ready = send(index, "GET", "/ready", lost=True)
    assert (ready.status_code, ready.json()["error"]["message"]) == (503, "shard 0: no answer")
    assert send(index, "GET", "/live", lost=True).status_code == 200
    assert send(index, "GET", "/ready").json() == {"status": "ready", "version": 1}


def test_more_requests_than_are_taken_at_once_are_turned_away(index: Index) -> None:
    """The router of the service before a shard that answers when it is told to."""
    told = asyncio.Event()

    class Handle:
        class search:  # noqa: N801 (a method of a deployment handle)
            @staticmethod
            def remote(code_QC: Any, k: Any, radius: Any, limit: Any, columns: Any, filter: Any) -> Any:
                async def answered() -> Matches:
                    await told.wait()
                    return index.search(code_QC, k)

                return answered()

    async def ask() -> list[httpx.Response]:
        router = Router([Handle()], None, describe("test", index.manifest), LIMITS, 20, {})  # type: ignore[list-item]
        transport = httpx.ASGITransport(make_api(router))
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            waiting = [asyncio.create_task(client.post("/v1/search", json={"codes": CODE})) for _ in range(4)]
            await asyncio.sleep(0.1)
            refused = await client.post("/v1/search", json={"codes": CODE})
            told.set()
            return [refused, *await asyncio.gather(*waiting), await client.post("/v1/search", json={"codes": CODE})]

    refused, *answered = asyncio.run(ask())
    assert refused.status_code == 429
    assert refused.headers["retry-after"] == "1"
    assert refused.json()["error"]["code"] == "busy"
    assert [response.status_code for response in answered] == [200] * 5
    with pytest.raises(BusyError, match="4 requests are at work"):
        raise _failure("http://test", refused)  # type: ignore[misc]


def test_an_unexpected_failure_shows_no_trace(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> Matches:
        raise KeyError("secret detail")

    monkeypatch.setattr(index, "search", fail)
    response = send(index, "POST", "/v1/search", json={"codes": CODE})
    assert (response.status_code, response.json()["error"]["code"]) == (500, "internal")
    assert "secret" not in response.text


@pytest.mark.parametrize("columns", [(), ("title", "score", "when", "raw")])
def test_json_holds_what_the_index_answers(index: Index, columns: tuple[str, ...]) -> None:
    queries = np.random.default_rng(1).integers(0, 256, (3, BITS // 8), np.uint8)
    expected = index.search(queries, 7, columns=columns)
    texts = [base64.b64encode(code).decode() if row else to_hex(code)[0] for row, code in enumerate(queries)]
    body = send(index, "POST", "/v1/search", json={"codes": texts, "k": 7, "columns": columns}).json()
    assert (body["version"], body["bits"], body["missing_shards"]) == (1, BITS, [])
    for got, wanted in zip(body["results"], expected, strict=True):
        assert [(a["id"], a["distance"], a["code"]) for a in got] == [(m.id, m.distance, m.code) for m in wanted]
        assert min(a["id"] for a in got) >= 1 << 60
        for found, match in zip(got, wanted, strict=True):
            assert set(found["payload"]) == set(columns)
            if columns:
                row = match.id - (1 << 60)  # type: ignore[operator]
                assert found["payload"] == {
                    "title": f"title {row}",
                    "score": None if row % 2 else row / 2,
                    "when": "2026-01-02T03:04:05",
                    "raw": base64.b64encode(b"\xff\x00").decode(),
                }


def test_single_and_no_queries(index: Index) -> None:
    one = send(index, "POST", "/v1/search", json={"codes": CODE}).json()["results"]
    assert [len(answers) for answers in one] == [10]
    assert send(index, "POST", "/v1/search", json={"codes": []}).json()["results"] == []


def test_radius_without_limit_answers_all_or_refuses(index: Index) -> None:
    query = index.search(np.zeros((1, 8), np.uint8), 1).code_MC
    expected = index.search(query, radius=0)
    body = {"codes": to_hex(query), "radius": 0}
    got = send(index, "POST", "/v1/search", json=body).json()["results"][0]
    assert [answer["id"] for answer in got] == expected.id_M.to_pylist()
    cut = send(index, "POST", "/v1/search", json={**body, "radius": 64, "limit": 20}).json()["results"][0]
    assert [answer["id"] for answer in cut] == index.search(query, 20).id_M.to_pylist()


def test_arrow_answers_round_trip(index: Index) -> None:
    matches = index.search(np.zeros((2, 8), np.uint8), 5, columns=["title", "when"])
    again = answer.from_arrow(answer.to_arrow(matches))
    assert again.to_table().equals(matches.to_table(), check_metadata=True)


def stream(table: pa.Table, **settings: Any) -> bytes:
    table = table.replace_schema_metadata({"search": json.dumps(settings)} if settings else None)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()


ZEROS = pa.table({"codes": pa.array([bytes(8)] * 2, pa.binary(8))})
ARROW = {"content-type": answer.ARROW_STREAM}


@pytest.mark.parametrize(
    "column",
    [
        pa.array([bytes(8)] * 2, pa.binary(8)),
        pa.array([CODE] * 2),
        pa.array([CODE] * 2, pa.large_string()),
        pa.array([[-1.0] * 64] * 2),
        pa.array([[-1.0] * 64] * 2, pa.list_(pa.float32(), 64)),
        pa.array([[-1] * 64] * 2, pa.large_list(pa.int8())),
    ],
    ids=lambda column: str(column.type),
)
def test_arrow_requests_are_answered_as_json_ones(index: Index, column: pa.Array) -> None:
    settings = {"k": 7, "columns": ["title"], "filter": "score < 100"}
    body = {"codes": [CODE] * 2, **settings}
    expected = send(index, "POST", "/v1/search", json=body).json()
    name = "codes" if "list" not in str(column.type) else "logits"
    data = stream(pa.table({name: column}), **settings)
    assert send(index, "POST", "/v1/search", content=data, headers=ARROW).json() == expected
    empty = stream(pa.table({name: column[:0]}))
    assert send(index, "POST", "/v1/search", content=empty, headers=ARROW).json()["results"] == []


@pytest.mark.parametrize(
    ("data", "status", "field"),
    [
        (b"", 400, None),
        (b'{"codes": "00"}', 400, None),
        (stream(ZEROS.rename_columns(["code"])), 400, None),
        (stream(ZEROS.append_column("texts", pa.array(["a", "b"]))), 400, None),
        (stream(pa.table({"codes": pa.array([bytes(8), None], pa.binary(8))})), 400, "codes[1]"),
        (stream(pa.table({"codes": pa.array([bytes(7)], pa.binary(7))})), 400, "codes"),
        (stream(pa.table({"codes": [1, 2]})), 400, "codes"),
        (stream(pa.table({"texts": [b"a"]})), 400, "texts"),
        (stream(pa.table({"images": ["a"]})), 400, "images"),
        (stream(pa.table({"vectors": [["a"]]})), 400, "vectors"),
        (stream(pa.table({"vectors": [[1.0, 2.0], [1.0]]})), 400, "vectors[1]"),
        (stream(pa.table({"vectors": [[1.0, 2.0], [1.0, None]]})), 400, "vectors[1][1]"),
        (stream(ZEROS, k=0), 400, "k"),
        (stream(ZEROS, k="3"), 400, "k"),
        (stream(ZEROS, colour="red"), 400, "colour"),
        (stream(ZEROS, codes=[CODE]), 400, "codes"),
        (stream(pa.table({"codes": pa.array([bytes(8)] * 9, pa.binary(8))})), 413, "codes"),
    ],
)
def test_a_bad_arrow_request_names_its_field(index: Index, data: bytes, status: int, field: str | None) -> None:
    response = send(index, "POST", "/v1/search", content=data, headers=ARROW)
    assert (response.status_code, response.json()["error"]["field"]) == (status, field), response.text


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


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(at=st.integers(0, 10_000), value=st.integers(0, 255), cut=st.integers(0, 10_000) | st.none())
def test_damaged_arrow_requests_are_refused_or_answered(index: Index, at: int, value: int, cut: int | None) -> None:
    whole = bytearray(stream(pa.table({"codes": [CODE, CODE]}), k=3))
    whole[at % len(whole)] = value
    data = bytes(whole if cut is None else whole[: cut % len(whole)])
    assert send(index, "POST", "/v1/search", content=data, headers=ARROW).status_code in (200, 400, 413)


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


def test_the_api_describes_itself(index: Index) -> None:
    paths = send(index, "GET", "/openapi.json").json()["paths"]
    known = {"/v1/search", "/v1/codes", "/v1/items/{id}", "/v1/index", "/v1/statistics", "/live", "/ready"}
    assert set(paths) == known
    fields = paths["/v1/search"]["post"]["requestBody"]["content"]["application/json"]["schema"]["properties"]
    queries, answers = {"codes", "vectors", "texts", "images", "logits", "items"}, {"k", "radius", "limit", "columns"}
    assert set(fields) == queries | answers | {"allow_partial", "rescore", "candidates", "filter"}


def test_queries_are_shown_as_codes(index: Index) -> None:
    logits = np.random.default_rng(6).standard_normal((3, BITS)).astype(np.float32)
    answered = send(index, "POST", "/v1/codes", json={"logits": logits.tolist()}).json()
    assert answered == {"version": 1, "bits": BITS, "codes": to_hex(pack(logits > 0)), "logits": logits.tolist()}
    ids = [(1 << 60) + 3, (1 << 60) + 4]
    answered = send(index, "POST", "/v1/codes", json={"items": ids}).json()
    assert answered["codes"] == to_hex(index.lookup(ids).code_MC)
    assert answered["logits"] is None
    for body, status, field in (
        ({"items": [5]}, 404, "items[0]"),
        ({"codes": "zz"}, 400, "codes[0]"),
        ({}, 400, None),
    ):
        refused = send(index, "POST", "/v1/codes", json=body)
        assert (refused.status_code, refused.json()["error"]["field"]) == (status, field)
    assert send(index, "POST", "/v1/codes", lost=True, json={"codes": CODE}).status_code == 503


def test_statistics_count_the_codes_of_all_shards(index: Index) -> None:
    code_NC = index.search(np.zeros((1, 8), np.uint8), ROWS).code_MC
    found = send(index, "GET", "/v1/statistics").json()
    np.testing.assert_allclose(found["bit_balance"], unpack(code_NC).mean(axis=0), atol=1e-4)
    _, rows_U = np.unique(code_NC, axis=0, return_counts=True)
    for size in found["bucket_sizes"]:
        assert size["codes"] == ((rows_U >= size["fewest"]) & (rows_U <= size["most"])).sum()
    assert sum(size["codes"] for size in found["bucket_sizes"]) == len(rows_U)
    assert found["bucket_sizes"][-1]["most"] >= rows_U.max() >= found["bucket_sizes"][-1]["fewest"]
    assert found["searches"]["latest"] == 0
    assert send(index, "GET", "/v1/statistics", lost=True).status_code == 503


def test_requests_have_ids_and_searches_are_counted(index: Index) -> None:
    done: list[Done] = []

    async def ask() -> dict[str, Any]:
        transport = httpx.ASGITransport(make_api(IndexBackend(index, LIMITS), [done.append]))
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            for ask_id in ("from-the-caller", "", "x" * 129, "two words"):
                headers = {"X-Request-ID": ask_id} if ask_id else {}
                answered = await client.post("/v1/search", json={"codes": [CODE] * 3}, headers=headers)
                assert (answered.headers["x-request-id"] == ask_id) == (ask_id == "from-the-caller")
            assert "x-request-id" in (await client.post("/v1/search", content=b"{")).headers
            await client.get("/v1/items/7")
            return (await client.get("/v1/statistics")).json()["searches"]

    searches = asyncio.run(ask())
    assert (searches["requests"], searches["queries"], searches["failed"], searches["latest"]) == (5, 12, 1, 4)
    assert searches["latency_ms"]["p50"] >= searches["stages_ms"]["search"]["p50"] > 0
    assert [(one.route, one.status, one.queries) for one in done[3:]] == [
        ("/v1/search", 200, 3),
        ("/v1/search", 400, 0),
        ("/v1/items/{id:path}", 404, 0),
        ("/v1/statistics", 200, 0),
    ]
    assert len({one.id for one in done}) == 7
    assert set(done[0].stages) == {"read", "search", "answer"}
    assert sum(done[0].stages.values()) <= done[0].seconds


class AsgiClient(httpx.BaseTransport):
    """Lets the synchronous client talk to the API in this process."""

    def __init__(self, index: Index) -> None:
        self.index, self.requests, self.failures = index, 0, 0

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        self.requests += 1
        if self.failures:
            self.failures -= 1
            raise httpx.ConnectError("refused")
        headers = {name: request.headers[name] for name in ("accept", "content-type") if name in request.headers}
        path = request.url.path
        found = send(self.index, request.method, path, content=request.read(), headers=headers)
        return httpx.Response(found.status_code, headers=found.headers, content=found.content)


@pytest.fixture
def served(index: Index) -> tuple[HttpSearcher, AsgiClient]:
    searcher, transport = HttpSearcher("http://test"), AsgiClient(index)
    searcher._client = httpx.Client(transport=transport)
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
