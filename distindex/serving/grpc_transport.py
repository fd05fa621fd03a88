"""Requests to a service over gRPC."""

from __future__ import annotations

import os
from typing import Any

import grpc
from google.protobuf.message import DecodeError
from grpc_health.v1 import health_pb2

from distindex.errors import DistindexError, InputError, UnavailableError
from distindex.serving.grpc_errors import refusal_in
from distindex.serving.request import RequestError
from distindex.serving.search_pb2 import DESCRIPTOR, Answer, ItemRequest, Queries
from distindex.serving.transport import TOKEN_VARIABLE, Ask, error_of

_SERVICE = DESCRIPTOR.services_by_name["Search"].full_name
_METHODS = {
    "search": f"/{_SERVICE}/Search",
    "item": f"/{_SERVICE}/GetItem",
    "index": f"/{_SERVICE}/GetIndex",
    "statistics": f"/{_SERVICE}/GetStatistics",
    "ready": "/grpc.health.v1.Health/Check",
}
# The service limits what it takes and what it answers; a lost connection is tried again as soon as a caller does.
_OPTIONS = [
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
]
_PASSING = {
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.CANCELLED,
    grpc.StatusCode.ABORTED,
    grpc.StatusCode.INTERNAL,
    grpc.StatusCode.UNKNOWN,
}


class GrpcTransport:
    """Waits for its answers.

    Args:
        url: grpc://HOST:PORT, or grpcs:// with TLS.
        timeout_s: longest wait for one answer, in seconds.
        token: what the service asks for; default: that in the environment variable DISTINDEX_TOKEN, if any.
        certificates: PEM of the authorities that the service's certificate may be signed by; None takes those that
            gRPC knows.
    """

    def __init__(self, url: str, timeout_s: float, token: str | None, certificates: bytes | None) -> None:
        self.url = url
        self._settings = _settings(timeout_s, token)
        address, credentials = _target_of(url, certificates)
        if credentials is None:
            self._channel = grpc.insecure_channel(address, _OPTIONS)
        else:
            self._channel = grpc.secure_channel(address, credentials, _OPTIONS)

    def send(self, ask: Ask) -> bytes:
        try:
            data = self._channel.unary_unary(_METHODS[ask.what])(_message_of(ask), **self._settings)
        except grpc.RpcError as error:
            raise _failure(self.url, error) from error
        return _content_of(self.url, ask, data)

    def close(self) -> None:
        self._channel.close()


class AsyncGrpcTransport:
    """As `GrpcTransport`, for those who await."""

    def __init__(self, url: str, timeout_s: float, token: str | None, certificates: bytes | None) -> None:
        self.url = url
        self._settings = _settings(timeout_s, token)
        self._target = _target_of(url, certificates)
        self._channel: grpc.aio.Channel | None = None

    async def send(self, ask: Ask) -> bytes:
        if self._channel is None:
            # A channel belongs to the event loop in which it is made.
            address, credentials = self._target
            if credentials is None:
                self._channel = grpc.aio.insecure_channel(address, _OPTIONS)
            else:
                self._channel = grpc.aio.secure_channel(address, credentials, _OPTIONS)
        try:
            data = await self._channel.unary_unary(_METHODS[ask.what])(_message_of(ask), **self._settings)
        except grpc.RpcError as error:
            raise _failure(self.url, error) from error
        return _content_of(self.url, ask, data)

    async def close(self) -> None:
        if self._channel is not None:
            await self._channel.close()


def _settings(timeout_s: float, token: str | None) -> dict[str, Any]:
    token = token or os.environ.get(TOKEN_VARIABLE)
    return {"timeout": timeout_s, "metadata": (("authorization", f"Bearer {token}"),) if token else ()}


def _target_of(url: str, certificates: bytes | None) -> tuple[str, grpc.ChannelCredentials | None]:
    scheme, _, address = url.partition("://")
    return address, grpc.ssl_channel_credentials(certificates) if scheme == "grpcs" else None


def _message_of(ask: Ask) -> bytes:
    if ask.what == "search":
        return Queries(arrow=ask.queries).SerializeToString()
    if ask.what == "item":
        return ItemRequest(id=ask.id, arrow=True).SerializeToString()
    if ask.what == "ready":
        return health_pb2.HealthCheckRequest(service=_SERVICE).SerializeToString()
    return b""


def _content_of(url: str, ask: Ask, data: bytes) -> bytes:
    try:
        if ask.what == "ready":
            if health_pb2.HealthCheckResponse.FromString(data).status != health_pb2.HealthCheckResponse.SERVING:
                raise UnavailableError(f"{url}: a shard or the encoder does not answer")
            return b""
        found = Answer.FromString(data)
    except DecodeError as error:
        raise InputError(f"{url}: the answer is not from distindex") from error
    return found.arrow if found.WhichOneof("form") == "arrow" else found.json.encode()


def _failure(url: str, error: Any) -> DistindexError:
    code, details = error.code(), str(error.details())
    refusal = refusal_in(details, tuple(error.trailing_metadata() or ()))
    if refusal is not None:
        return error_of(url, refusal)
    if code == grpc.StatusCode.RESOURCE_EXHAUSTED:
        # What passes later says so in its details: this is the bound on the size of a message.
        return RequestError(details, None, too_large=True)
    if code in _PASSING:
        return UnavailableError(
            f"{url}: {code.name} ({details}); is the service running (distindex serve --grpc_port)?"
        )
    return InputError(f"{url}: {code.name} ({details})")
