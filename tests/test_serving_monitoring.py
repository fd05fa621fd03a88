"""What the service tells of itself: the recall estimate against numpy, and the access log."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import httpx
import numpy as np
import pytest
from ray.exceptions import RayError

from distindex.cli import main
from distindex.codes import CodeArray, to_hex
from distindex.index.index import Index
from distindex.index.matches import Matches
from distindex.serve_config import TopConfig
from distindex.serving import access_log
from distindex.serving.activity import STAGES, Activity, Searches, figures
from distindex.serving.api import make_api
from distindex.serving.body import Limits
from distindex.serving.inspection import describe
from distindex.serving.monitoring import Monitor, recall_by_distance
from distindex.serving.responder import Responder
from distindex.serving.tally import Tally, Teller
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


class InThisProcess:
    """A tally that processes ask without Ray; `lost` as if its own had gone."""

    def __init__(self) -> None:
        self.tally, self.lost = Tally(), False

    async def call(self, method: str, arguments: tuple[Any, ...]) -> Any:
        if self.lost:
            raise RayError
        return await {"tell_searches": self.tally.tell, "searches": self.tally.look}[method](*arguments)

    async def close(self) -> None:
        return


def test_figures_add_up_over_the_processes(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("distindex.serving.tally._LOOK_S", 0.2)
    clock = SimpleNamespace(monotonic=lambda: now[0] + time.monotonic())
    monkeypatch.setattr("distindex.serving.tally.time", clock)
    codes, asked = to_hex(np.zeros((3, BITS // 8), np.uint8)), (1, 2, 5)

    async def figures_of(client: httpx.AsyncClient) -> dict[str, Any]:
        return (await client.get("/v1/statistics")).json()["searches"]

    async def run() -> None:
        leader, clients, telling = InThisProcess(), [], []
        for times in asked:
            activity = Activity()
            teller = Teller(activity, leader)
            api = make_api(Responder(IndexBackend(index, LIMITS), activity=activity, everywhere=teller.everywhere))
            client = httpx.AsyncClient(transport=httpx.ASGITransport(api), base_url="http://test")
            clients.append(client)
            telling.append(asyncio.create_task(teller.run()))
            await asyncio.sleep(0)
            for _ in range(times):
                await client.post("/v1/search", json={"codes": codes})
            await client.post("/v1/search", json={})
        # Whichever is asked says the same, and what came last is in it.
        for client in clients:
            found = await figures_of(client)
            assert (found["requests"], found["queries"], found["failed"], found["latest"]) == (11, 24, 3, 8)
            assert sorted(process["queries"] for process in found["processes"]) == [3, 6, 15]
        await clients[0].post("/v1/search", json={"codes": codes})
        assert (await figures_of(clients[2]))["queries"] == 27
        # One that does not tell any more counts with what it told, while it may be alive.
        telling[0].cancel()
        await clients[0].post("/v1/search", json={"codes": codes})
        assert (await figures_of(clients[2]))["queries"] == 27
        now[0] += 60
        # The others tell again when somebody looks.
        await figures_of(clients[2])
        await asyncio.sleep(0.05)
        found = await figures_of(clients[2])
        assert (found["queries"], len(found["processes"])) == (21, 2)
        # Without the deployer a process speaks for itself.
        leader.lost = True
        found = await figures_of(clients[1])
        assert (found["queries"], len(found["processes"])) == (6, 1)
        for task in telling[1:]:
            task.cancel()

    asyncio.run(run())


def test_rates_are_those_of_each_process_added_up(monkeypatch: pytest.MonkeyPatch) -> None:
    def look(**requests_at: tuple[float, int]) -> dict[str, Any]:
        processes = [
            Searches(name, uptime_s, requests, 2 * requests, 0, [], {stage: [] for stage in STAGES})
            for name, (uptime_s, requests) in requests_at.items()
        ]
        return {"searches": figures(processes)}

    looks = iter([look(a=(10.0, 50), b=(10.0, 100)), look(a=(12.0, 60), c=(1.0, 7)), look(a=(12.0, 60))])

    class Service:
        def __init__(self, *_: object) -> None: ...

        def __enter__(self) -> Service:
            return self

        def __exit__(self, *_: object) -> None: ...

        def info(self) -> dict[str, Any]:
            return {"version": 1, "rows": 2}

        def statistics(self) -> dict[str, Any]:
            return next(looks)

    shown: list[list[str]] = []

    @contextlib.contextmanager
    def show_live() -> Iterator[Callable[[list[str]], None]]:
        yield shown.append

    monkeypatch.setattr("distindex.serving.top.HttpSearcher", Service)
    monkeypatch.setattr("distindex.serving.top.show_live", show_live)
    last = top(TopConfig("http://test", every_s=0.001, looks=3))
    # Since the start; then 10 in 2 s and 7 in the first second of one that is new, b has gone; then nothing.
    assert [lines[1].split(";")[0] for lines in shown] == [
        "requests 15.0/s, queries 30.0/s, failed 0.0/s",
        "requests 12.0/s, queries 24.0/s, failed 0.0/s",
        "requests 0.0/s, queries 0.0/s, failed 0.0/s",
    ]
    assert "2 listening processes, up 12 s" in shown[1][0]
    assert last["requests_per_s"] == 0


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
