"""Ids: int64 or string, unique, never null, and given back exactly as they came."""

# pyright: reportAttributeAccessIssue=false
# (pyarrow.compute makes its functions when it is imported)

from __future__ import annotations

import zlib
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from distindex.errors import InputError

IdColumn: TypeAlias = "pa.Array | pa.ChunkedArray"


def is_text(kind: pa.DataType) -> bool:
    """Whether a column of this type holds texts: string, large_string, or a dictionary of them."""
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)


def id_type(kind: pa.DataType, where: str) -> pa.DataType:
    """The type in which ids of a column type are kept: int64 or string.

    Raises:
        InputError: the column holds neither integers nor strings.
    """
    if is_text(kind):
        return pa.string()
    value_type = kind.value_type if pa.types.is_dictionary(kind) else kind
    if pa.types.is_integer(value_type):
        return pa.int64()
    raise InputError(f"{where}: ids of type {kind}; ids are integers or strings")


def as_ids(column: IdColumn, where: str) -> IdColumn:
    """Ids as int64 or string, without a copy where they have that type already.

    Raises:
        InputError: neither integers nor strings, or an integer that does not fit int64.
    """
    target = id_type(column.type, where)
    if column.type == target:
        return column
    try:
        return column.cast(target)
    except pa.ArrowInvalid as error:
        wide = pc.max(column.cast(pa.uint64())).as_py()
        raise InputError(f"{where}: id {wide} does not fit int64; store such ids as strings") from error


def check_ids(ids: IdColumn, where: str) -> None:
    """Check that ids are integers or strings, present and unique.

    Args:
        ids: the column.
        where: what errors name, such as the corpus's URI and the column.

    Raises:
        InputError: naming the first bad id and its rows, counted from 0.
    """
    values = as_ids(ids, where)
    if values.null_count:
        row = pc.index(values.is_null(), True).as_py()
        raise InputError(f"{where} row {row}: the id is null; every row needs an id")
    repeated = repeated_ids(values)
    if len(repeated):
        rows = pc.indices_nonzero(pc.equal(values, repeated[0])).to_pylist()
        raise InputError(
            f"{where}: id {repeated[0].as_py()!r} is there {len(rows)} times, in rows "
            f"{', '.join(map(str, rows[:3]))}{', ...' if len(rows) > 3 else ''}; "
            f"ids must be unique ({len(repeated):,} are not)"
        )


def repeated_ids(ids: IdColumn) -> pa.Array:
    """The ids that occur more than once, each once, in the order of their first occurrence.

    Takes 16 bytes an id besides the ids, where a hash table takes 200.

    Args:
        ids: int64 or string, none of them null.
    """
    key_N = _keys(ids)
    sorted_N = np.sort(key_N)
    key_R = np.unique(sorted_N[1:][sorted_N[1:] == sorted_N[:-1]])
    if not len(key_R):
        return pa.array([], ids.type)
    # Different texts may have the same key.
    counts = pc.value_counts(ids.filter(pa.array(np.isin(key_N, key_R))))
    return counts.filter(pc.greater(counts.field("counts"), 1)).field("values")


def _keys(ids: IdColumn) -> npt.NDArray[np.int64]:
    """Equal for equal ids."""
    chunks = ids.chunks if isinstance(ids, pa.ChunkedArray) else [ids]
    if pa.types.is_integer(ids.type):
        found = [chunk.to_numpy() for chunk in chunks]
    else:
        found = [np.fromiter(map(hash, chunk.to_pylist()), np.int64, len(chunk)) for chunk in chunks]
    return np.concatenate([np.zeros(0, np.int64), *found])


def first_repeated(*pieces: pa.ChunkedArray) -> int | str | None:
    """The first id, in the order of the pieces, that occurs more than once in all of them; None if none does."""
    repeated = repeated_ids(pa.chunked_array([chunk for piece in pieces for chunk in piece.chunks], pieces[0].type))
    return repeated[0].as_py() if len(repeated) else None


def bucket_of(ids: pa.ChunkedArray, buckets: int) -> npt.NDArray[np.uint64]:
    """The bucket of each id: equal for equal ids, and evenly spread."""
    if pa.types.is_integer(ids.type):
        # The high bits of a product with an odd constant (Knuth, multiplicative hashing).
        mixed_N = ids.to_numpy().astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) >> np.uint64(32)
    else:
        texts = ids.cast(pa.binary()).to_pylist()
        mixed_N = np.fromiter((zlib.crc32(text) for text in texts), np.uint64, len(texts))
    return mixed_N % np.uint64(buckets)
