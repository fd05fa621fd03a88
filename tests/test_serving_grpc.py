"""The gRPC interface over an index in this process, on a real port: no Ray, the same code as in the service."""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pyarrow as pa
import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorProto, FileDescriptorSet
from google.protobuf.empty_pb2 import Empty
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from distindex.errors import DeadlineError, InputError, UnavailableError
from distindex.serve_config import ServeConfig
from distindex.serving import answer, search_pb2
from distindex.serving.access import Access, digests_of
from distindex.serving.activity import Done
from distindex.serving.api import make_api
from distindex.serving.client import connect, connect_async
from distindex.serving.grpc_listener import SERVICE, GrpcListener
from distindex.serving.listener import bind
from distindex.serving.responder import Responder
from tests.serving_backend import (
    CODE,
    LIMITS,
    IndexBackend,
    free_port,
    send,
    served,
    served_over_grpc,
    small_index,
    stream,
)

TOKEN = "token-0123456789abc"


def _bytes_of(message: Any) -> bytes:
    return message if isinstance(message, bytes) else message.SerializeToString()


class Caller:
    """Calls a method with a message and keeps what came with the answer."""

    def __init__(self, address: str) -> None:
        self.channel = grpc.insecure_channel(address)

    def __call__(self, name: str, message: Any, **metadata: str) -> tuple[search_pb2.Answer, dict[str, Any]]:
        call = self.channel.unary_unary(
            f"/{SERVICE}/{name}",
            request_serializer=_bytes_of,
            response_deserializer=search_pb2.Answer.FromString,
        )
        sent = tuple((key.replace("_", "-"), value) for key, value in metadata.items())
        found, state = call.with_call(message, timeout=20, metadata=sent)
        return found, dict(state.trailing_metadata())

    def refused(self, name: str, message: Any, **metadata: str) -> tuple[grpc.StatusCode, dict[str, Any]]:
        """The status of a call that fails, and its details by their type."""
        with pytest.raises(grpc.RpcError) as caught:
            self(name, message, **metadata)
        error: Any = caught.value
        trailing = dict(error.trailing_metadata())
        assert trailing["x-request-id"]
        status = Status.FromString(trailing["grpc-status-details-bin"])
        assert (status.code, status.message) == (error.code().value[0], error.details())
        found: dict[str, Any] = {}
        for detail in status.details:
            for made in (ErrorInfo(), BadRequest(), RetryInfo()):
                if detail.Unpack(made):
                    found[made.DESCRIPTOR.name] = made
        assert found["ErrorInfo"].domain == "distindex"
        return error.code(), found


@pytest.fixture(scope="module")
def backend(tmp_path_factory: pytest.TempPathFactory) -> IndexBackend:
    return IndexBackend(small_index(tmp_path_factory.mktemp("index")), LIMITS)


@pytest.fixture(scope="module")
def done() -> list[Done]:
    return []


@pytest.fixture(scope="module")
def caller(backend: IndexBackend, done: list[Done]) -> Iterator[Caller]:
    with served_over_grpc(Responder(backend, [done.append])) as address:
        yield Caller(address)


def test_calls_answer_what_the_http_interface_does(backend: IndexBackend, caller: Caller) -> None:
    body = {"codes": [CODE] * 2, "k": 5, "columns": ["title", "when"]}
    found, _ = caller("Search", search_pb2.Queries(json=json.dumps(body)))
    assert json.loads(found.json) == send(backend.index, "POST", "/v1/search", json=body).json()
    queries = stream(pa.table({"codes": [CODE] * 2}), k=5, columns=["title", "when"])
    found, _ = caller("Search", search_pb2.Queries(arrow=queries))
    expected = backend.index.search(np.zeros((2, 8), np.uint8), 5, columns=["title", "when"])
    assert answer.from_arrow(found.arrow).to_table().equals(expected.to_table(), check_metadata=True)
    logits = {"logits": [[0.5] * 64]}
    found, _ = caller("GetCodes", search_pb2.Queries(json=json.dumps(logits)))
    assert json.loads(found.json) == send(backend.index, "POST", "/v1/codes", json=logits).json()
    key = str((1 << 60) + 8)
    found, _ = caller("GetItem", search_pb2.ItemRequest(id=key))
    assert json.loads(found.json) == send(backend.index, "GET", f"/v1/items/{key}").json()
    found, _ = caller("GetItem", search_pb2.ItemRequest(id=key, arrow=True))
    assert answer.from_arrow(found.arrow)[0] == backend.index.lookup([int(key)], backend.index.columns)[0]
    found, _ = caller("GetIndex", Empty())
    assert json.loads(found.json) == send(backend.index, "GET", "/v1/index").json()
    found, _ = caller("GetStatistics", Empty())
    expected_counts = send(backend.index, "GET", "/v1/statistics").json()
    assert {**json.loads(found.json), "searches": None} == {**expected_counts, "searches": None}


NINE = search_pb2.Queries(json=json.dumps({"codes": [CODE] * 9}))
LONG = search_pb2.Queries(json=json.dumps({"f" * 9000: 1}))


@pytest.mark.parametrize(
    ("name", "message", "status", "reason", "field"),
    [
        ("Search", search_pb2.Queries(json='{"codes": ["zz"]}'), "INVALID_ARGUMENT", "invalid_request", "codes[0]"),
        ("Search", search_pb2.Queries(json="{"), "INVALID_ARGUMENT", "invalid_request", None),
        ("Search", search_pb2.Queries(arrow=b"no stream"), "INVALID_ARGUMENT", "invalid_request", None),
        ("Search", search_pb2.Queries(), "INVALID_ARGUMENT", "invalid_request", None),
        ("Search", b"\xff\xff\xff", "INVALID_ARGUMENT", "invalid_request", None),
        ("GetIndex", b"\x0a", "INVALID_ARGUMENT", "invalid_request", None),
        ("Search", NINE, "INVALID_ARGUMENT", "too_large", "codes"),
        ("Search", search_pb2.Queries(arrow=bytes(20_001)), "INVALID_ARGUMENT", "too_large", None),
        ("Search", search_pb2.Queries(json='{"items": [5]}'), "NOT_FOUND", "not_found", "items[0]"),
        ("GetItem", search_pb2.ItemRequest(id="x" * 5000), "NOT_FOUND", "not_found", None),
        ("Search", LONG, "INVALID_ARGUMENT", "invalid_request", "f" * 199 + "…"),
    ],
)
def test_a_bad_call_says_what_is_wrong(
    caller: Caller, name: str, message: Any, status: str, reason: str, field: str | None
) -> None:
    code, details = caller.refused(name, message)
    assert (code.name, details["ErrorInfo"].reason) == (status, reason)
    violations = details["BadRequest"].field_violations if "BadRequest" in details else []
    assert [violation.field for violation in violations] == ([] if field is None else [field])
    assert "RetryInfo" not in details


def test_what_passes_later_says_when(backend: IndexBackend) -> None:
    lost = IndexBackend(backend.index, LIMITS, lost=True)
    search = search_pb2.Queries(json=json.dumps({"codes": CODE}))
    with served_over_grpc(Responder(lost)) as address:
        code, details = Caller(address).refused("Search", search)
        assert (code.name, details["ErrorInfo"].reason) == ("UNAVAILABLE", "unavailable")
        assert details["RetryInfo"].retry_delay.seconds == 1
        health: Any = health_pb2_grpc.HealthStub(grpc.insecure_channel(address))
        assert health.Check(health_pb2.HealthCheckRequest()).status == health_pb2.HealthCheckResponse.SERVING
        ready = health.Check(health_pb2.HealthCheckRequest(service=SERVICE))
        assert ready.status == health_pb2.HealthCheckResponse.NOT_SERVING
        with pytest.raises(grpc.RpcError, match="NOT_FOUND"):
            health.Check(health_pb2.HealthCheckRequest(service="nothing"))


class Slow(IndexBackend):
    """Answers no search before it is told to."""

    async def search(self, request: Any) -> Any:
        while not self.told.is_set():
            await asyncio.sleep(0.01)
        return await super().search(request)

    told = threading.Event()


def test_a_call_ends_at_its_time_and_at_the_bound_of_those_at_work(backend: IndexBackend) -> None:
    slow, ended = Slow(backend.index, LIMITS), list[Done]()
    body = {"codes": CODE, "k": 3}
    search = search_pb2.Queries(json=json.dumps(body))
    with served_over_grpc(Responder(slow, [ended.append])) as address:
        caller = Caller(address)
        code, details = caller.refused("Search", search_pb2.Queries(json=json.dumps({**body, "timeout_ms": 50})))
        assert (code.name, details["ErrorInfo"].reason) == ("DEADLINE_EXCEEDED", "deadline_exceeded")
        call = caller.channel.unary_unary(f"/{SERVICE}/Search")
        with pytest.raises(grpc.RpcError, match="DEADLINE_EXCEEDED"):
            call(search.SerializeToString(), timeout=0.05)
        waiting = [call.future(search.SerializeToString(), timeout=20) for _ in range(4)]
        while True:
            code, details = caller.refused("Search", search_pb2.Queries(json=json.dumps({**body, "timeout_ms": 20})))
            if code == grpc.StatusCode.RESOURCE_EXHAUSTED:
                break
        assert (details["ErrorInfo"].reason, details["RetryInfo"].retry_delay.seconds) == ("busy", 1)
        slow.told.set()
        for one in waiting:
            assert len(json.loads(search_pb2.Answer.FromString(one.result()).json)["results"][0]) == 3
    # The one whose caller was gone, too.
    assert {one.status for one in ended} == {200, 429, 499, 504}


def test_only_who_has_a_token_is_answered_and_not_too_often(backend: IndexBackend) -> None:
    with served_over_grpc(
        Responder(backend, access=Access(digests_of([TOKEN], "here"), requests_per_s=1.0))
    ) as address:
        caller = Caller(address)
        for header in ({}, {"authorization": "Bearer wrong"}, {"authorization": f"Basic {TOKEN}"}):
            code, details = caller.refused("GetIndex", Empty(), **header)
            assert (code.name, details["ErrorInfo"].reason) == ("UNAUTHENTICATED", "unauthorized")
        # Nothing is read of those who have none.
        later = threading.Event()
        with pytest.raises(grpc.RpcError, match="UNAUTHENTICATED"):
            caller.channel.stream_unary(f"/{SERVICE}/Search")((b"" for _ in range(1) if later.wait(20)), timeout=10)
        later.set()
        for _ in range(6):
            caller("GetIndex", Empty(), authorization=f"Bearer {TOKEN}")
        with contextlib.suppress(AssertionError):
            while True:
                code, details = caller.refused("GetIndex", Empty())
                if code == grpc.StatusCode.RESOURCE_EXHAUSTED:
                    break
        assert (details["ErrorInfo"].reason, details["RetryInfo"].retry_delay.seconds) == ("too_many", 1)
        # Whether a process is up is for whoever watches it.
        health: Any = health_pb2_grpc.HealthStub(caller.channel)
        assert health.Check(health_pb2.HealthCheckRequest()).status == health_pb2.HealthCheckResponse.SERVING


def test_calls_have_ids_and_are_observed_as_requests_are(caller: Caller, done: list[Done]) -> None:
    done.clear()
    search = search_pb2.Queries(json=json.dumps({"codes": [CODE] * 3}))
    _, trailing = caller("Search", search, x_request_id="from-the-caller")
    assert trailing["x-request-id"] == "from-the-caller"
    caller("GetItem", search_pb2.ItemRequest(id=str(1 << 60)))
    caller.refused("Search", search_pb2.Queries())
    # A call that fails is counted after its caller knows.
    while len(done) < 3:
        time.sleep(0.01)
    assert [(one.method, one.path, one.route, one.status, one.queries) for one in done] == [
        ("gRPC", f"/{SERVICE}/Search", "/v1/search", 200, 3),
        ("gRPC", f"/{SERVICE}/GetItem", "/v1/items/{id:path}", 200, 0),
        ("gRPC", f"/{SERVICE}/Search", "/v1/search", 400, 0),
    ]
    assert done[0].id == "from-the-caller"
    assert (done[0].client, set(done[0].stages)) == ("127.0.0.1", {"read", "search", "answer"})
    found, _ = caller("GetStatistics", Empty())
    assert json.loads(found.json)["searches"]["requests"] >= 2


def test_the_client_says_what_it_is_told_and_asks_again_what_may_pass(
    backend: IndexBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses: list[float] = []
    monkeypatch.setattr("time.sleep", pauses.append)
    lost = Responder(IndexBackend(backend.index, LIMITS, lost=True))
    with (
        served_over_grpc(lost) as address,
        connect(f"grpc://{address}") as index,
        pytest.raises(UnavailableError, match="shard 0 of 1"),
    ):
        index.search(CODE)
    assert len(pauses) == 5
    with connect(f"grpc://{address}") as index, pytest.raises(UnavailableError, match=r"is the service running"):
        index.info()
    pauses.clear()
    slow = Slow(backend.index, LIMITS)
    slow.told.clear()
    with served_over_grpc(Responder(slow)) as address, connect(f"grpc://{address}") as index:
        with pytest.raises(DeadlineError, match="no answer within 20 ms"):
            index.search(CODE, timeout_ms=20)
        assert not pauses
    with served(make_api(Responder(slow))) as url, connect(url) as index:
        pauses.clear()
        with pytest.raises(DeadlineError, match="no answer within 20 ms"):
            index.search(CODE, timeout_ms=20)
        assert not pauses

    async def ask(target: str) -> None:
        async with connect_async(target) as index:
            with pytest.raises(DeadlineError, match="no answer within 20 ms"):
                await index.search(CODE, timeout_ms=20)

    with served_over_grpc(Responder(slow)) as address:
        asyncio.run(ask(f"grpc://{address}"))


def test_two_share_a_port_and_one_goes_on_alone(backend: IndexBackend) -> None:
    async def ask() -> None:
        port = free_port()
        listeners = [GrpcListener(Responder(backend), "127.0.0.1", port) for _ in range(2)]
        for listener in listeners:
            await listener.start()
        with pytest.raises(InputError, match=r"grpc_port: .* set grpc_port to a free one"):
            bind("127.0.0.1", port, shared=False, setting="grpc_port")
        await listeners[0].stop()
        async with connect_async(f"grpc://127.0.0.1:{port}") as index:
            assert len((await index.search(CODE, k=3)).id_M) == 3
        await listeners[1].stop()
        with pytest.raises(InputError, match="cannot listen on 192"):
            await GrpcListener(Responder(backend), "192.0.2.1", port).start()

    asyncio.run(ask())
    with pytest.raises(InputError, match="is the port for HTTP"):
        ServeConfig("index", port=8000, grpc_port=8000)


def test_all_that_a_call_asks_is_asked_of_one_version(backend: IndexBackend) -> None:
    steps: list[str] = []

    @contextlib.contextmanager
    def pinned() -> Iterator[None]:
        steps.append("pinned")
        yield
        steps.append("let go")

    class Noting(IndexBackend):
        async def search(self, request: Any) -> Any:
            steps.append("search")
            return await super().search(request)

        def info(self) -> dict[str, Any]:
            steps.append("info")
            return super().info()

    async def ask() -> None:
        port = free_port()
        listener = GrpcListener(Responder(Noting(backend.index, LIMITS)), "127.0.0.1", port, pinned=pinned)
        await listener.start()
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            asked = search_pb2.Queries(json=json.dumps({"codes": CODE}))
            await channel.unary_unary(f"/{SERVICE}/Search")(asked.SerializeToString())
        await listener.stop()

    asyncio.run(ask())
    assert (steps[0], steps[-1], steps.count("pinned")) == ("pinned", "let go", 1)
    assert {"search", "info"} <= set(steps)


def test_the_interface_describes_itself(caller: Caller) -> None:
    database = ProtoReflectionDescriptorDatabase(caller.channel)
    assert SERVICE in database.get_services()
    told = database.FindFileContainingSymbol(SERVICE)
    assert [method.name for method in told.service[0].method] == [
        "Search", "GetCodes", "GetItem", "GetIndex", "GetStatistics"
    ]  # fmt: skip


def test_the_generated_module_is_that_of_the_proto_file(tmp_path: Path) -> None:
    protoc = pytest.importorskip("grpc_tools.protoc")
    root = Path(__file__).resolve().parents[1]
    made = tmp_path / "descriptors"
    proto = root / "distindex/serving/search.proto"
    known = Path(protoc.__file__).parent / "_proto"
    assert protoc.main(["protoc", f"-I{root}", f"-I{known}", f"--descriptor_set_out={made}", str(proto)]) == 0
    (expected,) = FileDescriptorSet.FromString(made.read_bytes()).file
    expected.ClearField("source_code_info")
    for field in (field for message in expected.message_type for field in message.field):
        field.ClearField("json_name")
    found = FileDescriptorProto()
    search_pb2.DESCRIPTOR.CopyToProto(found)
    assert found == expected, "run `make stubs`"
