"""Starting and stopping the service: checks first, then Ray, Serve, and the address to ask."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import secrets
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Any

import ray
from ray import serve as ray_serve
from ray.exceptions import RayError
from ray.experimental import internal_kv
from ray.serve._private.constants import SERVE_CONTROLLER_NAME, SERVE_LOGGER_NAME, SERVE_NAMESPACE
from ray.serve.config import ProxyLocation
from ray.serve.schema import ApplicationStatus

from distindex.errors import ConflictError, NotFoundError, UnavailableError
from distindex.hashing.description import read_description
from distindex.index.manifest import read_manifest
from distindex.progress import say
from distindex.runtime import start_ray
from distindex.serve_config import ServeConfig
from distindex.serving.access import Access, digests_of, read_tokens
from distindex.serving.body import Limits
from distindex.serving.deployer import KEPT, NAMESPACE
from distindex.serving.deployments import make_application
from distindex.serving.inspection import check_hasher, describe
from distindex.serving.listener import bind, check_certificate
from distindex.serving.plan import APPLICATION, LOGGING, Listening, Plan, cpus_of_each, shard_applications, target_of
from distindex.serving.remote import HttpSearcher
from distindex.serving.request import READ_BY
from distindex.serving.status import failure_of
from distindex.serving.transport import TOKEN_VARIABLE
from distindex.storage import Storage

_START_TIMEOUT_S = 600.0
_STOP_TIMEOUT_S = 60.0


class Service:
    """A running service. Stop it with `stop`, or use it as a context manager.

    Attributes:
        url: its address.
        info: what /v1/index said when it was ready.
        grpc_url: its address for gRPC, if it has one.
    """

    def __init__(self, url: str, info: dict[str, Any], token: str | None = None, grpc_url: str | None = None) -> None:
        self.url = url
        self.info = info
        self.grpc_url = grpc_url
        self._token = token

    @property
    def asks_for_token(self) -> bool:
        """Whether requests need a token."""
        return self._token is not None

    def connect(self) -> HttpSearcher:
        """A client of this service, which trusts whatever certificate it has."""
        return HttpSearcher(self.url, token=self._token, verify=False)

    def stop(self) -> None:
        """Stop answering; Ray goes on."""
        _shut_down()

    def __enter__(self) -> Service:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


def serve(config: ServeConfig, blocking: bool = True) -> Service:
    """Serve one version of an index over HTTP.

    It goes to another version when it is told to (`deploy`), or with `watch_s` when there is a newer one.

    Args:
        config: what to serve and where.
        blocking: return only after SIGINT or SIGTERM, when the service has stopped.

    Raises:
        InputError: there is no such index, version or hasher, they do not belong together, a file is damaged,
            or the port is taken.
        ConflictError: this Ray cluster serves something already.
        UnavailableError: the cluster could not start all parts in time.
    """
    began = time.monotonic()
    service = _start(config)
    announcement = [
        f"ready after {time.monotonic() - began:.1f} s at {service.url}, also in a browser"
        + (f", and at {service.grpc_url}" if service.grpc_url else ""),
        f"  try: {_example(service)}",
    ]
    if not blocking:
        for line in announcement:
            say(line)
        return service
    with service, _stop_signals() as stopped:
        for line in [*announcement, "  stop with Ctrl-C"]:
            say(line)
        stopped.wait()
        say("stopping")
    return service


def _start(config: ServeConfig) -> Service:
    manifest = read_manifest(Storage(config.index, config.storage_options), config.version)
    info = describe(config.index, manifest)
    hasher, encodes = choose_hasher(config, info)
    info["encodes"] = encodes
    listening, token = listening_of(config)
    bind(config.host, config.port, shared=False).close()
    if config.grpc_port:
        bind(config.host, config.grpc_port, shared=False, setting="grpc_port").close()
    say(
        f"serving {config.index} version {manifest.version}: {manifest.rows:,} rows, {manifest.bits} bits, "
        f"{len(manifest.shards)} shards x {config.replicas} replicas"
        + (f", {encodes} encoded by {hasher}" if hasher else ", codes only")
    )
    start_ray()
    _check_alone()
    # Serve tells the driver's terminal of its own steps, which say nothing to a user.
    logging.getLogger(SERVE_LOGGER_NAME).setLevel(logging.WARNING)
    plan, target = plan_of(config, info, hasher, listening), target_of(info)
    application = make_application(plan, target)
    try:
        ray_serve.start(proxy_location=ProxyLocation.Disabled, logging_config=LOGGING)
        ray_serve.run_many(
            [ray_serve.RunTarget(application, APPLICATION, "/", logging_config=LOGGING)],
            wait_for_applications_running=False,
        )
        _wait_until_running([APPLICATION, *shard_applications(plan, target)])
        secure = "s" if listening.tls else ""
        url = _address(f"http{secure}", config.host, config.port)
        grpc_url = _address(f"grpc{secure}", config.host, config.grpc_port) if config.grpc_port else None
        # The certificate is for the name that others know this service by.
        client = HttpSearcher(url, token=token, verify=False)
        client.wait_until_ready(_START_TIMEOUT_S)
        served = client.info()
        client.close()
    except BaseException:
        _shut_down()
        raise
    return Service(url, served, token, grpc_url)


def _address(scheme: str, host: str, port: int) -> str:
    """Where a service that listens on a host is asked from this machine."""
    shown = "127.0.0.1" if host in ("0.0.0.0", "::", "") else host
    return f"{scheme}://[{shown}]:{port}" if ":" in shown else f"{scheme}://{shown}:{port}"


def plan_of(config: ServeConfig, info: dict[str, Any], hasher: str | None, listening: Listening) -> Plan:
    """What does not change with the version, on the cluster as it is now.

    Args:
        config: what was asked for.
        info: what `inspection.describe` says of the first version.
        hasher: directory of the hasher; None serves codes only.
        listening: where and to whom.
    """
    nodes = sum(bool(node["Alive"]) for node in ray.nodes())
    alone = info["shards"] == 1 and nodes == 1
    # Twice what the shards need at first: those of another version are started beside.
    shards = (1 if alone else 2) * info["shards"] * config.replicas
    return Plan(
        index=config.index,
        hasher=hasher,
        listening=listening,
        replicas=config.replicas,
        encoder_replicas=config.encoder_replicas,
        limits=Limits(config.max_queries, config.max_k, config.max_requests),
        timeout_s=config.timeout_s,
        storage_options=config.storage_options,
        watch_s=config.watch_s,
        alone=alone,
        cpus=cpus_of_each(shards + (config.encoder_replicas if hasher else 0)),
        service=secrets.token_hex(8),
    )


def listening_of(config: ServeConfig) -> tuple[Listening, str | None]:
    """How the service listens, and a token for its own requests.

    Raises:
        InputError: the tokens are too weak, or the certificate cannot be used.
    """
    if config.token_file is not None:
        tokens, where = read_tokens(config.token_file), f"token_file: {config.token_file}"
    else:
        tokens, where = [os.environ[TOKEN_VARIABLE]] if os.environ.get(TOKEN_VARIABLE) else [], TOKEN_VARIABLE
    tls = None
    if config.tls_certificate is not None and config.tls_key is not None:
        tls = config.tls_certificate, config.tls_key
        check_certificate(*tls)
    deploy_digests: tuple[bytes, ...] = ()
    if config.deploy_token_file is not None:
        deploy_tokens = read_tokens(config.deploy_token_file)
        deploy_digests = digests_of(deploy_tokens, f"deploy_token_file: {config.deploy_token_file}")
    access = Access(digests_of(tokens, where), deploy_digests, config.requests_per_s, tuple(config.origins))
    listening = Listening(
        config.host, config.port, tls, access, config.access_log, config.recall_sample, config.grpc_port
    )
    return listening, tokens[0] if tokens else None


def choose_hasher(config: ServeConfig, info: dict[str, Any]) -> tuple[str | None, str | None]:
    """The hasher's URI and what it reads (vectors, texts or images); both None where the service runs none."""
    uri = config.hasher or (info["hasher"] or {}).get("uri")
    if not uri:
        return None, None
    try:
        description = read_description(Storage(uri, config.storage_options))
    except NotFoundError as error:
        if config.hasher:
            raise
        say(f"note: {error}; only codes can be searched (set hasher to its new place)")
        return None, None
    check_hasher(info, uri, description["bits"], description["fingerprint"])
    return uri, READ_BY[description["features"]["kind"]]


def _check_alone() -> None:
    try:
        running = ray_serve.status().applications
    except RayError:
        return
    if running:
        raise ConflictError(
            f"this Ray cluster serves already: {', '.join(sorted(running))}; stop it with `serve shutdown` first"
        )


def _wait_until_running(names: Sequence[str]) -> None:
    deadline = time.monotonic() + _START_TIMEOUT_S
    said = ""
    while time.monotonic() < deadline:
        running = ray_serve.status().applications
        found = [running[name] for name in names if name in running]
        for application in found:
            failure_of(application)
        if len(found) == len(names) and all(one.status == ApplicationStatus.RUNNING for one in found):
            return
        said = " ".join(one.message for one in found)
        time.sleep(0.1)
    raise UnavailableError(f"the service was not ready after {_START_TIMEOUT_S:.0f} s: {said or 'no status'}")


def _example(service: Service) -> str:
    query: dict[str, Any] = {"codes": "0" * (service.info["bits"] // 4), "k": 3}
    if service.info["encodes"] == "texts":
        query = {"texts": "a text to look for", "k": 3}
    header = f' -H "Authorization: Bearer ${TOKEN_VARIABLE}"' if service.asks_for_token else ""
    return f"curl{header} {service.url}/v1/search -d '{json.dumps(query)}'"


@contextlib.contextmanager
def _stop_signals() -> Iterator[threading.Event]:
    """An event that SIGINT and SIGTERM set while the block runs, instead of ending the process."""
    stopped = threading.Event()
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number in before:
        signal.signal(number, lambda *_: stopped.set())
    try:
        yield stopped
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _shut_down() -> None:
    """End Serve on this cluster and wait for it.

    `serve.shutdown` waits for a call that the end of the controller breaks off, which Ray reports as a failure on
    this process's standard output. Asked not to wait, the controller does the same without that line.
    """
    with contextlib.suppress(RayError):
        if not ray.is_initialized():
            return
        deadline = time.monotonic() + _STOP_TIMEOUT_S
        asked = False
        while time.monotonic() < deadline:
            try:
                controller = ray.get_actor(SERVE_CONTROLLER_NAME, namespace=SERVE_NAMESPACE)
            except ValueError:
                break
            if not asked:
                controller.graceful_shutdown.remote(wait=False)
                asked = True
            time.sleep(0.05)
        # Lets go of the client of the controller that is gone; the next service gets a new one.
        ray_serve.shutdown()
        # Of the services of this cluster, of which there is one at a time.
        internal_kv._internal_kv_del(KEPT, del_by_prefix=True, namespace=NAMESPACE)
