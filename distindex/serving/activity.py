"""What the service has been doing: each request with its status and the time that its stages took."""

from __future__ import annotations

import contextlib
import dataclasses
import re
import secrets
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from typing import Any, Literal

import numpy as np
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

Stage = Literal["read", "encode", "search", "answer"]
STAGES: tuple[Stage, ...] = ("read", "encode", "search", "answer")
"""The body is read and checked; texts, vectors and images become codes; the shards are searched, with the wait for
them; the answer is written."""

SEARCH_ROUTE = "/v1/search"
_LATEST = 1000
_PERCENTILES = (50, 95, 99)
_REQUEST_ID = re.compile(rb"[\x21-\x7e]{1,128}")


@dataclasses.dataclass
class Done:
    """One request, complete once it is answered.

    Attributes:
        id: the caller's X-Request-ID, or one made here.
        began: when it came, in seconds since 1970.
        client: the address that it came from.
        method: the HTTP method, or gRPC.
        path: the path, or the call, that was asked for.
        route: the path's pattern in the API; of a gRPC call, that of the path which does the same; empty where there
            is none.
        status: the HTTP status of the answer; of a gRPC call, the one that goes with its error; 499 where the caller
            was gone before it.
        seconds: from the request's head to the end of the answer.
        stages: seconds of each stage that it went through.
        queries: queries in a search.
        at_work: requests at work when it was taken, itself among them.
    """

    id: str
    began: float
    client: str
    method: str
    path: str
    route: str = ""
    status: int = 499
    seconds: float = 0.0
    stages: dict[Stage, float] = dataclasses.field(default_factory=dict)
    queries: int = 0
    at_work: int = 0


_now: ContextVar[Done | None] = ContextVar("request", default=None)


@contextlib.contextmanager
def stage(name: Stage) -> Iterator[None]:
    """Count the block's time to a stage of the request that this task answers, if it answers one."""
    began = time.perf_counter()
    try:
        yield
    finally:
        done = _now.get()
        if done is not None:
            done.stages[name] = done.stages.get(name, 0.0) + time.perf_counter() - began


def count(queries: int, at_work: int) -> None:
    """Note how many queries the request that this task answers has, and how many requests are at work with it."""
    done = _now.get()
    if done is not None:
        done.queries, done.at_work = queries, at_work


@dataclasses.dataclass(frozen=True)
class Searches:
    """What one process has done.

    Attributes:
        process: tells it apart from others, and from the one before on its port.
        uptime_s: seconds since its start.
        requests: searches that were asked for since then.
        queries: those in searches that did not fail.
        failed: searches that did.
        seconds: what each of the latest that did not fail took.
        stages: the seconds of each stage of these, in the same order.
    """

    process: str
    uptime_s: float
    requests: int
    queries: int
    failed: int
    seconds: list[float]
    stages: dict[Stage, list[float]]


class Activity:
    """Totals since the start, and the latest 1000 searches."""

    def __init__(self) -> None:
        self._process = secrets.token_hex(4)
        self._began = time.monotonic()
        self._requests = self._queries = self._failed = 0
        self._latest: deque[Done] = deque(maxlen=_LATEST)

    def observe(self, done: Done) -> None:
        """Take a request into account that has been answered."""
        if done.route != SEARCH_ROUTE:
            return
        self._requests += 1
        if done.status < 400:
            self._queries += done.queries
            self._latest.append(done)
        else:
            self._failed += 1

    def searches(self) -> Searches:
        """What this process has done until now."""
        latest = list(self._latest)
        return Searches(
            self._process,
            round(time.monotonic() - self._began, 3),
            self._requests,
            self._queries,
            self._failed,
            [done.seconds for done in latest],
            {name: [done.stages.get(name, 0.0) for done in latest] for name in STAGES},
        )


def figures(found: Sequence[Searches]) -> dict[str, Any]:
    """What several processes have done together, and each of them; latencies in ms.

    Latencies are percentiles over the latest searches of all, null where there was none.
    """
    counts = ("requests", "queries", "failed")
    processes = [
        {"process": one.process, "uptime_s": one.uptime_s} | {name: getattr(one, name) for name in counts}
        for one in found
    ]
    return {
        "processes": processes,
        **{name: sum(process[name] for process in processes) for name in counts},
        "latest": sum(len(one.seconds) for one in found),
        "latency_ms": _percentiles([seconds for one in found for seconds in one.seconds]),
        "stages_ms": {
            name: _percentiles([seconds for one in found for seconds in one.stages[name]]) for name in STAGES
        },
    }


def _percentiles(seconds: Sequence[float]) -> dict[str, float] | None:
    if not seconds:
        return None
    values = np.percentile(np.asarray(seconds) * 1000, _PERCENTILES)
    return {f"p{share}": round(value, 3) for share, value in zip(_PERCENTILES, values.tolist(), strict=True)}


@contextlib.contextmanager
def observed(
    observers: Sequence[Callable[[Done], None]], given_id: bytes, client: str, method: str, path: str
) -> Iterator[Done]:
    """The request that this task answers in the block, which sets its route and status; observers are told after it.

    Args:
        observers: told what became of the request.
        given_id: the caller's X-Request-ID; one that is not usable is replaced.
        client: the address that it came from.
        method: how it was asked.
        path: what was asked for.
    """
    id = given_id.decode() if _REQUEST_ID.fullmatch(given_id) else secrets.token_hex(8)
    done = Done(id, time.time(), client, method, path)
    began = time.perf_counter()
    token = _now.set(done)
    try:
        yield done
    finally:
        _now.reset(token)
        done.seconds = time.perf_counter() - began
        for observe in observers:
            observe(done)


class Observed:
    """ASGI middleware: gives each request an id, which its answer carries, and tells what became of it."""

    def __init__(self, app: ASGIApp, observers: Sequence[Callable[[Done], None]]) -> None:
        self._app, self._observers = app, observers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given_id = dict(scope["headers"]).get(b"x-request-id", b"")
        client = scope["client"][0] if scope.get("client") else ""
        with observed(self._observers, given_id, client, scope["method"], scope["path"]) as done:

            async def send_with_id(message: Message) -> None:
                if message["type"] == "http.response.start":
                    done.status = message["status"]
                    MutableHeaders(scope=message)["x-request-id"] = done.id
                await send(message)

            try:
                await self._app(scope, receive, send_with_id)
            finally:
                done.route = getattr(scope.get("route"), "path", "")
