"""Another version takes the place of the one that answers, in one process and without Ray."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable
from typing import Any

import httpx
import numpy as np
import pytest

from distindex.codes import CodeArray, to_hex
from distindex.errors import DamagedError
from distindex.index.index import Index
from distindex.index.manifest import read_manifest
from distindex.serving.api import make_api
from distindex.serving.application import Router
from distindex.serving.body import Limits
from distindex.serving.inspection import describe
from distindex.serving.parts import Here, Shard
from distindex.serving.responder import Responder
from distindex.serving.switch import Order, Pinned, Switch, Target
from distindex.storage import Storage
from tests.oracle import search

ROWS, BITS, K, VERSIONS = 1000, 64, 7, 3
LIMITS = Limits(max_queries=8, max_k=100, max_requests=100)


@dataclasses.dataclass(frozen=True)
class Case:
    """An index whose versions have different codes; the ids say which version they are of."""

    uri: str
    codes: dict[int, CodeArray]

    def ids(self, version: int) -> list[int]:
        return [version * ROWS + row for row in range(ROWS)]

    def target(self, number: int, **changed: Any) -> Target:
        info = describe(self.uri, read_manifest(Storage(self.uri), number))
        return Target(f"index-{number}", {**info, "encodes": None, **changed})

    async def open(self, target: Target) -> Router:
        # All shards in one part, as a service on one machine has them.
        shard = await asyncio.to_thread(Shard, self.uri, target.version, None, {})
        return Router([Here(shard)], None, target.info, LIMITS, 20.0)

    def oracle(self, version: int, query_QC: CodeArray) -> list[list[Any]]:
        return search(query_QC, self.codes[version], self.ids(version), k=K)


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    uri = str(tmp_path_factory.mktemp("versions"))
    generator = np.random.default_rng(8)
    points = generator.integers(0, 256, (400, BITS // 8), np.uint8)
    codes = {version: points[generator.integers(0, 400, ROWS)] for version in range(1, VERSIONS + 1)}
    made = Case(uri, codes)
    for version, code_NC in codes.items():
        Index.create(uri, code_NC, made.ids(version), shards=version).close()
    return made


@dataclasses.dataclass(frozen=True)
class Said:
    """A deployer that says what to serve first."""

    target: Target

    async def call(self, method: str, arguments: tuple[Any, ...]) -> Order:
        assert (method, arguments) == ("first_order", ())
        return Order("", self.target)

    async def close(self) -> None:
        return


def client_of(switch: Switch) -> httpx.AsyncClient:
    api = make_api(Responder(switch))
    api.add_middleware(Pinned, switch=switch)
    return httpx.AsyncClient(transport=httpx.ASGITransport(api), base_url="http://test")


async def go_to(switch: Switch, target: Target, before: Target) -> None:
    """Load beside, then switch, as the deployer has processes do it."""

    async def tell() -> None:
        return

    await switch.obey(Order("load", before, target), tell)
    assert switch.progress("").open == (before.name, target.name)
    await switch.obey(Order("serve", target), tell)
    while switch.progress("").open != (target.name,):
        await asyncio.sleep(0)


def test_every_answer_is_that_of_exactly_one_version_while_versions_change(case: Case) -> None:
    query_QC = np.concatenate([case.codes[version][:2] for version in case.codes])
    expected = {version: case.oracle(version, query_QC) for version in case.codes}
    asked = to_hex(query_QC)
    seen: dict[int, int] = {}

    async def ask_again_and_again(client: httpx.AsyncClient, done: asyncio.Event) -> None:
        while not done.is_set():
            response = await client.post("/v1/search", json={"codes": asked, "k": K})
            assert response.status_code == 200, response.text
            answer = response.json()
            rows = [[(a["distance"], a["code"], a["id"]) for a in found] for found in answer["results"]]
            assert rows == expected[answer["version"]]
            seen[answer["version"]] = seen.get(answer["version"], 0) + 1
            # Two questions to the index, one after the other: the item's code, and what is near it.
            id = answer["results"][0][0]["id"]
            item = (await client.post("/v1/codes", json={"items": [id]})).json()
            if "version" in item:
                version, row = item["version"], id % ROWS
                assert item["codes"] == to_hex(case.codes[version][row : row + 1])

    async def run() -> None:
        switch = Switch(case.open, LIMITS)
        targets = {version: case.target(version) for version in case.codes}
        await switch.start(Said(targets[1]))
        async with client_of(switch) as client:
            done = asyncio.Event()
            asking = [asyncio.create_task(ask_again_and_again(client, done)) for _ in range(4)]
            before = targets[1]
            for version in (2, 3, 1, 3, 2, 1):
                await asyncio.sleep(0.05)
                await go_to(switch, targets[version], before)
                before = targets[version]
            done.set()
            await asyncio.gather(*asking)

    asyncio.run(run())
    assert set(seen) == set(case.codes)


def test_facts_follow_the_version(case: Case) -> None:
    async def run() -> list[dict[str, Any]]:
        switch = Switch(case.open, LIMITS)
        first, second = case.target(1), case.target(2)
        await switch.start(Said(first))
        found = []
        async with client_of(switch) as client:
            for _ in range(2):
                index = (await client.get("/v1/index")).json()
                statistics = (await client.get("/v1/statistics")).json()
                item = await client.get(f"/v1/items/{ROWS}")
                ready = (await client.get("/ready")).json()
                found.append(
                    {
                        "versions": (index["version"], statistics["version"], ready["version"]),
                        "shards": index["shards"],
                        "balance": statistics["bit_balance"],
                        "item": item.status_code,
                    }
                )
                if switch.info()["version"] == 1:
                    await go_to(switch, second, first)
        return found

    first, second = asyncio.run(run())
    for version, found in ((1, first), (2, second)):
        assert found["versions"] == (version,) * 3
        assert found["shards"] == version
        ones = np.unpackbits(case.codes[version], axis=1, bitorder="little").mean(axis=0)
        np.testing.assert_allclose(found["balance"], ones, atol=1e-4)
    assert (first["item"], second["item"]) == (200, 404)


@pytest.mark.parametrize(
    ("changed", "reason"),
    [({"rows": ROWS + 1}, f"{ROWS} rows instead of {ROWS + 1}"), ({"version": 9}, "no version 9")],
)
def test_what_fails_its_canary_or_cannot_be_opened_leaves_the_old(
    case: Case, changed: dict[str, Any], reason: str
) -> None:
    async def tell() -> None:
        return

    async def run() -> None:
        switch = Switch(case.open, LIMITS)
        first, wrong = case.target(1), case.target(2, **changed)
        await switch.start(Said(first))
        await switch.obey(Order("load", first, wrong), tell)
        progress = switch.progress("me")
        assert (progress.served, progress.open) == (first.name, (first.name,))
        assert reason in progress.failed[wrong.name]
        async with client_of(switch) as client:
            answered = await client.post("/v1/search", json={"codes": to_hex(case.codes[1][:1]), "k": K})
        assert answered.json()["version"] == 1

    asyncio.run(run())


def test_a_canary_with_a_wrong_distance_is_refused(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    shard = Shard(case.uri, 1, None, {})
    shard.check_health()
    right: Callable[..., Any] = shard.index.search

    def wrong(*arguments: Any) -> Any:
        found = right(*arguments)
        return dataclasses.replace(found, distance_M=found.distance_M + 1)

    monkeypatch.setattr(shard.index, "search", wrong)
    with pytest.raises(DamagedError, match="canary"):
        shard.check_health()


def test_a_version_stays_open_until_its_last_request_is_answered(case: Case) -> None:
    async def tell() -> None:
        return

    async def run() -> None:
        switch = Switch(case.open, LIMITS)
        first, second, third = (case.target(version) for version in (1, 2, 3))
        await switch.start(Said(first))
        with switch.pinned():
            # Pinned by the first question: from here on it is version 1 for this request.
            assert switch.info()["version"] == 1
            await switch.obey(Order("serve", second), tell)
            assert switch.progress("").served == second.name
            # It holds up nothing else.
            await switch.obey(Order("serve again", second, third), tell)
            assert set(switch.progress("").open) == {first.name, second.name, third.name}
            assert (await switch.statistics()).rows == ROWS
            assert switch.info()["version"] == 1
        assert switch.info()["version"] == 2
        while first.name in switch.progress("").open:
            await asyncio.sleep(0)

    asyncio.run(run())
