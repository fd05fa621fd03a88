"""What of a service does not change with its version, and the applications of the shards of one version."""

from __future__ import annotations

import dataclasses
import ipaddress
import math
import secrets
from typing import Any

import ray
from ray import serve
from ray.serve.schema import LoggingConfig

from distindex.serving.access import Access
from distindex.serving.body import Limits
from distindex.serving.listener import DRAINING_S
from distindex.serving.parts import AT_ONCE, Shard
from distindex.serving.switch import Target

APPLICATION = "distindex"
# Applications of shards begin so; one for each, since an application ends with all of its deployments.
SHARDS = "index-"
# Access lines would cost more than small searches do.
LOGGING = LoggingConfig(log_level="WARNING", enable_access_log=False)


@dataclasses.dataclass(frozen=True)
class Listening:
    """How the HTTP replicas listen, and over gRPC too.

    Attributes:
        host: address to listen on.
        port: port to listen on; the replicas on one node share it.
        tls: PEM files of the certificate and of its key on every node; None speaks plain HTTP.
        access: who may ask.
        access_log: whether each request is a line in the log of the process that answers it.
        recall_sample: share of the batches that an approximate kind is measured by.
        grpc_port: port for gRPC, shared likewise; 0 has none.
    """

    host: str
    port: int
    tls: tuple[str, str] | None = None
    access: Access = dataclasses.field(default_factory=Access)
    access_log: bool = False
    recall_sample: float = 0.0
    grpc_port: int = 0

    @property
    def may_deploy(self) -> bool:
        """Whether anybody may choose the version: whoever has a token for it, or is on this machine."""
        if self.access.token_digests or self.access.deploy_digests or self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False


@dataclasses.dataclass(frozen=True)
class Plan:
    """What of a service does not change with the version that it serves.

    Attributes:
        index: directory of the index.
        hasher: directory of the hasher; None serves codes only.
        listening: where and to whom.
        replicas: replicas of each shard.
        encoder_replicas: replicas of the encoder.
        limits: what one request may ask for.
        timeout_s: longest wait for a shard or the encoder, in seconds.
        storage_options: passed to the fsspec file system.
        watch_s: the service goes to versions that are new within so many seconds; 0: when it is told to.
        alone: each listening process has all shards itself.
        cpus: that each replica of a shard or of the encoder reserves.
        service: tells apart services that this cluster had.
    """

    index: str
    hasher: str | None
    listening: Listening
    replicas: int
    encoder_replicas: int
    limits: Limits
    timeout_s: float
    storage_options: dict[str, Any]
    watch_s: float
    alone: bool
    cpus: float
    service: str


def target_of(info: dict[str, Any]) -> Target:
    """A version to be started, under a name that no other has."""
    return Target(f"{SHARDS}{info['version']}-{secrets.token_hex(4)}", info)


def cpus_of_each(processes: int) -> float:
    """CPUs that each of these processes reserves: one, or an equal part of what is free where that is less."""
    free = ray.available_resources().get("CPU", 0.0)
    share = math.floor(90 * free / processes) / 100 if processes else 1.0
    return max(0.01, min(1.0, share))


def deployment_options(cpus: float) -> dict[str, Any]:
    """What all deployments have in common."""
    environment = {"OMP_WAIT_POLICY": "PASSIVE", "OMP_NUM_THREADS": str(max(1, int(cpus)))}
    return {
        "ray_actor_options": {"num_cpus": cpus, "runtime_env": {"env_vars": environment}},
        "max_ongoing_requests": AT_ONCE,
        "health_check_period_s": 5,
        "graceful_shutdown_timeout_s": DRAINING_S + 1,
        "graceful_shutdown_wait_loop_s": 0.1,
    }


def shard_applications(plan: Plan, target: Target) -> list[str]:
    """The names of the applications of a version's shards; none where listening processes have them themselves."""
    return [] if plan.alone else [f"{target.name}-shard-{position}" for position in range(target.info["shards"])]


def shard_targets(plan: Plan, target: Target) -> list[serve.RunTarget]:
    """The applications of the shards of a version, ready for `serve.run_many`."""
    names = shard_applications(plan, target)
    # A version of more shards than the first had takes what is free.
    cpus = min(plan.cpus, cpus_of_each(len(names) * plan.replicas))
    made = []
    for position, name in enumerate(names):
        shard = serve.deployment(
            Shard, name=f"shard-{position}", num_replicas=plan.replicas, **deployment_options(cpus)
        )
        application = shard.bind(plan.index, target.version, position, plan.storage_options)
        made.append(serve.RunTarget(application, name, None, logging_config=LOGGING))
    return made
