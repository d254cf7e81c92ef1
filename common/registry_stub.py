"""The asking side of what workers tell routers."""

from __future__ import annotations

from typing import Any

import grpc

from tiermesh.v1 import registry_pb2 as pb
from tiermesh.v1 import registry_pb2_grpc

from .rpc_errors import from_rpc_error

_TIMEOUT_S = 2.0


async def announce(router: grpc.aio.Channel, address: str, token: str | None, *, leaving: bool) -> float:
    """A worker at "host:port" is there, or leaves; seconds for which the router keeps it. Raises TiermeshError."""
    stub: Any = registry_pb2_grpc.RegistryServiceStub(router)
    metadata = [("authorization", f"Bearer {token}")] if token else []
    request = pb.AnnounceRequest(address=address, leaving=leaving)
    try:
        reply = await stub.Announce(request, metadata=metadata, timeout=_TIMEOUT_S)
    except grpc.RpcError as exc:
        raise from_rpc_error(exc) from exc
    return float(reply.lease_ms) / 1000
