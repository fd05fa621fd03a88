"""What can be asked of an index, wherever it is, by callers that wait and by callers that await."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self

import numpy.typing as npt

from distindex.errors import NotFoundError
from distindex.index.matches import Match, Matches
from distindex.serving.request import SearchRequest, make_request


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
        timeout_ms: int | None = None,
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
            timeout_ms: a service answers within this time, or refuses; in this process a search takes the time it
                takes.

        Raises:
            RequestError: the request is wrong; `field` names the part.
            UnknownItemError: the index has no row with the id of an item; it is a `NotFoundError` too.
            UnavailableError: a shard, the encoder or the service does not answer: (`BusyError`) not now, or
                (`DeadlineError`) not within `timeout_ms`.
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
            timeout_ms=timeout_ms,
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


class AsyncSearcher(ABC):
    """What `Searcher` has, for callers that await. Use it with `async with`, or call `close`."""

    async def search(
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
        timeout_ms: int | None = None,
    ) -> Matches:
        """As `Searcher.search`."""
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
            timeout_ms=timeout_ms,
        )
        return await self._search(request)

    @abstractmethod
    async def _search(self, request: SearchRequest) -> Matches: ...

    @abstractmethod
    async def item(self, id: int | str) -> Match:
        """As `Searcher.item`."""

    @abstractmethod
    async def info(self) -> dict[str, Any]:
        """As `Searcher.info`."""

    @abstractmethod
    async def close(self) -> None:
        """Let go of the index or the connections."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()


def only(found: Sequence[Match], id: int | str) -> Match:
    """The one answer of a lookup.

    Raises:
        NotFoundError: there is none.
    """
    if not found:
        raise NotFoundError(f"no row has the id {id!r}")
    return found[0]
