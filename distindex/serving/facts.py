"""What can be asked beside searches: the codes of queries, and figures about the index and the service."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any, Protocol

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse

from distindex.codes import CodeArray, to_hex
from distindex.index.statistics import ShardStatistics
from distindex.serving.activity import Activity
from distindex.serving.request import Logits, SearchRequest


class Backend(Protocol):
    """What is needed of the application behind the API."""

    async def codes_of(self, request: SearchRequest) -> tuple[CodeArray, Logits | None]:
        """The codes `code_QC` of the queries, and their logits `logit_QK` where there are some."""
        ...

    async def statistics(self) -> ShardStatistics:
        """Counts over the codes of the version that is served."""
        ...

    def info(self) -> dict[str, Any]:
        """What is served."""
        ...


def make_routes(
    backend: Backend,
    activity: Activity,
    taken: Callable[[Request], AbstractAsyncContextManager[SearchRequest]],
    failed: Callable[[Exception], Response],
    openapi: dict[str, Any],
) -> APIRouter:
    """The routes /v1/codes and /v1/statistics.

    Args:
        backend: answers them.
        activity: the latest searches.
        taken: the request in a body like that of /v1/search, which is at work inside the context.
        failed: the answer to a request that raised.
        openapi: what the OpenAPI document says of that body and of errors.
    """
    routes = APIRouter()

    @routes.post("/v1/codes", summary="The codes of queries, and their logits", **openapi)
    async def codes(http_request: Request) -> Response:
        try:
            async with taken(http_request) as request:
                code_QC, logit_QK = await backend.codes_of(request)
            return JSONResponse(
                {
                    "version": backend.info()["version"],
                    "bits": backend.info()["bits"],
                    "codes": to_hex(code_QC),
                    "logits": None if logit_QK is None else logit_QK.tolist(),
                }
            )
        except Exception as error:  # every failure leaves as JSON in one form
            return failed(error)

    @routes.get("/v1/statistics", summary="Figures about the codes of the index and the latest searches")
    async def statistics() -> Response:
        try:
            counts = await backend.statistics()
        except Exception as error:  # every failure leaves as JSON in one form
            return failed(error)
        share_K = counts.ones_share()
        sizes = counts.bucket_sizes()
        return JSONResponse(
            {
                "version": backend.info()["version"],
                "bit_balance": None if share_K is None else [round(share, 4) for share in share_K.tolist()],
                "bucket_sizes": [{"fewest": fewest, "most": most, "codes": codes} for fewest, most, codes in sizes],
                "searches": activity.figures(),
            }
        )

    return routes
