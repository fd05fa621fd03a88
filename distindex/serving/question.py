"""Requests on the wire as an Arrow stream: one column of queries, and the rest as JSON in its metadata.

The column is named `codes` (fixed-size binary, or strings in hexadecimal or base64), `vectors` or `logits` (lists of
numbers), `texts` (strings), `images` (the bytes of files) or `items` (int64, or strings). The metadata's key `search`
holds the other fields of the JSON body.
"""

from __future__ import annotations

import dataclasses
import json
import typing
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from distindex.errors import reason_of
from distindex.index.matches import code_rows, one_chunk
from distindex.serving.answer import stream_of
from distindex.serving.request import Field, RequestError, SearchRequest

_SETTINGS = [field.name for field in dataclasses.fields(SearchRequest) if field.name not in ("field", "queries")]
_METADATA = b"search"
_FIELDS = typing.get_args(Field)


def to_arrow(request: SearchRequest) -> bytes:
    """The request as an Arrow stream."""
    queries = request.queries
    if not isinstance(queries, np.ndarray):
        column = pa.array(queries, pa.string()) if isinstance(queries, list) else queries
    elif request.field == "codes":
        rows = np.ascontiguousarray(queries)
        column = pa.Array.from_buffers(pa.binary(rows.shape[1]), len(rows), [None, pa.py_buffer(rows)])
    elif len(queries):
        column = pa.FixedSizeListArray.from_arrays(pa.array(queries.reshape(-1)), queries.shape[1])
    else:
        column = pa.array([], pa.list_(pa.float64()))
    settings = {name: getattr(request, name) for name in _SETTINGS}
    table = pa.table({request.field: column}).replace_schema_metadata({_METADATA: json.dumps(settings)})
    return stream_of(table)


def from_arrow(data: bytes) -> tuple[dict[str, Any], bytes]:
    """The queries as an argument of `make_request`, and the other settings as the JSON that came with them.

    Raises:
        RequestError: it is no Arrow stream, or holds anything but one column of queries without nulls.
    """
    try:
        table = pa.ipc.open_stream(data).read_all()
        # What strangers send may point beyond its own end.
        table.validate(full=True)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise RequestError(f"not a readable Arrow stream ({reason_of(error)})") from error
    if table.num_columns != 1 or table.column_names[0] not in _FIELDS:
        names = ", ".join(table.column_names) or "none"
        raise RequestError(f"one column is needed, named {', '.join(_FIELDS)}; the columns are: {names}")
    field = typing.cast("Field", table.column_names[0])
    column = one_chunk(table.column(0))
    if column.null_count:
        row = int(np.flatnonzero(column.is_null().to_numpy(zero_copy_only=False))[0])
        raise RequestError("is null", f"{field}[{row}]")
    settings = (table.schema.metadata or {}).get(_METADATA, b"{}")
    return {field: _queries(field, column)}, settings


def _queries(field: Field, column: pa.Array) -> Any:
    kind = column.type
    if field == "codes" and pa.types.is_fixed_size_binary(kind) and kind.byte_width:
        return code_rows(column)
    if field == "items" and pa.types.is_integer(kind):
        return column.to_pylist()
    if field in ("codes", "texts", "items") and (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
        return column.to_pylist()
    if field == "images" and (pa.types.is_binary(kind) or pa.types.is_large_binary(kind)):
        return column.to_pylist()
    if field in ("vectors", "logits") and _is_numbers(kind):
        return _rows_of(column)
    raise RequestError(f"a column of type {kind} holds no {field}", field)


def _is_numbers(kind: pa.DataType) -> bool:
    if not (pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)):
        return False
    return pa.types.is_floating(kind.value_type) or pa.types.is_integer(kind.value_type)


def _rows_of(column: pa.Array) -> npt.NDArray[np.float64] | list[list[float]]:
    """Numbers as rows; lists where their lengths differ or a number is null, which `make_request` names."""
    flat = column.flatten()
    if not len(column):
        return []
    if not flat.null_count and not len(flat) % len(column):
        width = len(flat) // len(column)
        if pa.types.is_fixed_size_list(column.type) or (np.asarray(column.value_lengths()) == width).all():
            return np.asarray(flat.to_numpy(zero_copy_only=False), np.float64).reshape(len(column), width)
    return column.to_pylist()
