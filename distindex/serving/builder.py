"""The service as `serve deploy` and Kubernetes start it: an application that Serve builds from a config file.

cluster/serve.yaml is such a file; its `args` are the settings of `distindex serve`, and `nodes`.
"""

from __future__ import annotations

import dataclasses
import time
from typing import Any

import ray
from ray import serve

from distindex import settings
from distindex.config import check
from distindex.errors import UnavailableError
from distindex.index.manifest import read_manifest
from distindex.serve_config import ServeConfig
from distindex.serving.deployments import make_application
from distindex.serving.inspection import describe
from distindex.serving.plan import target_of
from distindex.serving.service import choose_hasher, listening_of, plan_of
from distindex.storage import Storage

_JOIN_TIMEOUT_S = 900.0


@dataclasses.dataclass
class BuilderConfig(ServeConfig):
    """Serve an index as an application of a Serve config file.

    Attributes:
        nodes: how many nodes of the cluster, the head among them, must have joined before the parts are placed: one
            process listens on each.
    """

    nodes: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self.nodes > 0, f"nodes: {self.nodes} must be positive")


def application(arguments: dict[str, Any]) -> serve.Application:
    """The application of one version of an index.

    Args:
        arguments: the settings of `BuilderConfig`, as in YAML.

    Raises:
        InputError: a setting is wrong, or there is no such index, version or hasher.
        UnavailableError: fewer nodes than asked for have joined the cluster in time.
    """
    config = settings.from_values(BuilderConfig, arguments)
    info = describe(config.index, read_manifest(Storage(config.index, config.storage_options), config.version))
    hasher, info["encodes"] = choose_hasher(config, info)
    listening, _ = listening_of(config)
    _wait_for_nodes(config.nodes)
    return make_application(plan_of(config, info, hasher, listening), target_of(info))


def _wait_for_nodes(wanted: int) -> None:
    deadline = time.monotonic() + _JOIN_TIMEOUT_S
    while (joined := sum(bool(node["Alive"]) for node in ray.nodes())) < wanted:
        if time.monotonic() > deadline:
            raise UnavailableError(
                f"nodes: {joined} of {wanted} have joined the cluster after {_JOIN_TIMEOUT_S:.0f} s; add nodes, or "
                "set nodes to what there is"
            )
        time.sleep(1)
