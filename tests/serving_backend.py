"""The API's backend over an index in this process: the API without Ray."""

from __future__ import annotations

import contextlib
import dataclasses
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import uvicorn
from fastapi import FastAPI

from distindex.codes import CodeArray, pack
from distindex.errors import UnavailableError
from distindex.hashing import Hasher
from distindex.index.index import Index
from distindex.index.matches import Matches
from distindex.index.statistics import ShardStatistics
from distindex.serving.activity import stage
from distindex.serving.body import Limits
from distindex.serving.client import check_columns
from distindex.serving.inspection import describe
from distindex.serving.items import by_codes, ids_of, without_items
from distindex.serving.request import READ_BY, Logits, SearchRequest, encode


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
        with stage("search"):
            return self.index.search(
                code_QC,
                request.k,
                radius=request.radius,
                limit=request.limit,
                columns=columns,
                logits=logit_QK if request.rescore else None,
                candidates=request.candidates,
                filter=request.filter,
            )

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
                assert self.hasher is not None
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
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
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
