"""Labels: none, one or several per row; masks that hide most of them; which rows share one."""

# pyright: reportAttributeAccessIssue=false
# (pyarrow.compute makes its functions when it is imported)

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import scipy.sparse

from distindex.corpus.ids import as_ids
from distindex.corpus.rows import is_list
from distindex.errors import InputError
from distindex.storage import Storage

BoolArray = npt.NDArray[np.bool_]


@dataclasses.dataclass(frozen=True)
class Labels:
    """The labels of N rows as indices into the sorted label names (CSR).

    Attributes:
        names: the L label names, sorted.
        offset_N1: int64 [N+1]; row i has the labels `index[offset_N1[i]:offset_N1[i+1]]`, ascending.
        index: int32; a row without any is unlabeled.
        multi: whether rows of this column may have more than one label (hiding labels does not change it).
    """

    names: tuple[str, ...]
    offset_N1: npt.NDArray[np.int64]
    index: npt.NDArray[np.int32]
    multi: bool = False

    def __len__(self) -> int:
        return len(self.offset_N1) - 1

    def one_hot(self) -> npt.NDArray[np.float32]:
        """`y_NL`, 1 where the row has the label; all zero for an unlabeled row."""
        y_NL = np.zeros((len(self), len(self.names)), np.float32)
        y_NL[np.repeat(np.arange(len(self)), np.diff(self.offset_N1)), self.index] = 1
        return y_NL

    def labeled(self) -> BoolArray:
        """`labeled_N`: which rows have a label."""
        return np.diff(self.offset_N1) > 0

    def hide(self, keep_N: BoolArray) -> Labels:
        """The same rows, unlabeled where `keep_N` is false."""
        keep_N = np.asarray(keep_N, bool)
        if len(keep_N) != len(self):
            raise ValueError(f"a mask of {len(keep_N)} rows for {len(self)} rows of labels")
        count_N = np.diff(self.offset_N1)
        index = self.index[np.repeat(keep_N, count_N)]
        return dataclasses.replace(self, offset_N1=_offsets(np.where(keep_N, count_N, 0)), index=index)

    def take(self, rows: npt.ArrayLike) -> Labels:
        """The labels of some rows, given by number or as a boolean mask."""
        chosen = np.asarray(rows)
        chosen = np.flatnonzero(chosen) if chosen.dtype == bool else chosen.astype(np.int64)
        matrix = self.matrix()[chosen]
        return dataclasses.replace(
            self, offset_N1=matrix.indptr.astype(np.int64), index=matrix.indices.astype(np.int32)
        )

    def matrix(self) -> scipy.sparse.csr_matrix:
        """`y_NL` as a sparse matrix of int32 ones."""
        ones = np.ones(len(self.index), np.int32)
        return scipy.sparse.csr_matrix(
            (ones, self.index, self.offset_N1), shape=(len(self), len(self.names)), dtype=np.int32
        )


def read_labels(column: pa.ChunkedArray | pa.Array, names: Sequence[str] | None = None) -> Labels:
    """Labels from a column of strings, integers or booleans, or of lists of them.

    Null, NaN and an empty list mean unlabeled. Whole floating-point numbers count as integers, since that is
    how pandas writes integers with gaps.

    Args:
        column: one label, a list of labels or null per row.
        names: the label names to count with; default: those that occur, sorted.

    Raises:
        InputError: a column of another type, or a label that is not among `names`.
    """
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    listed = is_list(array.type)
    texts = _as_text(pc.list_flatten(array) if listed else array)
    encoded = texts.dictionary_encode()
    found = encoded.dictionary.to_pylist()
    sorted_names = tuple(sorted(found)) if names is None else tuple(sorted(names))
    position = {name: i for i, name in enumerate(sorted_names)}
    unknown = [name for name in found if name not in position]
    if unknown:
        raise InputError(
            f"label {unknown[0]!r} is not one of the {len(sorted_names)} known labels "
            f"({', '.join(sorted_names[:5])}{', ...' if len(sorted_names) > 5 else ''})"
        )
    translate = np.array([position[name] for name in found], np.int32)
    present = texts.is_valid().to_numpy(zero_copy_only=False)
    label_of = translate[encoded.indices.drop_null().to_numpy(zero_copy_only=False)]
    if not listed:
        return Labels(sorted_names, _offsets(present), label_of)

    lengths = pc.fill_null(pc.list_value_length(array), 0).to_numpy(zero_copy_only=False)
    row_of = np.repeat(np.arange(len(array)), lengths)[present]
    # One key per (row, label): sorts the labels within each row and drops those given twice.
    width = max(1, len(sorted_names))
    key = np.unique(row_of * width + label_of)
    count_N = np.bincount(key // width, minlength=len(array))
    return Labels(sorted_names, _offsets(count_N), (key % width).astype(np.int32), multi=bool((count_N > 1).any()))


def label_lists(column: pa.ChunkedArray | pa.Array) -> pa.ListArray:
    """A label column as lists of strings; what `read_labels` makes of it does not change.

    Raises:
        InputError: a column of another type.
    """
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    if not is_list(array.type):
        return pa.ListArray.from_arrays(pa.array(np.arange(len(array) + 1, dtype=np.int32)), _as_text(array))
    lengths = pc.fill_null(pc.list_value_length(array), 0).to_numpy(zero_copy_only=False)
    return pa.ListArray.from_arrays(pa.array(_offsets(lengths).astype(np.int32)), _as_text(pc.list_flatten(array)))


def label_mask(rows: int, fraction: float, seed: int) -> BoolArray:
    """`keep_N`: which rows keep their label, as the reference code of SSB-VAE draws them.

    The first floor(fraction * rows) of a permutation (numpy's RandomState, shuffled twice), so that for one
    seed a smaller fraction is a subset of a larger one. Not stratified by class.
    """
    random = np.random.RandomState(seed)
    order = np.arange(rows)
    random.shuffle(order)
    random.shuffle(order)
    keep_N = np.zeros(rows, bool)
    keep_N[order[: int(np.floor(fraction * rows))]] = True
    return keep_N


def read_id_list(uri: str, kind: pa.DataType, options: Mapping[str, Any] | None = None) -> pa.Array:
    """The ids in a text file with one id a line (empty lines do not count).

    Args:
        uri: the file.
        kind: type of the ids (`ids.id_type`).
        options: passed to the fsspec file system.

    Raises:
        NotFoundError: there is no such file.
        InputError: the file is empty, or a line is no id of this type.
    """
    try:
        lines = Storage(uri, options).read_bytes("").decode("utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise InputError(f"{uri}: not a text file in UTF-8 ({error})") from error
    wanted: list[Any] = []
    for number, line in enumerate(lines, 1):
        text = line.strip()
        if not text:
            continue
        if pa.types.is_integer(kind):
            try:
                wanted.append(pa.scalar(int(text), pa.int64()).as_py())
            except (ValueError, OverflowError, pa.ArrowException) as error:
                raise InputError(
                    f"{uri} line {number}: {text!r} is not an integer, as the corpus's ids are"
                ) from error
        else:
            wanted.append(text)
    if not wanted:
        raise InputError(f"{uri}: no id in this file; it needs one id a line")
    return pa.array(wanted, kind)


def check_listed(listed: pa.Array, known: pa.ChunkedArray | pa.Array, uri: str) -> None:
    """Refuse a list of ids of which some are not in the corpus.

    Raises:
        InputError: naming the first of them.
    """
    missing = listed.filter(pc.invert(pc.is_in(listed, value_set=known)))
    if len(missing):
        raise InputError(f"{uri}: id {missing[0].as_py()!r} is not in the corpus ({len(missing):,} are not)")


def labeled_ids_mask(
    ids: pa.ChunkedArray | pa.Array, uri: str, options: Mapping[str, Any] | None = None
) -> BoolArray:
    """`keep_N`: which rows are named in a text file with one id a line.

    Raises:
        NotFoundError: there is no such file.
        InputError: the file is empty, a line is no id of this type, or an id is not in the corpus.
    """
    known = as_ids(ids, "ids")
    listed = read_id_list(uri, known.type, options)
    check_listed(listed, known, uri)
    return pc.is_in(known, value_set=listed).to_numpy(zero_copy_only=False)


def share_a_label(queries: Labels, rows: Labels) -> BoolArray:
    """`similar_QN`: whether a query and a row have a label in common, by name; unlabeled ones never do.

    The answer is dense: take rows in blocks where Q times N bytes is too much.
    """
    position = {name: i for i, name in enumerate(queries.names)}
    here = np.array([position.get(name, -1) for name in rows.names], np.int64)
    if not (np.diff(queries.offset_N1) > 1).any() and not (np.diff(rows.offset_N1) > 1).any():
        label_Q, label_N = _single(queries), _single(rows)
        # -2 and -1 differ, so that no label never equals no label.
        shared_N = np.full(len(rows), -1, np.int64)
        shared_N[label_N >= 0] = here[label_N[label_N >= 0]]
        label_Q[label_Q < 0] = -2
        return label_Q[:, None] == shared_N[None, :]
    select = scipy.sparse.csr_matrix(
        (np.ones((here >= 0).sum(), np.int32), (np.flatnonzero(here >= 0), here[here >= 0])),
        shape=(len(rows.names), len(queries.names)),
    )
    row_LN = (rows.matrix() @ select).T.tocsr()
    query_QL = queries.matrix()
    similar_QN = np.empty((len(queries), len(rows)), bool)
    block = max(1, (1 << 24) // max(1, len(rows)))
    for start in range(0, len(queries), block):
        similar_QN[start : start + block] = (query_QL[start : start + block] @ row_LN).toarray() > 0
    return similar_QN


def _single(labels: Labels) -> npt.NDArray[np.int64]:
    label_N = np.full(len(labels), -1, np.int64)
    label_N[labels.labeled()] = labels.index
    return label_N


def _offsets(count_N: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(count_N, dtype=np.int64)])


def check_label_type(kind: pa.DataType, where: str) -> None:
    """Refuse column types that hold no labels.

    Raises:
        InputError: neither strings, integers, booleans, whole numbers nor lists of them.
    """
    inner = kind.value_type if is_list(kind) else kind
    if pa.types.is_dictionary(inner):
        inner = inner.value_type
    allowed = (
        pa.types.is_string,
        pa.types.is_large_string,
        pa.types.is_string_view,
        pa.types.is_integer,
        pa.types.is_boolean,
        pa.types.is_floating,
        pa.types.is_null,
    )
    if not any(test(inner) for test in allowed):
        raise InputError(f"{where}: labels of type {kind}; labels are strings, integers, booleans or lists of them")


def _as_text(values: pa.Array) -> pa.Array:
    check_label_type(values.type, "label column")
    if pa.types.is_dictionary(values.type):
        values = values.dictionary_decode()
    if pa.types.is_floating(values.type):
        values = pc.if_else(pc.is_nan(values), pa.scalar(None, values.type), values)
        try:
            values = values.cast(pa.int64())
        except pa.ArrowInvalid as error:
            raise InputError("labels are floating-point numbers that are not whole; store them as strings") from error
    return values.cast(pa.string())
