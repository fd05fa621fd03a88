"""The one form of every error over HTTP."""

from __future__ import annotations

from collections.abc import Mapping

from fastapi.responses import JSONResponse
from pydantic import BaseModel


class ErrorDetail(BaseModel):
    """What is wrong and, where one part of the request is to blame, which."""

    code: str
    message: str
    field: str | None


class ErrorAnswer(BaseModel):
    """Every error has this form."""

    error: ErrorDetail


def refuse(
    status: int, code: str, message: str, field: str | None = None, headers: Mapping[str, str] | None = None
) -> JSONResponse:
    """The answer to a request that cannot be answered otherwise.

    Args:
        status: the HTTP status.
        code: what kind of error it is, for programs.
        message: what is wrong and what to do, for people.
        field: the part of the request that is to blame, if one is.
        headers: headers of the answer; by default those who may succeed later are told to wait a second.
    """
    if headers is None and status in (429, 503):
        headers = {"Retry-After": "1"}
    body = {"error": {"code": code, "message": " ".join(message.split()), "field": field}}
    return JSONResponse(body, status, headers)
