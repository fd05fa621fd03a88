"""The HTTP API: requests in, answers and errors out. Knows nothing of Ray; a `Backend` does the searching."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, Protocol

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware

import distindex
from distindex.errors import BusyError, DamagedError, FormatError, InputError, NotFoundError, UnavailableError
from distindex.index.matches import Matches
from distindex.serving import answer, facts, web
from distindex.serving.access import Access, Guard
from distindex.serving.activity import SEARCH_ROUTE, Activity, Done, Observed, count, stage
from distindex.serving.body import Limits, SearchBody, parse, parse_arrow, read_body
from distindex.serving.items import UnknownItemError, whole_number
from distindex.serving.refusal import ErrorAnswer, refuse
from distindex.serving.request import RequestError, SearchRequest

logger = logging.getLogger(__name__)


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


def _error_of(error: Exception) -> JSONResponse:
    if isinstance(error, UnknownItemError):
        return refuse(404, "not_found", str(error), error.field)
    if isinstance(error, RequestError):
        status, code = (413, "too_large") if error.too_large else (400, "invalid_request")
        return refuse(status, code, str(error), error.field)
    if isinstance(error, BusyError):
        return refuse(429, "busy", str(error))
    if isinstance(error, UnavailableError):
        return refuse(503, "unavailable", str(error))
    # A stored file that is missing or damaged is not the caller's fault, though it is an InputError to a builder.
    if isinstance(error, InputError) and not isinstance(error, DamagedError | FormatError | NotFoundError):
        return refuse(400, "invalid_request", str(error))
    logger.error("a request failed", exc_info=error)
    return refuse(500, "internal", "the service failed to answer; its log says why")


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


def make_api(
    backend: Backend, observers: Sequence[Callable[[Done], None]] = (), access: Access | None = None
) -> FastAPI:
    """The page at / and the API over a backend; /openapi.json lists its paths.

    Args:
        backend: does the searching.
        observers: told of each request that has been answered.
        access: who may ask; default: everybody.
    """
    # FastAPI's pages load their scripts from the network, so they would be blank where there is none.
    api = FastAPI(title="distindex", version=distindex.__version__, docs_url=None, redoc_url=None)
    admission = _Admission(backend.limits.max_requests)
    errors: dict[int | str, dict[str, Any]] = {
        400: {"model": ErrorAnswer, "description": "The request is wrong; `field` says where"},
        404: {"model": ErrorAnswer, "description": "No row has the id of an item that was asked for"},
        401: {"model": ErrorAnswer, "description": "The service asks for a token"},
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
            body = await read_body(http_request, backend.limits.max_body_bytes)
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
                return refuse(404, "not_found", f"no row has the id {id!r}")
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
            return refuse(503, "unavailable", "; ".join(problems))
        return JSONResponse({"status": "ready", "version": backend.info()["version"]})

    @api.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException) -> Response:
        if error.status_code == 404:
            return refuse(404, "not_found", f"{request.url.path}: no such path; /openapi.json lists them")
        if error.status_code == 405:
            return refuse(405, "method_not_allowed", f"{request.url.path} does not know {request.method}")
        return refuse(error.status_code, "invalid_request", str(error.detail))

    activity = Activity()
    api.include_router(facts.make_routes(backend, activity, taken, _error_of, takes_queries))
    api.include_router(web.make_routes())
    # What is added last comes first: who is turned away is observed too, and a page elsewhere can read why.
    if access is not None:
        api.add_middleware(Guard, access=access)
        if access.origins:
            api.add_middleware(
                CORSMiddleware,
                allow_origins=access.origins,
                allow_methods=["GET", "POST"],
                allow_headers=["Authorization", "Content-Type", "X-Request-ID"],
                expose_headers=["X-Request-ID", "Retry-After"],
            )
    api.add_middleware(Observed, observers=[activity.observe, *observers])
    return api
