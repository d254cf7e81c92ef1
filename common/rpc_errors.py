"""Our errors ⇄ google.rpc.Status: ErrorInfo always, BadRequest, RetryInfo or QuotaFailure where they fit."""

from __future__ import annotations

from typing import Any

import grpc
from google.protobuf import any_pb2, duration_pb2
from google.protobuf.message import DecodeError, Message
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status

from .errors import (
    DeadlineExceeded,
    Overloaded,
    QuotaExceeded,
    RequestTooLarge,
    TiermeshError,
    Violation,
    error_of,
)
from .validate import MAX_MESSAGE_BYTES, MAX_METADATA_BYTES

DOMAIN = "tiermesh"
_STATUS_KEY = "grpc-status-details-bin"


_MESSAGE_BYTES, _VIOLATION_BYTES = 1024, 192
_MOST_VIOLATIONS = 8
"""Errors quote what was asked for. With these a status stays below the 8 KiB of metadata that a client takes."""


def status_of(error: TiermeshError) -> status_pb2.Status:
    """The rich status of an error; of very long texts the beginning."""
    violations = error.violations[:_MOST_VIOLATIONS]
    details = [_packed(error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN))]
    if violations and isinstance(error, QuotaExceeded):
        quota = error_details_pb2.QuotaFailure(
            violations=[
                error_details_pb2.QuotaFailure.Violation(
                    subject=v.field, description=_cut(v.description, _VIOLATION_BYTES)
                )
                for v in violations
            ]
        )
        details.append(_packed(quota))
    elif violations:
        bad = error_details_pb2.BadRequest(
            field_violations=[
                error_details_pb2.BadRequest.FieldViolation(
                    field=v.field, description=_cut(v.description, _VIOLATION_BYTES)
                )
                for v in violations
            ]
        )
        details.append(_packed(bad))
    if error.retry_after_s is not None:
        delay = duration_pb2.Duration()
        delay.FromNanoseconds(round(error.retry_after_s * 1e9))
        details.append(_packed(error_details_pb2.RetryInfo(retry_delay=delay)))
    code = code_pb2.Code.ValueType(error.grpc_code)
    return status_pb2.Status(code=code, message=_cut(error.message, _MESSAGE_BYTES), details=details)


def _cut(text: str, most: int) -> str:
    data = text.encode(errors="replace")
    return text if len(data) <= most else data[:most].decode(errors="ignore") + "…"


def _packed(message: Message) -> any_pb2.Any:
    packed = any_pb2.Any()
    packed.Pack(message)
    return packed


async def abort(context: grpc.aio.ServicerContext[Any, Any], error: TiermeshError) -> None:
    """Ends the call with the error; raises, as grpc's own abort does."""
    status = rpc_status.to_status(status_of(error))
    await context.abort(status.code, status.details, status.trailing_metadata)


def from_rpc_error(error: grpc.RpcError) -> TiermeshError:
    """Our error for a failed call: from the rich status, else (a proxy or grpc itself answered) from the bare code."""
    assert isinstance(error, grpc.Call | grpc.aio.AioRpcError)
    code: int = error.code().value[0]
    message = error.details() or error.code().name
    for key, value in error.trailing_metadata() or ():
        if key == _STATUS_KEY and isinstance(value, bytes):
            try:
                return _from_status(status_pb2.Status.FromString(value), code, message)
            except DecodeError:
                break
    if code == DeadlineExceeded.grpc_code:
        return DeadlineExceeded("the deadline passed before the answer was complete; allow more time")
    if code == Overloaded.grpc_code and "larger than max" in message:
        return RequestTooLarge(f"the message is larger than the limit of {MAX_MESSAGE_BYTES} bytes; send less")
    if code == Overloaded.grpc_code and "metadata size exceeds" in message:
        return RequestTooLarge(f"the metadata are larger than the limit of {MAX_METADATA_BYTES} bytes; send less")
    return error_of("", code, message)


def has_details(error: grpc.RpcError) -> bool:
    """Whether a server of ours answered, rather than grpc itself or a proxy."""
    assert isinstance(error, grpc.Call | grpc.aio.AioRpcError)
    return any(key == _STATUS_KEY for key, _ in error.trailing_metadata() or ())


def _from_status(status: status_pb2.Status, code: int, message: str) -> TiermeshError:
    reason, retry_after_s = "", None
    violations: list[Violation] = []
    info = error_details_pb2.ErrorInfo()
    bad = error_details_pb2.BadRequest()
    quota = error_details_pb2.QuotaFailure()
    retry = error_details_pb2.RetryInfo()
    for detail in status.details:
        if detail.Unpack(info):
            reason = info.reason
        elif detail.Unpack(bad):
            violations += [Violation(v.field, v.description) for v in bad.field_violations]
        elif detail.Unpack(quota):
            violations += [Violation(v.subject, v.description) for v in quota.violations]
        elif detail.Unpack(retry):
            retry_after_s = retry.retry_delay.ToNanoseconds() / 1e9
    return error_of(reason, code, status.message or message, violations=violations, retry_after_s=retry_after_s)
