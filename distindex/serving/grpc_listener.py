"""A gRPC server inside a process that does other things too. Knows nothing of Ray.

Messages are parsed here and not by gRPC, so that one that cannot be read is the caller's error with a reason, as over
HTTP; for the same reason the limit on their size is a little above that of a body. To gRPC each call takes a stream
of messages, which looks the same to its caller: gRPC then calls before it reads one, so that nothing is read of those
who are turned away.
"""

from __future__ import annotations

import urllib.parse
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeVar

import grpc
import orjson
from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import DecodeError, Message
from grpc_health.v1 import health
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_reflection.v1alpha import reflection

from distindex.errors import InputError, UnavailableError
from distindex.serving.activity import SEARCH_ROUTE, observed, stage
from distindex.serving.api import CODES_ROUTE, INDEX_ROUTE, ITEM_ROUTE, STATISTICS_ROUTE
from distindex.serving.grpc_errors import status_of
from distindex.serving.listener import DRAINING_S
from distindex.serving.refusal import refusal_of
from distindex.serving.request import RequestError
from distindex.serving.responder import Responder
from distindex.serving.search_pb2 import DESCRIPTOR, Answer, ItemRequest, Queries
from distindex.storage import Storage

SERVICE = DESCRIPTOR.services_by_name["Search"].full_name
_ENVELOPE_BYTES = 4096

MessageT = TypeVar("MessageT", bound=Message)
Context = grpc.aio.ServicerContext[bytes, bytes]
Handle = Callable[[AsyncIterator[bytes], Context], Awaitable[bytes]]


class GrpcListener:
    """A gRPC server in the running event loop.

    Args:
        responder: what answers.
        host: name or address to listen on; "" stands for all.
        port: TCP port; several listeners of one machine share it.
        tls: PEM files of the certificate and of its key; None speaks without TLS.
        pinned: entered around each call, so that whatever it asks, it asks one version.
    """

    def __init__(
        self,
        responder: Responder,
        host: str,
        port: int,
        tls: tuple[str, str] | None = None,
        pinned: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        self._responder, self._pinned = responder, pinned
        self._address = f"[{host}]:{port}" if ":" in host else f"{host or '[::]'}:{port}"
        self._tls = tls
        self._server = grpc.aio.server(
            options=[
                ("grpc.so_reuseport", 1),
                ("grpc.max_receive_message_length", responder.limits.max_body_bytes + _ENVELOPE_BYTES),
                ("grpc.max_send_message_length", -1),
            ]
        )
        self._server.add_generic_rpc_handlers(
            (
                grpc.method_handlers_generic_handler(SERVICE, self._calls()),
                grpc.method_handlers_generic_handler(
                    health.SERVICE_NAME, {"Check": grpc.unary_unary_rpc_method_handler(self._check)}
                ),
            )
        )
        # It tells no more than the package does, so that it needs no token.
        reflection.enable_server_reflection((SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME), self._server)

    def _calls(self) -> dict[str, grpc.RpcMethodHandler]:
        responder = self._responder

        async def search(queries: Queries) -> Answer:
            arrow, body = _body_of(queries, responder.limits.max_body_bytes)
            found = await responder.search(body, arrow=arrow, answer_in_arrow=arrow)
            return Answer(arrow=found) if arrow else _json(found)

        async def codes(queries: Queries) -> Answer:
            arrow, body = _body_of(queries, responder.limits.max_body_bytes)
            return _json(await responder.codes(body, arrow=arrow))

        async def item(asked: ItemRequest) -> Answer:
            found = await responder.item(asked.id, answer_in_arrow=asked.arrow)
            return Answer(arrow=found) if asked.arrow else _json(found)

        async def index(_: Empty) -> Answer:
            return _json(orjson.dumps(responder.info()))

        async def statistics(_: Empty) -> Answer:
            return _json(await responder.statistics())

        calls = {
            "Search": self._handle("Search", SEARCH_ROUTE, Queries, search),
            "GetCodes": self._handle("GetCodes", CODES_ROUTE, Queries, codes),
            "GetItem": self._handle("GetItem", ITEM_ROUTE, ItemRequest, item),
            "GetIndex": self._handle("GetIndex", INDEX_ROUTE, Empty, index),
            "GetStatistics": self._handle("GetStatistics", STATISTICS_ROUTE, Empty, statistics),
        }
        return {name: grpc.stream_unary_rpc_method_handler(handle) for name, handle in calls.items()}

    def _handle(
        self, name: str, route: str, kind: type[MessageT], respond: Callable[[MessageT], Awaitable[Answer]]
    ) -> Handle:
        """One call, as gRPC calls it: observed, guarded, and with every failure as a status with details."""
        responder = self._responder

        async def handle(messages: AsyncIterator[bytes], context: Context) -> bytes:
            metadata: dict[str, Any] = dict(context.invocation_metadata() or ())
            client, given_id = _client_of(context.peer()), str(metadata.get("x-request-id", "")).encode()
            with observed(responder.observers, given_id, client, "gRPC", f"/{SERVICE}/{name}") as done:
                done.route = route
                own = ("x-request-id", done.id)
                refusal = responder.gate.refusal(client, str(metadata.get("authorization", "")))
                if refusal is None:
                    try:
                        with stage("read"):
                            message = _read(kind, await anext(aiter(messages), b""))
                        with self._pinned():
                            found = (await respond(message)).SerializeToString()
                    except Exception as error:  # every failure leaves in one form
                        refusal = refusal_of(error)
                    else:
                        done.status = 200
                        context.set_trailing_metadata((own,))
                        return found
                done.status = refusal.status
                code, details = status_of(refusal)
                return await context.abort(code, refusal.message, (own, *details))

        return handle

    async def _check(self, data: bytes, context: Context) -> bytes:
        """The health of the process (an empty name), or whether every shard and the encoder answer a query."""
        try:
            service = HealthCheckRequest.FromString(data).service
        except DecodeError:
            return await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "not a HealthCheckRequest")
        if service not in ("", SERVICE):
            return await context.abort(grpc.StatusCode.NOT_FOUND, f"the services are {SERVICE} and the empty name")
        status = HealthCheckResponse.SERVING
        if service:
            try:
                await self._responder.ready()
            except UnavailableError:
                status = HealthCheckResponse.NOT_SERVING
        return HealthCheckResponse(status=status).SerializeToString()

    async def start(self) -> None:
        """Listen; raises InputError where it cannot."""
        try:
            if self._tls is None:
                self._server.add_insecure_port(self._address)
            else:
                certificate, key = (Storage(path).read_bytes("") for path in self._tls)
                self._server.add_secure_port(self._address, grpc.ssl_server_credentials([(key, certificate)]))
        except RuntimeError as error:
            raise InputError(f"grpc_port: cannot listen on {self._address}; set grpc_port to a free one") from error
        await self._server.start()

    async def stop(self) -> None:
        """Take no more connections, answer what is at work, and end."""
        await self._server.stop(DRAINING_S)


def _read(kind: type[MessageT], data: bytes) -> MessageT:
    try:
        return kind.FromString(data)
    except DecodeError as error:
        raise RequestError(f"not a message of the type {kind.DESCRIPTOR.full_name}") from error


def _body_of(queries: Queries, limit: int) -> tuple[bool, bytes]:
    """Whether the body is an Arrow stream, and the body."""
    form = queries.WhichOneof("form")
    if form is None:
        raise RequestError("the queries are missing: set json or arrow")
    body = queries.arrow if form == "arrow" else queries.json.encode()
    if len(body) > limit:
        raise RequestError(f"the body is larger than {limit} bytes: send fewer queries at once", None, True)
    return form == "arrow", body


def _json(data: bytes) -> Answer:
    return Answer(json=data.decode())


def _client_of(peer: str) -> str:
    """The address in gRPC's name of a peer, such as ipv4:127.0.0.1:5000 or ipv6:%5B::1%5D:5000."""
    return urllib.parse.unquote(peer).partition(":")[2].rpartition(":")[0].strip("[]")
