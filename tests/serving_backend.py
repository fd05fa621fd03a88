"""The API's backend over an index in this process: the API without Ray."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import datetime
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pyarrow as pa
import uvicorn
from fastapi import FastAPI

from distindex.codes import CodeArray, pack
from distindex.errors import UnavailableError
from distindex.hashing import Hasher
from distindex.index.index import Index
from distindex.index.matches import Matches
from distindex.index.statistics import ShardStatistics
from distindex.serving import answer
from distindex.serving.activity import stage
from distindex.serving.api import make_api
from distindex.serving.body import Limits
from distindex.serving.client import check_columns
from distindex.serving.grpc_listener import GrpcListener
from distindex.serving.inspection import describe
from distindex.serving.items import by_codes, ids_of, without_items
from distindex.serving.request import READ_BY, Logits, RequestError, SearchRequest, encode, naming_the_filter
from distindex.serving.responder import Responder

BITS = 64
ROWS = 500
LIMITS = Limits(max_queries=8, max_k=100, max_requests=4, max_answers=300, max_candidates=5000, max_body_bytes=20_000)
CODE = "00" * 8
ARROW = {"content-type": answer.ARROW_STREAM}


class IndexBackend:
    """Answers as the service does; `lost` as if its shards were gone."""

    def __init__(self, index: Index, limits: Limits, hasher: Hasher | None = None, lost: bool = False) -> None:
        self.index, self.limits, self.hasher, self.lost = index, limits, hasher, lost

    def _check(self) -> None:
        if self.lost:
            raise UnavailableError("shard 0 of 1 did not answer")

    async def search(self, request: SearchRequest) -> Matches:
        self._check()
        if request.field == "items":
            id_Q = ids_of(request, self.index.manifest.id_type)
            found = self.index.lookup(id_Q.to_pylist())
            return without_items(await self.search(by_codes(request, id_Q, found)), id_Q, request.k or request.limit)
        columns = check_columns(request, self.info())
        code_QC, logit_QK = await self.codes_of(request)
        with stage("search"), naming_the_filter():
            return self.index.search(code_QC, **request.options(columns, logit_QK))

    async def codes_of(self, request: SearchRequest) -> tuple[CodeArray, Logits | None]:
        self._check()
        if request.field == "codes":
            return request.codes(self.index.bits), None
        if request.field == "items":
            id_Q = ids_of(request, self.index.manifest.id_type)
            return by_codes(request, id_Q, self.index.lookup(id_Q.to_pylist())).codes(self.index.bits), None
        with stage("encode"):
            if request.field == "logits":
                logit_QK = request.logits(self.index.bits)
            else:
                if self.hasher is None:
                    raise RequestError("this index is served without a hasher", request.field)
                logit_QK = encode(self.hasher, request)
            return pack(logit_QK > 0), logit_QK

    async def lookup(self, id: int | str) -> Matches:
        self._check()
        return self.index.lookup([id], self.index.columns)

    async def statistics(self) -> ShardStatistics:
        self._check()
        return self.index.statistics()

    async def problems(self) -> list[str]:
        return ["shard 0: no answer"] if self.lost else []

    def info(self) -> dict[str, Any]:
        encodes = READ_BY[self.hasher.features.kind] if self.hasher else None
        limits = dataclasses.asdict(self.limits)
        return {**describe("test", self.index.manifest), "encodes": encodes, "limits": limits}


@contextlib.contextmanager
def served(api: FastAPI, **settings: Any) -> Iterator[str]:
    """The address of the API on a port of its own, answered by a thread of this process."""
    port = free_port()
    server = uvicorn.Server(uvicorn.Config(api, "127.0.0.1", port, log_level="error", **settings))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join()


def small_index(directory: Path) -> Index:
    """500 rows of 40 codes in two shards, with a payload of several types."""
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
    return Index.create(str(directory), codes, ids, payload, shards=2)


def send(index: Index, method: str, path: str, lost: bool = False, **content: Any) -> httpx.Response:
    async def ask() -> httpx.Response:
        transport = httpx.ASGITransport(make_api(Responder(IndexBackend(index, LIMITS, lost=lost))))
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            return await client.request(method, path, **content)

    return asyncio.run(ask())


def stream(table: pa.Table, **settings: Any) -> bytes:
    table = table.replace_schema_metadata({"search": json.dumps(settings)} if settings else None)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()


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


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def served_over_grpc(responder: Responder, tls: tuple[str, str] | None = None) -> Iterator[str]:
    """HOST:PORT of a responder over gRPC, answered by a thread of this process."""
    port, started, loop = free_port(), threading.Event(), asyncio.new_event_loop()

    async def listen() -> None:
        stopped = asyncio.Event()
        stops.append(lambda: loop.call_soon_threadsafe(stopped.set))
        listener = GrpcListener(responder, "127.0.0.1", port, tls)
        await listener.start()
        started.set()
        await stopped.wait()
        await listener.stop()

    stops: list[Callable[[], object]] = []
    thread = threading.Thread(target=loop.run_until_complete, args=(listen(),), daemon=True)
    thread.start()
    assert started.wait(10)
    try:
        yield f"127.0.0.1:{port}"
    finally:
        stops[0]()
        thread.join()
        loop.close()
