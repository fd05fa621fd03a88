"""Errors over gRPC: a status, and its details in the messages of google.rpc that every language knows."""

from __future__ import annotations

import grpc
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.message import DecodeError, Message
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status

from distindex.serving.refusal import Refusal

DOMAIN = "distindex"
_DETAILS = "grpc-status-details-bin"

# By the code of a refusal. What is too large stays so: RESOURCE_EXHAUSTED would tell its caller to try again.
_STATUS = {
    "invalid_request": grpc.StatusCode.INVALID_ARGUMENT,
    "too_large": grpc.StatusCode.INVALID_ARGUMENT,
    "unauthorized": grpc.StatusCode.UNAUTHENTICATED,
    "not_found": grpc.StatusCode.NOT_FOUND,
    "conflict": grpc.StatusCode.ABORTED,
    "busy": grpc.StatusCode.RESOURCE_EXHAUSTED,
    "too_many": grpc.StatusCode.RESOURCE_EXHAUSTED,
    "internal": grpc.StatusCode.INTERNAL,
    "unavailable": grpc.StatusCode.UNAVAILABLE,
    "deadline_exceeded": grpc.StatusCode.DEADLINE_EXCEEDED,
}
_HTTP_STATUS = "http_status"


def status_of(refusal: Refusal) -> tuple[grpc.StatusCode, tuple[tuple[str, bytes], ...]]:
    """The status of a refusal, and the trailing metadata with its details."""
    code = _STATUS[refusal.code]
    info = ErrorInfo(reason=refusal.code, domain=DOMAIN, metadata={_HTTP_STATUS: str(refusal.status)})
    details: list[Message] = [info]
    if refusal.field is not None:
        violation = BadRequest.FieldViolation(field=refusal.field, description=refusal.message)
        details.append(BadRequest(field_violations=[violation]))
    if refusal.retry_after_s is not None:
        wait = RetryInfo()
        wait.retry_delay.FromSeconds(refusal.retry_after_s)
        details.append(wait)
    packed = [AnyMessage() for _ in details]
    for one, detail in zip(packed, details, strict=True):
        one.Pack(detail)
    status = Status(code=code.value[0], message=refusal.message, details=packed)
    return code, ((_DETAILS, status.SerializeToString()),)


def refusal_in(message: str, metadata: grpc.aio.Metadata | tuple[tuple[str, str | bytes], ...]) -> Refusal | None:
    """The inverse of `status_of`; None where the details are not those of a service of ours.

    Args:
        message: the details of the error, in the words of gRPC.
        metadata: its trailing metadata.
    """
    status, info, violations, wait = Status(), ErrorInfo(), BadRequest(), RetryInfo()
    data = next((value for key, value in metadata if key == _DETAILS), b"")
    try:
        status.MergeFromString(data)  # type: ignore[arg-type]
        kinds = (info, violations, wait)
        found = {kind.DESCRIPTOR.name for kind in kinds for detail in status.details if detail.Unpack(kind)}
    except DecodeError:
        return None
    if info.domain != DOMAIN or info.reason not in _STATUS:
        return None
    return Refusal(
        int(info.metadata[_HTTP_STATUS]),
        info.reason,
        message,
        violations.field_violations[0].field if "BadRequest" in found else None,
        wait.retry_delay.ToSeconds() if "RetryInfo" in found else None,
    )
