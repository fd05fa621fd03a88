"""One request to a service and its answer, over HTTP or gRPC, and the errors that both lead to."""

from __future__ import annotations

import dataclasses
from typing import Literal, Protocol

from distindex.errors import (
    BusyError,
    ConflictError,
    DeadlineError,
    DistindexError,
    InputError,
    NotFoundError,
    UnavailableError,
)
from distindex.serving.items import UnknownItemError
from distindex.serving.refusal import Refusal
from distindex.serving.request import RequestError

TOKEN_VARIABLE = "DISTINDEX_TOKEN"


@dataclasses.dataclass(frozen=True)
class Ask:
    """One request.

    Attributes:
        what: a search and an item are answered as Arrow streams, whether the service is ready by nothing or with an
            error, and all else as JSON; deployments are asked over HTTP only.
        queries: of a search, as an Arrow stream.
        id: of an item.
        version: to deploy; 0 is the newest.
    """

    what: Literal["search", "item", "index", "statistics", "ready", "deploy", "deploying"]
    queries: bytes = b""
    id: str = ""
    version: int = 0


class Transport(Protocol):
    """Sends requests and waits."""

    url: str

    def send(self, ask: Ask) -> bytes:
        """The answer, or an error of `distindex.errors`; an `UnavailableError` may pass."""
        ...

    def close(self) -> None:
        """Let go of the connections."""
        ...


class AsyncTransport(Protocol):
    """Sends requests for those who await."""

    url: str

    async def send(self, ask: Ask) -> bytes:
        """The answer, or an error of `distindex.errors`; an `UnavailableError` may pass."""
        ...

    async def close(self) -> None:
        """Let go of the connections."""
        ...


def error_of(url: str, refusal: Refusal) -> DistindexError:
    """The inverse of `refusal_of`, for callers of the service at `url`."""
    status, message, field = refusal.status, refusal.message, refusal.field
    if status in (502, 503):
        return UnavailableError(f"{url}: {message}")
    if status == 504:
        return DeadlineError(f"{url}: {message}")
    if status == 429:
        return BusyError(f"{url}: {message}")
    if status == 401:
        return InputError(f"{url}: {message}; give a token to connect, or set {TOKEN_VARIABLE}")
    if status in (400, 413):
        return RequestError(message, field, too_large=status == 413)
    if status == 404:
        return UnknownItemError(message, field) if field is not None else NotFoundError(f"{url}: {message}")
    if status == 409:
        return ConflictError(f"{url}: {message}")
    if status in (403, 405):
        return InputError(f"{url}: {message}")
    return DistindexError(f"{url}: status {status}: {message}")
