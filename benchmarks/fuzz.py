"""Bad requests against a running service: none may end in a failure of the service, and its memory stays as it is.

    python -m benchmarks.fuzz [--quick] [--examples 2000] [--seed 0]

Requests come from the service's own OpenAPI document (schemathesis: what it allows and what it does not, and each
answer is held against the document), from Arrow streams with bytes changed, cut or of other columns, and from bytes
that are no protobuf, or are, with such bodies. The service's answers may be anything but 500.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import httpx
import hypothesis.strategies as st
import numpy as np
import pyarrow as pa
import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from schemathesis.generation import GenerationMode
from schemathesis.specs.openapi import checks as openapi_checks

from benchmarks.reporting import Benchmark
from benchmarks.serve_peers import free_port
from distindex.serving.answer import ARROW_STREAM, stream_of
from distindex.serving.search_pb2 import DESCRIPTOR, ItemRequest, Queries

_SERVICE = DESCRIPTOR.services_by_name["Search"].full_name
_CALLS = [method.name for method in DESCRIPTOR.services_by_name["Search"].methods]
# What a service may say to bad input, and to too much of it.
_HTTP_STATUS = {200, 400, 404, 413, 429, 503, 504}
_GRPC_STATUS = {
    grpc.StatusCode.OK,
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED,
}

Counts = dict[str, int]


def _repeat(strategy: st.SearchStrategy[Any], ask: Callable[[Any], str], examples: int, number: int) -> Counts:
    """How often each outcome came; an AssertionError carries the smallest example that fails."""
    counts: Counts = {}

    @seed(number)
    @settings(
        max_examples=examples,
        deadline=None,
        database=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large],
        phases=(Phase.generate, Phase.shrink),
    )
    @given(strategy)
    def run(value: Any) -> None:
        outcome = ask(value)
        counts[outcome] = counts.get(outcome, 0) + 1

    run()
    return counts


def fuzz_openapi(url: str, examples: int, number: int) -> Counts:
    """Requests that the OpenAPI document allows, and some that it does not, each answer checked against it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        schema = schemathesis.openapi.from_url(f"{url}/openapi.json")
    checks: Any = [
        openapi_checks.status_code_conformance,
        openapi_checks.content_type_conformance,
        openapi_checks.response_schema_conformance,
    ]

    def ask(case: Any) -> str:
        return str(case.call_and_validate(base_url=url, checks=checks).status_code)

    counts: Counts = {}
    operations: list[Any] = [found.ok() for found in schema.get_all_operations()]  # type: ignore[union-attr]
    for operation in operations:
        # A path without a parameter or a body is one request, however often it is made.
        varied = operation.body or operation.path_parameters
        modes = (GenerationMode.POSITIVE, GenerationMode.NEGATIVE) if operation.body else (GenerationMode.POSITIVE,)
        for mode in modes:
            strategy = operation.as_strategy(generation_mode=mode)
            for status, count in _repeat(strategy, ask, examples if varied else 1, number).items():
                counts[status] = counts.get(status, 0) + count
    return counts


def _tables(bits: int) -> st.SearchStrategy[pa.Table]:
    """Tables of one column of queries, some right and most wrong."""
    size = bits // 8
    numbers = st.lists(st.floats(width=32) | st.none(), max_size=2 * bits)
    files, texts = st.lists(st.binary(max_size=2 * size), max_size=5), st.lists(st.text(max_size=20), max_size=5)
    codes = st.lists(st.binary(min_size=size, max_size=size).map(bytes.hex), min_size=1, max_size=5)
    whole_numbers = st.lists(st.integers(-(1 << 63), (1 << 63) - 1) | st.none(), min_size=1, max_size=5)
    columns = st.one_of(
        st.tuples(st.just("codes"), codes),
        st.tuples(st.sampled_from(["codes", "images", "texts"]), files),
        st.tuples(st.sampled_from(["codes", "texts", "items", "nothing"]), texts),
        st.tuples(st.just("items"), whole_numbers),
        st.tuples(st.sampled_from(["logits", "vectors"]), st.lists(numbers, min_size=1, max_size=4)),
    )
    values = st.none() | st.booleans() | st.integers(-5, 2000) | st.text(max_size=10) | st.lists(st.text(max_size=5))
    names = ["k", "radius", "limit", "columns", "filter", "rescore", "candidates", "timeout_ms", "allow_partial", "?"]
    whole = st.dictionaries(st.sampled_from(names), values, max_size=3).map(lambda given: json.dumps(given).encode())
    metadata = whole | st.binary(max_size=20)

    def make(column: tuple[str, list[Any]], search: bytes) -> pa.Table:
        return pa.table({column[0]: pa.array(column[1])}).replace_schema_metadata({"search": search})

    return st.builds(make, columns, metadata)


def _damaged(data: bytes, places: list[tuple[int, int]], cut: int | None) -> bytes:
    changed = bytearray(data)
    for place, value in places:
        changed[place % len(changed)] = value
    return bytes(changed if cut is None else changed[: cut % len(changed)])


def _bodies(bits: int) -> st.SearchStrategy[bytes]:
    streams = _tables(bits).map(stream_of)
    places = st.lists(st.tuples(st.integers(0, 1 << 14), st.integers(0, 255)), max_size=4)
    return st.builds(_damaged, streams, places, st.none() | st.integers(0, 1 << 14)) | st.binary(max_size=300)


def fuzz_arrow(url: str, bits: int, examples: int, number: int) -> Counts:
    """Arrow streams, damaged and not, over HTTP."""
    with httpx.Client(timeout=60) as client:

        def ask(body: bytes) -> str:
            status = client.post(f"{url}/v1/search", content=body, headers={"Content-Type": ARROW_STREAM}).status_code
            assert status in _HTTP_STATUS, status
            return str(status)

        return _repeat(_bodies(bits), ask, examples, number)


def fuzz_grpc(address: str, bits: int, examples: int, number: int) -> Counts:
    """Bytes, and messages with such bodies, to every call over gRPC."""
    texts = st.text(max_size=50) | st.dictionaries(st.text(max_size=10), st.integers() | st.text()).map(json.dumps)
    messages = st.one_of(
        st.binary(max_size=100),
        st.builds(Queries, arrow=_bodies(bits)).map(Queries.SerializeToString),
        st.builds(Queries, json=texts).map(Queries.SerializeToString),
        st.builds(ItemRequest, id=st.text(max_size=30), arrow=st.booleans()).map(ItemRequest.SerializeToString),
    )
    with grpc.insecure_channel(address) as channel:

        def ask(sent: tuple[str, bytes]) -> str:
            try:
                channel.unary_unary(f"/{_SERVICE}/{sent[0]}")(sent[1], timeout=60)
                status = grpc.StatusCode.OK
            except grpc.RpcError as error:
                status = error.code()  # type: ignore[attr-defined]
            assert status in _GRPC_STATUS, status
            return status.name

        return _repeat(st.tuples(st.sampled_from(_CALLS), messages), ask, examples, number)


def _memory_mib() -> float:
    """Resident memory of the service's processes, which this one has started."""
    statuses: dict[int, dict[str, str]] = {}
    for file in Path("/proc").glob("[0-9]*/status"):
        with contextlib.suppress(OSError):
            lines = (line.partition(":") for line in file.read_text().splitlines())
            statuses[int(file.parent.name)] = {name: value.strip() for name, _, value in lines}
    parents = {process: int(status["PPid"]) for process, status in statuses.items()}

    def is_ours(process: int) -> bool:
        while process in parents and process != os.getpid():
            process = parents[process]
        return process == os.getpid()

    # Ray names its workers so; the kernel keeps 15 characters.
    replicas = [process for process, status in statuses.items() if status["Name"].startswith("ray::ServeRepli")]
    kilobytes = [int(statuses[process]["VmRSS"].split()[0]) for process in replicas if is_ours(process)]
    assert kilobytes, "no process of the service was found"
    return sum(kilobytes) / 1024


def main() -> int:
    benchmark = Benchmark("fuzz", "Bad requests over HTTP and gRPC: failures of the service, and its memory")
    benchmark.parser.add_argument("--examples", type=int, default=2000, help="requests of each kind, in each half")
    benchmark.parser.add_argument("--seed", type=int, default=0, help="of the requests")
    options = benchmark.parse()
    examples = 100 if options.quick else options.examples // 2

    from distindex.index.index import Index
    from distindex.serve_config import ServeConfig
    from distindex.serving.service import serve

    bits, rows = 64, 20_000
    code_NC = np.random.default_rng(0).integers(0, 256, (rows, bits // 8), dtype=np.uint8)
    payload = pa.table({"row": np.arange(rows), "name": [f"name {row}" for row in range(rows)]})
    table = []
    with tempfile.TemporaryDirectory() as directory:
        Index.create(f"{directory}/index", code_NC, np.arange(rows), payload).close()
        config = ServeConfig(f"{directory}/index", port=free_port(), grpc_port=free_port())
        with serve(config, blocking=False) as service:
            assert service.grpc_url is not None
            address = service.grpc_url.removeprefix("grpc://")
            kinds: dict[str, Callable[[int], Counts]] = {
                "from the OpenAPI document": lambda number: fuzz_openapi(service.url, examples, number),
                "Arrow streams": lambda number: fuzz_arrow(service.url, bits, examples, number),
                "gRPC calls": lambda number: fuzz_grpc(address, bits, examples, number),
            }
            # The first half warms what is made once; memory is compared over the second.
            for half in range(2):
                for kind, fuzz in kinds.items():
                    before, began = _memory_mib(), time.perf_counter()
                    counts = fuzz(2 * options.seed + half)
                    table.append(
                        {
                            "requests": kind,
                            "half": half + 1,
                            "count": sum(counts.values()),
                            "outcomes": ", ".join(f"{status}: {n}" for status, n in sorted(counts.items())),
                            "seconds": time.perf_counter() - began,
                            "MiB before": before,
                            "MiB after": _memory_mib(),
                        }
                    )
            with service.connect() as client:
                assert client.search(code_NC[:1], k=1).distance_M.tolist() == [0]
    second = [row for row in table if row["half"] == 2]
    figures = {
        "requests": sum(row["count"] for row in table),
        "failures": 0,
        "mib_before_second_half": round(second[0]["MiB before"], 1),
        "mib_after": round(second[-1]["MiB after"], 1),
    }
    notes = [
        "A request that the service fails, or answers otherwise than its OpenAPI document says, ends the run and is "
        "shown at its smallest. Memory is that of the service's processes."
    ]
    benchmark.report(table, figures, {"failures": 0}, notes)
    return 0


if __name__ == "__main__":
    sys.exit(main())
