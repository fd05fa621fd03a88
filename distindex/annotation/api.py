"""The HTTP interface of the label page: small JSON answers, the images, and the page itself."""

from __future__ import annotations

import urllib.parse
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from fastapi import APIRouter, Depends, FastAPI, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, ValidationError
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException

import distindex
from distindex.annotation.desk import Desk
from distindex.errors import NotFoundError
from distindex.serving import web
from distindex.serving.access import Access, Gate, Guard
from distindex.serving.body import read_body
from distindex.serving.http_errors import refuse
from distindex.serving.refusal import Refusal, refusal_of
from distindex.serving.request import RequestError

BodyT = TypeVar("BodyT", bound="Body")

_MOST_BYTES = 1 << 20
_PAGE = {
    "/": ("distindex.annotation", "index.html"),
    "/page/label.css": ("distindex.annotation", "label.css"),
    "/page/label.js": ("distindex.annotation", "label.js"),
    **web.SHARED,
}


class Body(BaseModel):
    """Who asks."""

    model_config = ConfigDict(extra="forbid", strict=True)

    annotator: str


class NextBody(Body):
    """`again`: show also what this annotator has skipped."""

    again: bool = False


class SkipBody(Body):
    """`ids`: the item, or the two of a pair, as they were shown."""

    ids: list[str]


class VoteBody(SkipBody):
    """`labels` of an item, or whether the two of a pair are `similar`."""

    labels: list[str] | None = None
    similar: bool | None = None


def make_api(desk: Desk, access: Access, hosts: Sequence[str] = ()) -> FastAPI:
    """The page at / and the API over a desk.

    Args:
        desk: what is asked and answered.
        access: the tokens of which requests need one.
        hosts: the names that requests may call this machine by; empty takes any. Without tokens a page elsewhere
            could have its own name lead here (DNS rebinding), and label as if it were this one.
    """

    def called_by_its_name(request: Request) -> None:
        name = urllib.parse.urlsplit(f"//{request.headers.get('host', '')}").hostname
        if hosts and name not in hosts:
            raise HTTPException(403, f"host {name!r} is not the name of this service; it is {hosts[0]}")

    api = FastAPI(title="distindex label", version=distindex.__version__, docs_url=None, redoc_url=None)
    routes = APIRouter(prefix="/v1", dependencies=[Depends(called_by_its_name)])

    @routes.get("/task", summary="What is asked: of items or pairs, the classes, what the last labels brought")
    async def task() -> Response:
        return await _answered(desk.task)

    @routes.get("/progress", summary="How far the asking is")
    async def progress(annotator: str) -> Response:
        return await _answered(lambda: desk.progress(annotator))

    @routes.post("/next", summary="What to show next")
    async def next_one(request: Request) -> Response:
        return await _posted(request, NextBody, lambda body: desk.next(body.annotator, body.again))

    @routes.post("/vote", summary="Keep an answer, then say what to show next")
    async def vote(request: Request) -> Response:
        return await _posted(
            request, VoteBody, lambda body: desk.answer(body.annotator, body.ids, body.labels, body.similar)
        )

    @routes.post("/skip", summary="Leave an item to others, then say what to show next")
    async def skip(request: Request) -> Response:
        return await _posted(request, SkipBody, lambda body: desk.skip(body.annotator, body.ids))

    @routes.post("/undo", summary="Take back the latest answer or skip, and show it again")
    async def undo(request: Request) -> Response:
        return await _posted(request, Body, lambda body: desk.undo(body.annotator))

    @routes.get("/image", summary="The image of an item")
    async def image(id: str) -> Response:
        try:
            content, media_type = await run_in_threadpool(desk.image, id)
        except NotFoundError as error:
            return refuse(Refusal(404, "not_found", str(error)))
        except Exception as error:
            return refuse(refusal_of(error))
        headers = {"X-Content-Type-Options": "nosniff", "Cache-Control": "no-store"}
        return Response(content, media_type=media_type, headers=headers)

    @api.get("/health", summary="The process is up")
    async def health() -> dict[str, str]:
        return {"status": "ready"}

    @api.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException) -> Response:
        code = {403: "forbidden", 404: "not_found", 405: "method_not_allowed"}.get(
            error.status_code, "invalid_request"
        )
        return refuse(Refusal(error.status_code, code, f"{request.method} {request.url.path}: {error.detail}"))

    api.include_router(routes)
    api.include_router(web.make_routes(_PAGE, images="'self' data: blob:"))
    api.add_middleware(Guard, gate=Gate(access))
    return api


async def _answered(work: Callable[[], Any]) -> Response:
    """What the desk says, or its error in the form of all errors."""
    try:
        return JSONResponse(await run_in_threadpool(work), headers={"Cache-Control": "no-store"})
    except Exception as error:
        return refuse(refusal_of(error))


async def _posted(request: Request, model: type[BodyT], work: Callable[[BodyT], Any]) -> Response:
    # Forms of other pages cannot send this type without asking first, which is not answered.
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        return refuse(Refusal(415, "invalid_request", "the body must be application/json"))
    try:
        body = model.model_validate_json(await read_body(request, _MOST_BYTES))
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        return refuse(Refusal(400, "invalid_request", first["msg"], ".".join(map(str, first["loc"])) or None))
    except RequestError as error:
        return refuse(refusal_of(error))
    return await _answered(lambda: work(body))
