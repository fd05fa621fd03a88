"""The HTTP server inside a process: it shares its port, ends without breaking a request, and says when it is gone."""

from __future__ import annotations

import asyncio

import httpx
import pytest
from fastapi import FastAPI

from distindex.errors import InputError, UnavailableError
from distindex.serving.listener import Listener, bind
from tests.serving_backend import free_port


def api_named(name: str, release: asyncio.Event) -> FastAPI:
    api = FastAPI()

    @api.get("/now")
    async def now() -> str:
        return name

    @api.get("/later")
    async def later() -> str:
        await release.wait()
        return name

    return api


def test_two_share_a_port_and_one_goes_on_alone() -> None:
    async def ask() -> None:
        port, release = free_port(), asyncio.Event()
        listeners = [Listener(api_named(name, release), "127.0.0.1", port) for name in ("first", "second")]
        url = f"http://127.0.0.1:{port}"
        async with httpx.AsyncClient(limits=httpx.Limits(max_keepalive_connections=0)) as client:
            for listener in listeners:
                await listener.started()
            names = [(await client.get(f"{url}/now")).json() for _ in range(60)]
            assert set(names) == {"first", "second"}
            with pytest.raises(InputError, match="set port to a free one"):
                bind("127.0.0.1", port, shared=False)
            await listeners[0].stop()
            with pytest.raises(UnavailableError, match="has ended"):
                listeners[0].check()
            listeners[1].check()
            assert {(await client.get(f"{url}/now")).json() for _ in range(20)} == {"second"}
            await listeners[1].stop()
        bind("127.0.0.1", port, shared=False).close()

    asyncio.run(ask())


def test_what_is_at_work_is_answered_before_the_end() -> None:
    async def ask() -> None:
        port, release = free_port(), asyncio.Event()
        listener = Listener(api_named("only", release), "127.0.0.1", port)
        url = f"http://127.0.0.1:{port}"
        async with httpx.AsyncClient() as client:
            await listener.started()
            waiting = asyncio.create_task(client.get(f"{url}/later"))
            await asyncio.sleep(0.1)
            stopping = asyncio.create_task(listener.stop())
            await asyncio.sleep(0.4)
            assert not stopping.done()
            async with httpx.AsyncClient() as late:
                with pytest.raises(httpx.ConnectError):
                    await late.get(f"{url}/now")
            release.set()
            assert (await waiting).json() == "only"
            await stopping

    asyncio.run(ask())


@pytest.mark.parametrize(("host", "port"), [("192.0.2.1", 8000), ("no such host", 8000)])
def test_an_address_of_others_is_refused(host: str, port: int) -> None:
    with pytest.raises(InputError):
        bind(host, port, shared=True)
