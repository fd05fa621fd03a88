"""The HTTP interface: the requests and answers of a `Responder`, its errors, and the page."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Any

from fastapi import FastAPI, Request, Response
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware

import distindex
from distindex.serving import answer, web
from distindex.serving.access import Guard
from distindex.serving.activity import SEARCH_ROUTE, Observed, stage
from distindex.serving.body import SearchBody, read_body
from distindex.serving.http_errors import ErrorAnswer, refuse
from distindex.serving.refusal import Refusal, refusal_of
from distindex.serving.responder import Responder

CODES_ROUTE = "/v1/codes"
ITEM_ROUTE = "/v1/items/{id:path}"
INDEX_ROUTE = "/v1/index"
STATISTICS_ROUTE = "/v1/statistics"


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


class CodesAnswer(BaseModel):
    """The codes of queries in hexadecimal, and the logits that the hasher made of them; null of codes and items."""

    version: int
    bits: int
    codes: list[str]
    logits: list[list[float]] | None


class Item(BaseModel):
    """One row of the index."""

    version: int
    id: int | str
    code: str
    payload: dict[str, Any]


async def _answered(content: Awaitable[bytes], media_type: str = "application/json") -> Response:
    """What the responder makes, or its error: every failure leaves as JSON in one form."""
    try:
        return Response(await content, media_type=media_type)
    except Exception as error:
        return refuse(refusal_of(error))


def _is_arrow(request: Request, header: str) -> bool:
    return answer.ARROW_STREAM in request.headers.get(header, "")


def make_api(responder: Responder) -> FastAPI:
    """The page at / and the API over a responder; /openapi.json lists its paths."""
    # FastAPI's pages load their scripts from the network, so they would be blank where there is none.
    api = FastAPI(title="distindex", version=distindex.__version__, docs_url=None, redoc_url=None)
    # Of every path that the gate guards.
    guarded: dict[int | str, dict[str, Any]] = {
        401: {"model": ErrorAnswer, "description": "The service asks for a token"},
        429: {"model": ErrorAnswer, "description": "As many requests are at work as are taken at once; try again"},
    }
    unavailable = {"model": ErrorAnswer, "description": "A shard or the encoder does not answer"}
    in_arrow = {"content": {answer.ARROW_STREAM: {"schema": {"type": "string", "format": "binary"}}}}
    errors: dict[int | str, dict[str, Any]] = {
        **guarded,
        400: {"model": ErrorAnswer, "description": "The request is wrong; `field` says where"},
        404: {"model": ErrorAnswer, "description": "No row has the id of an item that was asked for"},
        413: {"model": ErrorAnswer, "description": "Too many queries or answers, or too large a body"},
        503: unavailable,
        504: {"model": ErrorAnswer, "description": "There was no answer within timeout_ms"},
    }
    takes_queries = {
        "requestBody": {
            "required": True,
            "content": {
                "application/json": {"schema": SearchBody.model_json_schema()},
                answer.ARROW_STREAM: {"schema": {"type": "string", "format": "binary"}},
            },
        }
    }

    async def body_of(request: Request) -> bytes:
        with stage("read"):
            return await read_body(request, responder.limits.max_body_bytes)

    @api.post(
        SEARCH_ROUTE,
        summary="The nearest codes, or all within a radius",
        response_model=SearchAnswer,
        responses={200: in_arrow, **errors},
        openapi_extra=takes_queries,
    )
    async def search(request: Request) -> Response:
        arrow, answer_in_arrow = _is_arrow(request, "content-type"), _is_arrow(request, "accept")

        async def found() -> bytes:
            return await responder.search(await body_of(request), arrow=arrow, answer_in_arrow=answer_in_arrow)

        return await _answered(found(), answer.ARROW_STREAM if answer_in_arrow else "application/json")

    @api.post(
        CODES_ROUTE,
        summary="The codes of queries, and their logits",
        response_model=CodesAnswer,
        responses=errors,
        openapi_extra=takes_queries,
    )
    async def codes(request: Request) -> Response:
        async def found() -> bytes:
            return await responder.codes(await body_of(request), arrow=_is_arrow(request, "content-type"))

        return await _answered(found())

    @api.get(
        ITEM_ROUTE,
        summary="One row, with its code and payload",
        response_model=Item,
        responses={
            200: in_arrow,
            404: {"model": ErrorAnswer, "description": "No such row"},
            503: unavailable,
            **guarded,
        },
    )
    async def item(id: str, request: Request) -> Response:
        answer_in_arrow = _is_arrow(request, "accept")
        found = responder.item(id, answer_in_arrow=answer_in_arrow)
        return await _answered(found, answer.ARROW_STREAM if answer_in_arrow else "application/json")

    @api.get(INDEX_ROUTE, summary="What is served", responses=guarded)
    async def index() -> dict[str, Any]:
        return responder.info()

    @api.get(
        STATISTICS_ROUTE,
        summary="Figures about the codes of the index and the latest searches",
        responses={503: unavailable, **guarded},
    )
    async def statistics() -> Response:
        return await _answered(responder.statistics())

    @api.get("/live", summary="The process is up")
    async def live() -> dict[str, str]:
        return {"status": "live"}

    @api.get("/ready", summary="Every shard and the encoder answer a query", responses={503: unavailable})
    async def ready() -> Response:
        return await _answered(responder.ready())

    @api.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException) -> Response:
        if error.status_code == 404:
            message = f"{request.url.path}: no such path; /openapi.json lists them"
            return refuse(Refusal(404, "not_found", message))
        if error.status_code == 405:
            message = f"{request.url.path} does not know {request.method}"
            return refuse(Refusal(405, "method_not_allowed", message))
        return refuse(Refusal(error.status_code, "invalid_request", str(error.detail)))

    api.include_router(web.make_routes())
    # What is added last comes first: who is turned away is observed too, and a page elsewhere can read why.
    api.add_middleware(Guard, gate=responder.gate)
    if responder.access.origins:
        api.add_middleware(
            CORSMiddleware,
            allow_origins=responder.access.origins,
            allow_methods=["GET", "POST"],
            allow_headers=["Authorization", "Content-Type", "X-Request-ID"],
            expose_headers=["X-Request-ID", "Retry-After"],
        )
    api.add_middleware(Observed, observers=responder.observers)
    return api
