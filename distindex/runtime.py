"""Joining a Ray cluster, or starting an embedded one; which devices and threads a job gets."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from typing import Any

from distindex.errors import DistindexError, InputError, UnavailableError
from distindex.progress import say

PROCESS_ENVIRONMENT = {
    # A spinning OpenMP pool costs 10 to 50 times when another process is busy on the same cores.
    "OMP_WAIT_POLICY": "PASSIVE",
    "RAY_TRAIN_V2_ENABLED": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    # Ray Train takes one report per poll; at the default of 2 s an epoch could not take less.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.1",
    # Ray Data's actor pools print a harmless error line each; what matters reaches us as an exception.
    "RAY_BACKEND_LOG_LEVEL": "fatal",
}

WORKER_ENVIRONMENT = {"OMP_WAIT_POLICY": "PASSIVE"}
_FREE_S = 2.0
# Where `ray job` leaves what it was told about a job, for the job's own process.
_JOB_CONFIG = "RAY_JOB_CONFIG_JSON_ENV_VAR"


def prepare_environment() -> None:
    """Settings that Ray reads from the environment; what the user has set stays."""
    for name, value in PROCESS_ENVIRONMENT.items():
        os.environ.setdefault(name, value)


def start_ray() -> None:
    """Join the cluster that this process belongs to (`RAY_ADDRESS`, `ray job`), else start one here.

    The embedded cluster takes this machine's CPUs, keeps no dashboard and ends with this process; its workers have
    the environment of this process. Those of another cluster get the runtime environment of the job, and
    `WORKER_ENVIRONMENT` where the job says nothing else.

    Raises:
        InputError: `RAY_ADDRESS` is the address of the dashboard.
        UnavailableError: no cluster answers at `RAY_ADDRESS`.
    """
    import ray

    prepare_environment()
    if ray.is_initialized():
        return
    address = os.environ.get("RAY_ADDRESS")
    if address and address.startswith(("http://", "https://")):
        raise InputError(
            f"RAY_ADDRESS: {address} is a dashboard, which takes jobs only; put it into RAY_API_SERVER_ADDRESS and "
            "use `ray job submit`, or set RAY_ADDRESS to HOST:6379"
        )
    environment = {}
    if address:
        # Ray refuses a variable that the job's own runtime environment sets too, even to the same value.
        set_by_job = job_runtime_environment().get("env_vars", {})
        environment = {name: value for name, value in WORKER_ENVIRONMENT.items() if name not in set_by_job}
    else:
        # Workers here have this process's environment. With one of their own, those that Ray starts ahead would be
        # of no use. And nobody need wait for a notice that one of several nodes goes, in a process of a second.
        os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
    with _quiet_start():
        try:
            ray.init(
                address=address or "local",
                include_dashboard=None if address else False,
                log_to_driver=False,
                logging_level=logging.ERROR,
                runtime_env={"env_vars": environment} if environment else None,
            )
        except ConnectionError as error:
            raise UnavailableError(
                f"RAY_ADDRESS: no Ray cluster answers at {address}; start it, or unset RAY_ADDRESS to work here"
            ) from error
    resources = ray.cluster_resources()
    where = f"cluster at {address}" if address else "embedded on this machine"
    say(f"ray: {where}, {resources.get('CPU', 0):.0f} CPUs, {resources.get('GPU', 0):.0f} GPUs")
    if address and resources.get("CPU") and not free_cpus(enough=1):
        say("ray: no CPU is free; what needs one waits until what holds them ends, a service perhaps, or another job")


def is_submitted_job() -> bool:
    """Whether this process was started by `ray job submit`."""
    return _JOB_CONFIG in os.environ


def job_runtime_environment() -> dict[str, Any]:
    """The runtime environment that this job was submitted with; empty outside a job."""
    return json.loads(os.environ.get(_JOB_CONFIG, "{}")).get("runtime_env") or {}


@contextlib.contextmanager
def _quiet_start() -> Iterator[None]:
    """Hold back what Ray's native code writes to stderr while it starts; shown only if starting fails."""
    sys.stderr.flush()
    with tempfile.TemporaryFile() as held:
        kept = os.dup(2)
        os.dup2(held.fileno(), 2)
        try:
            yield
        except BaseException:
            os.dup2(kept, 2)
            held.seek(0)
            sys.stderr.write(held.read().decode(errors="replace"))
            raise
        finally:
            os.dup2(kept, 2)
            os.close(kept)


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


def largest_node_cpus() -> int:
    """CPUs of the node that has most: no worker can have more."""
    import ray

    return int(max((node["Resources"].get("CPU", 0) for node in ray.nodes() if node["Alive"]), default=1))


def free_cpus(enough: int | None = None) -> int:
    """CPUs of the cluster that nothing holds; looks again for a moment, since Ray counts what has ended late.

    Args:
        enough: look no longer where so many are free; by default all.
    """
    import ray

    enough, deadline, free = enough or cluster_cpus(), time.monotonic() + _FREE_S, 0
    while (free := max(free, int(ray.available_resources().get("CPU", 0)))) < enough:
        if time.monotonic() > deadline:
            break
        time.sleep(0.05)
    return free


def cluster_gpus() -> int:
    import ray

    return int(ray.cluster_resources().get("GPU", 0))
