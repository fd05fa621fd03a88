"""Search an index in this process or a served one, with the same methods and the same answers.

For a served index neither ray nor torch nor faiss is imported.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from distindex.codes import pack
from distindex.errors import InputError
from distindex.index.filters import Filter
from distindex.index.matches import Match, Matches
from distindex.serving.http_transport import AsyncHttpTransport
from distindex.serving.inspection import check_hasher, describe
from distindex.serving.items import by_codes, ids_of, without_items
from distindex.serving.remote import AsyncServedSearcher, HttpSearcher, ServedSearcher
from distindex.serving.request import RequestError, SearchRequest, encode, naming_the_filter
from distindex.serving.searcher import AsyncSearcher, Searcher, only
from distindex.storage import Storage

if TYPE_CHECKING:
    from distindex.hashing import Hasher

_HTTP = ("http://", "https://")
_GRPC = ("grpc://", "grpcs://")


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
        target: the address of a service (http://, https://, grpc:// or grpcs://), or the path or URI of an index.
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
    if not target.startswith(_HTTP + _GRPC):
        return LocalSearcher(target, hasher, version, storage_options)
    _check_served(target, hasher, version)
    if target.startswith(_HTTP):
        return HttpSearcher(target, timeout_s, token=token, verify=_trusted(certificates))
    from distindex.serving.grpc_transport import GrpcTransport

    return ServedSearcher(GrpcTransport(target, timeout_s, token, _read(certificates)))


def connect_async(
    target: str,
    hasher: str | None = None,
    *,
    version: int = 0,
    storage_options: Mapping[str, Any] | None = None,
    timeout_s: float = 60.0,
    token: str | None = None,
    certificates: str | None = None,
) -> AsyncSearcher:
    """As `connect`, for callers that await: what is searched in this process is searched in a thread of its own."""
    if not target.startswith(_HTTP + _GRPC):
        return AsyncLocalSearcher(LocalSearcher(target, hasher, version, storage_options))
    _check_served(target, hasher, version)
    if target.startswith(_HTTP):
        transport = AsyncHttpTransport(target.rstrip("/"), timeout_s, token, _trusted(certificates))
        return AsyncServedSearcher(transport)
    from distindex.serving.grpc_transport import AsyncGrpcTransport

    return AsyncServedSearcher(AsyncGrpcTransport(target, timeout_s, token, _read(certificates)))


def _check_served(target: str, hasher: str | None, version: int) -> None:
    if hasher is not None or version:
        raise InputError(f"{target}: a service has its own hasher and version; leave them out")


def _trusted(certificates: str | None) -> ssl.SSLContext | bool:
    if certificates is None:
        return True
    try:
        return ssl.create_default_context(cafile=certificates)
    except OSError as error:
        raise InputError(f"certificates: {certificates} cannot be used ({error})") from error


def _read(certificates: str | None) -> bytes | None:
    return None if certificates is None else Storage(certificates).read_bytes("")


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


class AsyncLocalSearcher(AsyncSearcher):
    """As `LocalSearcher`, for callers that await; one search at a time.

    Args:
        searcher: searches, in a thread of its own.
    """

    def __init__(self, searcher: LocalSearcher) -> None:
        self._searcher = searcher
        # The index has threads for each search: more at once would only share them.
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="search")

    async def _search(self, request: SearchRequest) -> Matches:
        return await asyncio.get_running_loop().run_in_executor(self._pool, self._searcher._search, request)

    async def item(self, id: int | str) -> Match:
        return await asyncio.get_running_loop().run_in_executor(self._pool, self._searcher.item, id)

    async def info(self) -> dict[str, Any]:
        return self._searcher.info()

    async def close(self) -> None:
        self._pool.shutdown()
        self._searcher.close()


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
