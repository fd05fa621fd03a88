"""The Ray Serve application: what listens, what encodes, and the deployer, which starts the shards of each version.

The replicas of the HTTP deployment listen on the service's port themselves: Serve starts, watches, replaces and stops
them, but its HTTP proxies, which would cost a small request many times what its search costs, are not started. Where
there is one shard on one machine, each of them has it; on several machines one listens on each.
"""

from __future__ import annotations

import asyncio
from typing import Any

import ray
from fastapi import FastAPI
from ray import serve
from ray.serve.handle import DeploymentHandle

from distindex.serving import access_log, deploy_routes
from distindex.serving.activity import Activity
from distindex.serving.api import make_api
from distindex.serving.application import Router
from distindex.serving.deployer import Deployer
from distindex.serving.grpc_listener import GrpcListener
from distindex.serving.listener import Listener
from distindex.serving.monitoring import Monitor
from distindex.serving.parts import Encoder, Here, Part, Shard, There
from distindex.serving.plan import Plan, deployment_options, shard_applications
from distindex.serving.responder import Responder
from distindex.serving.switch import Pinned, Switch, Target
from distindex.serving.tally import Teller


class Ingress:
    """A replica of the HTTP deployment.

    Args:
        plan: what does not change.
        encoder: the deployment of the hasher, if there is one.
        deployer: says which version to serve.
    """

    async def __init__(self, plan: Plan, encoder: DeploymentHandle | None, deployer: DeploymentHandle) -> None:
        self._plan, self._encoder = plan, encoder
        self._tasks: set[asyncio.Task[None]] = set()
        name = serve.get_replica_context().replica_id.unique_id
        leader = There(deployer)
        self._switch = Switch(self._open, plan.limits)
        self._monitor = Monitor(self._switch, plan.listening.recall_sample)
        await self._switch.start(leader)
        observers = (
            [self._monitor.observe, access_log.write] if plan.listening.access_log else [self._monitor.observe]
        )
        activity = Activity()
        teller = Teller(activity, leader)
        responder = Responder(self._switch, observers, plan.listening.access, activity, teller.everywhere)
        self._api = make_api(responder)
        deploying = deploy_routes.make_routes(self._switch, leader, plan.listening.may_deploy, responder.gate)
        self._api.include_router(deploying)
        self._api.add_middleware(Pinned, switch=self._switch)
        listening = plan.listening
        self._listener = Listener(self._api, listening.host, listening.port, listening.tls)
        await self._listener.started()
        if listening.grpc_port:
            self._grpc = GrpcListener(
                responder, listening.host, listening.grpc_port, listening.tls, pinned=self._switch.pinned
            )
            await self._grpc.start()
        loop = asyncio.get_running_loop()
        endless = self._monitor.run(), self._switch.follow(name, leader), teller.run()
        self._tasks = {loop.create_task(work) for work in endless}

    async def _open(self, target: Target) -> Router:
        plan = self._plan
        shards: list[Part]
        if plan.alone:
            # In a thread: what is served is answered meanwhile.
            shard = await asyncio.to_thread(Shard, plan.index, target.version, None, plan.storage_options)
            shards = [Here(shard)]
        else:
            # Not serve.get_deployment_handle, which keeps every handle for good.
            shards = [
                There(DeploymentHandle(f"shard-{position}", name), plan.replicas)
                for position, name in enumerate(shard_applications(plan, target))
            ]
        encoder = There(self._encoder, plan.encoder_replicas) if self._encoder is not None else None
        return Router(shards, encoder, target.info, plan.limits, plan.timeout_s, self._monitor.observe_batch)

    def __serve_build_asgi_app__(self) -> FastAPI:
        return self._api

    def check_health(self) -> None:
        """Serve replaces a replica that does not listen any more."""
        self._listener.check()

    async def __del__(self) -> None:
        # Serve ends a replica that could not start, too.
        if hasattr(self, "_listener"):
            for task in self._tasks:
                task.cancel()
            grpc = [self._grpc.stop()] if hasattr(self, "_grpc") else []
            await asyncio.gather(self._listener.stop(), *grpc)


def make_application(plan: Plan, target: Target) -> serve.Application:
    """The application of a service, which begins with a version and starts its shards itself.

    Args:
        plan: what does not change.
        target: what is served first.
    """
    options = deployment_options(plan.cpus)
    without_cpus = {**options, "ray_actor_options": {**options["ray_actor_options"], "num_cpus": 0}}
    ingress: dict[str, Any] = {**options, "num_replicas": plan.replicas}
    if not plan.alone:
        # The address is that of any node, also of one that has no CPUs for work.
        nodes = sum(bool(node["Alive"]) for node in ray.nodes())
        ingress = {**without_cpus, "num_replicas": nodes, "max_replicas_per_node": 1}
    ingress |= {"name": "http", "max_ongoing_requests": 2 * plan.limits.max_requests}
    # Each listening process waits for orders all the time.
    deployer = serve.deployment(Deployer, name="deployer", **{**without_cpus, "max_ongoing_requests": 1000})
    encoder = None
    if plan.hasher:
        encoder = serve.deployment(Encoder, name="encoder", num_replicas=plan.encoder_replicas, **options).bind(
            plan.hasher, plan.storage_options, max(1, int(plan.cpus))
        )
    http = serve.deployment(serve.ingress()(Ingress), **ingress)
    return http.bind(plan, encoder, deployer.bind(plan, target))
