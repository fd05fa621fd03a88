"""Web pages of the package: a few files, read once, that need nothing from anywhere else."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from importlib import resources

from fastapi import APIRouter, Request, Response

SHARED = {
    "/page/style.css": ("distindex.serving", "style.css"),
    "/page/common.js": ("distindex.serving", "common.js"),
}
"""What every page has: for each path the package, and the file in its directory `page`."""
_SEARCH = {
    "/": ("distindex.serving", "index.html"),
    "/page/page.js": ("distindex.serving", "page.js"),
    "/page/draw.js": ("distindex.serving", "draw.js"),
    **SHARED,
}
_MEDIA_TYPES = {
    "html": "text/html; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
}


def make_routes(
    files: Mapping[str, tuple[str, str]] = _SEARCH, images: str = "'self' data: http: https:"
) -> APIRouter:
    """A page, its style and its scripts; by default the page to search on.

    Args:
        files: for each path the package, and the file in its directory `page`.
        images: where images may come from, as a content security policy says it; nothing else comes from other hosts.
            Images may be addresses in a payload column.
    """
    routes = APIRouter()
    for path, (package, name) in files.items():
        content = (resources.files(package) / "page" / name).read_bytes()
        answer = _answer(content, _MEDIA_TYPES[name.rpartition(".")[2]], images)
        routes.add_api_route(path, answer, methods=["GET"], include_in_schema=False)
    return routes


def _answer(content: bytes, media_type: str, images: str):  # noqa: ANN202 (FastAPI reads the annotations of the inner function)
    tag = f'"{hashlib.sha256(content).hexdigest()[:16]}"'
    headers = {
        "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
        f"img-src {images}; form-action 'none'; base-uri 'none'; frame-ancestors 'none'",
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        # A page belongs to the release: asked for anew each time, answered without its content while it is the same.
        "Cache-Control": "no-cache",
        "ETag": tag,
    }

    async def answer(request: Request) -> Response:
        if request.headers.get("if-none-match") == tag:
            return Response(status_code=304, headers=headers)
        return Response(content, media_type=media_type, headers=headers)

    return answer
