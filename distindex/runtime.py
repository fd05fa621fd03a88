"""Joining a Ray cluster, or starting an embedded one; which devices and threads a job gets."""

from __future__ import annotations

import logging
import os
from typing import Any

from distindex.errors import DistindexError
from distindex.progress import say

PROCESS_ENVIRONMENT = {
    # A spinning OpenMP pool costs 10 to 50 times when another process is busy on the same cores.
    "OMP_WAIT_POLICY": "PASSIVE",
    "RAY_TRAIN_V2_ENABLED": "1",
    # Ray Train takes one report per poll; at the default of 2 s an epoch could not take less.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.1",
    # Ray Data's actor pools print a harmless error line each; what matters reaches us as an exception.
    "RAY_BACKEND_LOG_LEVEL": "fatal",
}


def start_ray() -> None:
    """Join the cluster that this process belongs to (`RAY_ADDRESS`, `ray job`), else start one here.

    The embedded cluster takes this machine's CPUs, keeps no dashboard and ends with this process.
    """
    import ray

    if ray.is_initialized():
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    for name, value in PROCESS_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    address = os.environ.get("RAY_ADDRESS")
    ray.init(
        address=address or "local",
        include_dashboard=None if address else False,
        log_to_driver=False,
        logging_level=logging.ERROR,
        runtime_env={"env_vars": {"OMP_WAIT_POLICY": "PASSIVE"}},
    )
    resources = ray.cluster_resources()
    where = f"cluster at {address}" if address else "embedded on this machine"
    say(f"ray: {where}, {resources.get('CPU', 0):.0f} CPUs, {resources.get('GPU', 0):.0f} GPUs")


def fetch(reference: Any) -> Any:
    """The result of a Ray task; our own errors come out as they were raised, without Ray's traceback."""
    import ray
    from ray.exceptions import RayTaskError

    try:
        return ray.get(reference)
    except RayTaskError as error:
        if isinstance(error.cause, DistindexError):
            raise error.cause from None
        raise


def cluster_cpus() -> int:
    import ray

    return int(ray.cluster_resources().get("CPU", 1))


def cluster_gpus() -> int:
    import ray

    return int(ray.cluster_resources().get("GPU", 0))
