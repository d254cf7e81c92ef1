"""The asking side of what operators may call."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc

from tiermesh.v1 import admin_pb2 as pb
from tiermesh.v1 import admin_pb2_grpc

from . import wire_admin, wire_explain, wire_status
from .cache_types import CacheStats, Scope
from .errors import Unavailable
from .explanation import Explanation
from .router_status import RouterStatus
from .rpc_errors import from_rpc_error, has_details
from .types import Request

_TIMEOUT_S = 10.0


async def purge_cache(address: str, scope: Scope, key: str) -> None:
    """Has the router at "host:port" forget cached answers. Raises its error as ours."""
    async with _router(address) as stub:
        await stub.PurgeCache(wire_admin.scope_to(scope), timeout=_TIMEOUT_S, metadata=_metadata(key))


async def cache_stats(address: str, key: str) -> CacheStats:
    """What the cache of the router at "host:port" holds. Raises its error as ours."""
    async with _router(address) as stub:
        reply = await stub.GetCacheStats(pb.GetCacheStatsRequest(), timeout=_TIMEOUT_S, metadata=_metadata(key))
        return wire_admin.stats_from(reply)


async def explain(address: str, tenant: str, request: Request, key: str) -> Explanation:
    """What the router at "host:port" would do with a tenant's request. Raises its error as ours."""
    asked = wire_explain.asked_to(tenant, request)
    async with _router(address) as stub:
        return wire_explain.explanation_from(await stub.Explain(asked, timeout=_TIMEOUT_S, metadata=_metadata(key)))


async def router_status(address: str, key: str) -> RouterStatus:
    """How the router at "host:port" is now. Raises its error as ours."""
    async with _router(address) as stub:
        reply = await stub.GetStatus(pb.GetStatusRequest(), timeout=_TIMEOUT_S, metadata=_metadata(key))
        return wire_status.status_from(reply)


@asynccontextmanager
async def _router(address: str) -> AsyncIterator[Any]:
    """Its stub; what its calls raise comes out as ours."""
    async with grpc.aio.insecure_channel(address) as open_channel:
        try:
            yield admin_pb2_grpc.AdminServiceStub(open_channel)
        except grpc.RpcError as exc:
            raise _ours(exc, address) from exc


def _metadata(key: str) -> tuple[tuple[str, str], ...]:
    return (("authorization", f"Bearer {key}"),) if key else ()


def _ours(error: grpc.RpcError, address: str) -> Exception:
    ours = from_rpc_error(error)
    if isinstance(ours, Unavailable) and not has_details(error):
        return Unavailable(f"nothing answers at {address}; is a router running there?")
    return ours
