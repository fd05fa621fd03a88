"""The router: what one version of an index answers. A request goes to every shard at once and comes back merged."""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from distindex.codes import CodeArray, pack
from distindex.errors import DamagedError, UnavailableError
from distindex.index.candidates import merge_nominees
from distindex.index.matches import Matches, merge
from distindex.index.statistics import ShardStatistics
from distindex.serving.activity import stage
from distindex.serving.body import Limits
from distindex.serving.client import check_columns
from distindex.serving.items import by_codes, ids_of, without_items
from distindex.serving.parts import Part, first_answer_of
from distindex.serving.request import Logits, RequestError, SearchRequest, naming_the_filter
from distindex.serving.together import Together

_CANARY_TIMEOUT_S = 5.0
# Batches that the shards are asked at once: one at work, one that is merged and written or on its way.
_BATCHES_AT_ONCE = 2


class _Settings(NamedTuple):
    """What requests must agree in to be searched together."""

    k: int | None
    radius: int | None
    limit: int | None
    columns: tuple[str, ...]
    filter: str | None
    allow_partial: bool


BatchObserver = Callable[["Router", CodeArray, int | None, Matches], None]
"""Told by whom a batch was searched, of its codes `code_QC`, of k where it asks for the k nearest of all rows, and of
its answers."""


class Router:
    """One version of an index: encodes where needed, asks every shard, merges.

    Args:
        shards: what to ask for the shards.
        encoder: what to ask for the hasher, if there is one.
        info: what `inspection.describe` says of the version.
        limits: what one request may ask for.
        timeout_s: longest wait for a shard or the encoder, in seconds.
        observe_batch: told of each batch that was searched.
    """

    def __init__(
        self,
        shards: Sequence[Part],
        encoder: Part | None,
        info: dict[str, Any],
        limits: Limits,
        timeout_s: float,
        observe_batch: BatchObserver | None = None,
    ) -> None:
        self._shards, self._encoder = shards, encoder
        self._together = Together(self._search_codes, self._most, _BATCHES_AT_ONCE)
        self._info = {**info, "limits": dataclasses.asdict(limits)}
        self._statistics: ShardStatistics | None = None
        self._observe_batch = observe_batch
        self._timeout_s = timeout_s
        self.limits = limits

    def info(self) -> dict[str, Any]:
        """What is served."""
        return self._info

    async def search(self, request: SearchRequest) -> Matches:
        """The merged answer of all shards.

        Raises:
            RequestError: the request does not fit this index.
            UnavailableError: a shard does not answer, and the request does not allow partial answers.
        """
        if request.field == "items":
            with stage("encode"):
                id_Q = ids_of(request, self._info["id_type"])
                found = await self._lookup(id_Q.to_pylist(), ())
            matches = await self.search(by_codes(request, id_Q, found))
            return without_items(matches, id_Q, request.k or request.limit)
        columns = check_columns(request, self._info)
        code_QC, logit_QK = await self.codes_of(request)
        with stage("search"):
            if not request.rescore:
                asked = request.k, request.radius, request.limit, columns, request.filter, request.allow_partial
                return await self._together.search(code_QC, _Settings(*asked))
            arguments = logit_QK, request.k, request.candidates, columns, request.filter
            found, missing = await self._ask_all("nominate", arguments, request.allow_partial)
            nominees = list(itertools.chain.from_iterable(found))
            merged = merge_nominees(nominees, request.k or 0, request.candidates or 0)
            return dataclasses.replace(merged, missing_shards=missing)

    async def codes_of(self, request: SearchRequest) -> tuple[CodeArray, Logits | None]:
        """The codes `code_QC` of a request's queries, and their logits `logit_QK` where there are some.

        Raises:
            RequestError: the queries do not fit this index or its hasher.
            UnavailableError: the encoder does not answer, or a shard that may have an item.
        """
        if request.field == "codes":
            return request.codes(self._info["bits"]), None
        with stage("encode"):
            if request.field == "items":
                id_Q = ids_of(request, self._info["id_type"])
                found = await self._lookup(id_Q.to_pylist(), ())
                return by_codes(request, id_Q, found).codes(self._info["bits"]), None
            logit_QK = await self._logits(request)
            return pack(logit_QK > 0), logit_QK

    async def statistics(self) -> ShardStatistics:
        """Counts over the codes of all shards, made when they are first asked for.

        Raises:
            UnavailableError: a shard does not answer.
        """
        if self._statistics is None:
            found, _ = await self._ask_all("statistics", (), False)
            self._statistics = ShardStatistics.sum(found)
        return self._statistics

    async def _search_codes(self, code_QC: CodeArray, asked: _Settings) -> Matches:
        arguments = code_QC, asked.k, asked.radius, asked.limit, asked.columns, asked.filter
        found, missing = await self._ask_all("search", arguments, asked.allow_partial)
        merged = merge(found, asked.k if asked.radius is None else asked.limit)
        merged = dataclasses.replace(merged, missing_shards=missing)
        if self._observe_batch is not None:
            self._observe_batch(self, code_QC, asked.k if asked.filter is None else None, merged)
        return merged

    async def search_exactly(self, code_QC: CodeArray, k: int) -> Matches:
        """The k nearest by a full scan, also where the index's kind may miss some.

        Raises:
            UnavailableError: a shard does not answer.
        """
        found, _ = await self._ask_all("search", (code_QC, k, None, None, (), None, True), False)
        return merge(found, k)

    def _most(self, asked: _Settings) -> int:
        """Queries that may be searched together: as many as one request may have."""
        answers = asked.k or asked.limit or self.limits.max_k
        return max(1, min(self.limits.max_queries, self.limits.max_answers // answers))

    async def _ask_all(
        self, method: str, arguments: tuple[Any, ...], allow_partial: bool
    ) -> tuple[list[Any], tuple[int, ...]]:
        """What the shards answer, and the positions of those that do not.

        Raises:
            UnavailableError: some do not answer, and partial answers are not allowed or there are none.
        """
        with naming_the_filter():
            parts = await self._ask_shards(method, arguments, self._timeout_s)
        found = [part for part in parts if not isinstance(part, Exception)]
        missing = tuple(position for position, part in enumerate(parts) if isinstance(part, Exception))
        if missing and not (allow_partial and found):
            names = ", ".join(str(position) for position in missing)
            raise UnavailableError(
                f"shard {names} of {len(self._shards)} did not answer within {self._timeout_s:g} s; "
                "try again, or set allow_partial for the answers of the others"
            )
        return found, missing

    async def lookup(self, id: int | str) -> Matches:
        """The row with an id, as the answers to one query, of which there is one or none.

        Raises:
            UnavailableError: a shard that may have it does not answer.
        """
        return await self._lookup([id], [column["name"] for column in self._info["payload"]])

    async def _lookup(self, ids: Sequence[int | str], columns: Sequence[str]) -> Matches:
        parts = await self._ask_shards("lookup", (ids, columns), self._timeout_s)
        answered = [part for part in parts if not isinstance(part, Exception)]
        if answered:
            found = merge(answered, 1)
            if len(found.id_M) == len(ids) or len(answered) == len(parts):
                return found
        lost = ", ".join(str(position) for position, part in enumerate(parts) if isinstance(part, Exception))
        raise UnavailableError(
            f"shard {lost} of {len(parts)}, which may have what was asked for, did not answer; try again"
        )

    async def lost_shards(self) -> dict[int, str]:
        """The positions of the shards that do not answer a canary query now, and why."""
        code_QC = np.zeros((1, self._info["bits"] // 8), np.uint8)
        parts = await self._ask_shards("search", (code_QC, 1, None, None, (), None), _CANARY_TIMEOUT_S)
        return {position: str(part) for position, part in enumerate(parts) if isinstance(part, Exception)}

    async def problems(self) -> list[str]:
        """Which shards, and whether the encoder, do not answer a canary query now."""
        checks: list[Awaitable[Any]] = [self.lost_shards()]
        if self._encoder is not None:
            checks.append(first_answer_of(self._encoder, "check_health", (), _CANARY_TIMEOUT_S))
        lost, *encoded = await asyncio.gather(*checks)
        found = [f"shard {position}: {why}" for position, why in lost.items()]
        return found + [f"encoder: {part}" for part in encoded if isinstance(part, Exception)]

    async def check(self) -> None:
        """Ask every shard, which searches first, what it has.

        Raises:
            UnavailableError: one does not answer.
            DamagedError: together they do not have this version.
        """
        found, _ = await self._ask_all("contents", (), False)
        expected = self._info["version"], self._info["bits"], self._info["id_type"]
        for position, contents in enumerate(found):
            if contents[:3] != expected:
                raise DamagedError(f"shard {position} has {contents[:3]} (version, bits, ids) instead of {expected}")
        rows = sum(contents.rows for contents in found)
        if rows != self._info["rows"]:
            raise DamagedError(f"the shards have {rows} rows instead of {self._info['rows']}")

    async def close(self) -> None:
        """Let go of the shards, once what is at work is answered."""
        await self._together.finished()
        for shard in self._shards:
            await shard.close()

    async def _logits(self, request: SearchRequest) -> Logits:
        if request.field == "logits":
            return request.logits(self._info["bits"])
        if self._encoder is None:
            message = f"{request.field} cannot be searched: this index is served without a hasher; send codes"
            raise RequestError(message, request.field)
        encoded = await first_answer_of(self._encoder, "encode", (request,), self._timeout_s)
        if isinstance(encoded, Exception):
            raise UnavailableError(f"the encoder did not answer: {encoded}")
        return encoded

    async def _ask_shards(self, method: str, arguments: tuple[Any, ...], timeout_s: float) -> list[Any]:
        """What each shard answers, or the exception that says why it did not."""
        return await asyncio.gather(*(first_answer_of(shard, method, arguments, timeout_s) for shard in self._shards))
