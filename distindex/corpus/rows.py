"""Which rows cannot be encoded, and why: a null, a wrong width, NaN or infinity."""

# pyright: reportAttributeAccessIssue=false
# (pyarrow.compute makes its functions when it is imported)

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Literal, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from distindex.corpus.ids import is_text
from distindex.errors import InputError

Column: TypeAlias = "pa.Array | pa.ChunkedArray"
FeatureKind = Literal["dense", "text", "image"]
BadRows = list[tuple[int, str]]


class RowCheck(Protocol):
    """What finds the bad rows of a feature column: fitted features, or a `ColumnCheck` before there are any."""

    def bad_rows(self, column: Column) -> BadRows: ...


@dataclasses.dataclass(frozen=True)
class ColumnCheck:
    """The check of a column of vectors of known width, or of texts."""

    kind: Literal["dense", "text"]
    width: int | None = None

    def bad_rows(self, column: Column) -> BadRows:
        """Row numbers, ascending, each with a reason that completes `column "x" ...`.

        Raises:
            InputError: the column's type does not hold this kind of features at all.
        """
        if feature_kind(column.type, "feature column") != self.kind:
            raise InputError(f"feature column: type {column.type} does not hold {self.kind} features")
        found: BadRows = []
        for first, chunk in chunks(column):
            rows = _bad_texts(chunk) if self.kind == "text" else _bad_vectors(chunk, self.width or 0)
            found += [(first + row, reason) for row, reason in rows]
        return found


def is_list(kind: pa.DataType) -> bool:
    return pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)


def is_bytes(kind: pa.DataType) -> bool:
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def feature_kind(kind: pa.DataType, where: str) -> FeatureKind:
    """What a feature column of this type holds: vectors, texts (also as lists of tokens), or images (bytes).

    Raises:
        InputError: none of them.
    """
    if is_text(kind):
        return "text"
    if is_bytes(kind) or pa.types.is_fixed_size_binary(kind):
        return "image"
    if is_list(kind):
        if pa.types.is_floating(kind.value_type) or pa.types.is_integer(kind.value_type):
            return "dense"
        if is_text(kind.value_type):
            return "text"
    raise InputError(
        f"{where}: features of type {kind}; "
        "a feature column holds lists of numbers, texts, lists of tokens, or images"
    )


def chunks(column: Column) -> Iterator[tuple[int, pa.Array]]:
    """The chunks of a column, each with its first row: list offsets overflow if large columns are joined."""
    first = 0
    for chunk in column.chunks if isinstance(column, pa.ChunkedArray) else [column]:
        yield first, chunk
        first += len(chunk)


def _bad_texts(chunk: pa.Array) -> BadRows:
    bad = [(row, "is null") for row in pc.indices_nonzero(chunk.is_null()).to_pylist()]
    if is_list(chunk.type):
        flat = pc.list_flatten(chunk)
        if flat.null_count:
            parents = pc.list_parent_indices(chunk).to_numpy()
            rows = np.unique(parents[flat.is_null().to_numpy(zero_copy_only=False)])
            bad = sorted([*bad, *((int(row), "holds a null token") for row in rows)])
    return bad


def _bad_vectors(chunk: pa.Array, width: int) -> BadRows:
    length_N = pc.fill_null(pc.list_value_length(chunk), -1).to_numpy(zero_copy_only=False)
    right_N = length_N == width
    bad: BadRows = [
        (int(row), "is null" if length_N[row] < 0 else f"has {length_N[row]} dimensions, expected {width}")
        for row in np.flatnonzero(~right_N)
    ]
    flat = pc.list_flatten(chunk if right_N.all() else chunk.filter(pa.array(right_N)))
    if flat.null_count == 0 and pa.types.is_integer(flat.type):
        return bad
    row_of = np.flatnonzero(right_N)
    null_NV = flat.is_null().to_numpy(zero_copy_only=False).reshape(-1, width) if flat.null_count else None
    values = pc.fill_null(flat, 0) if flat.null_count else flat
    x_NV = values.to_numpy(zero_copy_only=False).reshape(-1, width)
    with np.errstate(over="ignore"):
        bad_N = ~np.isfinite(x_NV.astype(np.float32, copy=False)).all(axis=1)
    if null_NV is not None:
        bad_N |= null_NV.any(axis=1)
    for i in np.flatnonzero(bad_N):
        reason = "holds null" if null_NV is not None and null_NV[i].any() else _not_finite(x_NV[i])
        bad.append((int(row_of[i]), reason))
    return sorted(bad)


def _not_finite(x_V: npt.NDArray[np.floating]) -> str:
    if np.isnan(x_V).any():
        return "holds NaN"
    return "holds infinity" if np.isinf(x_V).any() else "holds a number too large for float32"
