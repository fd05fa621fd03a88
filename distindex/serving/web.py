"""The web page at /: a few files of the package, read once, that need nothing from anywhere else."""

from __future__ import annotations

import hashlib
from importlib import resources

from fastapi import APIRouter, Request, Response

_FILES = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/page/style.css": ("style.css", "text/css; charset=utf-8"),
    "/page/page.js": ("page.js", "text/javascript; charset=utf-8"),
    "/page/draw.js": ("draw.js", "text/javascript; charset=utf-8"),
}
_HEADERS = {
    # Images may be addresses in a payload column; nothing else comes from other hosts.
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' data: http: https:; form-action 'none'; base-uri 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    # The page belongs to the release: asked for anew each time, answered without its content while it is the same.
    "Cache-Control": "no-cache",
}


def make_routes() -> APIRouter:
    """The page, its style and its scripts."""
    routes = APIRouter()
    for path, (name, media_type) in _FILES.items():
        content = (resources.files("distindex.serving") / "page" / name).read_bytes()
        routes.add_api_route(path, _answer(content, media_type), methods=["GET"], include_in_schema=False)
    return routes


def _answer(content: bytes, media_type: str):  # noqa: ANN202 (FastAPI reads the annotations of the inner function)
    tag = f'"{hashlib.sha256(content).hexdigest()[:16]}"'
    headers = {**_HEADERS, "ETag": tag}

    async def answer(request: Request) -> Response:
        if request.headers.get("if-none-match") == tag:
            return Response(status_code=304, headers=headers)
        return Response(content, media_type=media_type, headers=headers)

    return answer
