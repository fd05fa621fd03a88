"""Who may ask, and how often: bearer tokens and a rate for each client address."""

from __future__ import annotations

import dataclasses
import hashlib
import hmac
import math
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from distindex.errors import InputError
from distindex.serving.http_errors import refuse
from distindex.serving.refusal import Refusal
from distindex.storage import Storage

# The page asks for the token itself; whether a process is up is for whoever watches it.
_OPEN = ("/live", "/ready", "/health", "/")
_OPEN_BELOW = "/page/"
_SHORTEST_TOKEN = 16
_NO_TOKEN = "a token is needed, or another one: send the header `Authorization: Bearer TOKEN`"
_CLIENTS_KEPT = 10_000


@dataclasses.dataclass(frozen=True)
class Access:
    """What a request needs to be answered.

    Attributes:
        token_digests: sha256 of the tokens of which a request needs one; none lets everybody ask.
        deploy_digests: sha256 of the tokens of which a deployment needs one, which may ask too; none lets everybody
            deploy who may ask.
        requests_per_s: requests a second of one client address, of which ten seconds' worth may come at once; 0 sets
            no bound.
        origins: web pages elsewhere that may ask, such as https://example.org.
    """

    token_digests: tuple[bytes, ...] = ()
    deploy_digests: tuple[bytes, ...] = ()
    requests_per_s: float = 0.0
    origins: tuple[str, ...] = ()


def digests_of(tokens: Sequence[str], where: str) -> tuple[bytes, ...]:
    """The digests that `Access` keeps, so that the tokens themselves stay in the process that read them.

    Raises:
        InputError: a token is short enough to be guessed, or has characters that a header cannot carry.
    """
    for token in tokens:
        if len(token) < _SHORTEST_TOKEN or not token.isascii() or not token.isprintable() or " " in token:
            raise InputError(
                f"{where}: a token needs {_SHORTEST_TOKEN} or more printable ASCII characters without spaces; "
                "`openssl rand -hex 32` makes one"
            )
    return tuple(_digest(token) for token in tokens)


def read_tokens(uri: str) -> list[str]:
    """The tokens in a file, one a line.

    Raises:
        NotFoundError: there is no such file.
        InputError: it holds none.
    """
    lines = Storage(uri).read_bytes("").decode("utf-8", "replace").split("\n")
    tokens = [line.strip() for line in lines if line.strip()]
    if not tokens:
        raise InputError(f"{uri}: holds no token; write one a line")
    return tokens


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()


def _has_one_of(digests: Sequence[bytes], authorization: str) -> bool:
    kind, _, token = authorization.partition(" ")
    given = _digest(token.strip())
    # All are compared, each in constant time: how long it takes says nothing about the tokens.
    matching = [hmac.compare_digest(given, digest) for digest in digests]
    return kind.lower() == "bearer" and any(matching)


class Gate:
    """Tells who is turned away, of all that ask one process.

    Args:
        access: the rules.
        clock: seconds that only grow.
    """

    def __init__(self, access: Access, clock: Callable[[], float] = time.monotonic) -> None:
        self._access, self._clock = access, clock
        # For each client address, what it may still ask at once, and when that was reckoned.
        self._left: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def refusal(self, client: str, authorization: str) -> Refusal | None:
        """Why a request is turned away, if it is; it counts to its client's rate.

        Args:
            client: the address that it comes from.
            authorization: its header of this name; empty without one.
        """
        wait_s = self._wait_s(client)
        if wait_s:
            message = f"more than {self._access.requests_per_s:g} requests a second from one address; try again later"
            return Refusal(429, "too_many", message, retry_after_s=math.ceil(wait_s))
        asking, deploying = self._access.token_digests, self._access.deploy_digests
        if asking and not _has_one_of(asking + deploying, authorization):
            return Refusal(401, "unauthorized", _NO_TOKEN)
        return None

    def deploy_refusal(self, authorization: str) -> Refusal | None:
        """Why one that `refusal` lets in may not choose the version, if it may not.

        Args:
            authorization: its header of this name; empty without one.
        """
        asking, deploying = self._access.token_digests, self._access.deploy_digests
        if not deploying or _has_one_of(deploying, authorization):
            return None
        if _has_one_of(asking, authorization):
            return Refusal(403, "forbidden", "this token may ask but not deploy: use one of deploy_token_file")
        return Refusal(401, "unauthorized", _NO_TOKEN)

    def _wait_s(self, client: str) -> float:
        """Seconds until this client may ask again; 0 counts a request."""
        rate = self._access.requests_per_s
        if not rate:
            return 0.0
        most = max(1.0, 10 * rate)
        now = self._clock()
        left, reckoned = self._left.pop(client, (most, now))
        left = min(most, left + (now - reckoned) * rate)
        taken = left >= 1
        self._left[client] = (left - taken, now)
        if len(self._left) > _CLIENTS_KEPT:
            self._left.popitem(last=False)
        return 0.0 if taken else (1 - left) / rate


class Guard:
    """ASGI middleware that turns away whom a gate does not let in.

    Args:
        app: what answers the others.
        gate: the gate.
    """

    def __init__(self, app: ASGIApp, gate: Gate) -> None:
        self._app, self._gate = app, gate

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and not self._is_open(scope["path"]):
            client = scope["client"][0] if scope.get("client") else ""
            refusal = self._gate.refusal(client, Headers(scope=scope).get("authorization", ""))
            if refusal is not None:
                await refuse(refusal)(scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _is_open(self, path: str) -> bool:
        return path in _OPEN or path.startswith(_OPEN_BELOW)
