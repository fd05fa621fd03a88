"""The HTTP API over an index in this process: no Ray, the same code as in the service."""

from __future__ import annotations

import asyncio
import base64
import json
from typing import Any

import httpx
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from distindex.codes import pack, to_hex, unpack
from distindex.errors import BusyError
from distindex.index.index import Index
from distindex.index.matches import Matches
from distindex.serving import answer
from distindex.serving.activity import Done
from distindex.serving.api import make_api
from distindex.serving.application import Router
from distindex.serving.http_transport import content_of
from distindex.serving.inspection import describe
from distindex.serving.parts import There
from distindex.serving.responder import Responder
from tests.serving_backend import ARROW, BITS, CODE, LIMITS, ROWS, IndexBackend, send, small_index, stream


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Index:
    return small_index(tmp_path_factory.mktemp("index"))


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
        router = Router([There(Handle())], None, describe("test", index.manifest), LIMITS, 20)  # type: ignore[arg-type]
        transport = httpx.ASGITransport(make_api(Responder(router)))
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
        content_of("http://test", refused)


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


ZEROS = pa.table({"codes": pa.array([bytes(8)] * 2, pa.binary(8))})


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


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(at=st.integers(0, 10_000), value=st.integers(0, 255), cut=st.integers(0, 10_000) | st.none())
def test_damaged_arrow_requests_are_refused_or_answered(index: Index, at: int, value: int, cut: int | None) -> None:
    whole = bytearray(stream(pa.table({"codes": [CODE, CODE]}), k=3))
    whole[at % len(whole)] = value
    data = bytes(whole if cut is None else whole[: cut % len(whole)])
    assert send(index, "POST", "/v1/search", content=data, headers=ARROW).status_code in (200, 400, 413)


def test_the_api_describes_itself(index: Index) -> None:
    paths = send(index, "GET", "/openapi.json").json()["paths"]
    known = {"/v1/search", "/v1/codes", "/v1/items/{id}", "/v1/index", "/v1/statistics", "/live", "/ready"}
    assert set(paths) == known
    fields = paths["/v1/search"]["post"]["requestBody"]["content"]["application/json"]["schema"]["properties"]
    queries, answers = {"codes", "vectors", "texts", "images", "logits", "items"}, {"k", "radius", "limit", "columns"}
    assert set(fields) == queries | answers | {"allow_partial", "rescore", "candidates", "filter", "timeout_ms"}


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
        transport = httpx.ASGITransport(make_api(Responder(IndexBackend(index, LIMITS), [done.append])))
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
