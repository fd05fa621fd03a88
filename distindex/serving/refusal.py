"""The one form of every error, whatever carries it."""

from __future__ import annotations

import dataclasses
import logging

from distindex.errors import (
    BusyError,
    ConflictError,
    DamagedError,
    DeadlineError,
    FormatError,
    InputError,
    NotFoundError,
    UnavailableError,
)
from distindex.serving.items import UnknownItemError
from distindex.serving.request import RequestError

logger = logging.getLogger(__name__)

# What callers sent comes back in messages, and gRPC has them in headers, which take 8 KiB.
_LONGEST_MESSAGE, _LONGEST_FIELD = 1000, 200


@dataclasses.dataclass(frozen=True)
class Refusal:
    """Why a request has no other answer.

    Attributes:
        status: the HTTP status.
        code: what kind of error it is, for programs.
        message: what is wrong and what to do, for people.
        field: the part of the request that is to blame, if one is.
        retry_after_s: for those who may succeed later, when to try again.
    """

    status: int
    code: str
    message: str
    field: str | None = None
    retry_after_s: int | None = None


def refusal_of(error: Exception) -> Refusal:
    """What a caller is told of an error; one that is not the caller's is logged and not shown."""
    message = _cut(" ".join(str(error).split()), _LONGEST_MESSAGE)
    if isinstance(error, RequestError):
        field = None if error.field is None else _cut(error.field, _LONGEST_FIELD)
        if isinstance(error, UnknownItemError):
            return Refusal(404, "not_found", message, field)
        status, code = (413, "too_large") if error.too_large else (400, "invalid_request")
        return Refusal(status, code, message, field)
    if isinstance(error, BusyError):
        return Refusal(429, "busy", message, retry_after_s=1)
    if isinstance(error, DeadlineError):
        return Refusal(504, "deadline_exceeded", message)
    if isinstance(error, ConflictError):
        return Refusal(409, "conflict", message)
    if isinstance(error, UnavailableError):
        return Refusal(503, "unavailable", message, retry_after_s=1)
    # A stored file that is missing or damaged is not the caller's fault, though it is an InputError to a builder.
    if isinstance(error, InputError) and not isinstance(error, DamagedError | FormatError | NotFoundError):
        return Refusal(400, "invalid_request", message)
    logger.error("a request failed", exc_info=error)
    return Refusal(500, "internal", "the service failed to answer; its log says why")


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"
