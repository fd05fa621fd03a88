"""The processes behind the router: shards and the encoder, and how each is asked.

torch and faiss never share a process: the encoder has one, whatever has shards the other.
"""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, Protocol

import numpy as np
from ray.exceptions import RayError, RayTaskError
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle

from distindex.codes import CodeArray, unpack
from distindex.errors import DamagedError, UnavailableError
from distindex.index.candidates import Nominees
from distindex.index.matches import Matches
from distindex.index.statistics import ShardStatistics
from distindex.serving.request import READ_BY, Logits, SearchRequest, encode, make_request

# A PNG file of one pixel.
_BLACK_PIXEL = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNgAAAAAgABSK+kcQAAAABJRU5ErkJggg=="
)
# One request at work and one that waits for it: more would only share the replica's threads.
AT_ONCE = 2
# While a replica does not answer, another is asked, each time after this share of the longest wait. Serve passes over
# a replica that has as many as it may have, so that one attempt more than that reaches another.
_LATE, _ATTEMPTS = 0.1, AT_ONCE + 1
# Attempts of one deployment beside those that are waited for: where all are slow, asking more makes them slower.
_MOST_BESIDE = 2 * AT_ONCE


class Contents(NamedTuple):
    """What a replica of a shard has; rows are those that are not deleted."""

    version: int
    bits: int
    id_type: str
    rows: int


class Shard:
    """A replica of one shard of one version.

    Args:
        uri: directory of the index.
        version: its number.
        position: of the shard in the version; None opens all of them.
        storage_options: passed to the fsspec file system.
    """

    def __init__(self, uri: str, version: int, position: int | None, storage_options: dict[str, Any]) -> None:
        from distindex.index.index import Index

        chosen = None if position is None else [position]
        self.index = Index.open(uri, version, storage_options=storage_options, shards=chosen)

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
    ) -> list[Nominees]:
        """What each open shard contributes to a rescored search."""
        return self.index.nominate(logit_QK, k, candidates, columns, filter)

    def contents(self) -> Contents:
        """What the replica has, after a real query."""
        self.check_health()
        manifest = self.index.manifest
        entries = [manifest.shards[position] for position in self.index.positions]
        deletions = [manifest.deletion_of(entry.name) for entry in entries]
        rows = sum(entry.rows for entry in entries) - sum(deletion.rows for deletion in deletions if deletion)
        return Contents(manifest.version, manifest.bits, manifest.id_type, rows)

    def check_health(self) -> None:
        """A real query: a replica that is up may still not answer.

        Raises:
            DamagedError: its answer is wrong.
        """
        found = self.index.search(np.zeros((1, self.index.bits // 8), np.uint8), 1)
        if (unpack(found.code_MC).sum(axis=1) != found.distance_M).any():
            raise DamagedError(f"version {self.index.version}: a canary query got a wrong distance")

    def close(self) -> None:
        """Let go of the index."""
        self.index.close()


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

    async def close(self) -> None:
        """Let go of what it takes to ask; nobody asks any more."""
        ...


class There:
    """A deployment, asked through Ray.

    Args:
        handle: the deployment.
        replicas: how many it has.
    """

    def __init__(self, handle: DeploymentHandle, replicas: int = 1) -> None:
        self._handle, self.replicas = handle, replicas
        self.beside: set[asyncio.Task[Any]] = set()

    def keep(self, attempt: asyncio.Task[Any]) -> None:
        """Let an attempt beside the first, or behind another, go on until it ends, whoever waits for it."""

        def end(attempt: asyncio.Task[Any]) -> None:
            self.beside.discard(attempt)
            if not attempt.cancelled():
                # asyncio complains of failures that nobody looked at.
                attempt.exception()

        self.beside.add(attempt)
        attempt.add_done_callback(end)

    async def call(self, method: str, arguments: tuple[Any, ...]) -> Any:
        response = getattr(self._handle, method).remote(*arguments)
        try:
            return await response
        except asyncio.CancelledError:
            response.cancel()
            raise
        except RayTaskError as error:
            raise error.cause from None

    async def close(self) -> None:
        await self._handle.shutdown_async()


class Here:
    """A shard in this process, asked without a hop; the answers to others are written meanwhile."""

    def __init__(self, shard: Shard) -> None:
        self._shard = shard
        self._pool = ThreadPoolExecutor(AT_ONCE, thread_name_prefix="shard")
        self._closed = False

    async def call(self, method: str, arguments: tuple[Any, ...]) -> Any:
        try:
            return await asyncio.get_running_loop().run_in_executor(
                self._pool, getattr(self._shard, method), *arguments
            )
        except RuntimeError as error:
            if self._closed:
                raise UnavailableError("this version is no longer served") from error
            raise

    async def close(self) -> None:
        self._closed = True
        await asyncio.to_thread(self._pool.shutdown)
        self._shard.close()


async def answer_of(part: Part, method: str, arguments: tuple[Any, ...], timeout_s: float) -> Any:
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


async def first_answer_of(part: Part, method: str, arguments: tuple[Any, ...], timeout_s: float) -> Any:
    """As `answer_of`, but of whichever replica is first: while one does not answer, another is asked.

    For questions that change nothing. A replica that was lost says so at once; one that hangs, or whose node cannot
    be reached any more, says nothing until Ray gives it up.
    """
    if not isinstance(part, There) or part.replicas == 1:
        return await answer_of(part, method, arguments, timeout_s)
    deadline = asyncio.get_running_loop().time() + timeout_s
    attempts: list[asyncio.Task[Any]] = []
    answered: set[asyncio.Task[Any]] = set()
    try:
        while not answered:
            if not attempts or (len(attempts) < _ATTEMPTS and len(part.beside) < _MOST_BESIDE):
                left_s = deadline - asyncio.get_running_loop().time()
                attempts.append(asyncio.create_task(answer_of(part, method, arguments, left_s)))
                if len(attempts) > 1:
                    part.keep(attempts[-1])
            # Each attempt ends by itself when the time is over.
            late_s = timeout_s * _LATE if len(attempts) < _ATTEMPTS else None
            answered, _ = await asyncio.wait(attempts, timeout=late_s, return_when=asyncio.FIRST_COMPLETED)
    except asyncio.CancelledError:
        for attempt in attempts:
            attempt.cancel()
        raise
    first = answered.pop()
    if attempts[0] is not first:
        # Left to end by itself: until then it counts to its replica, which so gets no more than it may have.
        part.keep(attempts[0])
    return first.result()
