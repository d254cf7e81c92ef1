"""Proto ⇄ our types: dry runs."""

from __future__ import annotations

from typing import cast

from tiermesh.v1 import admin_pb2 as pb

from . import wire
from .errors import InvalidRequest
from .explanation import Explanation, Source
from .types import Request


def asked_from(message: pb.ExplainRequest) -> tuple[str, Request]:
    """Tenant and request. Raises InvalidRequest."""
    if not message.tenant:
        raise InvalidRequest.field("tenant", "is missing; name who would ask")
    return message.tenant, wire.request_from(message.request)


def asked_to(tenant: str, request: Request) -> pb.ExplainRequest:
    """Raises InvalidRequest for what can't travel."""
    try:
        return pb.ExplainRequest(tenant=tenant, request=wire.request_to(request))
    except ValueError as exc:
        raise InvalidRequest.field("tenant", "must be valid Unicode text") from exc


def explanation_from(message: pb.ExplainResponse) -> Explanation:
    """Field by field."""
    return Explanation(
        admitted=message.admitted,
        error=wire.error_from(message.error) if message.HasField("error") else None,
        tier=message.tier,
        source=cast(Source, message.source),
        place=message.place,
        starts_in_s=message.starts_in_ms / 1e3 if message.HasField("starts_in_ms") else None,
        worker=message.worker,
        cost=message.cost,
        service_s=message.service_ms / 1e3,
        steps=tuple(message.steps),
    )


def explanation_to(told: Explanation) -> pb.ExplainResponse:
    """Field by field."""
    return pb.ExplainResponse(
        admitted=told.admitted,
        error=wire.error_to(told.error) if told.error is not None else None,
        tier=told.tier,
        source=told.source,
        place=told.place,
        starts_in_ms=None if told.starts_in_s is None else told.starts_in_s * 1e3,
        worker=told.worker,
        cost=told.cost,
        service_ms=told.service_s * 1e3,
        steps=told.steps,
    )
