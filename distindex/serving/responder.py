"""Requests in bytes, answers in bytes, whatever carries them: HTTP and gRPC mean the same by the same words.

Knows nothing of Ray; a `Backend` does the searching.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any, Protocol

import orjson

from distindex.codes import CodeArray
from distindex.errors import BusyError, DeadlineError, UnavailableError
from distindex.index.matches import Matches
from distindex.index.statistics import ShardStatistics
from distindex.serving import answer
from distindex.serving.access import Access, Gate
from distindex.serving.activity import Activity, Done, Searches, count, figures, stage
from distindex.serving.body import Limits, parse, parse_arrow
from distindex.serving.facts import codes_to_json, statistics_to_json
from distindex.serving.items import UnknownItemError, whole_number
from distindex.serving.request import Logits, RequestError, SearchRequest


class Backend(Protocol):
    """What is needed of the application behind the interfaces."""

    limits: Limits

    async def search(self, request: SearchRequest) -> Matches:
        """Answer from exactly one version of the index."""
        ...

    async def codes_of(self, request: SearchRequest) -> tuple[CodeArray, Logits | None]:
        """The codes `code_QC` of the queries, and their logits `logit_QK` where there are some."""
        ...

    async def lookup(self, id: int | str) -> Matches:
        """The row with an id, as the answers to one query, of which there is one or none."""
        ...

    async def statistics(self) -> ShardStatistics:
        """Counts over the codes of the version that is served."""
        ...

    async def problems(self) -> list[str]:
        """What does not answer a canary query now; empty when ready."""
        ...

    def info(self) -> dict[str, Any]:
        """What is served."""
        ...


class _Admission:
    """Counts the requests at work; `with` takes one in, or turns it away.

    Whoever is turned away has waited for nothing, and nobody waits in front: the longest wait is what the requests
    at work take, `most` of them.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self.at_work = 0

    def __enter__(self) -> None:
        if self.at_work >= self._most:
            raise BusyError(f"{self.at_work} requests are at work, as many as are taken at once; try again")
        self.at_work += 1

    def __exit__(self, *_: object) -> None:
        self.at_work -= 1


class Responder:
    """Answers the requests of one process.

    Every method raises what `refusal.refusal_of` says in the words of the interfaces.

    Args:
        backend: does the searching.
        observers: told of each request that has been answered.
        access: who may ask; default: everybody.
        activity: what this process does.
        everywhere: says what each process of the service has done; default: there is only this one.

    Attributes:
        limits: what one request may ask for.
        access: who may ask.
        gate: turns away whom `access` does not let in.
        observers: told of each request that has been answered.
    """

    def __init__(
        self,
        backend: Backend,
        observers: Sequence[Callable[[Done], None]] = (),
        access: Access | None = None,
        activity: Activity | None = None,
        everywhere: Callable[[], Awaitable[list[Searches]]] | None = None,
    ) -> None:
        self._backend = backend
        self._admission = _Admission(backend.limits.max_requests)
        self._activity, self._everywhere = activity or Activity(), everywhere
        self.limits = backend.limits
        self.access = access or Access()
        self.gate = Gate(self.access)
        self.observers = (self._activity.observe, *observers)

    async def search(self, body: bytes, *, arrow: bool, answer_in_arrow: bool) -> bytes:
        """The answer to a search.

        Args:
            body: the request.
            arrow: whether it is an Arrow stream instead of JSON.
            answer_in_arrow: whether the answer shall be one.
        """
        async with self._taken(body, arrow) as request:
            matches = await self._search(request)
        with stage("answer"):
            return answer.to_arrow(matches) if answer_in_arrow else answer.to_json(matches, self.info()["bits"])

    async def codes(self, body: bytes, *, arrow: bool) -> bytes:
        """The codes and logits of a search's queries, as JSON."""
        async with self._taken(body, arrow) as request:
            code_QC, logit_QK = await self._backend.codes_of(request)
        return codes_to_json(self.info(), code_QC, logit_QK)

    async def item(self, id: str, *, answer_in_arrow: bool) -> bytes:
        """One row, by its id as a text."""
        key = id if self.info()["id_type"] == "string" else whole_number(id)
        with self._admission:
            matches = await self._backend.lookup(key) if key is not None else None
        if matches is None or not len(matches.id_M):
            raise UnknownItemError(f"no row has the id {id!r}")
        return answer.to_arrow(matches) if answer_in_arrow else answer.item_to_json(matches)

    async def statistics(self) -> bytes:
        """Figures about the codes of the index and the searches of all processes, as JSON."""
        counts = await self._backend.statistics()
        searches = [self._activity.searches()] if self._everywhere is None else await self._everywhere()
        return statistics_to_json(self.info(), counts, figures(searches))

    async def ready(self) -> bytes:
        """Which version answers, as JSON, where every shard and the encoder do."""
        problems = await self._backend.problems()
        if problems:
            raise UnavailableError("; ".join(problems))
        return orjson.dumps({"status": "ready", "version": self.info()["version"]})

    def info(self) -> dict[str, Any]:
        """What is served."""
        return self._backend.info()

    @contextlib.asynccontextmanager
    async def _taken(self, body: bytes, arrow: bool) -> AsyncIterator[SearchRequest]:
        """The search in a body, which is at work while the block runs, for as long as it gives itself."""
        with self._admission:
            with stage("read"):
                request = (parse_arrow if arrow else parse)(body, self.limits)
            count(queries=len(request), at_work=self._admission.at_work)
            try:
                async with asyncio.timeout(None if request.timeout_ms is None else request.timeout_ms / 1000):
                    yield request
            except TimeoutError as error:
                raise DeadlineError(f"no answer within {request.timeout_ms} ms (timeout_ms)") from error

    async def _search(self, request: SearchRequest) -> Matches:
        if request.radius is None or request.limit is not None:
            return await self._backend.search(request)
        # Without a limit a radius can hold the whole index. One answer more than allowed is asked for, so that
        # an answer that would have to be cut is refused instead.
        share = self.limits.max_answers // max(1, len(request))
        most = min(self.limits.max_k, share)
        matches = await self._backend.search(dataclasses.replace(request, limit=most + 1))
        counts = matches.offset_Q1[1:] - matches.offset_Q1[:-1]
        if len(counts) and counts.max() > most:
            query = int(counts.argmax())
            raise RequestError(
                f"more than {most} rows lie within {request.radius} bits of query {query}: "
                "set limit, or ask for a smaller radius or fewer queries",
                "radius",
                True,
            )
        return matches
