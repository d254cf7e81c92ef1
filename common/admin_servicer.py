"""What operators may call, over a port that a router implements."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import grpc

from tiermesh.v1 import admin_pb2 as pb
from tiermesh.v1 import admin_pb2_grpc

from . import wire_admin, wire_explain, wire_status
from .cache_types import CacheStats, Scope
from .explanation import Explanation
from .inference_servicer import guarded, metadata_of
from .router_status import RouterStatus
from .types import Request


class Operated(Protocol):
    """What is operated. Every method raises TiermeshError for what it refuses."""

    def check_operator(self, metadata: Mapping[str, str]) -> None:
        """Raises Unauthenticated or Forbidden unless an operator calls."""
        ...

    async def purge_cache(self, scope: Scope) -> None:
        """Forgets cached answers."""
        ...

    async def cache_stats(self) -> CacheStats:
        """What the cache holds, and how it fares."""
        ...

    async def explain(self, tenant: str, request: Request) -> Explanation:
        """What would become of a tenant's request; changes nothing."""
        ...

    async def status(self) -> RouterStatus:
        """Configuration, tiers, tenants and workers as they are now."""
        ...


class AdminServicer(admin_pb2_grpc.AdminServiceServicer):
    """Converts, and turns errors into statuses; nothing else."""

    def __init__(self, operated: Operated) -> None:
        self._operated = operated

    async def PurgeCache(
        self, request: pb.PurgeCacheRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> pb.PurgeCacheResponse:
        """Forgets cached answers."""

        async def answer() -> pb.PurgeCacheResponse:
            self._operated.check_operator(metadata_of(context))
            await self._operated.purge_cache(wire_admin.scope_from(request))
            return pb.PurgeCacheResponse()

        return await guarded(context, "PurgeCache", answer())

    async def GetCacheStats(
        self, request: pb.GetCacheStatsRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> pb.GetCacheStatsResponse:
        """What the cache holds, and how it fares."""

        async def answer() -> pb.GetCacheStatsResponse:
            self._operated.check_operator(metadata_of(context))
            return wire_admin.stats_to(await self._operated.cache_stats())

        return await guarded(context, "GetCacheStats", answer())

    async def Explain(
        self, request: pb.ExplainRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> pb.ExplainResponse:
        """What would become of a request."""

        async def answer() -> pb.ExplainResponse:
            self._operated.check_operator(metadata_of(context))
            return wire_explain.explanation_to(await self._operated.explain(*wire_explain.asked_from(request)))

        return await guarded(context, "Explain", answer())

    async def GetStatus(
        self, request: pb.GetStatusRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> pb.GetStatusResponse:
        """Configuration, tiers, tenants and workers."""

        async def answer() -> pb.GetStatusResponse:
            self._operated.check_operator(metadata_of(context))
            return wire_status.status_to(await self._operated.status())

        return await guarded(context, "GetStatus", answer())
