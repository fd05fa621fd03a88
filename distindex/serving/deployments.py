"""The Ray Serve application: one deployment per shard, one that encodes, one that speaks HTTP.

The replicas of the HTTP deployment listen on the service's port themselves: Serve starts, watches, replaces and stops
them, but its HTTP proxies, which would cost a small request many times what its search costs, are not started. Where
there is one shard on one machine, each of them has it; on several machines one listens on each.
"""

from __future__ import annotations

import asyncio
import dataclasses
import math
from typing import Any

import ray
from fastapi import FastAPI
from ray import serve

from distindex.serving import access_log
from distindex.serving.access import Access
from distindex.serving.api import make_api
from distindex.serving.application import AT_ONCE, Encoder, Router, Shard
from distindex.serving.body import Limits
from distindex.serving.listener import DRAINING_S, Listener
from distindex.serving.monitoring import Monitor


@dataclasses.dataclass(frozen=True)
class Listening:
    """How the HTTP replicas listen.

    Attributes:
        host: address to listen on.
        port: port to listen on; the replicas on one node share it.
        tls: PEM files of the certificate and of its key on every node; None speaks plain HTTP.
        access: who may ask.
        access_log: whether each request is a line in the log of the process that answers it.
        recall_sample: share of the batches that an approximate kind is measured by.
    """

    host: str
    port: int
    tls: tuple[str, str] | None = None
    access: Access = dataclasses.field(default_factory=Access)
    access_log: bool = False
    recall_sample: float = 0.0


class Ingress:
    """A replica of the HTTP deployment.

    Args:
        listening: where and to whom.
        router: arguments of `Router`.
    """

    async def __init__(self, listening: Listening, *router: Any) -> None:
        backend = Router(*router)
        monitor = Monitor(backend, backend.info(), listening.recall_sample)
        backend.observe_batch = monitor.observe_batch
        self._monitoring = asyncio.get_running_loop().create_task(monitor.run())
        observers = [monitor.observe, access_log.write] if listening.access_log else [monitor.observe]
        self._api = make_api(backend, observers, listening.access)
        self._listener = Listener(self._api, listening.host, listening.port, listening.tls)
        await self._listener.started()

    def __serve_build_asgi_app__(self) -> FastAPI:
        return self._api

    def check_health(self) -> None:
        """Serve replaces a replica that does not listen any more."""
        self._listener.check()

    async def __del__(self) -> None:
        # Serve ends a replica that could not start, too.
        if hasattr(self, "_listener"):
            self._monitoring.cancel()
            await self._listener.stop()


def cpus_of_each(processes: int) -> float:
    """CPUs that each of these processes reserves: one, or an equal part of what is free where that is less."""
    free = ray.available_resources().get("CPU", 0.0)
    share = math.floor(90 * free / processes) / 100 if processes else 1.0
    return max(0.01, min(1.0, share))


def make_application(
    info: dict[str, Any],
    hasher: str | None,
    *,
    listening: Listening,
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
        listening: where and to whom.
        replicas: replicas of each shard.
        encoder_replicas: replicas of the encoder.
        limits: what one request may ask for.
        timeout_s: longest wait for a shard or the encoder, in seconds.
        storage_options: passed to the fsspec file system.
    """
    shards = info["shards"]
    nodes = sum(bool(node["Alive"]) for node in ray.nodes())
    alone = shards == 1 and nodes == 1
    encoders = encoder_replicas if hasher else 0
    cpus = cpus_of_each(shards * replicas + encoders)
    threads = max(1, int(cpus))
    environment = {"OMP_WAIT_POLICY": "PASSIVE", "OMP_NUM_THREADS": str(threads)}
    actor: dict[str, Any] = {"num_cpus": cpus, "runtime_env": {"env_vars": environment}}
    options: dict[str, Any] = {
        "ray_actor_options": actor,
        "max_ongoing_requests": AT_ONCE,
        "health_check_period_s": 5,
        "graceful_shutdown_timeout_s": DRAINING_S + 1,
        "graceful_shutdown_wait_loop_s": 0.1,
    }
    ingress = {**options, "name": "http", "max_ongoing_requests": 2 * limits.max_requests}
    handles = None
    if alone:
        ingress["num_replicas"] = replicas
    else:
        handles = [
            serve.deployment(Shard, name=f"shard-{position}", num_replicas=replicas, **options).bind(
                info["index"], info["version"], position, storage_options
            )
            for position in range(shards)
        ]
        # The address is that of any node, also of one that has no CPUs for work.
        ingress |= {
            "num_replicas": nodes,
            "max_replicas_per_node": 1,
            "ray_actor_options": {**actor, "num_cpus": 0},
        }
    encoder = None
    if hasher:
        encoder = serve.deployment(Encoder, name="encoder", num_replicas=encoder_replicas, **options).bind(
            hasher, storage_options, threads
        )
    return serve.deployment(serve.ingress()(Ingress), **ingress).bind(
        listening, handles, encoder, info, limits, timeout_s, storage_options
    )
