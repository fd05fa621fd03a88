"""Requests to a service over HTTP."""

from __future__ import annotations

import contextlib
import os
import ssl
import urllib.parse
from collections.abc import Iterator
from typing import Any

import httpx

from distindex.errors import InputError, UnavailableError
from distindex.serving import answer
from distindex.serving.refusal import Refusal
from distindex.serving.transport import TOKEN_VARIABLE, Ask, error_of

_PATHS = {"index": "/v1/index", "statistics": "/v1/statistics", "ready": "/ready", "deploying": "/v1/deploy"}


class HttpTransport:
    """Waits for its answers.

    Args:
        url: address of the service.
        timeout_s: longest wait for one answer, in seconds.
        token: what the service asks for; default: that in the environment variable DISTINDEX_TOKEN, if any.
        verify: whom the service's certificate is checked by; False checks nothing.
    """

    def __init__(self, url: str, timeout_s: float, token: str | None, verify: ssl.SSLContext | bool) -> None:
        self.url = url
        self._client = httpx.Client(**_settings(timeout_s, token), verify=verify)

    def send(self, ask: Ask) -> bytes:
        with _connecting(self.url):
            response = self._client.request(**_request_of(self.url, ask))
        return content_of(self.url, response)

    def close(self) -> None:
        self._client.close()


class AsyncHttpTransport:
    """As `HttpTransport`, for those who await."""

    def __init__(self, url: str, timeout_s: float, token: str | None, verify: ssl.SSLContext | bool) -> None:
        self.url = url
        self._client = httpx.AsyncClient(**_settings(timeout_s, token), verify=verify)

    async def send(self, ask: Ask) -> bytes:
        with _connecting(self.url):
            response = await self._client.request(**_request_of(self.url, ask))
        return content_of(self.url, response)

    async def close(self) -> None:
        await self._client.aclose()


def _settings(timeout_s: float, token: str | None) -> dict[str, Any]:
    token = token or os.environ.get(TOKEN_VARIABLE)
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    return {"timeout": httpx.Timeout(timeout_s, connect=5.0), "headers": headers}


def _request_of(url: str, ask: Ask) -> dict[str, Any]:
    arrow = answer.ARROW_STREAM
    if ask.what == "search":
        headers = {"Accept": arrow, "Content-Type": arrow}
        return {"method": "POST", "url": f"{url}/v1/search", "headers": headers, "content": ask.queries}
    if ask.what == "item":
        path = f"/v1/items/{urllib.parse.quote(ask.id, safe='')}"
        return {"method": "GET", "url": url + path, "headers": {"Accept": arrow}}
    if ask.what == "deploy":
        return {"method": "POST", "url": f"{url}/v1/deploy", "json": {"version": ask.version}}
    return {"method": "GET", "url": url + _PATHS[ask.what]}


@contextlib.contextmanager
def _connecting(url: str) -> Iterator[None]:
    try:
        yield
    except httpx.TransportError as error:
        raise UnavailableError(
            f"{url}: {error or type(error).__name__}; is the service running (distindex serve)?"
        ) from error
    except httpx.InvalidURL as error:
        raise InputError(f"{url}: not an address ({error})") from error


def content_of(url: str, response: httpx.Response) -> bytes:
    """The body of an answer of the service at `url`; raises what an error of it means."""
    if response.is_success:
        return response.content
    status = response.status_code
    try:
        detail = response.json()["error"]
        refusal = Refusal(status, str(detail["code"]), str(detail["message"]), detail.get("field"))
    except (ValueError, KeyError, TypeError) as error:
        message = f"{url}: status {status}, and the answer is not from distindex: {response.text[:200]!r}"
        # The proxy in front answers for itself while the application starts (404) or a process was lost (5xx).
        passes = status == 404 or status >= 500
        raise (UnavailableError(message) if passes else InputError(message)) from error
    raise error_of(url, refusal)
