"""The deployer leads several processes to another version: all of them, or none. Without Ray, in one event loop."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import numpy as np
import pytest

from distindex.errors import ConflictError, InputError
from distindex.index.index import Index
from distindex.index.manifest import read_manifest
from distindex.serving import deployer as room
from distindex.serving.access import Access, digests_of
from distindex.serving.api import make_api
from distindex.serving.application import Router
from distindex.serving.body import Limits
from distindex.serving.deploy_routes import make_routes
from distindex.serving.deployer import Deployer
from distindex.serving.inspection import describe
from distindex.serving.parts import Here, Shard
from distindex.serving.plan import Listening, Plan
from distindex.serving.request import RequestError
from distindex.serving.responder import Responder
from distindex.serving.switch import Switch, Target
from distindex.storage import Storage

BITS = 64
LIMITS = Limits(max_queries=8, max_k=100, max_requests=100)


class InThisProcess:
    """A deployer that processes ask without Ray."""

    def __init__(self, deployer: Deployer) -> None:
        self.deployer = deployer

    async def call(self, method: str, arguments: tuple[Any, ...]) -> Any:
        return await getattr(self.deployer, method)(*arguments)

    async def close(self) -> None:
        return


@pytest.fixture
def kept(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """What the cluster remembers, in a dictionary; no application of shards runs."""
    values: dict[str, str] = {}

    def put(key: str, value: str, namespace: str) -> None:
        values[f"{namespace}/{key}"] = value

    store = SimpleNamespace(
        _internal_kv_get=lambda key, namespace: values.get(f"{namespace}/{key}"), _internal_kv_put=put
    )
    monkeypatch.setattr(room, "internal_kv", store)
    monkeypatch.setattr(room, "serve", SimpleNamespace(status=lambda: SimpleNamespace(applications={})))
    return values


@pytest.fixture
def uri(tmp_path: Path) -> str:
    for version in (1, 2, 3):
        add_version(str(tmp_path), version)
    return str(tmp_path)


def add_version(uri: str, version: int) -> None:
    code_NC = np.full((version, BITS // 8), version, np.uint8)
    Index.create(uri, code_NC, list(range(version))).close()


def first_of(uri: str) -> Target:
    return Target("index-1-first", {**describe(uri, read_manifest(Storage(uri), 1)), "encodes": None})


def plan_of(uri: str, watch_s: float = 0.0) -> Plan:
    listening = Listening("127.0.0.1", 80)
    return Plan(uri, None, listening, 2, 0, LIMITS, 20.0, {}, watch_s, alone=True, cpus=1.0, service="test")


async def started(plan: Plan, target: Target) -> Deployer:
    deployer = Deployer.__new__(Deployer)
    # Serve awaits it, so that it can begin to work.
    await deployer.__init__(plan, target)  # type: ignore[misc]
    return deployer


class Processes:
    """Two processes that listen; `broken` names versions that the second cannot open, `may_open` holds all up."""

    def __init__(self, uri: str) -> None:
        self.broken: set[int] = set()
        self.may_open = asyncio.Event()
        self.may_open.set()
        self.switches = [Switch(self._opener(uri, number), LIMITS) for number in range(2)]

    def _opener(self, uri: str, number: int) -> Callable[[Target], Any]:
        async def open_router(target: Target) -> Router:
            await self.may_open.wait()
            if number == 1 and target.version in self.broken:
                raise MemoryError("no room for it")
            shard = await asyncio.to_thread(Shard, uri, target.version, None, {})
            return Router([Here(shard)], None, target.info, LIMITS, 20.0)

        return open_router

    @property
    def versions(self) -> list[int]:
        return [switch.info()["version"] for switch in self.switches]

    @contextlib.asynccontextmanager
    async def led_by(self, deployer: Deployer, start: bool = True) -> AsyncIterator[None]:
        leader = InThisProcess(deployer)
        for switch in self.switches if start else ():
            await switch.start(leader)
        tasks = [asyncio.create_task(switch.follow(str(place), leader)) for place, switch in enumerate(self.switches)]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()


async def arrived(deployer: Deployer) -> dict[str, Any]:
    until = time.monotonic() + 30
    while (state := await deployer.state())["deploying"] is not None:
        assert time.monotonic() < until, state
        await asyncio.sleep(0.01)
    return state


def test_all_processes_go_to_a_version_and_back(uri: str, kept: dict[str, str]) -> None:
    async def run() -> None:
        deployer = await started(plan_of(uri), first_of(uri))
        processes = Processes(uri)
        async with processes.led_by(deployer):
            assert processes.versions == [1, 1]
            for asked, version in ((2, 2), (0, 3), (1, 1)):
                state = await deployer.deploy(asked)
                assert (state["deploying"], state["error"]) == (version, None)
                state = await arrived(deployer)
                assert state == {"version": version, "newest": 3, "deploying": None, "step": None, "error": None}
                assert processes.versions == [version] * 2
                assert all(len(switch.progress("").open) == 1 for switch in processes.switches)

    asyncio.run(run())


def test_what_one_process_cannot_load_no_process_serves(uri: str, kept: dict[str, str]) -> None:
    async def run() -> None:
        deployer = await started(plan_of(uri), first_of(uri))
        processes = Processes(uri)
        processes.broken = {2}
        async with processes.led_by(deployer):
            await deployer.deploy(2)
            state = await arrived(deployer)
            assert state["version"] == 1
            assert state["error"] == "version 2 cannot be served: no room for it"
            assert processes.versions == [1, 1]
            # What the first had open beside is closed, and the next deployment says nothing of this one.
            while len(processes.switches[0].progress("").open) > 1:
                await asyncio.sleep(0.01)
            await deployer.deploy(3)
            assert (await arrived(deployer))["error"] is None
            assert processes.versions == [3, 3]

    asyncio.run(run())


def test_a_deployer_that_replaces_another_goes_on_with_what_was_served(uri: str, kept: dict[str, str]) -> None:
    async def run() -> None:
        processes = Processes(uri)
        before = await started(plan_of(uri), first_of(uri))
        async with processes.led_by(before):
            await before.deploy(3)
            await arrived(before)
        after = await started(plan_of(uri), first_of(uri))
        async with processes.led_by(after, start=False):
            state = await after.state()
            assert state["version"] == 3
            await after.deploy(2)
            await arrived(after)
            assert processes.versions == [2, 2]
        # A process that is new serves the same, also what was deployed while it started.
        newcomer = Processes(uri)
        async with processes.led_by(after, start=False):
            newcomer.may_open.clear()
            starting = asyncio.create_task(newcomer.switches[0].start(InThisProcess(after)))
            await asyncio.sleep(0)
            await after.deploy(1)
            await arrived(after)
            newcomer.may_open.set()
            await starting
        assert newcomer.switches[0].info()["version"] == 1
        assert len(newcomer.switches[0].progress("").open) == 1

    asyncio.run(run())


def test_a_deployer_lost_on_the_way_leaves_what_is_served(uri: str, kept: dict[str, str]) -> None:
    async def run() -> None:
        processes = Processes(uri)
        before = await started(plan_of(uri), first_of(uri))
        async with processes.led_by(before):
            await before.deploy(2)
            while all(len(switch.progress("").open) == 1 for switch in processes.switches):
                await asyncio.sleep(0)
        kept.clear()
        after = await started(plan_of(uri), first_of(uri))
        async with processes.led_by(after, start=False):
            while [switch.progress("").open for switch in processes.switches] != [("index-1-first",)] * 2:
                await asyncio.sleep(0.01)
            assert processes.versions == [1, 1]

    asyncio.run(run())


def test_one_deployment_at_a_time_and_only_what_fits(uri: str, tmp_path: Path, kept: dict[str, str]) -> None:
    async def run() -> None:
        deployer = await started(plan_of(uri), first_of(uri))
        processes = Processes(uri)
        async with processes.led_by(deployer):
            with pytest.raises(RequestError, match="no version 9") as caught:
                await deployer.deploy(9)
            assert caught.value.field == "version"
            begun = await asyncio.gather(deployer.deploy(2), deployer.deploy(2))
            assert [state["deploying"] for state in begun] == [2, 2]
            with pytest.raises(ConflictError, match="on its way to version 2"):
                await deployer.deploy(3)
            assert (await arrived(deployer))["version"] == 2
            # Where it is already: nothing begins.
            assert (await deployer.deploy(2))["deploying"] is None

    asyncio.run(run())


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"bits": 32}, "has codes of 64 bits, but version 1, which is served, codes of 32 bits"),
        ({"id_type": "string"}, "has ids of type int64, but version 1, which is served, ids of type string"),
    ],
)
def test_versions_that_callers_could_not_take_are_refused(
    uri: str, changed: dict[str, Any], message: str, kept: dict[str, str]
) -> None:
    async def run() -> None:
        first = first_of(uri)
        deployer = await started(plan_of(uri), Target(first.name, {**first.info, **changed}))
        with pytest.raises(InputError, match=message):
            await deployer.deploy(2)

    asyncio.run(run())


def test_a_watch_follows_what_is_new_and_leaves_what_was_taken_back(uri: str, kept: dict[str, str]) -> None:
    async def run() -> None:
        first = first_of(uri)
        deployer = await started(plan_of(uri, watch_s=0.02), first)
        processes = Processes(uri)
        processes.broken = {4}

        async def until(version: int) -> None:
            while processes.versions != [version] * 2 or (await arrived(deployer))["version"] != version:
                await asyncio.sleep(0.01)

        async with processes.led_by(deployer), asyncio.timeout(30):
            await until(3)
            await deployer.deploy(1)
            await until(1)
            # One that fails is tried once.
            add_version(uri, 4)
            while (await deployer.state())["error"] is None:
                await asyncio.sleep(0.01)
            await arrived(deployer)
            await asyncio.sleep(0.1)
            assert (await deployer.state())["deploying"] is None
            assert processes.versions == [1, 1]
            add_version(uri, 5)
            await until(5)

    asyncio.run(run())


ASKER, DEPLOYER = "may-ask-0123456789", "may-deploy-0123456789"


@pytest.mark.parametrize(
    ("asking", "deploying", "token", "expected"),
    [
        ((), (), None, (202, None)),
        ((ASKER,), (), ASKER, (202, None)),
        ((), (DEPLOYER,), DEPLOYER, (202, None)),
        ((ASKER,), (DEPLOYER,), DEPLOYER, (202, None)),
        ((ASKER,), (DEPLOYER,), ASKER, (403, "forbidden")),
        ((ASKER,), (DEPLOYER,), None, (401, "unauthorized")),
        ((), (DEPLOYER,), None, (401, "unauthorized")),
        ((), (DEPLOYER,), ASKER, (401, "unauthorized")),
    ],
)
def test_who_may_ask_and_who_may_deploy(
    uri: str,
    asking: tuple[str, ...],
    deploying: tuple[str, ...],
    token: str | None,
    expected: tuple[int, str | None],
) -> None:
    class State:
        async def call(self, method: str, arguments: tuple[Any, ...]) -> dict[str, Any]:
            called.append((method, arguments))
            return {"version": 1, "newest": 3, "deploying": 3, "step": "starting", "error": None}

        async def close(self) -> None: ...

    async def run() -> None:
        access = Access(digests_of(asking, "asking"), digests_of(deploying, "deploying"))
        switch = Processes(uri).switches[0]
        responder = Responder(switch, access=access)
        api = make_api(responder)
        api.include_router(make_routes(switch, State(), True, responder.gate))
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        transport = httpx.ASGITransport(api)
        async with httpx.AsyncClient(transport=transport, base_url="http://test", headers=headers) as client:
            answered = await client.post("/v1/deploy", json={"version": 3})
            status, code = expected
            assert answered.status_code == status
            assert called == ([] if code else [("deploy", (3,))])
            assert code is None or answered.json()["error"]["code"] == code
            assert ("www-authenticate" in answered.headers) == (status == 401)
            # Whoever may deploy may ask.
            may_ask = not asking or token in (*asking, *deploying)
            assert (await client.get("/v1/deploy")).status_code == (200 if may_ask else 401)

    called: list[tuple[str, tuple[Any, ...]]] = []
    asyncio.run(run())


@pytest.mark.parametrize("may_deploy", [True, False])
def test_a_deployment_over_http(uri: str, kept: dict[str, str], may_deploy: bool) -> None:
    async def run() -> None:
        deployer = await started(plan_of(uri), first_of(uri))
        processes = Processes(uri)
        async with processes.led_by(deployer):
            responder = Responder(processes.switches[0])
            api = make_api(responder)
            led = make_routes(processes.switches[0], InThisProcess(deployer), may_deploy, responder.gate)
            api.include_router(led)
            transport = httpx.ASGITransport(api)
            async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
                health = (await client.get("/health")).json()
                assert (health["status"], health["version"], health["newest"]) == ("stale", 1, 3)
                answered = await client.post("/v1/deploy", json={})
                if not may_deploy:
                    assert (answered.status_code, answered.json()["error"]["code"]) == (403, "forbidden")
                    assert processes.versions == [1, 1]
                    return
                assert (answered.status_code, answered.json()["deploying"]) == (202, 3)
                conflicting = await client.post("/v1/deploy", json={"version": 2})
                assert (conflicting.status_code, conflicting.json()["error"]["code"]) == (409, "conflict")
                while (state := (await client.get("/v1/deploy")).json())["deploying"]:
                    assert state["step"] in ("starting", "loading", "switching", "draining")
                    await asyncio.sleep(0.01)
                assert state["version"] == 3
                assert (await client.get("/health")).json()["status"] == "ready"

    asyncio.run(run())
