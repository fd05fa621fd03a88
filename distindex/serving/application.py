"""The Ray Serve application: one deployment per shard, one that encodes, one that speaks HTTP.

Each request goes from the HTTP deployment to every shard at once and comes back merged. torch and faiss never
share a process: the encoder has one, the shards have the other, the HTTP deployment neither.
"""

from __future__ import annotations

import asyncio
import base64
import dataclasses
import math
from collections.abc import Awaitable, Sequence
from typing import Any

import numpy as np
import ray
from fastapi import FastAPI
from ray import serve
from ray.exceptions import RayError, RayTaskError
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle

from distindex.codes import CodeArray, pack
from distindex.errors import BusyError, UnavailableError
from distindex.index.candidates import Nominees, merge_nominees
from distindex.index.matches import Matches, merge
from distindex.serving.api import Limits, make_api
from distindex.serving.client import check_columns
from distindex.serving.request import READ_BY, Logits, SearchRequest, encode, make_request, naming_the_filter

_CANARY_TIMEOUT_S = 5.0
# A PNG file of one pixel.
_BLACK_PIXEL = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNgAAAAAgABSK+kcQAAAABJRU5ErkJggg=="
)
# One request at work and one that waits for it: more would only share the replica's threads.
_AT_ONCE = 2
_TURNED_AWAY = 128


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
    ) -> Matches:
        """The answers among the rows of one shard."""
        return self.index.search(code_QC, k, radius=radius, limit=limit, columns=columns, filter=filter)

    def lookup(self, ids: Sequence[int | str], columns: Sequence[str]) -> Matches:
        """The rows that have these ids."""
        return self.index.lookup(ids, columns)

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


class Router:
    """The HTTP deployment: parses, encodes where needed, asks every shard, merges."""

    def __init__(
        self,
        shards: list[DeploymentHandle],
        encoder: DeploymentHandle | None,
        info: dict[str, Any],
        limits: Limits,
        timeout_s: float,
    ) -> None:
        self._shards = shards
        self._encoder = encoder
        self._info = {**info, "limits": dataclasses.asdict(limits)}
        self._timeout_s = timeout_s
        self._at_work = 0
        self.limits = limits

    def __serve_build_asgi_app__(self) -> FastAPI:
        return make_api(self)

    def info(self) -> dict[str, Any]:
        """What is served."""
        return self._info

    async def search(self, request: SearchRequest) -> Matches:
        """The merged answer of all shards.

        Raises:
            RequestError: the request does not fit this index.
            BusyError: as many requests are at work as are taken at once.
            UnavailableError: a shard does not answer, and the request does not allow partial answers.
        """
        if self._at_work >= self.limits.max_requests:
            raise BusyError(f"{self._at_work} requests are at work, as many as are taken at once; try again")
        self._at_work += 1
        try:
            return await self._search(request)
        finally:
            self._at_work -= 1

    async def _search(self, request: SearchRequest) -> Matches:
        columns = check_columns(request, self._info)
        if request.field == "codes":
            code_QC, logit_QK = request.codes(self._info["bits"]), None
        else:
            logit_QK = await self._logits(request)
            code_QC = pack(logit_QK > 0)
        if request.rescore:
            method, arguments = "nominate", (logit_QK, request.k, request.candidates, columns, request.filter)
        else:
            asked = (code_QC, request.k, request.radius, request.limit, columns, request.filter)
            method, arguments = "search", asked
        with naming_the_filter():
            parts = await self._ask_shards(method, arguments, self._timeout_s)
        found = [part for part in parts if not isinstance(part, Exception)]
        missing = tuple(position for position, part in enumerate(parts) if isinstance(part, Exception))
        if missing and not (request.allow_partial and found):
            names = ", ".join(str(position) for position in missing)
            raise UnavailableError(
                f"shard {names} of {len(self._shards)} did not answer within {self._timeout_s:g} s; "
                "try again, or set allow_partial for the answers of the others"
            )
        if request.rescore:
            merged = merge_nominees(found, request.k or 0, request.candidates or 0)
        else:
            merged = merge(found, request.k if request.radius is None else request.limit)
        return dataclasses.replace(merged, missing_shards=missing) if missing else merged

    async def lookup(self, id: int | str) -> Matches:
        """The row with an id, as the answers to one query, of which there is one or none.

        Raises:
            UnavailableError: a shard that may have it does not answer.
        """
        columns = [column["name"] for column in self._info["payload"]]
        parts = await self._ask_shards("lookup", ([id], columns), self._timeout_s)
        answered = [part for part in parts if not isinstance(part, Exception)]
        if answered:
            found = merge(answered, 1)
            if len(found.id_M) or len(answered) == len(parts):
                return found
        lost = ", ".join(str(position) for position, part in enumerate(parts) if isinstance(part, Exception))
        raise UnavailableError(f"shard {lost} of {len(parts)}, which may have it, did not answer; try again")

    async def problems(self) -> list[str]:
        """Which shards, and whether the encoder, do not answer a canary query now."""
        code_QC = np.zeros((1, self._info["bits"] // 8), np.uint8)
        checks: list[Awaitable[Any]] = [
            self._ask_shards("search", (code_QC, 1, None, None, (), None), _CANARY_TIMEOUT_S)
        ]
        if self._encoder is not None:
            checks.append(_answer(self._encoder, "check_health", (), _CANARY_TIMEOUT_S))
        parts, *encoded = await asyncio.gather(*checks)
        found = [f"shard {position}: {part}" for position, part in enumerate(parts) if isinstance(part, Exception)]
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


async def _answer(handle: DeploymentHandle, method: str, arguments: tuple[Any, ...], timeout_s: float) -> Any:
    """The result of one call, or the exception that says why no replica gave one.

    What the call itself raises (a wrong request) is raised here with its own type.
    """
    deadline = asyncio.get_running_loop().time() + timeout_s
    while True:
        response = getattr(handle, method).remote(*arguments)
        try:
            async with asyncio.timeout_at(deadline):
                return await response
        except TimeoutError:
            response.cancel()
            return UnavailableError(f"no answer within {timeout_s:g} s")
        except RayTaskError as error:
            raise error.cause from None
        except (RayError, RayServeException) as error:
            # The replica died with the request; a search changes nothing, so another replica may answer it.
            if asyncio.get_running_loop().time() + 0.1 >= deadline:
                return UnavailableError(f"its replica was lost ({type(error).__name__})")
            await asyncio.sleep(0.1)


def cpus_of_each(processes: int) -> float:
    """CPUs that each of these processes reserves: one, or an equal part of what is free where that is less."""
    free = ray.available_resources().get("CPU", 0.0)
    share = math.floor(90 * free / processes) / 100 if processes else 1.0
    return max(0.01, min(1.0, share))


def make_application(
    info: dict[str, Any],
    hasher: str | None,
    *,
    replicas: int,
    encoder_replicas: int,
    limits: Limits,
    timeout_s: float,
    storage_options: dict[str, Any],
) -> serve.Application:
    """The application of one version of one index, ready for `serve.run`.

    Args:
        info: what `inspection.describe` says of the version.
        hasher: directory of the hasher; None serves codes only.
        replicas: replicas of each shard.
        encoder_replicas: replicas of the encoder.
        limits: what one request may ask for.
        timeout_s: longest wait for a shard or the encoder, in seconds.
        storage_options: passed to the fsspec file system.
    """
    shards = info["shards"]
    cpus = cpus_of_each(shards * replicas + (encoder_replicas if hasher else 0) + 1)
    environment = {"OMP_WAIT_POLICY": "PASSIVE", "OMP_NUM_THREADS": str(max(1, int(cpus)))}
    options: dict[str, Any] = {
        "ray_actor_options": {"num_cpus": cpus, "runtime_env": {"env_vars": environment}},
        "max_ongoing_requests": _AT_ONCE,
        "health_check_period_s": 5,
        "graceful_shutdown_timeout_s": 5,
        "graceful_shutdown_wait_loop_s": 0.1,
    }
    handles = [
        serve.deployment(Shard, name=f"shard-{position}", num_replicas=replicas, **options).bind(
            info["index"], info["version"], position, storage_options
        )
        for position in range(shards)
    ]
    encoder = None
    if hasher:
        encoder = serve.deployment(Encoder, name="encoder", num_replicas=encoder_replicas, **options).bind(
            hasher, storage_options, max(1, int(cpus))
        )
    router = serve.deployment(
        serve.ingress()(Router),
        name="http",
        # Room for those that are turned away: Serve would let them wait, and answer without saying why.
        **{**options, "max_ongoing_requests": 2 * limits.max_requests + _TURNED_AWAY},
    )
    return router.bind(handles, encoder, info, limits, timeout_s)
