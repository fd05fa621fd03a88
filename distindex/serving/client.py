"""Search an index in this process or over HTTP, with the same methods and the same answers.

Over HTTP neither ray nor torch nor faiss is imported.
"""

from __future__ import annotations

import os
import random
import ssl
import time
import urllib.parse
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import httpx
import numpy as np
import numpy.typing as npt

from distindex.codes import pack
from distindex.errors import BusyError, ConflictError, DistindexError, InputError, NotFoundError, UnavailableError
from distindex.index.filters import Filter
from distindex.index.matches import Match, Matches, one_after_another
from distindex.serving import answer, question
from distindex.serving.inspection import check_hasher, describe
from distindex.serving.items import UnknownItemError, by_codes, ids_of, without_items
from distindex.serving.request import RequestError, SearchRequest, encode, make_request, naming_the_filter

if TYPE_CHECKING:
    from distindex.hashing import Hasher

TOKEN_VARIABLE = "DISTINDEX_TOKEN"
ATTEMPTS = 6
_FIRST_PAUSE_S = 0.2
_LONGEST_PAUSE_S = 5.0


def connect(
    target: str,
    hasher: str | None = None,
    *,
    version: int = 0,
    storage_options: Mapping[str, Any] | None = None,
    timeout_s: float = 60.0,
    token: str | None = None,
    certificates: str | None = None,
) -> Searcher:
    """Open an index for searching.

    Args:
        target: the address of a service (http:// or https://), or the path or URI of an index.
        hasher: directory of the hasher for vectors and texts, where the index is opened here; default: the
            one that the index names.
        version: version of the index, where it is opened here; 0 takes the newest.
        storage_options: passed to the fsspec file system.
        timeout_s: longest wait for one answer of a service, in seconds.
        token: what the service asks for; default: that in the environment variable DISTINDEX_TOKEN, if any.
        certificates: PEM file of the authorities that a service's certificate may be signed by, instead of those
            that are known here.

    Raises:
        InputError: there is no index, or the hasher does not belong to it.
    """
    if target.startswith(("http://", "https://")):
        if hasher is not None or version:
            raise InputError(f"{target}: a service has its own hasher and version; leave them out")
        trusted: ssl.SSLContext | bool = True
        if certificates is not None:
            try:
                trusted = ssl.create_default_context(cafile=certificates)
            except OSError as error:
                raise InputError(f"certificates: {certificates} cannot be used ({error})") from error
        return HttpSearcher(target, timeout_s, token=token, verify=trusted)
    return LocalSearcher(target, hasher, version, storage_options)


class Searcher(ABC):
    """What can be asked of an index, wherever it is. Use it as a context manager, or call `close`."""

    def search(
        self,
        codes: npt.ArrayLike | Sequence[str] | str | None = None,
        *,
        vectors: Any = None,
        texts: Sequence[str] | str | None = None,
        images: Sequence[bytes] | bytes | None = None,
        k: int | None = None,
        radius: int | None = None,
        limit: int | None = None,
        columns: Sequence[str] = (),
        allow_partial: bool = False,
        logits: Any = None,
        rescore: bool = False,
        candidates: int | None = None,
        filter: str | None = None,
        items: Any = None,
    ) -> Matches:
        """The nearest rows of each query, ordered by (distance, code bytes, id).

        Exactly one of `codes`, `vectors`, `texts`, `images`, `logits` and `items`; at most one of `k` and `radius`,
        k = 10 where neither is given. With `rescore` the nearest codes are ranked by the queries' logits, and the
        answers have a score, which comes first in their order; see `Index.search`.

        Args:
            codes: `code_QC` as uint8, or strings in hexadecimal or base64; one code counts as one query.
            vectors: `x_QV`, encoded by the hasher; one vector counts as one query.
            texts: encoded by the hasher; one text counts as one query.
            images: the bytes of PNG, JPEG or WebP files, encoded by the hasher; one image counts as one query.
            k: answers per query; fewer where the index has fewer rows.
            radius: all rows within this Hamming distance in bits, inclusive.
            limit: with a radius, only the nearest `limit` answers per query.
            columns: payload columns that come with the answers.
            allow_partial: answer from the shards that are there when some are not; `missing_shards` names them.
            logits: `logit_QK`, what the hasher makes of the queries; its signs are their codes.
            rescore: rank by the logits of `vectors`, `texts`, `images` or `logits`; with k only.
            candidates: with `rescore`, the codes that are ranked, at least k; default: 10 k, and at least 1000.
            filter: a condition on payload columns, such as `label == "sport" and year >= 2020`, that the answers
                pass; see `Index.search`.
            items: ids of rows, whose codes are the queries; one id counts as one query. The row of an item is not
                among its own answers. Whole numbers may be written as texts.

        Raises:
            RequestError: the request is wrong; `field` names the part.
            UnknownItemError: the index has no row with the id of an item; it is a `NotFoundError` too.
            UnavailableError: a shard, the encoder or the service does not answer, or (`BusyError`) not in time.
        """
        request = make_request(
            codes,
            vectors=vectors,
            texts=texts,
            images=images,
            k=k,
            radius=radius,
            limit=limit,
            columns=columns,
            allow_partial=allow_partial,
            logits=logits,
            rescore=rescore,
            candidates=candidates,
            filter=filter,
            items=items,
        )
        return self._search(request)

    @abstractmethod
    def _search(self, request: SearchRequest) -> Matches: ...

    @abstractmethod
    def item(self, id: int | str) -> Match:
        """The row with this id, with its code and all payload columns.

        Raises:
            NotFoundError: the index has no such row.
            UnavailableError: a shard or the service does not answer.
        """

    @abstractmethod
    def info(self) -> dict[str, Any]:
        """What is searched: uri, version, rows, distinct, bits, kind, shards, hasher, payload, id_type."""

    @abstractmethod
    def close(self) -> None:
        """Let go of the index or the connection."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class LocalSearcher(Searcher):
    """An index opened in this process; its hasher is loaded at the first vector, text or image."""

    def __init__(
        self,
        uri: str,
        hasher: str | None = None,
        version: int = 0,
        storage_options: Mapping[str, Any] | None = None,
    ) -> None:
        from distindex.index.index import Index

        self._index = Index.open(uri, version, storage_options=dict(storage_options or {}))
        self._uri = uri
        self._options = dict(storage_options or {})
        self._hasher_uri = hasher or (self._index.hasher or {}).get("uri")
        self._hasher: Hasher | None = None

    def _search(self, request: SearchRequest) -> Matches:
        if request.field == "items":
            id_Q = ids_of(request, self._index.manifest.id_type)
            matches = self._search(by_codes(request, id_Q, self._index.lookup(id_Q.to_pylist())))
            return without_items(matches, id_Q, request.k or request.limit)
        columns = check_columns(request, self.info())
        if request.field == "codes":
            code_QC, logit_QK = request.codes(self._index.bits), None
        else:
            if request.field == "logits":
                logit_QK = request.logits(self._index.bits)
            else:
                logit_QK = encode(self._loaded_hasher(request), request)
            code_QC = pack(logit_QK > 0)
        with naming_the_filter():
            return self._index.search(code_QC, **request.options(columns, logit_QK))

    def _loaded_hasher(self, request: SearchRequest) -> Hasher:
        if self._hasher is None:
            if self._hasher_uri is None:
                raise RequestError(f"{self._uri}: the index names no hasher; give one to connect", request.field)
            from distindex.hashing import Hasher

            hasher = Hasher.load(self._hasher_uri, self._options)
            check_hasher(self.info(), self._hasher_uri, hasher.bits, hasher.fingerprint)
            self._hasher = hasher
        return self._hasher

    def item(self, id: int | str) -> Match:
        try:
            (found,) = self._index.lookup([id], self._index.columns)
        except InputError:
            found = []
        return only(found, id)

    def info(self) -> dict[str, Any]:
        return describe(self._uri, self._index.manifest)

    def close(self) -> None:
        self._index.close()


class HttpSearcher(Searcher):
    """A served index. Connection errors, 429 and 503 are tried again, since a search changes nothing.

    Args:
        url: address of the service.
        timeout_s: longest wait for one answer, in seconds.
        token: what the service asks for; default: that in the environment variable DISTINDEX_TOKEN, if any.
        verify: whom the service's certificate is checked by; False checks nothing.
    """

    def __init__(
        self,
        url: str,
        timeout_s: float = 60.0,
        *,
        token: str | None = None,
        verify: ssl.SSLContext | bool = True,
    ) -> None:
        self.url = url.rstrip("/")
        token = token or os.environ.get(TOKEN_VARIABLE)
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._client = httpx.Client(timeout=httpx.Timeout(timeout_s, connect=5.0), headers=headers, verify=verify)
        self._info: dict[str, Any] | None = None

    def wait_until_ready(self, timeout_s: float) -> None:
        """Return when every shard and the encoder of the service answer.

        Raises:
            UnavailableError: they still do not after `timeout_s` seconds; says which.
        """
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                self._send("GET", "/ready")
                return
            except UnavailableError:
                if time.monotonic() >= deadline:
                    raise

    def info(self) -> dict[str, Any]:
        self._info = self._send("GET", "/v1/index").json()
        return self._info  # type: ignore[return-value]

    def statistics(self) -> dict[str, Any]:
        """Figures about the codes of the index and the latest searches, as /v1/statistics answers.

        Raises:
            UnavailableError: a shard or the service does not answer.
        """
        return self._send("GET", "/v1/statistics").json()

    def deploy(self, version: int = 0) -> dict[str, Any]:
        """Have the service begin to go to another version, 0 for the newest; answers as `deploying`.

        Raises:
            RequestError: there is no such version, or it cannot take the place of the one that is served.
            ConflictError: the service is on its way to another one.
        """
        return self._send("POST", "/v1/deploy", json={"version": version}).json()

    def deploying(self) -> dict[str, Any]:
        """How far the service is on its way to another version, as /v1/deploy answers."""
        return self._send("GET", "/v1/deploy").json()

    def _search(self, request: SearchRequest) -> Matches:
        info = self._info or self.info()
        if request.field == "logits":
            request.logits(info["bits"])
        elif isinstance(request.queries, np.ndarray):
            request.codes(info["bits"])
        limits = info["limits"]
        most = limits["max_queries"]
        answers = request.k or request.limit
        if answers:
            most = max(1, min(most, limits["max_answers"] // answers))
        if request.candidates:
            most = max(1, min(most, limits["max_candidates"] // request.candidates))
        if len(request) <= most:
            return self._ask(request)
        parts = [self._ask(request.part(start, start + most)) for start in range(0, len(request), most)]
        versions = sorted({part.version for part in parts})
        if len(versions) > 1:
            raise ConflictError(f"{self.url}: versions {versions} answered parts of the search; ask again")
        return one_after_another(parts)

    def item(self, id: int | str) -> Match:
        path = f"/v1/items/{urllib.parse.quote(str(id), safe='')}"
        response = self._send("GET", path, headers={"Accept": answer.ARROW_STREAM})
        return only(answer.from_arrow(response.content)[0], id)

    def _ask(self, request: SearchRequest) -> Matches:
        headers = {"Accept": answer.ARROW_STREAM, "Content-Type": answer.ARROW_STREAM}
        response = self._send("POST", "/v1/search", content=question.to_arrow(request), headers=headers)
        return answer.from_arrow(response.content)

    def _send(self, method: str, path: str, **content: Any) -> httpx.Response:
        pause_s = _FIRST_PAUSE_S
        for attempt in range(1, ATTEMPTS + 1):
            try:
                response = self._client.request(method, self.url + path, **content)
                failure = _failure(self.url, response)
            except httpx.TransportError as error:
                failure = UnavailableError(
                    f"{self.url}: {error or type(error).__name__}; is the service running (distindex serve)?"
                )
            except httpx.InvalidURL as error:
                raise InputError(f"{self.url}: not an address ({error})") from error
            else:
                if failure is None:
                    return response
            if attempt == ATTEMPTS or not isinstance(failure, UnavailableError):
                raise failure
            # Callers that failed together must not come back together.
            time.sleep(pause_s * random.uniform(0.5, 1.0))
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
        raise AssertionError("unreachable: the last attempt returns or raises")

    def close(self) -> None:
        self._client.close()


def only(found: Sequence[Match], id: int | str) -> Match:
    """The one answer of a lookup.

    Raises:
        NotFoundError: there is none.
    """
    if not found:
        raise NotFoundError(f"no row has the id {id!r}")
    return found[0]


def check_columns(request: SearchRequest, info: Mapping[str, Any]) -> tuple[str, ...]:
    """The request's payload columns, checked against the index, as are those of its filter.

    Raises:
        RequestError: the index has no such column.
    """
    known = [column["name"] for column in info["payload"]]
    if request.filter is not None:
        with naming_the_filter():
            Filter(request.filter).check(known)
    for position, name in enumerate(request.columns):
        if name not in known:
            has = f"its payload columns are {', '.join(known)}" if known else "it has no payload columns"
            raise RequestError(f'the index has no column "{name}"; {has}', f"columns[{position}]")
    return request.columns


def _failure(url: str, response: httpx.Response) -> DistindexError | None:
    if response.is_success:
        return None
    try:
        detail = response.json()["error"]
        message, field = str(detail["message"]), detail.get("field")
    except (ValueError, KeyError, TypeError):
        message = (
            f"{url}: status {response.status_code}, and the answer is not from distindex: {response.text[:200]!r}"
        )
        # The proxy in front answers for itself while the application starts (404) or a process was lost (5xx).
        passes = response.status_code == 404 or response.status_code >= 500
        return UnavailableError(message) if passes else InputError(message)
    if response.status_code in (502, 503, 504):
        return UnavailableError(f"{url}: {message}")
    if response.status_code == 429:
        return BusyError(f"{url}: {message}")
    if response.status_code == 401:
        return InputError(f"{url}: {message}; give a token to connect, or set {TOKEN_VARIABLE}")
    if response.status_code in (400, 413):
        return RequestError(message, field, too_large=response.status_code == 413)
    if response.status_code == 404 and field is not None:
        return UnknownItemError(message, field)
    if response.status_code == 404:
        return NotFoundError(f"{url}: {message}")
    if response.status_code == 409:
        return ConflictError(f"{url}: {message}")
    if response.status_code in (403, 405):
        return InputError(f"{url}: {message}")
    return DistindexError(f"{url}: status {response.status_code}: {message}")
