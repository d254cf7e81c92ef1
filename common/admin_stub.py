"""The asking side of what operators may call."""

from __future__ import annotations

import grpc

from tiermesh.v1 import admin_pb2 as pb
from tiermesh.v1 import admin_pb2_grpc

from . import wire_admin
from .cache_types import CacheStats, Scope
from .errors import Unavailable
from .rpc_errors import from_rpc_error, has_details

_TIMEOUT_S = 10.0


async def purge_cache(address: str, scope: Scope, key: str) -> None:
    """Has the router at "host:port" forget cached answers. Raises its error as ours."""
    async with grpc.aio.insecure_channel(address) as open_channel:
        stub = admin_pb2_grpc.AdminServiceStub(open_channel)
        try:
            await stub.PurgeCache(wire_admin.scope_to(scope), timeout=_TIMEOUT_S, metadata=_metadata(key))
        except grpc.RpcError as exc:
            raise _ours(exc, address) from exc


async def cache_stats(address: str, key: str) -> CacheStats:
    """What the cache of the router at "host:port" holds. Raises its error as ours."""
    async with grpc.aio.insecure_channel(address) as open_channel:
        stub = admin_pb2_grpc.AdminServiceStub(open_channel)
        try:
            reply = await stub.GetCacheStats(pb.GetCacheStatsRequest(), timeout=_TIMEOUT_S, metadata=_metadata(key))
        except grpc.RpcError as exc:
            raise _ours(exc, address) from exc
        return wire_admin.stats_from(reply)


def _metadata(key: str) -> tuple[tuple[str, str], ...]:
    return (("authorization", f"Bearer {key}"),) if key else ()


def _ours(error: grpc.RpcError, address: str) -> Exception:
    ours = from_rpc_error(error)
    if isinstance(ours, Unavailable) and not has_details(error):
        return Unavailable(f"nothing answers at {address}; is a router running there?")
    return ours
