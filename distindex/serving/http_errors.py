"""Errors over HTTP: JSON with a status."""

from __future__ import annotations

from fastapi.responses import JSONResponse
from pydantic import BaseModel

from distindex.serving.refusal import Refusal


class ErrorDetail(BaseModel):
    """What is wrong and, where one part of the request is to blame, which."""

    code: str
    message: str
    field: str | None


class ErrorAnswer(BaseModel):
    """Every error has this form."""

    error: ErrorDetail


def refuse(refusal: Refusal) -> JSONResponse:
    """A refusal over HTTP, with the headers that go with its status."""
    detail = ErrorDetail(code=refusal.code, message=refusal.message, field=refusal.field)
    headers = {} if refusal.retry_after_s is None else {"Retry-After": str(refusal.retry_after_s)}
    if refusal.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return JSONResponse(ErrorAnswer(error=detail).model_dump(), refusal.status, headers)
