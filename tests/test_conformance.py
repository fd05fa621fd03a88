"""One suite for every way to ask: each answers and refuses what the oracle and the index in this process do.

The ways are the index in this process, JSON as any program sends it, Arrow over HTTP and over gRPC, and the same for
callers that await; over one shard, where texts are encoded and the process that listens searches, and over three.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import httpx
import numpy as np
import pyarrow as pa
import pytest

from distindex.codes import to_hex
from distindex.config import FeaturesConfig
from distindex.corpus.features import fit_features
from distindex.errors import InputError, NotFoundError
from distindex.hashing import Hasher
from distindex.hashing.classic import fit_lsh
from distindex.index.index import Index
from distindex.index.matches import Matches
from distindex.serve_config import ServeConfig
from distindex.serving.client import connect, connect_async
from distindex.serving.http_transport import content_of
from distindex.serving.items import UnknownItemError
from distindex.serving.request import RequestError
from distindex.serving.searcher import AsyncSearcher, Searcher
from distindex.serving.service import Service, serve
from tests.oracle import Answer, asymmetric_search, search
from tests.serving_backend import free_port

ROWS, POINTS, WIDTH, BITS = 3000, 150, 12, 32
MAX_QUERIES, MAX_K = 40, 500
WORDS = [
    "water",
    "fire",
    "earth",
    "air",
    "stone",
    "tree",
    "river",
    "cloud",
    "wind",
    "snow",
    "rain",
    "sun",
    "moon",
    "star",
    "sea",
    "hill",
]


class Case(NamedTuple):
    """An index, what it was made of, and a service of it."""

    index: str
    hasher: Hasher
    inputs: pa.Array
    code_NC: np.ndarray
    ids: list[Any]
    service: Service

    @property
    def field(self) -> str:
        return "texts" if pa.types.is_string(self.inputs.type) else "vectors"


Rows = list[list[tuple[Any, ...]]]


class Way:
    """One way to ask: the same arguments, answers and errors as `Searcher` has."""

    def __init__(self, searcher: Searcher) -> None:
        self._searcher = searcher

    def search(self, **arguments: Any) -> Rows:
        return rows_of(self._searcher.search(**arguments))

    def item(self, id: Any) -> tuple[Any, ...]:
        found = self._searcher.item(id)
        return found.id, found.code, found.payload

    def info(self) -> dict[str, Any]:
        return self._searcher.info()


class AwaitedWay(Way):
    def __init__(self, searcher: AsyncSearcher, run: Callable[..., Any]) -> None:
        self._awaited, self._run = searcher, run

    def search(self, **arguments: Any) -> Rows:
        return rows_of(self._run(self._awaited.search(**arguments)))

    def item(self, id: Any) -> tuple[Any, ...]:
        found = self._run(self._awaited.item(id))
        return found.id, found.code, found.payload

    def info(self) -> dict[str, Any]:
        return self._run(self._awaited.info())


class JsonWay(Way):
    """Without the client: what `curl` would send."""

    def __init__(self, url: str) -> None:
        self._client = httpx.Client(base_url=url, timeout=60)

    def _send(self, method: str, path: str, **content: Any) -> Any:
        response = self._client.request(method, path, **content)
        # Only for the type of an error.
        content_of("", response)
        return response.json()

    def search(self, **arguments: Any) -> Rows:
        body = {name: value.tolist() if isinstance(value, np.ndarray) else value for name, value in arguments.items()}
        if isinstance(arguments.get("codes"), np.ndarray):
            body["codes"] = to_hex(arguments["codes"])
        found = self._send("POST", "/v1/search", json=body)
        assert (found["version"], found["bits"], found["missing_shards"]) == (1, BITS, [])
        return [
            [(a.get("score"), a["distance"], a["code"], a["id"], a["payload"]) for a in answers]
            for answers in found["results"]
        ]

    def item(self, id: Any) -> tuple[Any, ...]:
        found = self._send("GET", f"/v1/items/{id}")
        return found["id"], found["code"], found["payload"]

    def info(self) -> dict[str, Any]:
        return self._send("GET", "/v1/index")


def rows_of(matches: Matches) -> Rows:
    assert (matches.version, matches.missing_shards) == (1, ())
    return [
        [(match.score, match.distance, match.code, match.id, match.payload) for match in answers]
        for answers in matches
    ]


@pytest.fixture(scope="module", params=[1, 3], ids=["one-shard", "three-shards"])
def case(
    request: pytest.FixtureRequest, ray_cluster: None, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Case]:
    """3000 rows on 150 points: about 20 rows a code, so that nearly every cut goes through a tie."""
    directory, generator = tmp_path_factory.mktemp("conformance"), np.random.default_rng(request.param)
    point_N = generator.integers(0, POINTS, ROWS)
    if request.param == 1:
        texts = [" ".join(generator.choice(WORDS, 6)) for _ in range(POINTS)]
        inputs, kind, ids = pa.array([texts[point] for point in point_N]), "text", list(map(int, range(ROWS)))
        ids = [(1 << 60) + int(id) for id in generator.permutation(ids)]
    else:
        x_NV = generator.standard_normal((POINTS, WIDTH))[point_N]
        inputs, kind = pa.FixedSizeListArray.from_arrays(pa.array(x_NV.reshape(-1)), WIDTH), "dense"
        ids = [f"item-{number}" for number in generator.permutation(ROWS)]
    features = fit_features(FeaturesConfig(), kind, [inputs])
    hasher = fit_lsh(features, features.transform(inputs), "feature", BITS)  # type: ignore[arg-type]
    hasher.save(str(directory / "hasher"))
    code_NC = hasher.encode(inputs)
    payload = pa.table({"row": np.arange(ROWS), "name": [f"name of {item}" for item in ids]})
    named = {"uri": str(directory / "hasher"), "fingerprint": hasher.fingerprint}
    index = str(directory / "index")
    Index.create(index, code_NC, ids, payload, shards=request.param, hasher=named).close()
    config = ServeConfig(
        index, port=free_port(), grpc_port=free_port(), timeout_s=20, max_queries=MAX_QUERIES, max_k=MAX_K
    )
    with serve(config, blocking=False) as service:
        yield Case(index, hasher, inputs, code_NC, ids, service)


@pytest.fixture(scope="module")
def ways(case: Case) -> Iterator[dict[str, Way]]:
    assert case.service.grpc_url is not None
    targets = {"local": case.index, "http": case.service.url, "grpc": case.service.grpc_url}
    opened = {name: connect(target) for name, target in targets.items()}
    with asyncio.Runner() as runner:
        awaited = {name: connect_async(target) for name, target in targets.items()}
        yield {
            **{name: Way(searcher) for name, searcher in opened.items()},
            **{f"awaited {name}": AwaitedWay(searcher, runner.run) for name, searcher in awaited.items()},
            "json": JsonWay(case.service.url),
        }
        for searcher in opened.values():
            searcher.close()
        for searcher in awaited.values():
            runner.run(searcher.close())


@pytest.fixture(params=["local", "awaited local", "json", "http", "awaited http", "grpc", "awaited grpc"])
def way(request: pytest.FixtureRequest, ways: dict[str, Way]) -> Way:
    return ways[request.param]


def some_queries(case: Case, count: int) -> np.ndarray:
    """Codes of the index, and others."""
    generator = np.random.default_rng(7)
    near_QC = case.code_NC[generator.integers(0, ROWS, count // 2)]
    return np.concatenate([near_QC, generator.integers(0, 256, (count - len(near_QC), BITS // 8), np.uint8)])


@functools.cache
def _sorted_answers(key: tuple[bytes, bytes, int], ids: tuple[Any, ...]) -> list[list[Answer]]:
    queries, codes, width = key
    query_QC = np.frombuffer(queries, np.uint8).reshape(-1, width)
    return search(query_QC, np.frombuffer(codes, np.uint8).reshape(-1, width), ids)  # type: ignore[arg-type]


def oracle(case: Case, query_QC: np.ndarray, k: int | None, radius: int | None = None, rows: Any = None) -> Rows:
    """The answers without a score, each with its row as the payload `row`."""
    chosen = range(ROWS) if rows is None else rows
    code_NC, ids = case.code_NC[chosen], tuple(case.ids[row] for row in chosen)
    every = _sorted_answers((query_QC.tobytes(), code_NC.tobytes(), BITS // 8), ids)
    row_of = {id: row for row, id in enumerate(case.ids)}
    return [
        [
            (None, distance, code, id, {"row": row_of[id]})
            for distance, code, id in answers
            if radius is None or distance <= radius
        ][:k]
        for answers in every
    ]


@pytest.mark.parametrize(
    ("k", "radius", "limit"),
    [(1, None, None), (25, None, None), (300, None, None), (None, 0, None), (None, 4, None), (None, 9, 30)],
)
def test_answers_are_those_of_the_oracle(
    case: Case, way: Way, k: int | None, radius: int | None, limit: int | None
) -> None:
    queries = some_queries(case, 8)
    asked: dict[str, Any] = {"k": k, "radius": radius, "limit": limit, "columns": ["row"]}
    expected = oracle(case, queries, k or limit, radius)
    assert way.search(codes=queries, **asked) == expected
    assert way.search(codes=to_hex(queries), allow_partial=True, timeout_ms=20_000, **asked) == expected


def test_a_filter_comes_before_the_nearest(case: Case, way: Way) -> None:
    queries, name = some_queries(case, 4), f"name of {case.ids[17]}"
    few = [row for row in range(ROWS) if row < 40]
    assert way.search(codes=queries, k=50, columns=["row"], filter="row < 40") == oracle(case, queries, 50, rows=few)
    most = [row for row in range(5, ROWS) if row != 17]
    text = f'row >= 5 and not (name == "{name}")'
    assert way.search(codes=queries, radius=6, columns=["row"], filter=text) == oracle(case, queries, None, 6, most)


def test_nothing_is_answered_with_nothing(case: Case, way: Way) -> None:
    assert way.search(codes=[], k=3) == []
    far = ~case.code_NC[:1]
    nearest = oracle(case, far, 1)[0][0][1]
    assert way.search(codes=far, radius=nearest - 1) == [[]]
    assert way.search(codes=case.code_NC[:2], k=3, filter="row < 0") == [[], []]


def test_inputs_are_encoded_as_the_corpus_was(case: Case, way: Way) -> None:
    found = way.search(**{case.field: case.inputs[:10].to_pylist()}, k=25, columns=["row"])
    assert found == oracle(case, case.code_NC[:10], 25)
    assert way.search(**{case.field: case.inputs[0].as_py()}, k=25, columns=["row"]) == found[:1]


def test_rescored_answers_are_those_of_the_definition(case: Case, way: Way) -> None:
    logit_QK = case.hasher.logits_of(case.inputs[:4])
    for k, candidates in ((10, 25), (40, 100)):
        found = way.search(logits=logit_QK, k=k, rescore=True, candidates=candidates)
        expected = asymmetric_search(logit_QK, case.code_NC, case.ids, k=k, candidates=candidates)
        assert [[row[:4] for row in answers] for answers in found] == expected
    by_input = way.search(**{case.field: case.inputs[:4].to_pylist()}, k=10, rescore=True, candidates=25)
    by_logits = way.search(logits=logit_QK, k=10, rescore=True, candidates=25)
    # Another number of threads may round the logits otherwise.
    for got, wanted in zip(by_input, by_logits, strict=True):
        np.testing.assert_allclose([row[0] for row in got], [row[0] for row in wanted], rtol=1e-4, atol=1e-5)


def test_items_find_their_neighbors_and_not_themselves(case: Case, way: Way) -> None:
    rows = [0, 17, ROWS - 1]
    asked = [case.ids[row] for row in rows]
    for k, radius in ((30, None), (None, 3)):
        every = oracle(case, case.code_NC[rows], None, radius)
        expected = [[row for row in found if row[3] != item][:k] for found, item in zip(every, asked, strict=True)]
        assert way.search(items=asked, k=k, radius=radius, columns=["row"]) == expected


def test_a_row_and_the_index_are_shown(case: Case, way: Way) -> None:
    for row in (0, 17, ROWS - 1):
        id = case.ids[row]
        assert way.item(id) == (id, case.code_NC[row].tobytes().hex(), {"row": row, "name": f"name of {id}"})
    with pytest.raises(NotFoundError, match="no row has the id"):
        way.item(5 if isinstance(case.ids[0], int) else "nobody")
    info = way.info()
    assert (info["version"], info["rows"], info["bits"]) == (1, ROWS, BITS)
    assert info["distinct"] == len(np.unique(case.code_NC, axis=0))
    assert info["hasher"]["fingerprint"] == case.hasher.fingerprint
    assert info["payload"] == [{"name": "row", "type": "int64"}, {"name": "name", "type": "string"}]
    assert info["id_type"] == ("int64" if isinstance(case.ids[0], int) else "string")


CODE = "00" * (BITS // 8)
WRONG: list[tuple[dict[str, Any], str | None]] = [
    ({}, None),
    ({"codes": [CODE], "texts": ["a"]}, "texts"),
    ({"codes": [CODE, "00"]}, "codes[1]"),
    ({"codes": [CODE, "zz" * 4]}, "codes[1]"),
    ({"codes": [CODE], "k": 0}, "k"),
    ({"codes": [CODE], "k": 3, "radius": 3}, "k"),
    ({"codes": [CODE], "radius": -1}, "radius"),
    ({"codes": [CODE], "limit": 3}, "limit"),
    ({"codes": [CODE], "timeout_ms": 0}, "timeout_ms"),
    ({"codes": [CODE], "columns": ["row", "colour"]}, "columns[1]"),
    ({"codes": [CODE], "filter": "row =="}, "filter"),
    ({"codes": [CODE], "filter": "colour == 3"}, "filter"),
    ({"codes": [CODE], "filter": 'row == "x"'}, "filter"),
    ({"codes": [CODE], "rescore": True}, "rescore"),
    ({"logits": [[0.5] * (BITS - 1)]}, "logits"),
    ({"logits": [[0.5] * BITS], "rescore": True, "radius": 3}, "rescore"),
    ({"logits": [[0.5] * BITS], "rescore": True, "k": 5, "candidates": 4}, "candidates"),
    ({"vectors": [[1.0] * (WIDTH - 1)]}, "vectors[0]"),
    ({"vectors": [[1.0, 2.0], [1.0]]}, "vectors[1]"),
    ({"images": []}, "images"),
    ({"items": [1 << 63]}, "items[0]"),
    ({"items": ["1", 1]}, "items[1]"),
]


@pytest.mark.parametrize(("arguments", "field"), WRONG, ids=[str(arguments)[:50] for arguments, _ in WRONG])
def test_what_is_wrong_is_said_everywhere_in_the_same_words(
    case: Case, ways: dict[str, Way], arguments: dict[str, Any], field: str | None
) -> None:
    if "vectors" in arguments and field == "vectors[0]" and case.field == "texts":
        field = "vectors"
    messages = {}
    for name, way in ways.items():
        with pytest.raises(RequestError) as caught:
            way.search(**arguments)
        assert (caught.value.field, caught.value.too_large) == (field, False), name
        messages[name] = str(caught.value)
    assert set(messages.values()) == {messages["local"]}, messages


def test_an_unknown_item_is_named_everywhere(case: Case, ways: dict[str, Way]) -> None:
    unknown = 5 if isinstance(case.ids[0], int) else "nobody"
    for way in ways.values():
        with pytest.raises(UnknownItemError, match=f"no row has the id {unknown!r}") as caught:
            way.search(items=[case.ids[0], unknown])
        assert caught.value.field == "items[1]"


def test_what_a_service_limits_is_refused_or_split(case: Case, ways: dict[str, Way]) -> None:
    many = some_queries(case, 3 * MAX_QUERIES + 1)
    expected = oracle(case, many, 3)
    for name in ways.keys() - {"json"}:
        assert ways[name].search(codes=many, k=3, columns=["row"]) == expected
    with pytest.raises(RequestError, match="at most 40 in one request") as caught:
        ways["json"].search(codes=many, k=3)
    assert caught.value.too_large
    for name in ways.keys() - {"local", "awaited local"}:
        with pytest.raises(RequestError, match="more than the 500 answers") as caught:
            ways[name].search(codes=many[:1], k=MAX_K + 1)
        assert (caught.value.field, caught.value.too_large) == ("k", False)
        with pytest.raises(RequestError, match="more than 500 rows lie within 32 bits") as caught:
            ways[name].search(codes=many[:1], radius=BITS)
        assert (caught.value.field, caught.value.too_large) == ("radius", True)


def test_many_who_await_get_their_own_answers(case: Case) -> None:
    queries = some_queries(case, MAX_QUERIES)
    expected = oracle(case, queries, 5)

    async def ask(target: str) -> list[Matches]:
        async with connect_async(target) as searcher:
            return await asyncio.gather(*(searcher.search(query, k=5, columns=["row"]) for query in queries))

    for target in (case.service.url, case.service.grpc_url, case.index):
        assert target is not None
        assert [rows_of(found)[0] for found in asyncio.run(ask(target))] == expected


def test_a_service_is_asked_with_its_own_hasher_and_version(case: Case) -> None:
    for open_index in (connect, connect_async):
        for target in (case.service.url, "grpc://127.0.0.1:9"):
            with pytest.raises(InputError, match="leave them out"):
                open_index(target, version=1)
