"""A served index, whatever carries the requests: what is asked, in which order, and what is tried again.

Each method of a searcher is a generator that yields requests and is sent their answers, so that those who wait and
those who await ask the same.
"""

from __future__ import annotations

import ssl
import time
from collections.abc import Generator
from typing import Any, TypeVar

import numpy as np
import orjson
from tenacity import AsyncRetrying, Retrying, retry_if_exception, stop_after_attempt, wait_exponential_jitter

from distindex.errors import ConflictError, DeadlineError, DistindexError, UnavailableError
from distindex.index.matches import Match, Matches, one_after_another
from distindex.serving import answer, question
from distindex.serving.http_transport import HttpTransport
from distindex.serving.request import SearchRequest
from distindex.serving.searcher import AsyncSearcher, Searcher, only
from distindex.serving.transport import Ask, AsyncTransport, Transport

ATTEMPTS = 6

Result = TypeVar("Result")
Steps = Generator[Ask, bytes, Result]


def _passes(error: BaseException) -> bool:
    # A caller who gave a time has none left when it is over.
    return isinstance(error, UnavailableError) and not isinstance(error, DeadlineError)


def _again() -> dict[str, Any]:
    """When a request is tried again; callers that failed together must not come back together."""
    return {
        "stop": stop_after_attempt(ATTEMPTS),
        "wait": wait_exponential_jitter(initial=0.2, max=5.0, jitter=0.1),
        "retry": retry_if_exception(_passes),
        "reraise": True,
    }


class _Conversation:
    """What a service is asked.

    Args:
        url: its address, for messages.
    """

    def __init__(self, url: str) -> None:
        self._url = url
        self._info: dict[str, Any] | None = None

    def info(self) -> Steps[dict[str, Any]]:
        self._info = orjson.loads((yield Ask("index")))
        return self._info  # type: ignore[return-value]

    def statistics(self) -> Steps[dict[str, Any]]:
        return orjson.loads((yield Ask("statistics")))

    def deploy(self, version: int) -> Steps[dict[str, Any]]:
        return orjson.loads((yield Ask("deploy", version=version)))

    def deploying(self) -> Steps[dict[str, Any]]:
        return orjson.loads((yield Ask("deploying")))

    def ready(self, timeout_s: float) -> Steps[None]:
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                yield Ask("ready")
                return
            except UnavailableError:
                if time.monotonic() >= deadline:
                    raise

    def item(self, id: int | str) -> Steps[Match]:
        return only(answer.from_arrow((yield Ask("item", id=str(id))))[0], id)

    def search(self, request: SearchRequest) -> Steps[Matches]:
        info = self._info or (yield from self.info())
        if request.field == "logits":
            request.logits(info["bits"])
        elif isinstance(request.queries, np.ndarray):
            request.codes(info["bits"])
        limits = info["limits"]
        most = limits["max_queries"]
        answers = request.k or request.limit
        if answers:
            most = max(1, min(most, limits["max_answers"] // answers))
        if request.candidates:
            most = max(1, min(most, limits["max_candidates"] // request.candidates))
        if len(request) <= most:
            return answer.from_arrow((yield Ask("search", question.to_arrow(request))))
        parts = []
        for start in range(0, len(request), most):
            part = request.part(start, start + most)
            parts.append(answer.from_arrow((yield Ask("search", question.to_arrow(part)))))
        versions = sorted({part.version for part in parts})
        if len(versions) > 1:
            raise ConflictError(f"{self._url}: versions {versions} answered parts of the search; ask again")
        return one_after_another(parts)


class ServedSearcher(Searcher):
    """A served index. Connection errors, busy services and lost shards are tried again: a search changes nothing.

    Args:
        transport: carries the requests.
    """

    def __init__(self, transport: Transport) -> None:
        self.url = transport.url
        self._transport = transport
        self._conversation = _Conversation(transport.url)

    def _run(self, steps: Steps[Result]) -> Result:
        try:
            ask = next(steps)
            while True:
                try:
                    found = Retrying(**_again())(self._transport.send, ask)
                except DistindexError as error:
                    ask = steps.throw(error)
                else:
                    ask = steps.send(found)
        except StopIteration as end:
            return end.value

    def wait_until_ready(self, timeout_s: float) -> None:
        """Return when every shard and the encoder of the service answer.

        Raises:
            UnavailableError: they still do not after `timeout_s` seconds; says which.
        """
        self._run(self._conversation.ready(timeout_s))

    def info(self) -> dict[str, Any]:
        return self._run(self._conversation.info())

    def statistics(self) -> dict[str, Any]:
        """Figures about the codes of the index and the latest searches, as /v1/statistics answers.

        Raises:
            UnavailableError: a shard or the service does not answer.
        """
        return self._run(self._conversation.statistics())

    def _search(self, request: SearchRequest) -> Matches:
        return self._run(self._conversation.search(request))

    def item(self, id: int | str) -> Match:
        return self._run(self._conversation.item(id))

    def close(self) -> None:
        self._transport.close()


class AsyncServedSearcher(AsyncSearcher):
    """As `ServedSearcher`, for those who await; searches may be awaited at once.

    Args:
        transport: carries the requests.
    """

    def __init__(self, transport: AsyncTransport) -> None:
        self.url = transport.url
        self._transport = transport
        self._conversation = _Conversation(transport.url)

    async def _run(self, steps: Steps[Result]) -> Result:
        try:
            ask = next(steps)
            while True:
                try:
                    found = await AsyncRetrying(**_again())(self._transport.send, ask)
                except DistindexError as error:
                    ask = steps.throw(error)
                else:
                    ask = steps.send(found)
        except StopIteration as end:
            return end.value

    async def wait_until_ready(self, timeout_s: float) -> None:
        """As `ServedSearcher.wait_until_ready`."""
        await self._run(self._conversation.ready(timeout_s))

    async def info(self) -> dict[str, Any]:
        return await self._run(self._conversation.info())

    async def statistics(self) -> dict[str, Any]:
        """As `ServedSearcher.statistics`."""
        return await self._run(self._conversation.statistics())

    async def _search(self, request: SearchRequest) -> Matches:
        return await self._run(self._conversation.search(request))

    async def item(self, id: int | str) -> Match:
        return await self._run(self._conversation.item(id))

    async def close(self) -> None:
        await self._transport.close()


class HttpSearcher(ServedSearcher):
    """An index served over HTTP.

    Args:
        url: address of the service.
        timeout_s: longest wait for one answer, in seconds.
        token: what the service asks for; default: that in the environment variable DISTINDEX_TOKEN, if any.
        verify: whom the service's certificate is checked by; False checks nothing.
    """

    def __init__(
        self,
        url: str,
        timeout_s: float = 60.0,
        *,
        token: str | None = None,
        verify: ssl.SSLContext | bool = True,
    ) -> None:
        super().__init__(HttpTransport(url.rstrip("/"), timeout_s, token, verify))

    def deploy(self, version: int = 0) -> dict[str, Any]:
        """Have the service begin to go to another version, 0 for the newest; answers as `deploying`.

        Raises:
            RequestError: there is no such version, or it cannot take the place of the one that is served.
            ConflictError: the service is on its way to another one.
        """
        return self._run(self._conversation.deploy(version))

    def deploying(self) -> dict[str, Any]:
        """How far the service is on its way to another version, as /v1/deploy answers."""
        return self._run(self._conversation.deploying())
