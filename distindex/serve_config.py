"""The configs of `distindex serve`, `deploy`, `query` and `top`; see `config`."""

from __future__ import annotations

import dataclasses
from typing import Any

from distindex.config import check


@dataclasses.dataclass
class ServeConfig:
    """Serve an index over HTTP, and over gRPC too where it has a port.

    Attributes:
        index: directory of the index.
        hasher: directory of the hasher; needed to search by vector or text. Default: the one the index names.
        version: version of the index; 0 takes the newest.
        watch_s: look for a newer version every so many seconds and go to it; 0: only when told to, with
            `distindex deploy`.
        host: address to listen on, on every node of the cluster: 0.0.0.0 where there are several.
        port: port to listen on.
        grpc_port: port for gRPC, by the same rules; 0 has none.
        replicas: replicas of each shard.
        encoder_replicas: replicas of the encoder.
        max_queries: queries in one request at most.
        max_k: answers per query at most.
        max_requests: requests at work at once in one process; while there are as many, others are turned away.
        timeout_s: longest wait for a shard or the encoder, in seconds.
        access_log: write a line of JSON for each request into the log of the process that answers it.
        recall_sample: share of the searches of an approximate kind that are repeated exactly, for the estimate of its
            recall among the metrics; 0 estimates none.
        token_file: a file with tokens, one a line, of which every request needs one. Default: the token in the
            environment variable DISTINDEX_TOKEN; without either everybody may ask.
        deploy_token_file: a file with tokens, one a line, of which a deployment needs one; they may ask too. Default:
            whoever may ask with a token, or from this machine, may deploy.
        tls_certificate: PEM file with the certificate and those that signed it, on every node that listens; the
            service speaks https then.
        tls_key: PEM file with the certificate's key, on every node that listens.
        requests_per_s: requests a second of one client address, more get 429; 0 sets no bound.
        origins: web pages elsewhere that may ask (CORS), such as https://example.org.
        storage_options: passed to the fsspec file system.
    """

    index: str
    hasher: str | None = None
    version: int = 0
    watch_s: float = 0.0
    host: str = "127.0.0.1"
    port: int = 8000
    grpc_port: int = 0
    replicas: int = 1
    encoder_replicas: int = 1
    max_queries: int = 1024
    max_k: int = 10_000
    max_requests: int = 128
    timeout_s: float = 30.0
    access_log: bool = False
    recall_sample: float = 0.01
    token_file: str | None = None
    deploy_token_file: str | None = None
    tls_certificate: str | None = None
    tls_key: str | None = None
    requests_per_s: float = 0.0
    origins: list[str] = dataclasses.field(default_factory=list)
    storage_options: dict[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        check(
            (self.tls_certificate is None) == (self.tls_key is None),
            "tls_certificate: goes with tls_key; set both, or none for plain http",
        )
        check(self.watch_s >= 0, f"watch_s: {self.watch_s} must not be negative")
        check(
            not (self.watch_s and self.version),
            "version: fixes the version, and watch_s follows the newest; leave one of them out",
        )
        check(self.requests_per_s >= 0, f"requests_per_s: {self.requests_per_s} must not be negative")
        check(0 <= self.recall_sample <= 1, f"recall_sample: {self.recall_sample} must lie in [0, 1]")
        check(0 < self.port < 65536, f"port: {self.port} must lie between 1 and 65535")
        check(0 <= self.grpc_port < 65536, f"grpc_port: {self.grpc_port} must lie between 0 and 65535")
        check(self.grpc_port != self.port, f"grpc_port: {self.grpc_port} is the port for HTTP; take another")
        check(self.replicas > 0, f"replicas: {self.replicas} must be positive")
        check(self.encoder_replicas > 0, f"encoder_replicas: {self.encoder_replicas} must be positive")
        check(self.max_queries > 0, f"max_queries: {self.max_queries} must be positive")
        check(self.max_k > 0, f"max_k: {self.max_k} must be positive")
        check(self.max_requests > 0, f"max_requests: {self.max_requests} must be positive")
        check(self.timeout_s > 0, f"timeout_s: {self.timeout_s} must be positive")


@dataclasses.dataclass
class DeployConfig:
    """Have a running service go to another version of its index.

    Attributes:
        target: address of the service (http://...).
        version: version of the index; 0 takes the newest. An older one than is served takes the service back.
        timeout_s: longest wait until it is served, in seconds; the service goes on after it.
    """

    target: str
    version: int = 0
    timeout_s: float = 900.0

    def __post_init__(self) -> None:
        check(self.version >= 0, f"version: {self.version} must not be negative")
        check(self.timeout_s > 0, f"timeout_s: {self.timeout_s} must be positive")


@dataclasses.dataclass
class QueryConfig:
    """Search an index, served or on disk.

    Attributes:
        target: address of a service (http://... or grpc://...), or path or URI of an index.
        texts: texts to search by.
        vectors: vectors to search by, each a list of numbers.
        codes: codes to search by, hexadecimal or base64.
        k: answers per query; default 10.
        radius: instead of k, all answers within this many bits.
        limit: answers per query at most, with radius.
        columns: payload columns to show.
        hasher: directory of the hasher, for an index on disk; default: the one the index names.
        logits: logits to search by, each a list of numbers, one a bit.
        rescore: rank by the logits of the texts, vectors, images or logits, which break ties by meaning; with k only.
        candidates: with rescore, the nearest codes that are ranked; default: 10 k, and at least 1000.
        images: paths or URIs of image files to search by.
        filter: only rows whose payload passes, for instance label == "sport" and year >= 2020.
        items: ids of rows of the index to search by; they are not among their own answers.
        storage_options: passed to the fsspec file system, for an index, a hasher and images.
    """

    target: str
    texts: list[str] = dataclasses.field(default_factory=list)
    vectors: list[list[float]] = dataclasses.field(default_factory=list)
    codes: list[str] = dataclasses.field(default_factory=list)
    k: int | None = None
    radius: int | None = None
    limit: int | None = None
    columns: list[str] = dataclasses.field(default_factory=list)
    hasher: str | None = None
    logits: list[list[float]] = dataclasses.field(default_factory=list)
    rescore: bool = False
    candidates: int | None = None
    images: list[str] = dataclasses.field(default_factory=list)
    filter: str | None = None
    items: list[int | str] = dataclasses.field(default_factory=list)
    storage_options: dict[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        given = [name for name in ("texts", "vectors", "codes", "logits", "images", "items") if getattr(self, name)]
        check(
            len(given) == 1,
            f"give exactly one of texts, vectors, codes, logits, images and items, not {given or 'none'}",
        )


@dataclasses.dataclass
class TopConfig:
    """Show what a service does, live.

    Attributes:
        target: address of the service (http://...).
        every_s: time between two looks, in seconds.
        looks: end after so many; 0 goes on until Ctrl-C.
        timeout_s: longest wait for one answer of the service, in seconds.
    """

    target: str
    every_s: float = 1.0
    looks: int = 0
    timeout_s: float = 10.0

    def __post_init__(self) -> None:
        check(self.every_s > 0, f"every_s: {self.every_s} must be positive")
        check(self.looks >= 0, f"looks: {self.looks} must not be negative")
        check(self.timeout_s > 0, f"timeout_s: {self.timeout_s} must be positive")
