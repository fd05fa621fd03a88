"""Load on a service from a process of its own: one request after another, or at fixed times."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import multiprocessing
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Literal

import aiohttp
import grpc
import numpy as np
import numpy.typing as npt

from distindex.codes import CodeArray, to_hex

K = 10
ARROW = "application/vnd.apache.arrow.stream"
_WARM = 20

Form = Literal["JSON", "Arrow", "gRPC"]
"""JSON and Arrow streams over HTTP, Arrow streams over gRPC."""


@dataclasses.dataclass(frozen=True)
class Load:
    """What a load process sends.

    Attributes:
        url: the service: http://HOST:PORT, or HOST:PORT for gRPC.
        query_QC: queries to choose from.
        batch: queries a request.
        form: what is sent and taken.
        connections: requests at once; with `rate` the most.
        seconds: for how long.
        rate: requests a second, sent at fixed times; None sends the next when one is answered.
    """

    url: str
    query_QC: CodeArray
    batch: int
    form: Form
    connections: int
    seconds: float
    rate: float | None = None


@dataclasses.dataclass(frozen=True)
class Answered:
    """What came back.

    Attributes:
        asked_A: when each request that was answered was due, in seconds since the start.
        latency_A: how long each of them took from then, in seconds.
        refusal_B: how long each request took that was turned away: 429, over HTTP with Retry-After.
        failed: requests that ended in any other way.
        seconds: the time in all.
    """

    asked_A: npt.NDArray[np.float64]
    latency_A: npt.NDArray[np.float64]
    refusal_B: npt.NDArray[np.float64]
    failed: int
    seconds: float

    @property
    def rate(self) -> float:
        """Requests a second that were answered."""
        return len(self.latency_A) / self.seconds

    @property
    def refused(self) -> float:
        """The share that was turned away."""
        return len(self.refusal_B) / max(1, len(self.refusal_B) + len(self.latency_A))

    def milliseconds(self, percent: float) -> float:
        return float(np.percentile(self.latency_A, percent)) * 1e3

    def growth(self) -> float:
        """Median latency of the last third over that of the middle third: 1 where nothing piles up."""
        third = self.asked_A.max() / 3
        last = np.median(self.latency_A[self.asked_A > 2 * third])
        return float(last / np.median(self.latency_A[(self.asked_A > third) & (self.asked_A <= 2 * third)]))


def bodies(load: Load) -> tuple[list[bytes], dict[str, str]]:
    """Some different requests, ready to send, and their headers."""
    from distindex.serving import question
    from distindex.serving.request import make_request
    from distindex.serving.search_pb2 import Queries

    made = []
    for start in range(0, min(len(load.query_QC), 64 * load.batch), load.batch):
        part_QC = load.query_QC[start : start + load.batch]
        if load.form == "Arrow":
            made.append(question.to_arrow(make_request(part_QC, k=K)))
        elif load.form == "gRPC":
            made.append(Queries(arrow=question.to_arrow(make_request(part_QC, k=K))).SerializeToString())
        else:
            texts = ",".join(f'"{text}"' for text in to_hex(part_QC))
            made.append(f'{{"codes":[{texts}],"k":{K}}}'.encode())
    arrow = {"Content-Type": ARROW, "Accept": ARROW}
    return made, arrow if load.form == "Arrow" else {"Content-Type": "application/json"}


Ask = Callable[[bytes], Awaitable[int]]
"""Sends a request, takes its answer, and says its HTTP status; 0 where it failed in another way."""


@contextlib.asynccontextmanager
async def _over_http(load: Load, headers: dict[str, str]) -> AsyncIterator[Ask]:
    connector = aiohttp.TCPConnector(limit=load.connections)
    async with aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=60)) as client:

        async def ask(content: bytes) -> int:
            try:
                async with client.post(f"{load.url}/v1/search", data=content, headers=headers) as response:
                    await response.read()
                    # Who is turned away and not told when to come back has met a fault.
                    told = response.status != 429 or "Retry-After" in response.headers
                    return response.status if told else 0
            except (aiohttp.ClientError, TimeoutError):
                return 0

        yield ask


@contextlib.asynccontextmanager
async def _over_grpc(load: Load) -> AsyncIterator[Ask]:
    async with grpc.aio.insecure_channel(load.url, [("grpc.max_receive_message_length", -1)]) as channel:
        call = channel.unary_unary("/distindex.v1.Search/Search")

        async def ask(content: bytes) -> int:
            try:
                await call(content, timeout=60)
                return 200
            except grpc.aio.AioRpcError as error:
                return 429 if error.code() == grpc.StatusCode.RESOURCE_EXHAUSTED else 0

        yield ask


async def _send(load: Load) -> Answered:
    contents, headers = bodies(load)
    answered_A2: list[tuple[float, float]] = []
    refusal_B: list[float] = []
    failed = 0
    async with _over_grpc(load) if load.form == "gRPC" else _over_http(load, headers) as send:

        async def ask(number: int, asked: float) -> None:
            nonlocal failed
            status = await send(contents[number % len(contents)])
            took = time.perf_counter() - asked
            if status == 200:
                answered_A2.append((asked - began, took))
            elif status == 429:
                refusal_B.append(took)
            else:
                failed += 1

        async def again_and_again(first: int) -> None:
            number = first
            while time.perf_counter() < until:
                await ask(number, time.perf_counter())
                number += load.connections

        began = time.perf_counter()
        for number in range(_WARM):
            await ask(number, time.perf_counter())
            if time.perf_counter() - began > load.seconds:
                break
        answered_A2.clear()
        began = time.perf_counter()
        until = began + load.seconds
        if load.rate is None:
            await asyncio.gather(*(again_and_again(first) for first in range(load.connections)))
        else:
            waiting: list[Awaitable[None]] = []
            while (due := began + len(waiting) / load.rate) < until:
                await asyncio.sleep(max(0.0, due - time.perf_counter()))
                # From when it was due: a service that is late must not be asked less for it.
                waiting.append(asyncio.create_task(ask(len(waiting), due)))
            await asyncio.gather(*waiting)
        seconds = time.perf_counter() - began
    answered = np.array(answered_A2).reshape(-1, 2)
    return Answered(answered[:, 0], answered[:, 1], np.array(refusal_B), failed, seconds)


def _load_process(load: Load, result: Any) -> None:
    result.put(asyncio.run(_send(load)))


def put_load(load: Load) -> Answered:
    """Send the load from a process of its own."""
    context = multiprocessing.get_context("spawn")
    result = context.Queue()
    process = context.Process(target=_load_process, args=(load, result))
    process.start()
    answered = result.get(timeout=load.seconds + 120)
    process.join()
    return answered
