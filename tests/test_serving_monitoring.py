"""What the service tells of itself: the recall estimate against numpy, and the access log."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx
import numpy as np
import pytest

from distindex.cli import main
from distindex.codes import CodeArray, to_hex
from distindex.index.index import Index
from distindex.index.matches import Matches
from distindex.serve_config import TopConfig
from distindex.serving import access_log
from distindex.serving.activity import STAGES
from distindex.serving.api import make_api
from distindex.serving.body import Limits
from distindex.serving.inspection import describe
from distindex.serving.monitoring import Monitor, recall_by_distance
from distindex.serving.responder import Responder
from distindex.serving.top import top
from tests.oracle import search
from tests.serving_backend import IndexBackend, served

ROWS, BITS, K = 4000, 64, 12
LIMITS = Limits(max_queries=8, max_k=100, max_requests=4)


@pytest.fixture(scope="module")
def code_NC() -> CodeArray:
    generator = np.random.default_rng(2)
    return generator.integers(0, 256, (ROWS, BITS // 8), np.uint8)[generator.integers(0, ROWS, 2 * ROWS)]


@pytest.fixture(scope="module")
def index(code_NC: CodeArray, tmp_path_factory: pytest.TempPathFactory) -> Index:
    uri = str(tmp_path_factory.mktemp("approximate"))
    return Index.create(uri, code_NC, list(range(len(code_NC))), kind="ivf", recall=0.7)


class Watched:
    def __init__(self, index: Index, **about: Any) -> None:
        self.index, self.about, self.lost, self.exact = index, about, {}, 0

    def info(self) -> dict[str, Any]:
        return {**describe("test", self.index.manifest), **self.about}

    async def lost_shards(self) -> dict[int, str]:
        return self.lost

    async def search_exactly(self, code_QC: CodeArray, k: int) -> Matches:
        self.exact += len(code_QC)
        return self.index.search(code_QC, k, exact=True)


def expected_recall(found: Matches, code_NC: CodeArray, query_QC: CodeArray) -> float:
    exact = search(query_QC, code_NC, list(range(len(code_NC))), k=K)
    shares = [
        sum(match.distance <= rows[-1][0] for match in answers) / K
        for answers, rows in zip(found, exact, strict=True)
    ]
    return float(np.mean(shares))


def test_an_exact_search_of_an_approximate_index_equals_the_oracle(index: Index, code_NC: CodeArray) -> None:
    query_QC = np.random.default_rng(3).integers(0, 256, (9, BITS // 8), np.uint8)
    found = index.search(query_QC, K, exact=True)
    rows = [[(match.distance, match.code, match.id) for match in answers] for answers in found]
    assert rows == search(query_QC, code_NC, list(range(len(code_NC))), k=K)


def test_recall_is_estimated_by_distance_on_a_sample(
    index: Index, code_NC: CodeArray, monkeypatch: pytest.MonkeyPatch
) -> None:
    query_QC = np.random.default_rng(4).integers(0, 256, (200, BITS // 8), np.uint8)
    found = index.search(query_QC, K)
    expected = expected_recall(found, code_NC, query_QC)
    assert 0.3 < expected < 1
    recalls = recall_by_distance(found, index.search(query_QC, K, exact=True))
    assert np.mean(recalls) == pytest.approx(expected)
    told: list[float] = []
    counted: list[int] = []

    async def observe(share: float, kind: str, **asked: Any) -> Watched:
        watched = Watched(index, kind=kind)
        monitor = Monitor(watched, share)
        monkeypatch.setattr(monitor._recall, "set", told.append)
        monkeypatch.setattr(monitor._batches, "observe", counted.append)
        for start in range(0, 200, 4):
            monitor.observe_batch(
                watched, query_QC[start : start + 4], asked.get("k", K), found.part(start, start + 4)
            )
            # Lets the comparison run, which is one at a time.
            await asyncio.sleep(0)
            await asyncio.sleep(0)
        return watched

    assert asyncio.run(observe(1.0, "ivf")).exact == 200
    assert told[-1] == pytest.approx(expected)
    assert counted == [4] * 50
    # Filtered and radius searches are exact, as are all of an exact kind.
    assert asyncio.run(observe(1.0, "ivf", k=None)).exact == 0
    assert asyncio.run(observe(1.0, "flat")).exact == 0
    assert asyncio.run(observe(0.0, "ivf")).exact == 0


def test_lost_shards_are_told(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    watched = Watched(index, shards=2)
    watched.lost = {0: "no answer"}
    monitor = Monitor(watched, 0.0)
    told: list[tuple[float, str]] = []
    monkeypatch.setattr(monitor._shards, "set", lambda value, tags: told.append((value, tags["shard"])))

    async def watch() -> None:
        task = asyncio.create_task(monitor.run())
        await asyncio.sleep(0.05)
        task.cancel()

    asyncio.run(watch())
    assert told == [(0, "0"), (1, "1")]


def test_top_shows_the_figures_of_the_service(index: Index, capsys: pytest.CaptureFixture[str]) -> None:
    with served(make_api(Responder(IndexBackend(index, LIMITS)))) as address:
        codes = to_hex(np.zeros((3, BITS // 8), np.uint8))
        assert top(TopConfig(address, looks=1))["latency_ms"] is None
        assert "no search yet" in capsys.readouterr().err
        for _ in range(4):
            httpx.post(f"{address}/v1/search", json={"codes": codes})
        httpx.post(f"{address}/v1/search", json={})
        shown = top(TopConfig(address, every_s=0.05, looks=2))
        assert (shown["requests"], shown["queries"], shown["failed"], shown["version"]) == (5, 12, 1, 1)
        assert shown["queries_per_s"] == 0
        printed = capsys.readouterr().err.splitlines()
        assert [line.split()[0] for line in printed[-7:]] == [address, "requests", "ms", "all", *STAGES][-7:]
        assert main(["top", f"--target={address}", "--looks=1", "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["queries"] == 12
    assert main(["top", "--target=my/index"]) == 2
    assert "is not an address" in capsys.readouterr().err


def test_each_request_is_a_line_of_json(index: Index, capsys: pytest.CaptureFixture[str]) -> None:
    async def ask() -> None:
        transport = httpx.ASGITransport(make_api(Responder(IndexBackend(index, LIMITS), [access_log.write])))
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            codes = to_hex(np.zeros((2, BITS // 8), np.uint8))
            await client.post("/v1/search", json={"codes": codes}, headers={"X-Request-ID": "mine"})
            await client.get("/v1/items/1%222%0A3")

    asyncio.run(ask())
    first, second = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert (first["request_id"], first["method"], first["path"]) == ("mine", "POST", "/v1/search")
    assert (first["status"], first["queries"]) == (200, 2)
    assert set(first["stages_ms"]) == {"read", "search", "answer"}
    assert 0 < first["stages_ms"]["search"] <= first["ms"]
    assert (second["status"], second["path"]) == (404, '/v1/items/1"2\n3')
