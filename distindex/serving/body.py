"""The body of a search, checked: JSON or an Arrow stream in, a request within the limits out."""

from __future__ import annotations

import base64
import dataclasses
import typing
from typing import Annotated, Any, TypeVar

from fastapi import Request
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, WithJsonSchema

from distindex.serving import question
from distindex.serving.request import Field as Kind
from distindex.serving.request import RequestError, SearchRequest, make_request

SettingsT = TypeVar("SettingsT", bound="Settings")

MAX_BODY_BYTES = 64 << 20
# A million answers are about 100 MB of JSON, built in one process that others wait for.
MAX_ANSWERS = 1_000_000
# Some 40 bytes each in every shard.
MAX_CANDIDATES = 2_000_000


@dataclasses.dataclass(frozen=True)
class Limits:
    """What one request may ask for.

    Attributes:
        max_queries: queries in one request.
        max_k: answers per query.
        max_requests: requests at work at once in one process.
        max_answers: answers in one request.
        max_candidates: candidates of a rescored search in one request, over all its queries.
        max_body_bytes: size of the request's body in bytes.
    """

    max_queries: int
    max_k: int
    max_requests: int
    max_answers: int = MAX_ANSWERS
    max_candidates: int = MAX_CANDIDATES
    max_body_bytes: int = MAX_BODY_BYTES


def _one_or_many(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


def _one_or_many_ids(value: Any) -> Any:
    return [value] if isinstance(value, str | int) else value


def _one_or_many_rows(value: Any) -> Any:
    alone = isinstance(value, list) and value and isinstance(value[0], int | float) and not isinstance(value[0], bool)
    return [value] if alone else value


Rows = Annotated[
    list[list[float]],
    BeforeValidator(_one_or_many_rows, json_schema_input_type=list[float] | list[list[float]]),
]


# `make_request` checks these, for every way in; here they are only told.
_AT_LEAST_0 = WithJsonSchema({"type": ["integer", "null"], "minimum": 0})
_AT_LEAST_1 = WithJsonSchema({"type": ["integer", "null"], "minimum": 1})


class Settings(BaseModel):
    """What is asked of the queries: k or radius, and how."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    k: Annotated[int | None, _AT_LEAST_1] = None
    radius: Annotated[int | None, _AT_LEAST_0] = None
    limit: Annotated[int | None, _AT_LEAST_1] = None
    columns: list[str] = []
    allow_partial: bool = False
    rescore: bool = False
    candidates: Annotated[int | None, _AT_LEAST_1] = None
    timeout_ms: Annotated[
        int | None, _AT_LEAST_1, Field(description="Answer within this time, or with the status 504")
    ] = None
    filter: Annotated[
        str | None,
        Field(
            description="Only rows whose payload passes, applied before the nearest are chosen: comparisons of a "
            "column with constants (== != < <= > >= in), joined by and, or, not and parentheses",
            examples=['label == "sport" and year >= 2020'],
        ),
    ] = None


class SearchBody(Settings):
    """The body of /v1/search: exactly one of codes, vectors, texts, images, logits and items, and k or radius."""

    model_config = ConfigDict(json_schema_extra={"oneOf": [{"required": [name]} for name in typing.get_args(Kind)]})

    codes: Annotated[list[str], BeforeValidator(_one_or_many, json_schema_input_type=str | list[str])] | None = None
    vectors: Rows | None = None
    texts: Annotated[list[str], BeforeValidator(_one_or_many, json_schema_input_type=str | list[str])] | None = None
    images: Annotated[
        list[str] | None,
        BeforeValidator(_one_or_many, json_schema_input_type=str | list[str]),
        Field(description="PNG, JPEG or WebP files in base64"),
    ] = None
    logits: Rows | None = None
    items: Annotated[
        list[Any] | None,
        BeforeValidator(_one_or_many_ids, json_schema_input_type=int | str | list[int | str]),
        Field(description="Ids of rows, whose codes are searched; no row answers its own query"),
    ] = None


async def read_body(request: Request, limit: int) -> bytes:
    """The body of a request.

    Raises:
        RequestError: it is larger than `limit` bytes.
    """
    too_large = RequestError(f"the body is larger than {limit} bytes: send fewer queries at once", None, True)
    if int(request.headers.get("content-length") or 0) > limit:
        raise too_large
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size > limit:
            raise too_large
        parts.append(part)
    return b"".join(parts)


def _where(location: tuple[int | str, ...]) -> str | None:
    path = ""
    for part in location:
        path += f"[{part}]" if isinstance(part, int) else f".{part}" if path else str(part)
    return path or None


def parse(data: bytes, limits: Limits) -> SearchRequest:
    """A request from the JSON body of /v1/search.

    Raises:
        RequestError: it is not JSON, has an unknown or ill-typed field, or asks for more than the limits.
    """
    body = _read(SearchBody, data)
    return _within(limits, make_request(**{**body.model_dump(), "images": _decoded(body.images)}))


def parse_arrow(data: bytes, limits: Limits) -> SearchRequest:
    """A request from a body that is an Arrow stream; see `question`.

    Raises:
        RequestError: as `parse`, or it is not such a stream.
    """
    queries, settings = question.from_arrow(data)
    return _within(limits, make_request(**queries, **_read(Settings, settings).model_dump()))


def _read(model: type[SettingsT], data: bytes) -> SettingsT:
    try:
        return model.model_validate_json(data)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        known = model.model_fields
        message = first["msg"]
        if first["type"] == "extra_forbidden":
            message = f"unknown field; the fields are {', '.join(known)}"
        raise RequestError(message, _where(first["loc"])) from error


def _within(limits: Limits, request: SearchRequest) -> SearchRequest:
    if len(request) > limits.max_queries:
        raise RequestError(
            f"{len(request)} queries, but at most {limits.max_queries} in one request", request.field, True
        )
    for name, value in (("k", request.k), ("limit", request.limit)):
        if value is None:
            continue
        if value > limits.max_k:
            raise RequestError(f"{value} is more than the {limits.max_k} answers that a query may ask for", name)
        if value * len(request) > limits.max_answers:
            raise RequestError(
                f"{len(request)} queries of {value} answers are more than {limits.max_answers} answers: "
                "send fewer queries at once",
                name,
                True,
            )
    if request.candidates is not None and request.candidates * len(request) > limits.max_candidates:
        raise RequestError(
            f"{len(request)} queries of {request.candidates} candidates are more than {limits.max_candidates} "
            "candidates: send fewer queries at once",
            "candidates",
            True,
        )
    return request


def _decoded(images: list[str] | None) -> list[bytes] | None:
    if images is None:
        return None
    files = []
    for row, image in enumerate(images):
        try:
            files.append(base64.b64decode(image, validate=True))
        except ValueError as error:  # characters beyond ASCII are no binascii.Error
            raise RequestError("not base64", f"images[{row}]") from error
    return files
