"""Search by item: the codes of rows of the index are the queries, and no row answers its own."""

# pyright: reportAttributeAccessIssue=false
# (pyarrow.compute makes its functions when it is imported)

from __future__ import annotations

import dataclasses
from typing import cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from distindex.errors import NotFoundError
from distindex.index.matches import Matches, starts_of
from distindex.serving.request import RequestError, SearchRequest


class UnknownItemError(RequestError, NotFoundError):
    """The index has no row with the id of an item that was asked for."""


def ids_of(request: SearchRequest, id_type: str) -> pa.Array:
    """The items of a search by items, as an index whose ids are of this type (int64 or string) has them.

    Raises:
        RequestError: an id cannot be one of the index.
    """
    id_Q = cast("pa.Array", request.queries)
    texts = pa.types.is_string(id_Q.type)
    if id_type == "string":
        if len(id_Q) and not texts:
            raise RequestError(f"{id_Q[0]} is a number, and the ids of this index are texts", "items[0]")
        return id_Q.cast(pa.string())
    if not texts:
        return id_Q
    numbers = [whole_number(text) for text in id_Q.to_pylist()]
    if None in numbers:
        item = numbers.index(None)
        raise RequestError(
            f"{id_Q[item].as_py()!r} is no id of this index, whose ids are whole numbers", f"items[{item}]"
        )
    return pa.array(numbers, pa.int64())


def whole_number(text: str) -> int | None:
    """An int64 id that was written as text; None for what cannot be one."""
    digits = text.removeprefix("-")
    if not (digits.isascii() and digits.isdigit()) or len(digits) > 19:
        return None
    number = int(text)
    return number if -(1 << 63) <= number < 1 << 63 else None


def by_codes(request: SearchRequest, id_Q: pa.Array, found: Matches) -> SearchRequest:
    """The search by codes whose answers, passed through `without_items`, are those of a search by items.

    Args:
        request: the search by items.
        id_Q: its items, as the index has ids.
        found: their rows, as `Index.lookup` answers.

    Raises:
        UnknownItemError: one of them is not there.
    """
    missing = np.flatnonzero(np.diff(found.offset_Q1) == 0)
    if len(missing):
        item = int(missing[0])
        raise UnknownItemError(f"no row has the id {id_Q[item].as_py()!r}", f"items[{item}]")
    # One answer more: the item's own row is among the nearest, unless rows of the same code come before it.
    return dataclasses.replace(
        request,
        field="codes",
        queries=found.code_MC,
        k=None if request.k is None else request.k + 1,
        limit=None if request.limit is None else request.limit + 1,
    )


def without_items(matches: Matches, id_Q: pa.Array, most: int | None) -> Matches:
    """The answers without the row of each query's own item, at most `most` per query."""
    query_M = matches.query_M
    keep_M = pc.not_equal(matches.id_M, id_Q.take(pa.array(query_M))).to_numpy(zero_copy_only=False)
    if most is not None:
        kept_M1 = starts_of(keep_M)
        keep_M = keep_M & (kept_M1[:-1] - kept_M1[matches.offset_Q1[query_M]] < most)
    return matches.where(keep_M)
