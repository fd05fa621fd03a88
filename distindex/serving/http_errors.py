"""Errors over HTTP: JSON with a status."""

from __future__ import annotations

from collections.abc import Mapping

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


def refuse(refusal: Refusal, headers: Mapping[str, str] | None = None) -> JSONResponse:
    """A refusal over HTTP.

    Args:
        refusal: what to say.
        headers: headers of the answer besides Retry-After.
    """
    detail = ErrorDetail(code=refusal.code, message=refusal.message, field=refusal.field)
    waits = {} if refusal.retry_after_s is None else {"Retry-After": str(refusal.retry_after_s)}
    return JSONResponse(ErrorAnswer(error=detail).model_dump(), refusal.status, {**waits, **(headers or {})})
