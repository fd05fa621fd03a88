"""The HTTP API: requests in, answers and errors out. Knows nothing of Ray; a `Backend` does the searching."""

from __future__ import annotations

import base64
import binascii
import contextlib
import dataclasses
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Annotated, Any, Protocol, TypeVar

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from starlette.exceptions import HTTPException

import distindex
from distindex.errors import BusyError, DamagedError, FormatError, InputError, NotFoundError, UnavailableError
from distindex.index.matches import Matches
from distindex.serving import answer, facts, question, web
from distindex.serving.activity import SEARCH_ROUTE, Activity, Done, Observed, count, stage
from distindex.serving.items import UnknownItemError, whole_number
from distindex.serving.request import RequestError, SearchRequest, make_request

SettingsT = TypeVar("SettingsT", bound="Settings")

logger = logging.getLogger(__name__)

MAX_BODY_BYTES = 64 << 20
# A million answers are about 100 MB of JSON, built in one process that others wait for.
MAX_ANSWERS = 1_000_000
# Some 40 bytes each in every shard.
MAX_CANDIDATES = 2_000_000


@dataclasses.dataclass(frozen=True)
class Limits:
    """What one request may ask for.

    Attributes:
        max_queries: queries in one request.
        max_k: answers per query.
        max_requests: requests at work at once in one process.
        max_answers: answers in one request.
        max_candidates: candidates of a rescored search in one request, over all its queries.
        max_body_bytes: size of the request's body in bytes.
    """

    max_queries: int
    max_k: int
    max_requests: int
    max_answers: int = MAX_ANSWERS
    max_candidates: int = MAX_CANDIDATES
    max_body_bytes: int = MAX_BODY_BYTES


class Backend(facts.Backend, Protocol):
    """What the API needs of the application behind it."""

    limits: Limits

    async def search(self, request: SearchRequest) -> Matches:
        """Answer from exactly one version of the index."""
        ...

    async def lookup(self, id: int | str) -> Matches:
        """The row with an id, as the answers to one query, of which there is one or none."""
        ...

    async def problems(self) -> list[str]:
        """What does not answer a canary query now; empty when ready."""
        ...


class _Admission:
    """Counts the requests at work; `with` takes one in, or turns it away.

    Whoever is turned away has waited for nothing, and nobody waits in front: the longest wait is what the requests
    at work take, `most` of them.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self.at_work = 0

    def __enter__(self) -> None:
        if self.at_work >= self._most:
            raise BusyError(f"{self.at_work} requests are at work, as many as are taken at once; try again")
        self.at_work += 1

    def __exit__(self, *_: object) -> None:
        self.at_work -= 1


def _one_or_many(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


def _one_or_many_ids(value: Any) -> Any:
    return [value] if isinstance(value, str | int) else value


def _one_or_many_rows(value: Any) -> Any:
    alone = isinstance(value, list) and value and isinstance(value[0], int | float) and not isinstance(value[0], bool)
    return [value] if alone else value


Rows = Annotated[
    list[list[float]],
    BeforeValidator(_one_or_many_rows, json_schema_input_type=list[float] | list[list[float]]),
]


class Settings(BaseModel):
    """What is asked of the queries: k or radius, and how."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    k: int | None = None
    radius: int | None = None
    limit: int | None = None
    columns: list[str] = []
    allow_partial: bool = False
    rescore: bool = False
    candidates: int | None = None
    filter: Annotated[
        str | None,
        Field(
            description="Only rows whose payload passes, applied before the nearest are chosen: comparisons of a "
            "column with constants (== != < <= > >= in), joined by and, or, not and parentheses",
            examples=['label == "sport" and year >= 2020'],
        ),
    ] = None


class SearchBody(Settings):
    """The body of /v1/search: exactly one of codes, vectors, texts, images, logits and items, and k or radius."""

    codes: Annotated[list[str], BeforeValidator(_one_or_many, json_schema_input_type=str | list[str])] | None = None
    vectors: Rows | None = None
    texts: Annotated[list[str], BeforeValidator(_one_or_many, json_schema_input_type=str | list[str])] | None = None
    images: Annotated[
        list[str] | None,
        BeforeValidator(_one_or_many, json_schema_input_type=str | list[str]),
        Field(description="PNG, JPEG or WebP files in base64"),
    ] = None
    logits: Rows | None = None
    items: Annotated[
        list[Any] | None,
        BeforeValidator(_one_or_many_ids, json_schema_input_type=int | str | list[int | str]),
        Field(description="Ids of rows, whose codes are searched; no row answers its own query"),
    ] = None


class Answer(BaseModel):
    """One row of the index that answers a query. `code` is hexadecimal; `distance` is in bits.

    `score` is the asymmetric distance, and stands only in answers that were rescored.
    """

    id: int | str
    distance: int
    code: str
    payload: dict[str, Any]
    score: float | None = None


class SearchAnswer(BaseModel):
    """The answers, one list per query, ordered by (distance, code, id); rescored, by the score before these."""

    version: int
    bits: int
    results: list[list[Answer]]
    missing_shards: list[int]


class Item(BaseModel):
    """One row of the index."""

    version: int
    id: int | str
    code: str
    payload: dict[str, Any]


class ErrorDetail(BaseModel):
    """What is wrong and, where one part of the request is to blame, which."""

    code: str
    message: str
    field: str | None


class ErrorAnswer(BaseModel):
    """Every error has this form."""

    error: ErrorDetail


def _error(status: int, code: str, message: str, field: str | None = None) -> JSONResponse:
    headers = {"Retry-After": "1"} if status in (429, 503) else None
    body = {"error": {"code": code, "message": " ".join(message.split()), "field": field}}
    return JSONResponse(body, status, headers)


def _error_of(error: Exception) -> JSONResponse:
    if isinstance(error, UnknownItemError):
        return _error(404, "not_found", str(error), error.field)
    if isinstance(error, RequestError):
        status, code = (413, "too_large") if error.too_large else (400, "invalid_request")
        return _error(status, code, str(error), error.field)
    if isinstance(error, BusyError):
        return _error(429, "busy", str(error))
    if isinstance(error, UnavailableError):
        return _error(503, "unavailable", str(error))
    # A stored file that is missing or damaged is not the caller's fault, though it is an InputError to a builder.
    if isinstance(error, InputError) and not isinstance(error, DamagedError | FormatError | NotFoundError):
        return _error(400, "invalid_request", str(error))
    logger.error("a request failed", exc_info=error)
    return _error(500, "internal", "the service failed to answer; its log says why")


async def _body(request: Request, limit: int) -> bytes:
    too_large = RequestError(f"the body is larger than {limit} bytes: send fewer queries at once", None, True)
    if int(request.headers.get("content-length") or 0) > limit:
        raise too_large
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size > limit:
            raise too_large
        parts.append(part)
    return b"".join(parts)


def _where(location: tuple[int | str, ...]) -> str | None:
    path = ""
    for part in location:
        path += f"[{part}]" if isinstance(part, int) else f".{part}" if path else str(part)
    return path or None


def parse(data: bytes, limits: Limits) -> SearchRequest:
    """A request from the JSON body of /v1/search.

    Raises:
        RequestError: it is not JSON, has an unknown or ill-typed field, or asks for more than the limits.
    """
    body = _read(SearchBody, data)
    return _within(limits, make_request(**{**body.model_dump(), "images": _decoded(body.images)}))


def parse_arrow(data: bytes, limits: Limits) -> SearchRequest:
    """A request from a body that is an Arrow stream; see `question`.

    Raises:
        RequestError: as `parse`, or it is not such a stream.
    """
    queries, settings = question.from_arrow(data)
    return _within(limits, make_request(**queries, **_read(Settings, settings).model_dump()))


def _read(model: type[SettingsT], data: bytes) -> SettingsT:
    try:
        return model.model_validate_json(data)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        known = model.model_fields
        message = first["msg"]
        if first["type"] == "extra_forbidden":
            message = f"unknown field; the fields are {', '.join(known)}"
        raise RequestError(message, _where(first["loc"])) from error


def _within(limits: Limits, request: SearchRequest) -> SearchRequest:
    if len(request) > limits.max_queries:
        raise RequestError(
            f"{len(request)} queries, but at most {limits.max_queries} in one request", request.field, True
        )
    for name, value in (("k", request.k), ("limit", request.limit)):
        if value is None:
            continue
        if value > limits.max_k:
            raise RequestError(f"{value} is more than the {limits.max_k} answers that a query may ask for", name)
        if value * len(request) > limits.max_answers:
            raise RequestError(
                f"{len(request)} queries of {value} answers are more than {limits.max_answers} answers: "
                "send fewer queries at once",
                name,
                True,
            )
    if request.candidates is not None and request.candidates * len(request) > limits.max_candidates:
        raise RequestError(
            f"{len(request)} queries of {request.candidates} candidates are more than {limits.max_candidates} "
            "candidates: send fewer queries at once",
            "candidates",
            True,
        )
    return request


def _decoded(images: list[str] | None) -> list[bytes] | None:
    if images is None:
        return None
    files = []
    for row, image in enumerate(images):
        try:
            files.append(base64.b64decode(image, validate=True))
        except binascii.Error as error:
            raise RequestError("not base64", f"images[{row}]") from error
    return files


async def _search(backend: Backend, request: SearchRequest) -> Matches:
    limits = backend.limits
    if request.radius is None or request.limit is not None:
        return await backend.search(request)
    # Without a limit a radius can hold the whole index. One answer more than allowed is asked for, so that
    # an answer that would have to be cut is refused instead.
    share = limits.max_answers // max(1, len(request))
    most = min(limits.max_k, share)
    matches = await backend.search(dataclasses.replace(request, limit=most + 1))
    counts = matches.offset_Q1[1:] - matches.offset_Q1[:-1]
    if len(counts) and counts.max() > most:
        query = int(counts.argmax())
        raise RequestError(
            f"more than {most} rows lie within {request.radius} bits of query {query}: "
            "set limit, or ask for a smaller radius or fewer queries",
            "radius",
            True,
        )
    return matches


def make_api(backend: Backend, observers: Sequence[Callable[[Done], None]] = ()) -> FastAPI:
    """The page at / and the API over a backend; /openapi.json lists its paths.

    Args:
        backend: does the searching.
        observers: told of each request that has been answered.
    """
    # FastAPI's pages load their scripts from the network, so they would be blank where there is none.
    api = FastAPI(title="distindex", version=distindex.__version__, docs_url=None, redoc_url=None)
    admission = _Admission(backend.limits.max_requests)
    errors: dict[int | str, dict[str, Any]] = {
        400: {"model": ErrorAnswer, "description": "The request is wrong; `field` says where"},
        404: {"model": ErrorAnswer, "description": "No row has the id of an item that was asked for"},
        413: {"model": ErrorAnswer, "description": "Too many queries or answers, or too large a body"},
        429: {"model": ErrorAnswer, "description": "As many requests are at work as are taken at once; try again"},
        503: {"model": ErrorAnswer, "description": "A shard or the encoder does not answer"},
    }
    schema = SearchBody.model_json_schema()
    takes_queries: dict[str, Any] = {
        "responses": errors,
        "openapi_extra": {
            "requestBody": {
                "required": True,
                "content": {
                    "application/json": {"schema": schema},
                    answer.ARROW_STREAM: {"schema": {"type": "string", "format": "binary"}},
                },
            }
        },
    }

    @contextlib.asynccontextmanager
    async def taken(http_request: Request) -> AsyncIterator[SearchRequest]:
        """The search in a body, which is at work while the block runs."""
        with stage("read"):
            arrow = http_request.headers.get("content-type", "").startswith(answer.ARROW_STREAM)
            body = await _body(http_request, backend.limits.max_body_bytes)
        with admission:
            with stage("read"):
                request = (parse_arrow if arrow else parse)(body, backend.limits)
            count(queries=len(request), at_work=admission.at_work)
            yield request

    @api.post(
        SEARCH_ROUTE,
        summary="The nearest codes, or all within a radius",
        response_model=SearchAnswer,
        **takes_queries,
    )
    async def search(http_request: Request) -> Response:
        try:
            async with taken(http_request) as request:
                matches = await _search(backend, request)
            with stage("answer"):
                if answer.ARROW_STREAM in http_request.headers.get("accept", ""):
                    return Response(answer.to_arrow(matches), media_type=answer.ARROW_STREAM)
                return Response(answer.to_json(matches, backend.info()["bits"]), media_type="application/json")
        except Exception as error:  # every failure leaves as JSON in one form
            return _error_of(error)

    @api.get(
        "/v1/items/{id:path}",
        summary="One row, with its code and payload",
        responses={
            200: {"model": Item},
            404: {"model": ErrorAnswer, "description": "No such row"},
            429: errors[429],
            503: errors[503],
        },
    )
    async def item(id: str, http_request: Request) -> Response:
        try:
            key = id if backend.info()["id_type"] == "string" else whole_number(id)
            with admission:
                matches = await backend.lookup(key) if key is not None else None
            if matches is None or not len(matches.id_M):
                return _error(404, "not_found", f"no row has the id {id!r}")
            if answer.ARROW_STREAM in http_request.headers.get("accept", ""):
                return Response(answer.to_arrow(matches), media_type=answer.ARROW_STREAM)
            return Response(answer.item_to_json(matches), media_type="application/json")
        except Exception as error:  # every failure leaves as JSON in one form
            return _error_of(error)

    @api.get("/v1/index", summary="What is served")
    async def index() -> dict[str, Any]:
        return backend.info()

    @api.get("/live", summary="The process is up")
    async def live() -> dict[str, str]:
        return {"status": "live"}

    @api.get("/ready", summary="Every shard and the encoder answer a query", responses={503: errors[503]})
    async def ready() -> Response:
        problems = await backend.problems()
        if problems:
            return _error(503, "unavailable", "; ".join(problems))
        return JSONResponse({"status": "ready", "version": backend.info()["version"]})

    @api.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException) -> Response:
        if error.status_code == 404:
            return _error(404, "not_found", f"{request.url.path}: no such path; /openapi.json lists them")
        if error.status_code == 405:
            return _error(405, "method_not_allowed", f"{request.url.path} does not know {request.method}")
        return _error(error.status_code, "invalid_request", str(error.detail))

    activity = Activity()
    api.include_router(facts.make_routes(backend, activity, taken, _error_of, takes_queries))
    api.include_router(web.make_routes())
    api.add_middleware(Observed, observers=[activity.observe, *observers])
    return api
