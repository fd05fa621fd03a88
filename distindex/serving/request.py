"""What a caller asks, checked once for every way in: in process, over HTTP, in the served application."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from distindex import codes as code_arrays
from distindex.codes import CodeArray
from distindex.errors import InputError
from distindex.index.candidates import default_candidates
from distindex.index.filters import Filter

if TYPE_CHECKING:
    from distindex.hashing import Hasher

DEFAULT_K = 10

Field = Literal["codes", "vectors", "texts", "images", "logits", "items"]
Logits = npt.NDArray[np.float32]

READ_BY: dict[str, Field] = {"dense": "vectors", "text": "texts", "image": "images"}
"""The queries that a hasher of each kind of features reads."""


class RequestError(InputError):
    """The request cannot be answered as it is; `field` names the part of it that is wrong.

    Attributes:
        field: for instance `vectors[3]`, or None where no single part is to blame.
        too_large: the request is well formed but asks for more than the service gives at once.
    """

    def __init__(self, message: str, field: str | None = None, too_large: bool = False) -> None:
        # All arguments go to the base class: exceptions cross processes by their `args`.
        super().__init__(message, field, too_large)
        self.field = field
        self.too_large = too_large

    def __str__(self) -> str:
        return str(self.args[0])


@dataclasses.dataclass(frozen=True)
class SearchRequest:
    """A checked request: Q queries of one kind, and either the k nearest or all within a radius.

    Attributes:
        field: what the queries are.
        queries: codes as `code_QC` or as Q strings (hexadecimal or base64); vectors as an Arrow array of
            fixed-size lists of float64; texts as an Arrow array of strings; images as one of the bytes of their
            files; logits as `logit_QK`; items as an Arrow array of their ids, int64 or string.
        k: answers per query, or None with a radius.
        radius: largest Hamming distance in bits, inclusive, or None with k.
        limit: with a radius, the nearest `limit` answers per query only.
        columns: payload columns that come with the answers.
        allow_partial: answer from the shards that are there when some are not.
        rescore: rank by the queries' logits, see `Index.search`.
        candidates: with rescore, the codes that are ranked.
        filter: a condition on payload columns that the answers pass, see `Index.search`.
        timeout_ms: a service answers within this time, or refuses.
    """

    field: Field
    queries: CodeArray | Logits | list[str] | pa.Array
    k: int | None
    radius: int | None
    limit: int | None
    columns: tuple[str, ...]
    allow_partial: bool = False
    rescore: bool = False
    candidates: int | None = None
    filter: str | None = None
    timeout_ms: int | None = None

    def __len__(self) -> int:
        return len(self.queries)

    def part(self, start: int, stop: int) -> SearchRequest:
        """The same request for the queries from `start` to `stop` only."""
        return dataclasses.replace(self, queries=self.queries[start:stop])

    def codes(self, bits: int) -> CodeArray:
        """The queries `code_QC` of a request with codes.

        Raises:
            RequestError: a code is not one of `bits` bits.
        """
        if self.field != "codes":
            raise ValueError(f"the request holds {self.field}, which have to be encoded first")
        with _naming_its_place():
            if isinstance(self.queries, np.ndarray):
                return code_arrays.check_codes(self.queries, bits)
            return code_arrays.from_strings(self.queries, bits)  # type: ignore[arg-type]

    def logits(self, bits: int) -> Logits:
        """The queries `logit_QK` of a request with logits.

        Raises:
            RequestError: they are not `bits` numbers each, or too large for float32.
        """
        if self.field != "logits":
            raise ValueError(f"the request holds {self.field}")
        with _naming_its_place():
            return code_arrays.check_logits(self.queries, bits)  # type: ignore[arg-type]

    def options(self, columns: Sequence[str], logit_QK: Logits | None) -> dict[str, Any]:
        """What `Index.search` is asked besides the codes.

        Args:
            columns: payload columns, checked.
            logit_QK: the queries' logits; None of codes.
        """
        return {
            "k": self.k,
            "radius": self.radius,
            "limit": self.limit,
            "columns": columns,
            "logits": logit_QK if self.rescore else None,
            "candidates": self.candidates,
            "filter": self.filter,
        }


@contextlib.contextmanager
def _naming_its_place() -> Iterator[None]:
    """Errors whose message starts with the place ("codes[3]: ...") as errors of that field."""
    try:
        yield
    except InputError as error:
        place, _, message = str(error).partition(": ")
        raise RequestError(message or str(error), place) from error


@contextlib.contextmanager
def naming_the_filter() -> Iterator[None]:
    """Errors that say what is wrong with a filter as errors of that field."""
    try:
        yield
    except InputError as error:
        place, _, message = str(error).partition(": ")
        if place != "filter":
            raise
        raise RequestError(message, "filter") from error


def make_request(
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
) -> SearchRequest:
    """Check what can be checked without the index.

    Exactly one of `codes` (`code_QC`, or strings), `vectors` (`x_QV`), `texts`, `images` (the bytes of files),
    `logits` (`logit_QK`) and `items` (ids); a single one counts as one query. At most one of `k` and `radius`; k = 10
    where neither is given. `rescore` needs more than codes, and goes with k; `candidates` goes with `rescore`.

    Raises:
        RequestError: naming the field.
    """
    kinds = {
        "codes": codes, "vectors": vectors, "texts": texts, "images": images, "logits": logits, "items": items
    }  # fmt: skip
    given = [name for name, value in kinds.items() if value is not None]
    if len(given) != 1:
        what = f"{' and '.join(given)} were given" if given else "none was given"
        raise RequestError(
            f"exactly one of codes, vectors, texts, images, logits and items is needed, {what}",
            given[-1] if given else None,
        )
    if rescore and given[0] in ("codes", "items"):
        raise RequestError(f"{given[0]} have no logits to rank by; send vectors, texts, images or logits", "rescore")
    if rescore and radius is not None:
        raise RequestError("rescore ranks the k nearest and does not go with a radius", "rescore")
    if candidates is not None and not rescore:
        raise RequestError("candidates belong to rescore", "candidates")
    if k is not None and radius is not None:
        raise RequestError("k and radius exclude each other: use limit to cut a radius search", "k")
    if limit is not None and radius is None:
        raise RequestError("limit belongs to a radius search; use k for the nearest", "limit")
    whole_numbers = (
        ("k", k, 1),
        ("radius", radius, 0),
        ("limit", limit, 1),
        ("candidates", candidates, 1),
        ("timeout_ms", timeout_ms, 1),
    )
    for name, value, least in whole_numbers:
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int | np.integer):
            raise RequestError(f"{value!r} is not a whole number", name)
        if value < least:
            raise RequestError(f"{value} must be at least {least}", name)
    if k is None and radius is None:
        k = DEFAULT_K
    if rescore and k is not None:
        candidates = default_candidates(k) if candidates is None else candidates
        if candidates < k:
            raise RequestError(f"{candidates} cannot give {k} answers a query", "candidates")
    if filter is not None:
        with naming_the_filter():
            Filter(filter)
    queries: CodeArray | Logits | list[str] | pa.Array
    if codes is not None:
        field: Field = "codes"
        queries = _codes(codes)
    elif vectors is not None:
        field = "vectors"
        queries = _vectors(vectors)
    elif logits is not None:
        field = "logits"
        queries = _matrix(logits, "logits")
    elif images is not None:
        field = "images"
        queries = _strings(images, bytes, "the bytes of a file", field)
    elif items is not None:
        field = "items"
        queries = _ids(items)
    else:
        field = "texts"
        queries = _strings(texts, str, "a text", field)
    if isinstance(columns, str):
        columns = (columns,)
    return SearchRequest(
        field,
        queries,
        None if k is None else int(k),
        None if radius is None else int(radius),
        None if limit is None else int(limit),
        tuple(columns),
        bool(allow_partial),
        bool(rescore),
        None if candidates is None else int(candidates),
        filter,
        None if timeout_ms is None else int(timeout_ms),
    )


def _codes(codes: npt.ArrayLike | Sequence[str] | str) -> CodeArray | list[str]:
    if isinstance(codes, str):
        return [codes]
    if isinstance(codes, np.ndarray):
        if codes.dtype != np.uint8 or codes.ndim not in (1, 2):
            raise RequestError(f"expected uint8 rows, got {codes.dtype} of shape {codes.shape}", "codes")
        return np.atleast_2d(codes)
    strings = list(codes)  # type: ignore[arg-type]
    for row, code in enumerate(strings):
        if not isinstance(code, str):
            raise RequestError("codes are a uint8 array or hexadecimal or base64 strings", f"codes[{row}]")
    return strings


def _vectors(vectors: Any) -> pa.Array:
    x_QV = _matrix(vectors, "vectors")
    width = x_QV.shape[1] if x_QV.ndim == 2 else 0
    return pa.FixedSizeListArray.from_arrays(pa.array(x_QV.reshape(-1)), width) if width else _no_vectors()


def _no_vectors() -> pa.Array:
    return pa.array([], pa.list_(pa.float64(), 1))


def _matrix(values: Any, field: Field) -> npt.NDArray[np.float64]:
    """A list of numbers for each query as rows; the numbers of a single query become one row."""
    try:
        value_QV = np.asarray(values, np.float64)
    except (TypeError, ValueError) as error:
        raise _no_matrix(values, field) from error
    if value_QV.ndim == 1 and value_QV.size:
        value_QV = value_QV[None, :]
    if value_QV.ndim > 2:
        raise RequestError(f"expected one list of numbers per query, got shape {value_QV.shape}", field)
    if value_QV.size == 0 and len(value_QV):
        raise RequestError("the list of numbers is empty", f"{field}[0]")
    bad = np.argwhere(~np.isfinite(value_QV))
    if len(bad):
        row, dimension = bad[0]
        raise RequestError(f"{value_QV[row, dimension]} is not a finite number", f"{field}[{row}][{dimension}]")
    return value_QV


def _no_matrix(values: Any, field: Field) -> RequestError:
    try:
        widths = [len(numbers) for numbers in values]
    except TypeError:
        widths = []
    odd = next((row for row, width in enumerate(widths) if width != widths[0]), None)
    if odd is None:
        return RequestError("expected a list of numbers per query", field)
    return RequestError(f"{widths[odd]} numbers, but {widths[0]} in the first query", f"{field}[{odd}]")


def _ids(values: Any) -> pa.Array:
    """Ids, all int64 or all texts; a single one counts as one query."""
    if isinstance(values, np.ndarray | pa.Array):
        values = values.tolist()
    elif isinstance(values, str | int | np.integer):
        values = [values]
    values = list(values)
    kind = str if values and isinstance(values[0], str) else int
    for item, value in enumerate(values):
        if isinstance(value, bool) or not isinstance(value, int | np.integer | str):
            raise RequestError(f"{value!r} is no id; ids are whole numbers or texts", f"items[{item}]")
        if isinstance(value, str) != (kind is str):
            raise RequestError("ids are all whole numbers, or all texts", f"items[{item}]")
        if not isinstance(value, str) and not -(1 << 63) <= value < 1 << 63:
            raise RequestError(f"{value} is beyond 64 bits", f"items[{item}]")
    return pa.array(values, pa.string() if kind is str else pa.int64())


def _strings(values: Any, kind: type[str] | type[bytes], what: str, field: Field) -> pa.Array:
    """Texts or the bytes of files; a single one counts as one query."""
    if isinstance(values, kind):
        values = [values]
    for row, value in enumerate(values):
        if not isinstance(value, kind):
            raise RequestError(f"expected {what}, got {type(value).__name__}", f"{field}[{row}]")
    return pa.array(values, pa.string() if kind is str else pa.binary())


def encode(hasher: Hasher, request: SearchRequest) -> Logits:
    """The logits `logit_QK` of a request with vectors, texts or images; their signs are its codes.

    Raises:
        RequestError: the hasher reads the other kind, or a query has the wrong width.
    """
    kind = hasher.features.kind
    expected = READ_BY[kind]
    if request.field != expected:
        raise RequestError(f"the hasher of this index reads {expected}, not {request.field}", request.field)
    if not len(request):
        return np.empty((0, hasher.bits), np.float32)
    bad = hasher.features.bad_rows(request.queries)
    if bad:
        row, reason = bad[0]
        raise RequestError(reason, f"{request.field}[{row}]")
    return hasher.logits_of(request.queries)  # type: ignore[arg-type]
