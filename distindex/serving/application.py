"""The parts of the Ray Serve application: shards, the encoder, and the router that asks them and merges.

Each request goes from a router to every shard at once and comes back merged. torch and faiss never share a process:
the encoder has one, whatever has shards the other.
"""

from __future__ import annotations

import asyncio
import base64
import dataclasses
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, Protocol

import numpy as np
from ray.exceptions import RayError, RayTaskError
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle

from distindex.codes import CodeArray, pack
from distindex.errors import UnavailableError
from distindex.index.candidates import Nominees, merge_nominees
from distindex.index.matches import Matches, merge
from distindex.index.statistics import ShardStatistics
from distindex.serving.activity import stage
from distindex.serving.body import Limits
from distindex.serving.client import check_columns
from distindex.serving.items import by_codes, ids_of, without_items
from distindex.serving.request import READ_BY, Logits, SearchRequest, encode, make_request, naming_the_filter
from distindex.serving.together import Together

_CANARY_TIMEOUT_S = 5.0
# A PNG file of one pixel.
_BLACK_PIXEL = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNgAAAAAgABSK+kcQAAAABJRU5ErkJggg=="
)
# One request at work and one that waits for it: more would only share the replica's threads.
AT_ONCE = 2
# Batches that the shards are asked at once: one at work, one that is merged and written or on its way.
_BATCHES_AT_ONCE = 2


class Shard:
    """A replica of one shard of one version."""

    def __init__(self, uri: str, version: int, position: int, storage_options: dict[str, Any]) -> None:
        from distindex.index.index import Index

        self.index = Index.open(uri, version, storage_options=storage_options, shards=[position])

    def search(
        self,
        code_QC: CodeArray,
        k: int | None,
        radius: int | None,
        limit: int | None,
        columns: Sequence[str],
        filter: str | None,
        exact: bool = False,
    ) -> Matches:
        """The answers among the rows of one shard."""
        return self.index.search(code_QC, k, radius=radius, limit=limit, columns=columns, filter=filter, exact=exact)

    def lookup(self, ids: Sequence[int | str], columns: Sequence[str]) -> Matches:
        """The rows that have these ids."""
        return self.index.lookup(ids, columns)

    def statistics(self) -> ShardStatistics:
        """Counts over the codes of one shard."""
        return self.index.statistics()

    def nominate(
        self, logit_QK: Logits, k: int, candidates: int, columns: Sequence[str], filter: str | None
    ) -> Nominees:
        """What the shard contributes to a rescored search."""
        (nominees,) = self.index.nominate(logit_QK, k, candidates, columns, filter)
        return nominees

    def check_health(self) -> None:
        """A real query: a replica that is up may still not answer."""
        self.index.search(np.zeros((1, self.index.bits // 8), np.uint8), 1)


class Encoder:
    """A replica of the hasher."""

    def __init__(self, uri: str, storage_options: dict[str, Any], threads: int) -> None:
        import torch

        from distindex.hashing import Hasher

        torch.set_num_threads(threads)
        self.hasher = Hasher.load(uri, storage_options)

    def encode(self, request: SearchRequest) -> Logits:
        """The logits `logit_QK` of vectors, texts or images."""
        return encode(self.hasher, request)

    def check_health(self) -> None:
        """A real query: a replica that is up may still not answer."""
        features = self.hasher.features
        canary: dict[str, Any] = {
            "texts": ["canary"],
            "vectors": np.zeros((1, features.width)) if features.kind == "dense" else None,
            "images": _BLACK_PIXEL,
        }
        field = READ_BY[features.kind]
        encode(self.hasher, make_request(**{field: canary[field]}))


class Part(Protocol):
    """A process to ask: a shard, or the encoder."""

    async def call(self, method: str, arguments: tuple[Any, ...]) -> Any:
        """What a method of it returns, or raises."""
        ...


class There:
    """A deployment, asked through Ray."""

    def __init__(self, handle: DeploymentHandle) -> None:
        self._handle = handle

    async def call(self, method: str, arguments: tuple[Any, ...]) -> Any:
        response = getattr(self._handle, method).remote(*arguments)
        try:
            return await response
        except asyncio.CancelledError:
            response.cancel()
            raise
        except RayTaskError as error:
            raise error.cause from None


class Here:
    """A shard in this process, asked without a hop; the answers to others are written meanwhile."""

    def __init__(self, shard: Shard) -> None:
        self._shard = shard
        self._pool = ThreadPoolExecutor(AT_ONCE, thread_name_prefix="shard")

    async def call(self, method: str, arguments: tuple[Any, ...]) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._pool, getattr(self._shard, method), *arguments)


class _Settings(NamedTuple):
    """What requests must agree in to be searched together."""

    k: int | None
    radius: int | None
    limit: int | None
    columns: tuple[str, ...]
    filter: str | None
    allow_partial: bool


BatchObserver = Callable[[CodeArray, int | None, Matches], None]
"""Told of the codes `code_QC` of a batch, of k where it asks for the k nearest of all rows, and of its answers."""


class Router:
    """What is behind the HTTP interface: encodes where needed, asks every shard, merges.

    Args:
        shards: the deployments of the shards; None opens the only one here.
        encoder: the deployment of the hasher, if there is one.
        info: what `inspection.describe` says of the version.
        limits: what one request may ask for.
        timeout_s: longest wait for a shard or the encoder, in seconds.
        storage_options: passed to the fsspec file system.

    Attributes:
        observe_batch: told of each batch that was searched.
    """

    def __init__(
        self,
        shards: list[DeploymentHandle] | None,
        encoder: DeploymentHandle | None,
        info: dict[str, Any],
        limits: Limits,
        timeout_s: float,
        storage_options: dict[str, Any],
    ) -> None:
        self._shards: list[Part] = (
            [Here(Shard(info["index"], info["version"], 0, storage_options))]
            if shards is None
            else [There(shard) for shard in shards]
        )
        self._encoder = There(encoder) if encoder is not None else None
        self._together = Together(self._search_codes, self._most, _BATCHES_AT_ONCE)
        self._info = {**info, "limits": dataclasses.asdict(limits)}
        self._statistics: ShardStatistics | None = None
        self.observe_batch: BatchObserver | None = None
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
            merged = merge_nominees(found, request.k or 0, request.candidates or 0)
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
        if self.observe_batch is not None:
            self.observe_batch(code_QC, asked.k if asked.filter is None else None, merged)
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
            checks.append(_answer(self._encoder, "check_health", (), _CANARY_TIMEOUT_S))
        lost, *encoded = await asyncio.gather(*checks)
        found = [f"shard {position}: {why}" for position, why in lost.items()]
        return found + [f"encoder: {part}" for part in encoded if isinstance(part, Exception)]

    async def _logits(self, request: SearchRequest) -> Logits:
        if request.field == "logits":
            return request.logits(self._info["bits"])
        if self._encoder is None:
            raise UnavailableError(
                f"{request.field} cannot be searched: this index is served without a hasher; send codes"
            )
        encoded = await _answer(self._encoder, "encode", (request,), self._timeout_s)
        if isinstance(encoded, Exception):
            raise UnavailableError(f"the encoder did not answer: {encoded}")
        return encoded

    async def _ask_shards(self, method: str, arguments: tuple[Any, ...], timeout_s: float) -> list[Any]:
        """What each shard answers, or the exception that says why it did not."""
        return await asyncio.gather(*(_answer(shard, method, arguments, timeout_s) for shard in self._shards))


async def _answer(part: Part, method: str, arguments: tuple[Any, ...], timeout_s: float) -> Any:
    """The result of one call, or the exception that says why no replica gave one.

    What the call itself raises (a wrong request) is raised here with its own type.
    """
    deadline = asyncio.get_running_loop().time() + timeout_s
    while True:
        try:
            async with asyncio.timeout_at(deadline):
                return await part.call(method, arguments)
        except TimeoutError:
            return UnavailableError(f"no answer within {timeout_s:g} s")
        except (RayError, RayServeException) as error:
            # The replica died with the request; a search changes nothing, so another replica may answer it.
            if asyncio.get_running_loop().time() + 0.1 >= deadline:
                return UnavailableError(f"its replica was lost ({type(error).__name__})")
            await asyncio.sleep(0.1)
